"""Objectives through the trainer: flat and packed rows, a live and a cached reference, against one forward a branch, unpadded."""

import inspect
import random
import re
from functools import cache

import own_terms
import pytest
import tiny
import torch
from datasets import Dataset, Features, Image, List, Value, load_from_disk
from peft import LoraConfig, get_peft_model
from test_presets import ANSWERS, FORMULAS, FROZEN, IMAGES, place
from test_trainer import CPU, policy
from trl.data_utils import prepare_multimodal_messages

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.batch.both import own_image_first
from mfpo_trl.objective import CHOSEN, PRESETS, LogRatios, Preset, columns_of, preferred, terms_of
from mfpo_trl.objective.terms import TERMS, Term, branches_read

NEW = [name for name in FORMULAS if name not in ("dpo", "mdpo", "mfpo", "rdpo") and not PRESETS[name].columns]
OTHERS = ("two birds", "a blue cat by a tree", "the grass", "a red dog and a bird.")


def rows(without: str | None = None, **changed) -> Dataset:
    """Four rows, the last without an image, with whatever an objective asks for."""
    found = []
    for number in range(4):
        shown = number != 3
        row = tiny.rows(4)[number]
        row = {key: row[key] for key in ("prompt", "chosen", "rejected")}
        row["images"] = [tiny.picture(number)] if shown else []
        for variant in (1, 2, 3, 4):
            column = "rejected_images" if variant == 1 else f"rejected_images_{variant}"
            row[column] = [tiny.picture(10 * variant + number)] if shown else []
        row["rejected_image_chosen"] = [{"role": "assistant", "content": OTHERS[number]}]
        row["chosen_2"] = [{"role": "assistant", "content": OTHERS[-1 - number]}]
        row |= {"weight": 0.5 + number, "beta_scale": 2.0 - 0.25 * number}
        found.append({**row, **changed})
    features = tiny.dataset(1).features
    pictures = {name: List(Image()) for name in found[0] if "images" in name}
    own = Features({name: features.get(name, features["chosen"]) for name in found[0]} | pictures)
    own |= {name: Value("float64") for name in ("weight", "beta_scale")}
    data = Dataset.from_list(found, features=Features(own))
    return data if without is None else data.remove_columns(without)


def stored(data: Dataset, folder) -> Dataset:
    """The same rows in a folder of this test, beside which a cache lies."""
    data.save_to_disk(folder / "rows")
    return load_from_disk(folder / "rows")


def build(folder, data=None, terms=(), reference=True, model=None, data_collator=None, **config):
    args = MFPOConfig(str(folder), **{**CPU, "max_steps": 1, "corruption": "none", **config})
    return MFPOTrainer(
        policy() if model is None else model,
        tiny.model() if reference else None,
        args,
        train_dataset=rows() if data is None else data,
        processing_class=tiny.processor(),
        data_collator=data_collator,
        terms=terms,
    )


@cache
def read() -> list[dict]:
    return list(rows())


def alone(model, processor, row, image: str, answer: str) -> torch.Tensor:
    """log pi(answer | prompt, image), by one forward of one row without padding."""
    column = {"image": "images", "no image": None, "rejected_image": "rejected_images"}
    prompt = row["prompt"]
    if image.endswith("of both"):
        first = own_image_first(row, [own.convert("RGB") for own in row["images"]])
        images = row["images"] + row["rejected_images"] if first else row["rejected_images"] + row["images"]
        place = "first" if first == (image == "image of both") else "second"
        prompt = [{"role": "user", "content": f"{prompt[0]['content']} Answer based on the {place} image."}]
    else:
        name = column.get(image, f"rejected_images_{image[-1]}")
        images = row[name] if name else []
    messages = prepare_multimodal_messages(prompt, images=images)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    whole = prepare_multimodal_messages(prompt + row[answer], images=images)
    said = processor.apply_chat_template(whole, tokenize=False).removeprefix(text)
    encoded = processor(
        images=[images] if images else None, text=[text], add_special_tokens=False, return_tensors="pt"
    )
    labels = torch.tensor([processor.tokenizer(said, add_special_tokens=False)["input_ids"]])
    ids = torch.cat([encoded["input_ids"], labels], dim=1)
    vision = {"pixel_values": encoded["pixel_values"]} if images else {}
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **vision).logits[0]
    start = encoded["input_ids"].size(1) - 1
    return logits[start:-1].double().log_softmax(-1).gather(1, labels[0][:, None]).sum()


