"""Terms that weigh single tokens of the answers."""

import torch
from torch import Tensor

from ..losses import preferred
from ..names import CHOSEN, CORRUPTED, CORRUPTED_REJECTED, REJECTED
from ..ratios import LogRatios, TokenScores
from .term import Term


def segments(ratios: LogRatios, beta: float, *, changed_weight: float = 5.0) -> Tensor:
    """DPO of means over an answer's tokens, in which tokens of corrected segments count `changed_weight` times."""
    chosen, rejected = (
        ratios.weighted(branch, changed_weight) / ratios.weighted_length(branch, changed_weight).clamp(min=1)
        for branch in (CHOSEN, REJECTED)
    )
    return preferred(chosen, rejected, beta)


def segment_sums(ratios: LogRatios, beta: float, *, changed_weight: float = 5.0) -> Tensor:
    """The same of sums."""
    return preferred(ratios.weighted(CHOSEN, changed_weight), ratios.weighted(REJECTED, changed_weight), beta)


def hierarchical(
    ratios: LogRatios, beta: float, *, changed_weight: float = 4.0, divergence_weight: float = 0.1
) -> Tensor:
    """Response, segments, tokens and image in one sigmoid: `-log sigma(b [2 r_w - r_l - r'_w - g (KL_l - stopgrad KL_w)])`, in which a
    changed token counts `changed_weight` times in every r."""
    chosen, rejected, corrupted = (ratios.weighted(own, changed_weight) for own in (CHOSEN, REJECTED, CORRUPTED))
    return preferred(2 * chosen - rejected - corrupted, divergence_weight * diverged(ratios), beta)


def token_divergence(ratios: LogRatios, beta: float) -> Tensor:
    """`KL_l - stopgrad KL_w`, in nats without beta: how much further the policy has gone from the reference on the rejected answer."""
    return diverged(ratios)


def diverged(ratios: LogRatios) -> Tensor:
    """KL(reference || policy) summed over the rejected answer's tokens, less that of the chosen one without its gradient, (B,)."""
    chosen, rejected = (ratios.tokens[branch].divergence for branch in (CHOSEN, REJECTED))
    assert chosen is not None and rejected is not None, "the term reads logits"
    return rejected.sum(dim=1) - chosen.sum(dim=1).detach()


def calibrated(ratios: LogRatios, beta: float) -> Tensor:
    """DPO in which `log c_t` is added to each token's log-probability: `c = sigma(s) + 1/2` on chosen and `3/2 - sigma(s)` on rejected
    tokens, `s_t` the raw logit of the token under the row's image less that under the dispreferred one; of policy and reference each
    with its own."""
    chosen, looked = ratios.tokens[CHOSEN], ratios.tokens[CORRUPTED]
    rejected, rejected_looked = ratios.tokens[REJECTED], ratios.tokens[CORRUPTED_REJECTED]
    better = ratios.chosen + _calibration(chosen, looked, 1.0)
    worse = ratios.rejected + _calibration(rejected, rejected_looked, -1.0)
    return preferred(better, worse, beta)


def _calibration(seen: TokenScores, unseen: TokenScores, sign: float) -> Tensor:
    """`sum_t log c_t` of the policy less that of the reference, (B,)."""
    gaps = [
        _difference(seen.policy_logits, unseen.policy_logits),
        _difference(seen.reference_logits, unseen.reference_logits),
    ]
    # 3/2 - sigma(s) = 1/2 + sigma(-s)
    ours, theirs = (torch.log(torch.sigmoid(sign * gap) + 0.5) for gap in gaps)
    # An answer that loses its end loses it under both images, but not always at the same token.
    both = seen.scored & unseen.scored
    return torch.where(both, ours - theirs, 0.0).sum(dim=1)


def _difference(seen: Tensor | None, unseen: Tensor | None) -> Tensor:
    assert seen is not None and unseen is not None, "the term reads logits"
    return seen - unseen


DDPO, CHIP = "RLHF-V, arXiv 2312.00849", "CHiP, arXiv 2501.16629"
TOKEN_TERMS = (
    Term(
        "segments",
        (CHOSEN, REJECTED),
        segments,
        "-log sigma(b [s(y_w) - s(y_l)]), s = (sum_unchanged r_t + w sum_changed r_t) / (n_unchanged + w n_changed), w = changed_weight",
        source=DDPO,
        changed=True,
    ),
    Term(
        "segment_sums",
        (CHOSEN, REJECTED),
        segment_sums,
        "-log sigma(b [s(y_w) - s(y_l)]), s = sum_unchanged r_t + w sum_changed r_t, w = changed_weight",
        source=CHIP,
        changed=True,
    ),
    Term(
        "hierarchical",
        (CHOSEN, REJECTED, CORRUPTED),
        hierarchical,
        "-log sigma(b [2 s(y_w|m) - s(y_l|m) - s(y_w|m') - g (KL_l - stopgrad KL_w)]), s = sum_unchanged r_t + w sum_changed r_t, "
        "w = changed_weight, g = divergence_weight",
        source=CHIP,
        changed=True,
        logits=True,
    ),
    Term(
        "token_divergence",
        (CHOSEN, REJECTED),
        token_divergence,
        "KL(ref || policy on y_l) - stopgrad KL(ref || policy on y_w)",
        source=CHIP,
        logits=True,
    ),
    Term(
        "calibrated",
        (CHOSEN, REJECTED, CORRUPTED, CORRUPTED_REJECTED),
        calibrated,
        "-log sigma(b [r(y_w|m) - r(y_l|m) + sum_t log c_t(y_w) - sum_t log c_t(y_l)]), c = sigma(s) + 1/2 or 3/2 - sigma(s), s = logit "
        "under m - under m'; log c of the policy less of the reference",
        source="TPO, arXiv 2412.14487",
        logits=True,
    ),
)
