"""Each preset against a straight line from its paper's formula, in Python's floats, with the slopes by finite differences; and one
number of each term by hand."""

import math
import random
import re
from pathlib import Path

import pytest
import torch

from mfpo_trl.objective import PRESETS, BranchName, LogRatios, branch_of, papers_in, terms_of
from mfpo_trl.objective.terms import TERMS, branches_read, row_columns

BETA = 0.3


def l(z):  # noqa: E743
    """-log sigma(z)"""
    return math.log1p(math.exp(-z))


def softmax_ladder(rewards):
    """-sum_k log softmax_{j >= k}(rewards)_k"""
    return sum(math.log(sum(math.exp(own) for own in rewards[k:])) - rewards[k] for k in range(len(rewards) - 1))


def distilled(beta, alone, both):
    """VCDist of IC-VCO, one position: the cross-entropy of q against p, where p is above 1/2 and above q."""
    q, p = (1 / (1 + math.exp(-beta * margin)) for margin in (alone, both))
    return -p * math.log(q) - (1 - p) * math.log(1 - q) if p > 0.5 and q < p else 0.0


# `r(answer, image)` is a log-ratio; w, l, y2 and t are chosen, rejected, chosen_2 and the answer true of m'; m, m1.. and 0 images, b and
# b1 both m and m1, asked about m or m1. `c["still"]` is `r` without a gradient.
FORMULAS = {
    "dpo": lambda r, b, c: l(b * (r("w", "m") - r("l", "m"))),
    "mdpo": lambda r, b, c: (
        l(b * (r("w", "m") - r("l", "m"))) + l(b * (r("w", "m") - r("w", "m1"))) + l(b * r("w", "m"))
    ),
    "rdpo": lambda r, b, c: l(b * (r("w", "m") - r("l", "m"))) + l(b * (r("w", "m") - r("w", "m1"))),
    "adavip": lambda r, b, c: l(
        -math.log(math.exp(b * (r("l", "m") - r("w", "m"))) + math.exp(b * (r("w", "m1") - r("w", "m"))))
    ),
    "povid": lambda r, b, c: l(b * (r("w", "m") - r("l", "m"))) + l(b * (r("w", "m") - r("l", "m1"))),
    "mmedpo": lambda r, b, c: l(b * (r("w", "m") - r("l", "m"))) + c["weight"] * l(b * (r("w", "m") - r("l", "m1"))),
    "svco": lambda r, b, c: (
        l(b * (r("w", "m") - r("w", "0")))
        + l(b * (r("w", "0") - r("w", "m1")))
        + l(b * (r("t", "m1") - r("t", "0")))
        + l(b * (r("t", "0") - r("t", "m")))
    ),
    "symmpo": lambda r, b, c: (
        l(b * (r("w", "m") - r("l", "m")))
        + 0.5 * (l(b * (r("w", "m") - r("t", "m"))) + l(b * (r("t", "m1") - r("w", "m1"))))
        + l(b * r("w", "m"))
        + l(b * r("t", "m1"))
        + 1e-4 * ((r("w", "m") - r("t", "m")) - (r("t", "m1") - r("w", "m1"))) ** 2
    ),
    "vdpo": lambda r, b, c: l(b * (r("w", "m") - r("l", "m"))) + l(b * (r("w", "m") - r("w", "m1"))),
    "lpoi": lambda r, b, c: (
        l(b * (r("w", "m") - r("l", "m")))
        + l(b * r("w", "m"))
        + softmax_ladder([b * r("w", image) for image in ("m", "m1", "m2", "m3", "m4")])
    ),
    "misp": lambda r, b, c: (
        l(b * (r("w", "m") - r("l", "m")))
        + l(-math.log(sum(math.exp(b * (r("w", image) - r("w", "m"))) for image in ("m1", "m2", "m3"))))
    ),
    "opa": lambda r, b, c: sum(
        l(b * (r(own, "m") - r("l", "m"))) + 0.2 * l(b * (r(own, "m") - r(own, "m1"))) + l(b * r(own, "m"))
        for own in ("w", "y2")
    ),
    "dadpo": lambda r, b, c: l(b * c["beta_scale"] * (r("w", "m") - r("l", "m"))),
    "mfpo-sym": lambda r, b, c: (
        l(b * (r("w", "m") - r("l", "m")))
        + l(b * (r("w", "m") - r("w", "m1")))
        + l(b * (r("t", "m1") - r("w", "m1")))
        + l(b * (r("t", "m1") - r("t", "m")))
        + l(b * r("w", "m"))
        + l(b * r("t", "m1"))
    ),
}
FORMULAS["mfpo"] = FORMULAS["mdpo"]
FORMULAS["sentinel"] = FORMULAS["dpo"]
FORMULAS["icvco"] = lambda r, b, c: (
    1.75 * (l(b * (r("w", "m") - r("t", "m"))) + l(b * (r("t", "m1") - r("w", "m1")))) / 2
    + 1.75 * (l(b * r("w", "m")) + l(b * r("t", "m1"))) / 2
    + 0.75 * (l(b * (r("w", "b") - r("t", "b"))) + l(b * (r("t", "b1") - r("w", "b1")))) / 2
    + 0.75 * (l(b * r("w", "b")) + l(b * r("t", "b1"))) / 2
    + 0.4
    * (
        distilled(b, r("w", "m") - r("t", "m"), c["still"]("w", "b") - c["still"]("t", "b"))
        + distilled(b, r("t", "m1") - r("w", "m1"), c["still"]("t", "b1") - c["still"]("w", "b1"))
    )
    / 2
)
FROZEN = {"vdpo": [("w", "m1")]}
"""What a method lets no gradient through."""