@pytest.fixture(scope="module")
def ratios():
    """Every log-ratio of every row, by row, answer and image."""
    models, processor = (policy().eval(), tiny.model().eval()), tiny.processor()
    found = {}
    for number, row in enumerate(read()):
        for answer, short in ANSWERS.items():
            for image, variant in IMAGES.items():
                if row["images"] or image == "image":
                    with torch.no_grad():
                        ours, theirs = (alone(model, processor, row, image, answer).item() for model in models)
                    found[number, short, variant] = ours - theirs
    return found


def expected(name, ratios, beta) -> float:
    """The mean over the rows of the terms that have all of their branches; in rows without an image those of texts alone."""
    total = 0.0
    for number, row in enumerate(read()):
        numbers = {key: row[key] for key in ("weight", "beta_scale")}
        if row["images"]:
            values = lambda answer, image, n=number: ratios[n, answer, image]  # noqa: E731
            total += FORMULAS[name](values, beta, numbers | {"still": values})
            continue
        for term, weight in PRESETS[name].weights.items():
            if all(branch.image == "image" for branch in TERMS[term].reads):
                total += weight * text_alone(term, lambda answer, n=number: ratios[n, answer, "m"], beta, numbers)
    return total / 4


def text_alone(term, r, beta, numbers) -> float:
    logit = {
        "text": lambda: r("w") - r("l"),
        "scaled_text": lambda: numbers["beta_scale"] * (r("w") - r("l")),
        "second_text": lambda: r("y2") - r("l"),
        "anchor": lambda: r("w"),
        "second_anchor": lambda: r("y2"),
        "answers_of_image": lambda: r("w") - r("t"),
    }[term]()
    return preferred(torch.tensor(beta * logit, dtype=torch.float64), torch.zeros(()), 1.0).item()


@pytest.mark.parametrize("name", [*NEW, "mfpo"])
def test_the_trainers_loss_is_the_formula(name, ratios, tmp_path):
    """In both layouts: one step's loss on four rows."""
    for sharing in ("off", "on"):
        trainer = build(tmp_path, objective=name, prefix_sharing=sharing, add_eos=False)
        loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(list(rows())))
        assert loss.item() == pytest.approx(expected(name, ratios, CPU["beta"]), rel=2e-4), sharing


def adapted():
    """A model with an adapter that changes it: TRL's reference of one that is handed over is the adapter as it was."""
    model = get_peft_model(tiny.model(), LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v|down)_proj"))
    return moved(model, 2)


