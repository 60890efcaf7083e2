"""Objectives that read single tokens: against straight lines in Python's floats, by hand, and through the trainer against one unpadded
forward a branch."""

import math
import random

import pytest
import test_presets
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives import build, rows, stored
from test_trainer import CPU, policy
from trl.data_utils import prepare_multimodal_messages

from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.batch.segments import SHORTEST_MATCH, changed_tokens
from mfpo_trl.objective import (
    CHOSEN,
    CORRUPTED,
    PRESETS,
    REJECTED,
    BranchName,
    ChangedTokens,
    LogRatios,
    TokenScores,
    terms_of,
)
from mfpo_trl.objective.terms import TERMS, branches_read, reads_tokens

BETA = 0.3
PLACES = {CHOSEN: "w", REJECTED: "l", CORRUPTED: "w'", BranchName("rejected_image", "rejected"): "l'"}


def l(z):  # noqa: E743
    """-log sigma(z)"""
    return math.log1p(math.exp(-z))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def weighted(tokens, weight):
    """The sum over tokens of r_t in which a changed token counts `weight` times."""
    return sum((ours - theirs) * (weight if changed else 1) for ours, theirs, changed, *_ in tokens)


def counted(tokens, weight):
    return sum(weight if changed else 1 for _, _, changed, *_ in tokens)


def mean(tokens, weight):
    return weighted(tokens, weight) / counted(tokens, weight)


def divergence(tokens):
    return sum(own[5] for own in tokens)


def calibration(seen, unseen, answer):
    """The sum over tokens of log c of the policy, less that of the reference."""
    total = 0.0
    for (_, _, _, ours, theirs, _), (_, _, _, ours_unseen, theirs_unseen, _) in zip(seen, unseen, strict=True):
        for sign, gap in ((1, ours - ours_unseen), (-1, theirs - theirs_unseen)):
            total += sign * math.log(sigmoid(gap) + 0.5 if answer == "w" else 1.5 - sigmoid(gap))
    return total


# `t[place]` lists the tokens of a branch as (log pi, log pi_ref, changed, logit, reference's logit, KL); w, l under m, w', l' under m'.
FORMULAS = {
    "ddpo": lambda t, b, c: l(b * (mean(t["w"], 5) - mean(t["l"], 5))),
    "chip": lambda t, b, c: l(
        b
        * (
            2 * weighted(t["w"], 4)
            - weighted(t["l"], 4)
            - weighted(t["w'"], 4)
            - 0.1 * (divergence(t["l"]) - divergence(t["w"]))
        )
    ),
    "tpo": lambda t, b, c: l(
        b
        * (
            weighted(t["w"], 1)
            + calibration(t["w"], t["w'"], "w")
            - weighted(t["l"], 1)
            - calibration(t["l"], t["l'"], "l")
        )
    ),
    "unidpo": lambda t, b, c: (
        sigmoid(0.7 * (c["chosen_score"] - c["rejected_score"]))
        * (1 - sigmoid(b * (likelihood(t["w"]) - likelihood(t["l"])) - 2)) ** 3
        * l(b * (mean(t["w"], 1) - mean(t["l"], 1)))
        - 1e-3 * (likelihood(t["w"]) if c["chosen_score"] >= 2.5 and weighted(t["w"], 1) < 0 else 0)
    ),
}
FROZEN = {"chip": [("w", 5)]}
"""What a method lets no gradient through: the KL of the chosen answer."""


def test_every_preset_has_a_formula_and_every_term_a_number():
    assert {*FORMULAS, *test_presets.FORMULAS} == set(PRESETS)
    assert {*BY_HAND, *test_presets.BY_HAND, "text"} == set(TERMS)


def likelihood(tokens):
    return sum(own[0] for own in tokens) / len(tokens)


def read(tokens: dict[str, list[tuple]]) -> tuple[LogRatios, dict[str, list[torch.Tensor]]]:
    """What terms read of one sample with these tokens, and the leaves that its gradients reach."""
    leaves = {
        place: [torch.tensor(own, dtype=torch.float64) for own in zip(*list_, strict=True)]
        for place, list_ in tokens.items()
    }
    for own in leaves.values():
        for number in (0, 3, 5):
            own[number].requires_grad_()
    found: dict[str, dict] = {name: {} for name in ("policy", "reference", "lengths", "changed", "tokens")}
    for branch, place in PLACES.items():
        ours, theirs, changed, logits, their_logits, gaps = leaves[place]
        found["policy"][branch], found["reference"][branch] = ours.sum()[None], theirs.sum()[None]
        found["lengths"][branch] = torch.tensor([len(ours)])
        found["changed"][branch] = ChangedTokens(
            (ours * changed).sum()[None], (theirs * changed).sum()[None], changed.sum()[None]
        )
        scored = torch.ones(1, len(ours), dtype=torch.bool)
        found["tokens"][branch] = TokenScores(
            ours[None], theirs[None], scored, logits[None], their_logits[None], gaps[None]
        )
    return LogRatios(columns={}, **found), leaves


