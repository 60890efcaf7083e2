"""What is logged beside TRL's metrics."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from .branches import has_branch
from .losses import modality_balance
from .names import CHOSEN, CORRUPTED
from .ratios import LogRatios

Counted = dict[str, tuple[float, float]]
"""The sum of a metric over what was counted, and how much was counted, by its name."""


CLIPPED = "completions/clipped_ratio"
"""TRL's name, in its trainers that generate, for the share of answers that lose their end."""


class Tally:
    """Means over many batches, each weighed by what was counted in it."""

    def __init__(self) -> None:
        self._totals: Counted = {}

    def add(self, counted: Counted) -> None:
        """Take in the sums of one batch; one that counted nothing changes nothing."""
        for name, (total, count) in counted.items():
            if count:
                sums = self._totals.get(name, (0.0, 0.0))
                self._totals[name] = (sums[0] + total, sums[1] + count)

    def pop(self) -> dict[str, float]:
        """The means since the last call."""
        totals, self._totals = self._totals, {}
        return {name: total / count for name, (total, count) in totals.items()}


class StepMetrics:
    """What is logged beside TRL's metrics, from one line of the log to the next, in training and in evaluation."""

    def __init__(self) -> None:
        self._tallies = {"train": Tally(), "eval": Tally()}
        self._cut = self._answers = 0.0

    def add(self, mode: str, counted: Counted) -> None:
        """Take in the sums of one batch; `mode` is TRL's, `train` or `eval`."""
        if mode == "train":
            cut, answers = counted.get(CLIPPED, (0, 0))
            self._cut, self._answers = self._cut + cut, self._answers + answers
        self._tallies[mode].add(counted)

    def pop(self, mode: str, text_margins: Sequence[float]) -> dict[str, float]:
        """The means since the last line, and the balance of text and image margins where both were counted.

        Args:
            text_margins: TRL's `rewards/margins` since then.
        """
        means = self._tallies[mode].pop()
        image = means.get("rewards/image_margins")
        if text_margins and image is not None:
            # From the means over the logged steps: a ratio of single batches would be mostly noise.
            means["rewards/modality_balance"] = modality_balance(sum(text_margins) / len(text_margins), image)
        return means

    def pop_cut(self) -> tuple[int, int]:
        """How many of how many answers have lost their end since the last call, in training."""
        found = int(self._cut), int(self._answers)
        self._cut = self._answers = 0.0
        return found


def batch_metrics(
    losses: Mapping[str, Tensor],
    logratios: LogRatios,
    pairs: Tensor,
    beta: float,
    image_beta: float,
    accelerator: Accelerator,
    attention_mask: Tensor,
    cut: Tensor | None,
    micro_batches: int | None,
) -> Counted:
    """Sums and counts over the batches of all ranks.

    Args:
        losses: scalar loss of each term.
        logratios: of the branches.
        pairs: which sample has which branch, (B, K).
        beta: of the text rewards, used for `rewards/chosen` where TRL's loss, which logs it, has no weight.
        image_beta: of the image rewards.
        attention_mask: of the rows as the model read them, (R, T).
        cut: which branches have lost the end of their answer, (N,) bool; None where none can. Of a pair's two answers under its
            own image, so that every layout counts the same.
        micro_batches: those of this optimizer step, whose mean `Trainer` logs as the loss; None in an evaluation, which weighs by
            samples.

    Returns:
        `loss/<term>`, counted as `Trainer` counts the loss; `tokens/padding`, counted in tokens; `completions/clipped_ratio`,
        counted in answers; `rewards/image_margins`,
        `rewards/image_accuracies` and `rewards/image_rejected`, counted in samples with an image. Rows that accelerate repeats so
        that every rank has as many batches count each time, as they do in TRL's own metrics, and not in `eval_loss`.
    """
    weight = len(pairs) if micro_batches is None else 1 / micro_batches
    totals = {f"loss/{name}": (weight * value.detach(), weight) for name, value in losses.items()}
    totals["tokens/padding"] = ((attention_mask == 0).sum(), attention_mask.numel())
    if cut is not None:
        answers = pairs[:, :2][pairs[:, :2] >= 0]
        totals[CLIPPED] = (cut[answers].sum(), len(answers))
    scored = set(logratios.policy)
    if "text" not in losses and CHOSEN in scored:
        totals["rewards/chosen"] = (beta * logratios.chosen.detach().sum(), len(pairs))
    if scored >= {CHOSEN, CORRUPTED}:
        seen = has_branch(pairs, CORRUPTED)
        chosen, rejected = (image_beta * logratios[branch].detach()[seen] for branch in (CHOSEN, CORRUPTED))
        totals["rewards/image_margins"] = ((chosen - rejected).sum(), len(chosen))
        totals["rewards/image_accuracies"] = ((chosen > rejected).sum(), len(chosen))
        totals["rewards/image_rejected"] = (rejected.sum(), len(chosen))
    # One reduction of a fixed shape: a rank whose batch has no image takes part with zeros instead of hanging the others.
    table = torch.stack([torch.stack([s.float(), s.new_tensor(n).float()]) for s, n in totals.values()])
    table = accelerator.reduce(table, reduction="sum").tolist()
    return {name: (total, count) for name, (total, count) in zip(totals, table, strict=True)}