IMAGES = {"image": "m", "no image": "0", "rejected_image": "m1"} | {f"rejected_image.{n}": f"m{n}" for n in (2, 3, 4)}
IMAGES |= {"image of both": "b", "rejected_image of both": "b1"}
ANSWERS = {"chosen": "w", "rejected": "l", "chosen_2": "y2", "rejected_image_chosen": "t"}


def place(branch: BranchName) -> tuple[str, str]:
    return ANSWERS[branch.answer], IMAGES[branch.image]


NAMES = {"m": "r{}_", "0": "r0_"} | {f"m{n}": f"r'{n if n > 1 else ''}_" for n in (1, 2, 3, 4)}
NAMES |= {"b": "rb{}_", "b1": "rb'_"}
"""How the formulas that people read call an image; the answer follows."""


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula_that_people_read_is_the_same(name):
    """`mfpo methods` prints it: read as Python, it gives the same number."""
    draw = random.Random(name)
    answers, values, said = {"w": "w", "l": "l", "y2": "w2", "t": "y"}, {}, {}
    for image, begun in NAMES.items():
        for answer, short in answers.items():
            values[answer, image] = draw.uniform(-3, 3)
            said[begun.replace("{}", "").replace("'", "q") + short] = values[answer, image]
    numbers = {"weight": 0.7, "beta_scale": 1.3}
    functions = {
        "l": lambda z: l(BETA * z),
        "e": lambda z: math.exp(BETA * z),
        "log": math.log,
        "stop": lambda r: r,
        "d": lambda alone, both: distilled(BETA, alone, both),
        "ranked": lambda *rewards: softmax_ladder([BETA * own for own in rewards]),
    }
    written = PRESETS[name].formula.replace("'", "q").replace("^", "**")
    found = eval(written, {"__builtins__": {}}, {**said, **numbers, **functions})
    read = lambda answer, image: values[answer, image]  # noqa: E731
    expected = FORMULAS[name](read, BETA, numbers | {"still": read})
    assert found == pytest.approx(expected, rel=1e-12)


def test_what_is_frozen_is_said():
    assert {name for name in FORMULAS if "stop(" in PRESETS[name].formula} == set(FROZEN)
    assert all(own.formula for own in PRESETS.values())