def drawn(seed: str) -> tuple[dict[str, list[tuple]], dict[str, float]]:
    draw = random.Random(seed)
    changed = {"w": [draw.random() < 0.4 for _ in range(5)], "l": [draw.random() < 0.4 for _ in range(3)]}

    def token(flag):
        return (
            draw.uniform(-3, -0.1),
            draw.uniform(-3, -0.1),
            flag,
            draw.uniform(-2, 2),
            draw.uniform(-2, 2),
            draw.uniform(0, 1),
        )

    tokens = {place: [token(flag) for flag in changed[place[0]]] for place in PLACES.values()}
    return tokens, {"chosen_score": draw.uniform(1, 4), "rejected_score": draw.uniform(0, 3)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FORMULAS)
def test_a_preset_is_its_papers_formula(name, seed):
    """The loss, and its slope in the log-probability, logit and KL of every token."""
    tokens, numbers = drawn(f"{name} {seed}")
    terms = terms_of(name, None, {})
    ratios, leaves = read(tokens)
    ratios = LogRatios(
        **{**vars(ratios), "columns": {k: torch.tensor([v], dtype=torch.float64) for k, v in numbers.items()}}
    )
    loss = sum(own.weight * own.losses(ratios, BETA) for own in terms)
    assert loss.shape == (1,) and loss.item() == pytest.approx(FORMULAS[name](tokens, BETA, numbers), rel=1e-12)
    loss.sum().backward()
    for place, parts in leaves.items():
        for field in (0, 3, 5):
            for number in range(len(tokens[place])):
                slope = (
                    sum(
                        sign * FORMULAS[name](moved(tokens, place, number, field, sign * 1e-5), BETA, numbers)
                        for sign in (1, -1)
                    )
                    / 2e-5
                )
                expected = 0.0 if (place, field) in FROZEN.get(name, []) else slope
                found = 0.0 if parts[field].grad is None else parts[field].grad[number].item()
                assert found == pytest.approx(expected, rel=1e-6, abs=1e-8), (place, field, number)


def moved(tokens, place, number, field, step):
    own = list(tokens[place])
    own[number] = tuple(value + step * (at == field) for at, value in enumerate(own[number]))
    return {**tokens, place: own}


