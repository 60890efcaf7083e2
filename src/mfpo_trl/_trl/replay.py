"""TRL's loss over the branches of a batch: one forward, shown to TRL's own code as the batch that it expects."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from ..objective import IGNORED_LABEL, gather_branches, label_positions, labelled, of_pairs, shifted_labels

PER_TOKEN_OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""What TRL's fused LM head returns for every label position; None where nobody asked for it."""


class Replay:
    """Stands in for the model inside TRL's own code: runs the real forward once, keeps what every branch got, and shows
    TRL the chosen and rejected branches as if they were the two halves of its own batch.

    Args:
        model: the wrapped model, with TRL's fused LM head.
        inputs: what the model reads, with `labels` or `shift_labels`.
        branches, pairs: the tables of `mfpo_trl.objective.branches`, (N, 3) and (B, K).
        changed: which tokens of each branch differ from the other answer's, (N, C) bool, where terms read it.
        logits: whether terms read raw logits. The model's own LM head then gives those of all labelled positions, and what TRL's
            would give is taken from them.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: dict[str, Any],
        branches: Tensor,
        pairs: Tensor,
        changed: Tensor | None = None,
        logits: bool = False,
    ):
        self.model, self.inputs, self.branches, self.pairs = model, inputs, branches, pairs
        self.changed, self.reads_logits = changed, logits
        self._outputs: SimpleNamespace | None = None

    def __call__(self, *, fused_lm_head: bool = False, **_: Any) -> Any:
        if not fused_lm_head:
            return self.model(**{key: value for key, value in self.inputs.items() if not key.endswith("labels")})
        if self._outputs is None:
            self.score()
        per_token = {name: getattr(self.outputs, name) for name in PER_TOKEN_OUTPUTS}
        halves = {name: None if value is None else self._halves(value) for name, value in per_token.items()}
        return SimpleNamespace(**halves, aux_loss=self.outputs.aux_loss)

    def score(self, **kwargs: Any) -> None:
        """The one forward over all rows of all branches; only positions with a label reach the LM head."""
        inputs = {key: value for key, value in self.inputs.items() if not key.endswith("labels")}
        rows, positions, branch, offset = labelled(self.branches)
        labels = shifted_labels(self.inputs)[rows, positions]
        # Counted from the end of a row, because prompt-learning adapters put virtual tokens before it.
        scored = rows, positions - self.inputs["input_ids"].size(1)
        if self.reads_logits:
            outputs = self.model(**inputs, **kwargs, scored=scored, use_cache=False)
            # What is read for one token each, and of which token of which branch it is.
            self.logits, self._places = outputs.logits[0].float(), (branch, offset)
            read = {name: value[None] for name, value in _of_logits(self.logits, labels).items()}
        else:
            _unshard_head(self.model)
            outputs = self.model(
                **inputs, **kwargs, scored=scored, shift_labels=labels[None], use_cache=False, fused_lm_head=True
            )
            read = {name: getattr(outputs, name) for name in PER_TOKEN_OUTPUTS}
        shape = len(self.branches), int(offset.max()) + 1

        def per_branch(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.new_zeros(shape).index_put((branch, offset), value[0])

        per_token = {name: per_branch(value) for name, value in read.items()}
        self._outputs = SimpleNamespace(**per_token, aux_loss=getattr(outputs, "aux_loss", None))

    @property
    def outputs(self) -> SimpleNamespace:
        """Per token of each branch, (N, C): `log_probs`, and what else was asked of the LM head; and the `aux_loss`."""
        assert self._outputs is not None, "score comes first"
        return self._outputs

    @property
    def logps(self) -> Tensor:
        """Summed log-probability of each branch, (N,), in nats."""
        return self.outputs.log_probs.sum(dim=1)

    @property
    def changed_logps(self) -> Tensor:
        """Summed log-probability of each branch's changed tokens, (N,), in nats."""
        assert self.changed is not None, "the batch says which they are"
        return (self.outputs.log_probs * self.changed[:, : self.outputs.log_probs.size(1)]).sum(dim=1)

    def divergence(self, reference: "Replay") -> Tensor:
        """KL(reference || this model) over the vocabulary at each token of each branch, (N, C), in nats."""
        theirs = reference.logits.log_softmax(dim=-1)
        gaps = (theirs.exp() * (theirs - self.logits.log_softmax(dim=-1))).sum(dim=-1)
        return gaps.new_zeros(self.outputs.log_probs.shape).index_put(self._places, gaps)

    def preference_inputs(self) -> dict[str, Tensor]:
        """The batch that TRL's loss believes in: 2B rows of one prompt token and a completion, C + 1 tokens long. TRL reads
        `attention_mask` only to count tokens: it holds those that each chosen and rejected answer would have in a row of its
        own, in every layout."""
        scored = self._halves(gather_branches(label_positions(self.inputs), self.branches)).long()
        length = self._halves(self._lengths())[:, None]
        return {
            "input_ids": torch.zeros(len(scored), scored.size(1) + 1, dtype=torch.long, device=scored.device),
            "attention_mask": (torch.arange(int(length.max()), device=length.device) < length).long(),
            "completion_mask": torch.cat([self._halves(self._begins_row())[:, None].long(), scored], dim=1),
        }

    def _lengths(self) -> Tensor:
        """Tokens of each branch with its prompt, (N,)."""
        if "prefixes" in self.inputs:
            return self.branches[:, 2] + self.inputs["prefixes"][:, 1] + 1
        return self.inputs["attention_mask"].sum(dim=1)[self.branches[:, 0]]

    def _begins_row(self) -> Tensor:
        """Which branches begin with their row's first token, (N,) bool: `truncation_mode="keep_end"` may cut the whole prompt
        of a text. Nothing predicts that token, but TRL counts it where it divides by the number of tokens."""
        if "labels" not in self.inputs:
            return torch.zeros_like(self.branches[:, 0], dtype=torch.bool)
        return self.inputs["labels"][self.branches[:, 0], 0] != IGNORED_LABEL

    def _halves(self, per_branch: Tensor) -> Tensor:
        return torch.cat([of_pairs(per_branch, self.pairs, "chosen"), of_pairs(per_branch, self.pairs, "rejected")])