def test_opa_as_it_was_released():
    """Each of the four anchors as its trainer has them: both of the second answer are lowered."""
    terms = {own.term.name: own for own in terms_of("opa", PRESETS["opa"].released, {})}
    values = {("image", "chosen"): 2.0, ("image", "chosen_2"): -1.5}
    policy = {BranchName(*key): torch.tensor([value], dtype=torch.float64) for key, value in values.items()}
    ratios = LogRatios(policy, {branch: torch.zeros(1) for branch in policy})
    found = sum(own.weight * own.losses(ratios, BETA) for key, own in terms.items() if "anchor" in key)
    rewards = [BETA * 2.0, BETA * -1.5, BETA * 2.0, BETA * -1.5]
    signs = (1, -1, 1, -1)
    assert found.item() == pytest.approx(sum(l(s * own) for s, own in zip(signs, rewards, strict=True)), rel=1e-12)


@pytest.mark.parametrize("name", [name for name, own in PRESETS.items() if own.released])
def test_what_was_released_can_be_asked_for(name):
    assert all(own.weight for own in terms_of(name, PRESETS[name].released, {}))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FORMULAS)
def test_a_preset_is_its_papers_formula(name, seed):
    terms = terms_of(name, None, {})
    branches = branches_read(terms)
    draw = random.Random(f"{name} {seed}")
    values = {place(branch): draw.uniform(-6, 6) for branch in branches}
    numbers = {"weight": draw.uniform(0, 2), "beta_scale": draw.uniform(0.5, 2)}

    def straight(changed=None):
        own = {**values, **(changed or {})}
        still = {"still": lambda answer, image: values[answer, image]}
        return FORMULAS[name](lambda answer, image: own[answer, image], BETA, numbers | still)

    reference = {branch: torch.tensor([draw.uniform(-90, -20)], dtype=torch.float64) for branch in branches}
    policy = {branch: (reference[branch] + values[place(branch)]).requires_grad_() for branch in branches}
    columns = {key: torch.tensor([value], dtype=torch.float64) for key, value in numbers.items()}
    ratios = LogRatios(policy, reference, columns)
    loss = torch.zeros(1, dtype=torch.float64)
    for own in terms:
        # TRL's own text term is compared with DPOTrainer elsewhere; its formula stands in for it here.
        from mfpo_trl.objective import preferred

        value = preferred(ratios.chosen, ratios.rejected, BETA) if own.term.loss is None else own.losses(ratios, BETA)
        assert value.shape == (1,)
        loss = loss + own.weight * value
    assert loss.item() == pytest.approx(straight(), rel=1e-12)
    loss.sum().backward()
    for branch in branches:
        at, step = place(branch), 1e-5
        slope = (straight({at: values[at] + step}) - straight({at: values[at] - step})) / (2 * step)
        expected = 0.0 if at in FROZEN.get(name, []) else slope
        found = 0.0 if policy[branch].grad is None else policy[branch].grad.item()
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-8), branch