# Two tokens: r_t = 1 and 2 of the chosen answer, the second changed; r_t = 0.5 of the rejected one, changed; beta = 1.
HAND = {
    "w": [(-1.0, -2.0, False, 1.0, 0.0, 0.25), (-1.0, -3.0, True, 1.0, 0.0, 0.25)],
    "l": [(-1.0, -1.5, True, 1.0, 0.0, 2.5)],
    "w'": [(-2.0, -2.0, False, 1.0, 0.0, 9.0), (-2.0, -1.0, True, 0.0, 0.0, 9.0)],
    "l'": [(-4.0, -4.0, True, 0.0, 0.0, 9.0)],
}
LOG_C = math.log(sigmoid(1) + 0.5)
BY_HAND = {
    "segments": math.log(1 + math.exp(-((1 + 5 * 2) / 6 - 0.5))),
    "segment_sums": math.log(1 + math.exp(-(11 - 2.5))),
    # 2 (1 + 4 * 2) - 4 * 0.5 - (0 + 4 * -1) - 0.1 (2.5 - 0.5) = 18 - 2 + 4 - 0.2
    "hierarchical": math.log(1 + math.exp(-19.8)),
    "token_divergence": 2.0,
    # chosen: gaps of logits 0 and 1, of the reference's 0: log 1 + log(sigma(1) + 1/2); rejected: gap 1: log(3/2 - sigma(1))
    "calibrated": math.log(1 + math.exp(-(3 + LOG_C - 0.5 - math.log(1.5 - sigmoid(1))))),
    # means: log pi -1 and -1, r 1.5 and 0.5; scores 3 and 1: q = sigma(1.4), 1 - sigma(-2) = sigma(2)
    "focal_text": sigmoid(1.4) * sigmoid(2) ** 3 * math.log(1 + math.exp(-1)),
    # the policy gives the chosen answer more than the reference does
    "gated_likelihood": 0.0,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_term_by_hand(name):
    ratios, _ = read(HAND)
    scores = {"chosen_score": torch.tensor([3.0]), "rejected_score": torch.tensor([1.0])}
    ratios = LogRatios(**{**vars(ratios), "columns": scores})
    assert TERMS[name].loss(ratios, 1.0).item() == pytest.approx(BY_HAND[name], rel=1e-6)


@pytest.mark.parametrize(("score", "below", "expected"), [(3.0, True, 2.0), (3.0, False, 0.0), (2.0, True, 0.0)])
def test_when_the_likelihood_counts(score, below, expected):
    """-(-2 - 2) / 2 where the score is good and the policy is below the reference."""
    reference = torch.tensor([-1.0 if below else -9.0])
    columns = {"chosen_score": torch.tensor([score])}
    ratios = LogRatios({CHOSEN: torch.tensor([-4.0])}, {CHOSEN: reference}, columns, {CHOSEN: torch.tensor([2])})
    assert TERMS["gated_likelihood"].loss(ratios, 1.0).item() == expected


def test_options_of_a_term():
    """A number with a default that the loss takes by its name."""
    ratios, _ = read(HAND)
    (own,) = terms_of("ddpo", {"segment_sums": {"weight": 2, "beta": 0.5, "changed_weight": 1}}, {})
    assert (own.weight, own.beta, own.options) == (2, 0.5, {"changed_weight": 1})
    assert own.losses(ratios, 9.0).item() == pytest.approx(math.log(1 + math.exp(-0.5 * (3 - 0.5))))
    for free, words in (
        ({"segments": {"changed": 2}}, "has the option 'changed'; expected 'weight' and 'beta' and 'changed_weight'"),
        (
            {"segments": {"changed_weight": "5"}},
            "option 'changed_weight' of term 'segments' is '5'; expected a finite number",
        ),
        ({"text": {"margin": 1}}, "term 'text' has the option 'margin'; expected 'weight' and 'beta'"),
    ):
        with pytest.raises(ValueError, match=words):
            terms_of("dpo", free, {})


# Which tokens differ


def test_changed_tokens_by_hand():
    """Chosen 1 2 3 4 5 6 7, rejected 1 2 3 9 5 6 7: the fourth of each. Of runs of two, none counts as kept."""
    found = changed_tokens(
        {"chosen": [1, 2, 3, 4, 5, 6, 7], "rejected": [1, 2, 3, 9, 5, 6, 7], "chosen_2": [8, 9, 5, 6]}
    )
    assert found["chosen"] == found["rejected"] == [False, False, False, True, False, False, False]
    assert found["chosen_2"] == [True, False, False, False]
    assert changed_tokens({"chosen": [1, 2, 8], "rejected": [1, 2, 9]})["chosen"] == [True] * 3


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12))
@settings(max_examples=200, deadline=None)
def test_kept_tokens_are_runs_of_both_answers(chosen, rejected):
    """What is kept of both is one sequence, in runs of at least three tokens; equal answers of that length have nothing changed."""
    found = changed_tokens({"chosen": chosen, "rejected": rejected})
    kept = [
        [own for own, flag in zip(ids, found[name], strict=True) if not flag]
        for name, ids in (("chosen", chosen), ("rejected", rejected))
    ]
    for ids, name in ((chosen, "chosen"), (rejected, "rejected")):
        runs = "".join("x" if flag else "." for flag in found[name]).replace("x", " ").split()
        assert all(len(run) >= SHORTEST_MATCH for run in runs), ids
    # A diff may match the same tokens otherwise in the two directions, but never more than their longest common subsequence.
    assert max(map(len, kept)) <= common(chosen, rejected)
    if chosen == rejected and len(chosen) >= SHORTEST_MATCH:
        assert not any(found["chosen"])