def moved(model, seed: int):
    """The same model with other weights in its adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B.default" in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def straight_gradient(name: str, adapter: bool) -> dict[str, torch.Tensor]:
    """Of what is trained: the slopes of the paper's formula, by finite differences, times the gradients of single forwards."""
    model, reference = (moved(adapted(), 3), adapted()) if adapter else (policy().eval(), tiny.model().eval())
    processor = tiny.processor()
    logps, found = {}, {}
    for number, row in enumerate(read()):
        for branch in branches_read(terms_of(name, None, {})):
            if row["images"] or branch.image == "image":
                key = (number, *place(branch))
                logps[key] = alone(model, processor, row, *branch)
                with torch.no_grad():
                    found[key] = (logps[key] - alone(reference, processor, row, *branch)).item()
    for key, logp in logps.items():
        near = [expected(name, {**found, key: found[key] + step}, CPU["beta"]) for step in (1e-4, -1e-4)]
        slope = 0.0 if key[1:] in FROZEN.get(name, []) else (near[0] - near[1]) / 2e-4
        (slope * logp).backward()
    return {own: weight.grad for own, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(("name", "adapter"), [("svco", False), ("vdpo", True), ("lpoi", False), ("mfpo-sym", True)])
def test_the_trainers_gradient_is_the_formulas(name, adapter, tmp_path):
    """In both layouts, of whole models and adapters."""
    straight = straight_gradient(name, adapter)
    assert straight and all(adapter == ("lora" in own) for own in straight)
    for sharing in ("off", "on"):
        model = adapted() if adapter else policy()
        config = {"objective": name, "prefix_sharing": sharing, "add_eos": False}
        trainer = build(tmp_path, model=model, reference=not adapter, **config)
        moved(model, 3)
        trainer.compute_loss(trainer.model.eval(), trainer.data_collator(list(rows()))).backward()
        grads = {own: weight.grad for own, weight in model.named_parameters() if weight.grad is not None}
        whole = torch.cat([own.flatten() for own in straight.values()])
        theirs = torch.cat([grads[own].flatten() for own in straight])
        assert (theirs - whole).norm() < 2e-3 * whole.norm(), sharing


@pytest.mark.parametrize("name", ["mfpo-sym", "svco", "lpoi", "opa", "icvco"])
def test_cached_is_live(name, tmp_path):
    """Two steps, loss and gradient, packed rows; the second run of a cache scores nothing that the first has."""
    histories, data = [], stored(rows(), tmp_path)
    for cached in (False, True):
        config = {"objective": name, "precompute_ref_log_probs": cached, "max_steps": 2, "learning_rate": 0.05}
        trainer = build(tmp_path, data, **config, per_device_train_batch_size=2, train_sampling_strategy="sequential")
        trainer.train()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        histories.append([[line[key] for key in ("loss", "grad_norm")] for line in lines])
    assert len(histories[0]) == 2 and histories[1] == [pytest.approx(line, rel=1e-4) for line in histories[0]]


@pytest.mark.parametrize("seed", range(4))
def test_any_terms_in_any_layout_and_batch(seed, tmp_path):
    """Random terms with random weights and betas: packed is flat, micro-batches are one batch, and cached is live."""
    draw = random.Random(seed)
    names = draw.sample(sorted(name for name in TERMS if "chosen_score" not in TERMS[name].columns), 4)
    terms = {
        name: {"weight": round(draw.uniform(0.1, 2), 2), "beta": round(draw.uniform(0.1, 1), 2)} for name in names
    }
    found, data = [], stored(rows(), tmp_path)
    can = not any(TERMS[name].tokens or TERMS[name].logits for name in names)
    for sharing, size, cached in (("off", 4, False), ("on", 4, False), ("on", 1, False), ("on", 4, can)):
        config = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "learning_rate": 1e-3}
        config["precompute_ref_log_probs"] = cached
        config |= {"objective_terms": terms, "prefix_sharing": sharing, "train_sampling_strategy": "sequential"}
        trainer = build(tmp_path, data, **config)
        trainer.train()
        line = trainer.state.log_history[0]
        found.append([line["loss"], line["grad_norm"], *(line[f"loss/{name}"] for name in sorted(names))])
    assert found[1:] == [pytest.approx(found[0], rel=1e-3, abs=1e-5)] * 3, terms


