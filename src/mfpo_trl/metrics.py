"""What is logged beside TRL's metrics."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from .branches import has_branch


def batch_metrics(
    losses: Mapping[str, Tensor],
    logratios: Mapping[str, Tensor],
    pairs: Tensor,
    beta: float,
    image_beta: float,
    accelerator: Accelerator,
    attention_mask: Tensor,
) -> dict[str, float]:
    """Means over the batch of all ranks.

    Args:
        losses: scalar loss of each term.
        logratios: `r` of each branch, (B,) each, in nats.
        pairs: which sample has which branch, (B, 3).
        beta: of the text rewards, used for `rewards/chosen` where TRL's loss, which logs it, has no weight.
        image_beta: of the image rewards.
        attention_mask: of the rows as the model read them, (R, T).

    Returns:
        `loss/<term>`; `tokens/padding`, the share of padding among the tokens; over the samples with an image `rewards/image_margins`, `rewards/image_accuracies` and
        `rewards/image_rejected`, absent where no sample of any rank has one.
    """
    totals = {f"loss/{name}": (value.detach(), 1) for name, value in losses.items()}
    totals["tokens/padding"] = ((attention_mask == 0).sum(), attention_mask.numel())
    if "text" not in losses:
        totals["rewards/chosen"] = (beta * logratios["chosen"].detach().sum(), len(pairs))
    if "image" in losses:
        seen = has_branch(pairs, "corrupted")
        chosen, rejected = (image_beta * logratios[branch].detach()[seen] for branch in ("chosen", "corrupted"))
        totals["rewards/image_margins"] = ((chosen - rejected).sum(), len(chosen))
        totals["rewards/image_accuracies"] = ((chosen > rejected).sum(), len(chosen))
        totals["rewards/image_rejected"] = (rejected.sum(), len(chosen))
    # One reduction of a fixed shape: a rank whose batch has no image takes part with zeros instead of hanging the others.
    table = torch.stack([torch.stack([s.float(), s.new_tensor(n).float()]) for s, n in totals.values()])
    table = accelerator.reduce(table, reduction="sum").tolist()
    return {name: total / count for name, (total, count) in zip(totals, table, strict=True) if count}