def common(a, b):
    """The length of the longest common subsequence."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, own in enumerate(a):
        for j, other in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if own == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


# Through the trainer


def scored_rows():
    """Rows whose answers share runs of tokens, with scores; the last has no image."""
    data = rows()
    answers = [
        ("a red dog and a bird on the grass.", "a red dog and a cat on the grass."),
        ("two birds by a tree", "two birds by a blue tree"),
        ("the grass", "a blue cat by a tree"),
        ("a blue cat by a tree", "a blue cat by a dog and a tree"),
    ]
    for place, name in enumerate(("chosen", "rejected")):
        column = [[{"role": "assistant", "content": own[place]}] for own in answers]
        data = data.remove_columns(name).add_column(name, column, feature=data.features[name])
    return data.add_column("chosen_score", [3.0, 2.0, 4.0, 1.0]).add_column("rejected_score", [1.0, 2.5, 0.0, 0.5])


def forward(model, processor, row, column, answer):
    """Logits of the positions that predict the answer, and its ids, by one forward of one row without padding."""
    images = row[column] if column else []
    text = processor.apply_chat_template(
        prepare_multimodal_messages(row["prompt"], images=images), add_generation_prompt=True, tokenize=False
    )
    whole = prepare_multimodal_messages(row["prompt"] + row[answer], images=images)
    said = processor.apply_chat_template(whole, tokenize=False).removeprefix(text)
    encoded = processor(
        images=[images] if images else None, text=[text], add_special_tokens=False, return_tensors="pt"
    )
    labels = processor.tokenizer(said, add_special_tokens=False)["input_ids"]
    ids = torch.cat([encoded["input_ids"], torch.tensor([labels])], dim=1)
    vision = {"pixel_values": encoded["pixel_values"]} if images else {}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **vision).logits[0].double()
    return logits[encoded["input_ids"].size(1) - 1 : -1], labels


@pytest.fixture(scope="module")
def straight():
    """The tokens of every branch of every row, as `FORMULAS` reads them."""
    models, processor = (policy().eval(), tiny.model().eval()), tiny.processor()
    found = []
    for row in scored_rows():
        own = {}
        labelled = {}
        for answer in ("chosen", "rejected"):
            labelled[answer] = forward(models[0], processor, row, "images" if row["images"] else None, answer)[1]
        flags = changed_tokens(labelled)
        for branch, place in PLACES.items():
            column = {"image": "images", "rejected_image": "rejected_images"}[branch.image]
            if not row["images"] and branch.image != "image":
                continue
            (ours, labels), (theirs, _) = (
                forward(model, processor, row, column if row["images"] else None, branch.answer) for model in models
            )
            p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
            own[place] = [
                (
                    p[n, label].item(),
                    q[n, label].item(),
                    flags[branch.answer][n],
                    ours[n, label].item(),
                    theirs[n, label].item(),
                    (q[n].exp() * (q[n] - p[n])).sum().item(),
                )
                for n, label in enumerate(labels)
            ]
        found.append(own)
    return found


@pytest.mark.parametrize("name", FORMULAS)
def test_the_trainers_loss_is_the_formula(name, straight, tmp_path):
    """In both layouts: one step's loss on four rows, of which the last has no branch with an image."""
    expected = 0.0
    for row, tokens in zip(scored_rows(), straight, strict=True):
        if tokens.keys() >= {PLACES[own] for own in branches_read(terms_of(name, None, {}))}:
            expected += FORMULAS[name](tokens, CPU["beta"], row) / 4
    for sharing in ("off", "on"):
        trainer = build(tmp_path, scored_rows(), objective=name, prefix_sharing=sharing, add_eos=False)
        loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(list(scored_rows())))
        assert loss.item() == pytest.approx(expected, rel=2e-4), sharing


@pytest.mark.parametrize("name", ["ddpo", "unidpo"])
def test_cached_is_live(name, tmp_path):
    """Two steps, loss and gradient, packed rows."""
    histories, data = [], stored(scored_rows(), tmp_path)
    for cached in (False, True):
        config = {"objective": name, "precompute_ref_log_probs": cached, "max_steps": 2, "learning_rate": 0.05}
        config |= {"per_device_train_batch_size": 2, "train_sampling_strategy": "sequential"}
        trainer = build(tmp_path, data, **config)
        trainer.train()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        histories.append([[line[key] for key in ("loss", "grad_norm")] for line in lines])
    assert len(histories[0]) == 2 and histories[1] == [pytest.approx(line, rel=1e-4) for line in histories[0]]


def test_trls_text_term_beside_logits(tmp_path):
    """The model's own LM head gives the text term, and every metric, what TRL's fused one gives."""
    lines = []
    for terms in ({"text": 1.0, "image": 1.0}, {"text": 1.0, "image": 1.0, "token_divergence": 1e-12}):
        trainer = build(
            tmp_path,
            scored_rows(),
            objective_terms=terms,
            loss_type=["sigmoid", "ipo"],
            use_weighting=True,
            learning_rate=0.0,
        )
        trainer.train()
        lines.append(trainer.state.log_history[0])
    assert lines[1].pop("loss/token_divergence") >= 0
    del lines[0]["epoch"], lines[1]["epoch"]
    assert lines[1] == pytest.approx(lines[0], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["chip", "tpo"])