@pytest.mark.parametrize("name", ["dpo", "mfpo", "svco"])
def test_several_images_a_row(name, tmp_path):
    """As MIA-DPO has them: three in an order, and three dispreferred ones."""
    several = []
    for number, row in enumerate(rows().select(range(3))):
        for column in ("images", "rejected_images"):
            row[column] = [tiny.picture(7 * number + place) for place in range(3 * len(several), 3 * len(several) + 3)]
            row[column] = row[column] if column == "images" else row[column][::-1]
        several.append(row)
    data = Dataset.from_list(several, features=rows().features)
    losses = []
    for sharing in ("off", "on"):
        trainer = build(tmp_path, data, objective=name, prefix_sharing=sharing)
        batch = trainer.data_collator(list(data))
        assert len(batch["pixel_values"]) % 3 == 0
        losses.append(trainer.compute_loss(trainer.model.eval(), batch).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("name", ["svco", "symmpo", "vdpo"])
def test_prompts_may_say_where_their_images_stand(name, tmp_path):
    """As the rows of `mfpo build` do; the prompt of a branch without an image loses the place too."""
    trainer, losses = build(tmp_path, objective=name), []
    for parts in ([], [{"type": "image", "text": None}]):
        data = list(rows().select(range(3)))
        for row in data:
            text = {"type": "text", "text": row["prompt"][0]["content"]}
            row["prompt"] = [{"role": "user", "content": [*parts, text]}] if parts else row["prompt"]
        losses.append(trainer.compute_loss(trainer.model.eval(), trainer.data_collator(data)).item())
    assert losses[1] == losses[0]


def test_the_card_tells_what_was_trained(tmp_path):
    trainer = build(tmp_path, objective="symmpo", objective_terms=None, text_loss_weight=2.0)
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| text (DPO, `sigmoid`) | 2.0 |" in card and "the terms anchor, " in card
    assert (
        "| `answers_of_image` (SymMPO, arXiv 2506.11712) | 0.5 | `-log sigma(b [r(y_w given m) - r(y' given m)])` |"
        in card
    )
    build(tmp_path, objective="symmpo").create_model_card()
    assert "**symmpo** (arXiv 2506.11712)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("config", "cited"),
    [
        ({"objective": "symmpo"}, ["MFPO", "SymMPO", "mDPO", "DPO", "TRL"]),
        ({"objective": "dpo"}, ["MFPO", "DPO", "TRL"]),
        ({"objective": "rdpo"}, ["MFPO", "rDPO", "mDPO", "DPO", "TRL"]),
        (
            {"objective_terms": {"text": 1, "listwise": 0.5, "own_terms:HINGE": 1}},
            ["MFPO", "LPOI", "arXiv 2601.99999", "DPO", "TRL"],
        ),
    ],
)
def test_the_card_cites_what_was_trained(config, cited, tmp_path):
    build(tmp_path, **config).create_model_card()
    section = (tmp_path / "README.md").read_text().split("## Citations\n\n")[1]
    assert re.findall(r"^(.+):\n\n```bibtex\n@\w+{\w+,\n", section, re.M) == cited


def test_a_preset_from_outside(monkeypatch, tmp_path):
    """In less than twenty lines: a term and its place in an objective of its own name."""

    def hinged(presets):
        def hinge(ratios, beta):
            return (1 - beta * (ratios.chosen - ratios.corrupted)).clamp(min=0)

        own_terms.OUTSIDE = Term("outside", (CHOSEN, ("rejected_image", "chosen")), hinge, source="arXiv 2601.99999")
        weights = {"text": 1.0, "own_terms:OUTSIDE": 0.5}
        presets["hinged"] = Preset(
            weights, "arXiv 2601.99999", formula="l(r_w - r_l) + ...", corruption="none", beta=0.2
        )

    assert len(inspect.getsource(hinged).splitlines()) < 20
    known = dict(PRESETS)
    hinged(known)
    monkeypatch.setitem(PRESETS, "hinged", known["hinged"])
    trainer = build(tmp_path, objective="hinged", beta=None)
    trainer.train()
    line = trainer.state.log_history[0]
    assert trainer.beta == 0.2 and trainer.term_weights == {"text": 1.0, "outside": 0.5}
    assert line["loss"] == pytest.approx(line["loss/text"] + 0.5 * line["loss/outside"], rel=1e-4)
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "eprint        = {2601.99999}" in card and "| `outside` (arXiv 2601.99999) | 0.5 |" in card


# A term from outside of the package


def hinge(ratios: LogRatios, beta: float) -> torch.Tensor:
    """max(0, 1 - b [r(y_w|m) - r(y_w|m'_2)])"""
    return (1 - beta * (ratios.chosen - ratios["rejected_image.2", "chosen"])).clamp(min=0)


HINGE = Term(
    "hinge", (CHOSEN, ("rejected_image.2", "chosen")), hinge, formula="max(0, 1 - b [r(y_w|m) - r(y_w|m'_2)])"
)


