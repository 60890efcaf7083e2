"""Terms whose weight follows what the policy has learnt."""

import torch
from torch import Tensor

from ..losses import preferred
from ..names import CHOSEN, REJECTED
from ..ratios import LogRatios
from .term import Term

SCORES = ("chosen_score", "rejected_score")


def focal_text(
    ratios: LogRatios, beta: float, *, quality: float = 0.7, margin: float = 2.0, focus: float = 3.0
) -> Tensor:
    """DPO of means over tokens, weighed by the scores' gap and by how little the policy, without the reference, tells the answers apart."""
    lengths = {own: ratios.lengths[own].clamp(min=1) for own in (CHOSEN, REJECTED)}
    chosen, rejected = (ratios[own] / lengths[own] for own in lengths)
    gap = ratios.policy[CHOSEN] / lengths[CHOSEN] - ratios.policy[REJECTED] / lengths[REJECTED]
    good = torch.sigmoid(quality * (ratios.columns["chosen_score"] - ratios.columns["rejected_score"]))
    # 1 - sigma(z) = sigma(-z)
    unlearnt = torch.sigmoid(margin - beta * gap) ** focus
    return good * unlearnt * preferred(chosen, rejected, beta)


def gated_likelihood(ratios: LogRatios, beta: float, *, good: float = 2.5) -> Tensor:
    """The chosen answer's negative log-likelihood a token, where its score is at least `good` and the policy gives it less than the
    reference does."""
    gate = (ratios.columns["chosen_score"] >= good) & (ratios.chosen.detach() < 0)
    return -torch.where(gate, ratios.policy[CHOSEN] / ratios.lengths[CHOSEN].clamp(min=1), 0.0)


UNIDPO = "Uni-DPO, arXiv 2506.10054"
FOCAL_TERMS = (
    Term(
        "focal_text",
        (CHOSEN, REJECTED),
        focal_text,
        "-q (1 - sigma(b [a_w - a_l] - margin))^focus log sigma(b [r_w/n_w - r_l/n_l]), a = log pi / n, q = sigma(quality [score_w - "
        "score_l])",
        SCORES,
        UNIDPO,
    ),
    Term(
        "gated_likelihood",
        (CHOSEN,),
        gated_likelihood,
        "-log pi(y_w|m) / n_w where score_w >= good and r(y_w|m) < 0",
        ("chosen_score",),
        UNIDPO,
    ),
)