def test_a_cache_holds_no_tokens(name, tmp_path):
    words = f"term '{next(iter(PRESETS[name].weights))}' reads single tokens of the reference, and precompute_ref_log_probs=True"
    with pytest.raises(ValueError, match=words):
        build(tmp_path, scored_rows(), objective=name, precompute_ref_log_probs=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ddpo", "term 'segments' reads which tokens differ from the rows"),
        ("dadpo", "reads the column 'beta_scale' from the rows"),
    ],
)
def test_texts_alone_do_not_tell(name, words, tmp_path):
    """A data set without a column of images is TRL's to batch."""
    data = scored_rows().select_columns(["prompt", "chosen", "rejected", "beta_scale"])
    with pytest.raises(ValueError, match=words):
        build(tmp_path, data, objective=name)


def test_cut_answers(tmp_path):
    """`max_length` cuts the ends of answers: the tables keep to what is scored, flat and packed."""
    found = []
    for sharing in ("off", "on"):
        trainer = build(tmp_path, scored_rows(), objective="ddpo", prefix_sharing=sharing, max_length=24)
        batch = trainer.data_collator(list(scored_rows()))
        assert batch["cut"].any() and batch["changed"].shape == (len(batch["branches"]), batch["branches"][:, 2].max())
        found.append(trainer.compute_loss(trainer.model.eval(), batch).item())
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_answers_that_differ_otherwise_are_scored_apart(tmp_path):
    """Packed: two rows share image, prompt and chosen answer; its changed tokens are not the same against the other rejected one."""
    data = scored_rows()
    first = data[0]
    other = {**first, "rejected": [{"role": "assistant", "content": "two birds on the grass."}]}
    trainer = build(tmp_path, data, objective="ddpo", prefix_sharing="on")
    pairs = trainer.data_collator([first, other])["pairs"]
    assert pairs[0, 0] != pairs[1, 0]
    assert (
        trainer.data_collator([first, dict(first)])["pairs"].tolist()[0]
        == trainer.data_collator([first, dict(first)])["pairs"].tolist()[1]
    )


@pytest.mark.parametrize(
    ("objective", "made", "words"),
    [
        ("ddpo", {}, "term 'segments' needs a data_collator with changed=True"),
        (
            "unidpo",
            {"columns": ("chosen_score",)},
            r"term 'focal_text' needs a data_collator with columns=\('chosen_score', 'rejected_score'\)",
        ),
    ],
)
def test_a_collator_that_does_not_make_what_terms_read(objective, made, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        build(tmp_path, scored_rows(), objective=objective, data_collator=MFPOCollator(tiny.processor(), **made))


@pytest.mark.parametrize(
    ("objective", "table", "words"),
    [
        ("ddpo", "changed", "the batch has no 'changed', which term 'segments' reads"),
        ("unidpo", "column/chosen_score", "the batch has no 'column/chosen_score', which term 'focal_text' reads"),
    ],
)
def test_a_batch_without_a_table(objective, table, words, tmp_path):
    trainer = build(tmp_path, scored_rows(), objective=objective)
    batch = trainer.data_collator(list(scored_rows()))
    del batch[table]
    with pytest.raises(ValueError, match=words):
        trainer.compute_loss(trainer.model, batch)


@pytest.mark.parametrize("score", ["nll", "reference_margin"])
def test_a_curriculum_ranks_rows_alike_whatever_is_trained(score, tmp_path, monkeypatch):
    """How hard a row is depends on the reference alone."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data, found = scored_rows(), {}
    settings = {"curriculum": "staged", "curriculum_stages": 1, "curriculum_score": score}
    # Rows of objectives with columns of their own are other rows.
    for name in (own for own in PRESETS if not PRESETS[own].columns):
        for cached in (False, True):
            if not (cached and reads_tokens(terms_of(name, None, {}))):
                trainer = build(tmp_path, data, objective=name, precompute_ref_log_probs=cached, **settings)
                found[name, cached] = trainer.curriculum.plan.difficulties.tolist()
    assert len(found) > len(PRESETS) and len(set(found["dpo", False])) == len(data)
    for own in found.values():
        assert own == pytest.approx(found["dpo", False], rel=1e-4)