@pytest.mark.parametrize("how", ["object", "name"])
def test_a_term_of_ones_own(how, ratios, tmp_path):
    """Handed over, or named in a configuration; with DPO's text term beside it."""
    named = {"text": 1.0, f"{__name__}:HINGE": 1.0}
    own = {"objective_terms": named} if how == "name" else {"objective": "dpo"}
    trainer = build(tmp_path, terms=[HINGE] if how == "object" else (), add_eos=False, **own)
    loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(list(rows())))
    beta = CPU["beta"]
    gaps = [ratios[n, "w", "m"] - ratios[n, "w", "m2"] for n in range(3)]
    text = [text_alone("text", lambda answer, n=n: ratios[n, answer, "m"], beta, {}) for n in range(4)]
    assert loss.item() == pytest.approx((sum(max(0, 1 - beta * gap) for gap in gaps) + sum(text)) / 4, rel=2e-4)
    assert set(trainer.term_weights) == {"text", "hinge"}


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda r, beta: r.chosen.mean(), r"term 'bad' returned \(\); expected one loss for each of the 4 samples"),
        (lambda r, beta: 0.5, "term 'bad' returned float; expected one loss for each of the 4 samples"),
        (lambda r, beta: (r.chosen - r.chosen) / 0, "term 'bad' returned NaN for log-ratios that are finite"),
    ],
)
def test_a_term_that_returns_something_else(loss, words, tmp_path):
    trainer = build(tmp_path, terms=[Term("bad", (CHOSEN,), loss)], objective="dpo")
    with pytest.raises(ValueError, match=words):
        trainer.compute_loss(trainer.model, trainer.data_collator(list(rows())))


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        (
            "mmedpo",
            "weight",
            "train_dataset has no column 'weight', which term 'weighted_noisy_rejected' of objective='mmedpo'",
        ),
        ("dadpo", "beta_scale", "train_dataset has no column 'beta_scale', which term 'scaled_text'"),
        (
            "symmpo",
            "rejected_image_chosen",
            "train_dataset has no column 'rejected_image_chosen', which term 'answers_of_image'",
        ),
        ("svco", "rejected_image_chosen", "train_dataset has no column 'rejected_image_chosen'"),
        ("mfpo-sym", "rejected_image_chosen", "train_dataset has no column 'rejected_image_chosen'"),
        (
            "icvco",
            "rejected_image_chosen",
            "train_dataset has no column 'rejected_image_chosen', which term 'answers_of_image'",
        ),
        (
            "icvco",
            "rejected_images",
            "row [0-2] .*field 'rejected_images': is missing, and corruption='none' makes none",
        ),
        ("sentinel", [], "train_dataset has no column 'answer_prefix', which objective='sentinel' is for"),
        ("opa", "chosen_2", "train_dataset has no column 'chosen_2'"),
        (
            "lpoi",
            "rejected_images_4",
            "row [0-2] .*field 'rejected_images_4': is missing, and corruption='none' makes none",
        ),
        (
            "misp",
            "rejected_images_2",
            "row [0-2] .*field 'rejected_images_2': is missing, and corruption='none' makes none",
        ),
    ],
)
def test_a_column_that_an_objective_needs(name, column, words, tmp_path):
    """One sentence that names the column before anything is loaded, or, of images that may be made, the row with the first batch."""
    with pytest.raises(ValueError, match=words):
        build(tmp_path, rows(column), objective=name).train()


@pytest.mark.parametrize(
    ("changed", "objective", "words"),
    [
        ({"weight": float("nan")}, "mmedpo", "field 'weight': is 'nan'; the objective needs a number in every row"),
        ({"beta_scale": None}, "dadpo", "field 'beta_scale': is missing; the objective needs a number in every row"),
        (
            {"rejected_image_chosen": None},
            "symmpo",
            "field 'rejected_image_chosen': is missing; the objective reads this",
        ),
        ({"chosen_2": [{"role": "assistant", "content": " "}]}, "opa", "field 'chosen_2': is empty"),
    ],
)
def test_a_row_without_what_an_objective_reads(changed, objective, words, tmp_path):
    with pytest.raises(ValueError, match=f"row [0-3] .*{words}"):
        build(tmp_path, rows(**changed), objective=objective).train()


def test_branches_of_an_objective_share_their_rows(tmp_path):
    """Under one image two answers lie behind one prompt: the second costs its own tokens alone."""
    sizes = {}
    for name in ("mfpo", "mfpo-sym"):
        trainer = build(tmp_path, objective=name, prefix_sharing="on")
        batch = trainer.data_collator([rows()[0]])
        assert batch["pairs"].size(1) == len(columns_of(branches_read(trainer.terms)))
        sizes[name] = int(batch["attention_mask"].sum())
    # y' under both images, which the last batch has behind the three branches of every objective.
    own = [int(batch["branches"][batch["pairs"][0, column], 2]) for column in (3, 4)]
    assert own[0] == own[1] > 1 and sizes["mfpo-sym"] - sizes["mfpo"] == sum(own)
