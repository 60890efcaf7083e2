"""The terms against arithmetic by hand, in float64."""

import math

import pytest
import torch

from mfpo_trl.objective import (
    CHOSEN,
    CORRUPTED,
    REJECTED,
    LogRatios,
    anchor_loss,
    image_loss,
    masked_mean,
    modality_balance,
    terms_of,
)
from mfpo_trl.objective.terms import TERMS, branches_read


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_image_loss():
    """r(y_w|m) = 3, r(y_w|m') = 1, beta = 0.5: the logit is 0.5 * (3 - 1) = 1 and -log sigma(1) = log(1 + e^-1).
    Equal ratios give log 2. A preference for the corrupted image, logit -1, gives log(1 + e)."""
    expected = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.e)]
    found = image_loss(tensor(3, -4, 1), tensor(1, -4, 3), beta=0.5)
    torch.testing.assert_close(found, tensor(*expected), rtol=1e-14, atol=0)


def test_anchor_loss():
    """r(y_w|m) = 20, beta = 0.1, eta = 0.5: the logit is 2 - 0.5 = 1.5. Without margin it is 2."""
    torch.testing.assert_close(anchor_loss(tensor(20), 0.1, 0.5), tensor(math.log(1 + math.exp(-1.5))))
    torch.testing.assert_close(anchor_loss(tensor(20), 0.1), tensor(math.log(1 + math.exp(-2))))


def test_losses_do_not_overflow():
    assert image_loss(tensor(-1e6), tensor(1e6), 1.0).item() == pytest.approx(2e6)
    assert anchor_loss(tensor(1e6), 1.0).item() == 0.0


def test_gradients_of_the_image_term():
    """d/dr_w -log sigma(beta * (r_w - r_c)) = -beta * sigma(-beta * (r_w - r_c)), and the opposite for r_c."""
    chosen, corrupted = tensor(2).requires_grad_(), tensor(1).requires_grad_()
    image_loss(chosen, corrupted, 0.3).backward()
    slope = 0.3 / (1 + math.exp(0.3))
    assert chosen.grad.item() == pytest.approx(-slope, rel=1e-14)
    assert corrupted.grad.item() == pytest.approx(slope, rel=1e-14)


@pytest.mark.parametrize(
    ("text", "image", "anchor", "expected"),
    [
        (1, 0, 0, (CHOSEN, REJECTED)),
        (0, 1, 0, (CHOSEN, CORRUPTED)),
        (0, 0, 1, (CHOSEN,)),
        (1, 0, 1, (CHOSEN, REJECTED)),
        (1, 1, 1, (CHOSEN, REJECTED, CORRUPTED)),
    ],
)
def test_only_the_branches_that_are_read(text, image, anchor, expected):
    weights = {"text": text, "image": image, "anchor": anchor}
    assert branches_read(own for own in terms_of("mfpo", None, weights) if own.weight) == expected


def test_term_table_reads_what_its_functions_use():
    """The reference's log-probabilities are 1, so that the log-ratios are 3 and 1."""
    ratios = LogRatios({CHOSEN: tensor(4), CORRUPTED: tensor(2)}, {CHOSEN: tensor(1), CORRUPTED: tensor(1)})
    torch.testing.assert_close(TERMS["image"].loss(ratios, 0.5), image_loss(tensor(3), tensor(1), 0.5))
    torch.testing.assert_close(TERMS["anchor"].loss(ratios, 0.5, margin=9.0), anchor_loss(tensor(3), 0.5, 9.0))


def test_masked_mean_divides_by_all_rows():
    """Two of four rows have an image, with losses 1 and 3: (1 + 3) / 4 = 1. What stands in the others is never read."""
    values = torch.tensor([1.0, float("nan"), 3.0, 7.0])
    assert masked_mean(values, torch.tensor([True, False, True, False])).item() == 1.0


@pytest.mark.parametrize(
    ("text", "image", "expected"),
    [(2.0, 0.5, 0.25), (0.5, 2.0, 0.25), (1.0, 1.0, 1.0), (2.0, -0.1, 0.0), (0.0, 1.0, 0.0), (float("nan"), 1.0, 0.0)],
)
def test_modality_balance(text, image, expected):
    assert modality_balance(text, image) == expected