def _of_logits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What TRL's fused LM head gives of each token, and `label_logits`, its raw logit: logits (L, V), labels (L,) -> (L,) each. Gradients
    flow where TRL's loss and terms let them."""
    logps = logits.log_softmax(dim=-1)
    label = labels[:, None]
    read = {"log_probs": logps.gather(1, label)[:, 0], "label_logits": logits.gather(1, label)[:, 0]}
    with torch.no_grad():
        return read | {
            "entropy": -(logps.exp() * logps).sum(dim=-1),
            "log_sum_sq_probs": (2 * logps).logsumexp(dim=-1),
            "mean_logits": logits.mean(dim=-1),
            "is_top1": logits.argmax(dim=-1) == labels,
        }


def _unshard_head(model: Any) -> None:
    """Under FSDP2, put a trained LM head together before the forward: TRL's fused head would do it in a way that leaves each
    rank with its own gradient instead of the mean of all."""
    head: Any = model.get_output_embeddings() if hasattr(model, "unshard") else None
    if hasattr(head, "unshard") and head.weight.requires_grad and torch.is_grad_enabled():
        head.unshard()


def try_loss(trainer: DPOTrainer) -> None:
    """Run TRL's loss once, on two made-up answers of one token, and leave no trace.

    A loss or divergence that TRL does not know would be refused in the first step, after everything is loaded and scored.

    Raises:
        ValueError, NotImplementedError: as TRL's loss.
    """
    device = trainer.accelerator.device
    made = {name: torch.zeros(2, 1, device=device) for name in PER_TOKEN_OUTPUTS} | {
        "is_top1": torch.zeros(2, 1, dtype=torch.bool, device=device),
        "aux_loss": torch.zeros((), device=device),
    }
    tokens = torch.tensor([[0, 1], [0, 1]], device=device)
    inputs = {"input_ids": tokens, "attention_mask": tokens, "completion_mask": tokens}
    inputs |= {f"ref_{answer}_logps": torch.zeros(1, device=device) for answer in ("chosen", "rejected")}
    kept = trainer._metrics, trainer._total_train_tokens
    trainer._metrics = {mode: defaultdict(list) for mode in kept[0]}
    try:
        with reference_given(trainer), torch.no_grad():
            DPOTrainer._compute_loss(trainer, lambda **_: SimpleNamespace(**made), inputs, False)
    finally:
        trainer._metrics, trainer._total_train_tokens = kept


@contextmanager
def reference_given(trainer: DPOTrainer) -> Iterator[None]:
    """Make TRL's loss take the reference log-probabilities from the batch, as it does with a precomputed reference."""
    before = trainer.precompute_ref_logps
    trainer.precompute_ref_logps = True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = before


def scored(model: PreTrainedModel, outputs: tuple[str, ...]) -> PreTrainedModel:
    """The same model with TRL's fused LM head, for a `Replay` without a trainer; `outputs` out of `PER_TOKEN_OUTPUTS`."""
    add_fused_lm_head(model, outputs=outputs)
    return model
