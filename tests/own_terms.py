"""Terms of one's own, good and bad, as `package.module:term` names them."""

from types import SimpleNamespace

from mfpo_trl.objective import CHOSEN, CORRUPTED
from mfpo_trl.objective.terms import Term


def hinge(ratios, beta):
    """max(0, 1 - b [r(y_w|m) - r(y_w|m')])"""
    return (1 - beta * (ratios.chosen - ratios.corrupted)).clamp(min=0)


HINGE = Term(
    "hinge", (CHOSEN, CORRUPTED), hinge, "max(0, 1 - b [r(y_w|m) - r(y_w|m')])", source="mine, arXiv 2601.99999"
)

IMAGE = Term("image", (CHOSEN, CORRUPTED), hinge)
NO_FUNCTION = Term("no_function", (CHOSEN,), 3.0)
ELSEWHERE = SimpleNamespace(name="elsewhere", reads=[("picture", "chosen")], loss=hinge)
MISSPELT = SimpleNamespace(name="misspelt", reads=["corupted"], loss=hinge)
SHAPE = Term("shape", (CHOSEN,), lambda ratios, beta: ratios.chosen.mean())
NAN = Term("nan", (CHOSEN,), lambda ratios, beta: (ratios.chosen - ratios.chosen) / 0)