BY_HAND = {
    # r(y_w|m) = 2, r(y_l|m) = 1, r(y_w|m') = 0 and so on, beta = 1, weight = beta_scale = 2
    "scaled_text": math.log(1 + math.exp(-2)),
    "noisy_rejected": math.log(1 + math.exp(-3)),  # 2 - (-1)
    "weighted_noisy_rejected": 2 * math.log(1 + math.exp(-3)),
    "second_text": math.log(1 + math.exp(-0.5)),  # 1.5 - 1
    "image": math.log(1 + math.exp(-2)),
    "image_frozen": math.log(1 + math.exp(-2)),
    "second_image": math.log(1 + math.exp(-1.5)),
    "either": math.log(1 + math.exp(-1) + math.exp(-2)),
    "several_images": math.log(1 + math.exp(-2) + math.exp(-3) + math.exp(-4)),
    "listwise": math.log(1 + math.exp(-2) + math.exp(-3) + math.exp(-4) + math.exp(-5))
    + math.log(1 + math.exp(-1) + math.exp(-2) + math.exp(-3))
    + math.log(1 + math.exp(-1) + math.exp(-2))
    + math.log(1 + math.exp(-1)),
    "anchor": math.log(1 + math.exp(-2)),
    "counterpart_anchor": math.log(1 + math.exp(-3)),
    "second_anchor": math.log(1 + math.exp(-1.5)),
    "second_anchor_lowered": math.log(1 + math.exp(1.5)),
    "answers_of_image": math.log(1 + math.exp(-1.75)),  # 2 - 0.25
    "answers_of_counterpart": math.log(1 + math.exp(-3)),
    "images_of_counterpart": math.log(1 + math.exp(-2.75)),
    "even_margins": (1.75 - 3) ** 2,
    "attended": math.log(1 + math.exp(-1.5)),  # 2 - 0.5
    "repelled": math.log(1 + math.exp(-0.5)),
    "attended_counterpart": math.log(1 + math.exp(-2.25)),  # 3 - 0.75
    "repelled_counterpart": math.log(1 + math.exp(-0.5)),
    "in_context_image": math.log(1 + math.exp(-2)),  # 1 - (-1)
    "in_context_counterpart": math.log(1 + math.exp(-2.5)),  # 2 - (-0.5)
    "in_context_anchor": math.log(1 + math.exp(-1)),
    "in_context_counterpart_anchor": math.log(1 + math.exp(-2)),
    # Of m, p = sigma(2) above q = sigma(1.75); of m', p = sigma(2.5) below q = sigma(3), and nothing is learnt.
    "distillation": (math.log(1 + math.exp(-1.75)) + 1.75 / (1 + math.exp(2))) / 2,
}
NUMBERS = {
    ("w", "m"): 2.0,
    ("l", "m"): 1.0,
    ("w", "m1"): 0.0,
    ("w", "m2"): -1.0,
    ("w", "m3"): -2.0,
    ("w", "m4"): -3.0,
    ("l", "m1"): -1.0,
    ("y2", "m"): 1.5,
    ("y2", "m1"): 0.0,
    ("t", "m1"): 3.0,
    ("t", "m"): 0.25,
    ("w", "0"): 0.5,
    ("t", "0"): 0.75,
    ("w", "b"): 1.0,
    ("t", "b"): -1.0,
    ("t", "b1"): 2.0,
    ("w", "b1"): -0.5,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_term_by_hand(name):
    term = TERMS[name]
    policy = {branch: torch.tensor([NUMBERS[place(branch)]], dtype=torch.float64) for branch in term.reads}
    zeros = {branch: torch.zeros(1, dtype=torch.float64) for branch in term.reads}
    two = torch.tensor([2.0], dtype=torch.float64)
    found = term.loss(LogRatios(policy, zeros, {"weight": two, "beta_scale": two}), 1.0)
    assert found.item() == pytest.approx(BY_HAND[name], rel=1e-12)


def test_losses_of_many_images_do_not_overflow():
    """A gap of 10,000 nats: the loss is the gap."""
    for name in ("either", "several_images", "listwise"):
        reads = TERMS[name].reads
        policy = {
            branch: torch.tensor([0.0 if branch.image == "image" and branch.answer == "chosen" else 1e4])
            for branch in reads
        }
        zeros = {branch: torch.zeros(1) for branch in reads}
        assert TERMS[name].loss(LogRatios(policy, zeros), 1.0).isfinite().all(), name


@pytest.mark.parametrize(
    ("alone", "both", "learns"),
    [(1.0, 2.0, True), (2.0, 1.0, False), (-2.0, -1.0, False), (-1.0, 0.0, False), (-1e4, 1e4, True)],
    ids=["surer", "not as sure", "wrong", "unsure", "far"],
)
def test_the_gate_of_the_distillation(alone, both, learns):
    """A preference with both images teaches where it is right and surer than that with one, and is not itself moved."""
    reads = TERMS["distillation"].reads
    margins = {("w", "m"): alone, ("t", "m1"): alone, ("w", "b"): both, ("t", "b1"): both}
    policy = {branch: torch.tensor([margins.get(place(branch), 0.0)], requires_grad=True) for branch in reads}
    loss = TERMS["distillation"].loss(LogRatios(policy, {branch: torch.zeros(1) for branch in reads}), 1.0)
    assert loss.isfinite().all() and bool(loss > 0) == learns
    loss.sum().backward()
    for branch, value in policy.items():
        of_both = branch.image.endswith("of both")
        assert value.grad is None if of_both else bool(value.grad != 0) == learns, branch


@pytest.mark.parametrize("name", TERMS)
def test_a_term_reads_its_own_branches_alone(name):
    """Whatever is scored for other terms beside it."""
    term = TERMS[name]
    if term.loss is None or name not in BY_HAND:
        return
    two = torch.tensor([2.0], dtype=torch.float64)
    policy = {branch: torch.tensor([NUMBERS[place(branch)]], dtype=torch.float64) for branch in term.reads}
    others = {branch for own in TERMS.values() for branch in own.reads} - set(term.reads)
    policy |= {branch: torch.tensor([9.0], dtype=torch.float64) for branch in sorted(others)}
    zeros = {branch: torch.zeros(1, dtype=torch.float64) for branch in policy}
    found = term.loss(LogRatios(policy, zeros, {"weight": two, "beta_scale": two}), 1.0)
    assert found.item() == pytest.approx(BY_HAND[name], rel=1e-12)


def test_columns_that_rows_need():
    assert row_columns(terms_of("mfpo", None, {})) == []
    assert row_columns(terms_of("mmedpo", None, {})) == ["weight"]
    assert row_columns(terms_of("symmpo", None, {})) == ["rejected_image_chosen"]
    found = row_columns(terms_of("misp", None, {}))
    assert found == ["rejected_image_2", "rejected_images_2", "rejected_image_3", "rejected_images_3"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("corupted", "'corupted' is unknown; expected chosen, rejected, corrupted"),
        (("picture", "chosen"), "is unknown; expected .image variant, answer."),
        (("rejected_image.1", "chosen"), "is unknown"),
        (("image", ""), "is unknown"),
        (("image",), "is unknown"),
        (
            ("rejected_image.2 of both", "chosen"),
            "is unknown; expected .* 'image of both' and 'rejected_image of both'",
        ),
    ],
)
def test_an_unknown_branch(name, words):
    with pytest.raises(ValueError, match=words):
        branch_of(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "mfop"}, "objective is 'mfop'; expected dpo, mdpo"),
        ({"free": {"imge": 1}}, "term 'imge' is unknown; expected text"),
        ({"free": {"image": {"wieght": 1}}}, "term 'image' has the option 'wieght'; expected 'weight' and 'beta'"),
        ({"free": {"image": -1}}, "the weight of term 'image' is -1; expected a number >= 0"),
        ({"free": {"image": {"beta": 0}}}, "the beta of term 'image' is 0; expected a number > 0"),
        ({"free": {"json:dumps": 1}}, "term json:dumps has no 'name'"),
        ({"free": {"nowhere.at_all:term": 1}}, "cannot be imported"),
        ({"free": {"json:nothing": 1}}, "cannot be imported"),
        ({"given": [TERMS["image"]]}, "two terms are called 'image'"),
        ({"given": [3]}, "term 3 has no 'name'"),
    ],
)
def test_what_is_no_objective(options, words):
    with pytest.raises(ValueError, match=words):
        terms_of(options.get("objective", "mfpo"), options.get("free"), {}, given=options.get("given", ()))


def test_the_page_lists_every_preset_with_its_paper_and_columns():
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| [`")}
    assert list(lines) == list(PRESETS)
    sections = dict(re.findall(r"^### `([\w-]+)`\n(.*?)(?=^##)", page, re.S | re.M))
    assert list(sections) == list(PRESETS)
    for name, preset in PRESETS.items():
        section = " ".join(sections[name].split())
        assert f"](#{name})" in lines[name] and (preset.cost is None or f"{preset.cost:.2f}" in lines[name])
        for own in papers_in(preset.paper):
            assert own.title in section and own.url in section
        for setting in (preset.published, preset.settings, preset.says):
            assert setting in section, (name, setting)
        assert ("none were read" in section) <= (not preset.published), name
        assert f"(../recipes/methods/{name}.yaml)" in section
        for column in (*row_columns(terms_of(name, None, {})), *preset.columns):
            if not column.startswith("rejected_image_") or column == "rejected_image_chosen":
                assert name == "lpoi" or f"`{column}`" in lines[name] or "_2`" in lines[name], (name, column)
