"""Packed rows against one row a branch: the same log-probabilities, losses, gradients and metrics, for every family."""

import copy
import logging
import math

import families
import pytest
import tiny
import torch
from datasets import Dataset, load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from test_trainer import CPU
from transformers import BitsAndBytesConfig
from trl.trainer.utils import add_fused_lm_head

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl._trl import PER_TOKEN_OUTPUTS, Replay
from mfpo_trl.batch.choice import FLAT_FAMILIES, PACKED_FAMILIES, choose_layout
from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.batch.forward import PACKED_SDPA, prepare, same_images
from mfpo_trl.batch.packing import FLAT, PACKED_ROW, PACKED_ROWS, dense_mask, token_ids
from mfpo_trl.objective import BRANCHES
from mfpo_trl.objective.branches import of_pairs, split_batch

SHAPES = [(40, 32), (90, 30), (30, 90), (64, 64)]


def mixed_rows(count: int = 4) -> list[dict]:
    """Pictures of different sizes, a row with two of them, a row without, and a completion of one token."""
    images = {
        "images": lambda n: (
            [] if n == 2 else [tiny.picture(n + k, *SHAPES[(n + k) % 4]) for k in range(2 if n == 1 else 1)]
        )
    }
    rows = tiny.rows(count, **images)
    rows[-1]["chosen"] = [{"role": "assistant", "content": "a"}]
    return rows


def scores(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the chosen, rejected and corrupted branch of every sample, (3, B), and which are there."""
    replay = Replay(model, *split_batch(batch))
    replay.score()
    logps = torch.stack([of_pairs(replay.logps, replay.pairs, branch) for branch in BRANCHES])
    return logps, (replay.pairs >= 0).T


def prepared(model, layout: str):
    add_fused_lm_head(model, outputs=("log_probs",))
    prepare(model, layout)
    return model


def gradients(model, batch) -> dict[str, torch.Tensor]:
    """Of a loss that weighs every branch differently."""
    model.zero_grad()
    logps, there = scores(model, batch)
    weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
    (weights * logps * there).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one: dict, two: dict) -> None:
    """To 1e-5 of the norm of the whole gradient, and to 1e-4 of each one that is not zero but for rounding."""
    assert one.keys() == two.keys()
    norm = torch.stack([value.norm() for value in one.values()]).norm()
    difference = torch.stack([(one[name] - two[name]).norm() for name in one])
    assert difference.norm() < 1e-5 * norm
    for name, own in zip(one, difference, strict=True):
        assert own < 1e-4 * max(one[name].norm(), 1e-3 * norm), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_packed_rows_equal_flat_rows(family, attention):
    model, processor = families.FAMILIES[family]()
    model.set_attn_implementation(attention)
    layout = choose_layout(model, "auto")
    assert layout.name == {"sdpa": PACKED_ROW, "eager": PACKED_ROWS}[attention]
    rows = mixed_rows()
    flat, packed = (MFPOCollator(processor, layout=name)(rows) for name in (FLAT, layout.name))
    assert "prefixes" in packed and packed["attention_mask"].sum() < 0.8 * flat["attention_mask"].sum()
    reference = prepared(copy.deepcopy(model), FLAT)
    model = prepared(model, layout.name)
    with torch.no_grad():
        (expected, there), (found, also) = scores(reference, flat), scores(model, packed)
    assert torch.equal(there, also)
    torch.testing.assert_close(found[there], expected[there], rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(reference, flat), gradients(model, packed))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_models_own_head_gives_what_the_fused_one_gives(family):
    """Of terms that read raw logits: everything that TRL's head gives of a token, in the family's layout; and a divergence from itself of 0."""
    model, processor = families.FAMILIES[family]()
    layout = choose_layout(model, "auto")
    # PaliGemma's processor takes no row without an image.
    batch = MFPOCollator(processor, layout=layout.name)([row for row in mixed_rows() if row["images"]])
    add_fused_lm_head(model, outputs=PER_TOKEN_OUTPUTS)
    prepare(model, layout.name)
    fused, own = Replay(model, *split_batch(batch)), Replay(model, *split_batch(batch), logits=True)
    with torch.no_grad():
        fused.score()
        own.score()
    for name in PER_TOKEN_OUTPUTS:
        torch.testing.assert_close(getattr(own.outputs, name), getattr(fused.outputs, name), rtol=1e-4, atol=1e-5)
    assert own.divergence(own).abs().max() < 1e-6


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_bfloat16_differs_by_its_rounding_only(family):
    """Both layouts lie as far from float32 as bfloat16 does, and no farther apart."""
    model, processor = families.FAMILIES[family]()
    rows = mixed_rows()
    batches = {name: MFPOCollator(processor, layout=name)(rows) for name in (FLAT, PACKED_ROW)}
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, batch in batches.items():
            with torch.no_grad():
                found[dtype, name], there = scores(prepared(copy.deepcopy(model).to(dtype), name), batch)
    exact = found[torch.float32, FLAT]
    rounding = (found[torch.bfloat16, FLAT] - exact)[there].abs().max()
    assert (found[torch.bfloat16, PACKED_ROW] - exact)[there].abs().max() < 3 * rounding + 0.02


def test_flex_attention_reads_packed_rows():
    """Forward only: PyTorch has no backward of flex attention on a CPU."""
    model, processor, rows = tiny.model(), tiny.processor(), mixed_rows()
    flat, packed = (MFPOCollator(processor, layout=name)(rows) for name in (FLAT, PACKED_ROW))
    reference = prepared(copy.deepcopy(model), FLAT)
    model.set_attn_implementation({"text_config": "flex_attention"})
    assert choose_layout(model, "auto").name == PACKED_ROW
    with torch.no_grad():
        (expected, there), (found, _) = scores(reference, flat), scores(prepared(model, PACKED_ROW), packed)
    torch.testing.assert_close(found[there], expected[there], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_families_with_bidirectional_images_stay_flat(family):
    model, _ = families.FAMILIES[family]()
    assert choose_layout(model, "auto").name == FLAT and "both directions" in choose_layout(model, "auto").reason
    with pytest.raises(ValueError, match="prefix_sharing='on' is not possible: .*both directions"):
        choose_layout(model, "on")


@pytest.mark.parametrize("family", [*PACKED_FAMILIES, *FLAT_FAMILIES])
def test_no_token_of_an_answer_is_scored_by_what_comes_after_it(family):
    model, processor = families.FAMILIES[family]()
    layout = choose_layout(model, "auto").name
    model = prepared(model, layout).eval()
    collator, scored, answers = MFPOCollator(processor, layout=layout), [], []
    for ending in ("cat", "tree"):
        row = tiny.rows(1)[0] | {"chosen": [{"role": "assistant", "content": f"two birds and a red {ending}"}]}
        replay = Replay(model, *split_batch(collator([row])))
        with torch.no_grad():
            replay.score()
        scored.append(replay.outputs.log_probs[0])
        answers.append(collator.encode(row)["image", "chosen"].completion)
    alike = next(n for n, (one, two) in enumerate(zip(*answers, strict=False)) if one != two)
    assert 0 < alike < min(map(len, answers))
    torch.testing.assert_close(scored[0][:alike], scored[1][:alike], rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shapes(data):
    """Random prompts, answers from one token up, images and shared prompts, in both packings."""
    words = ["a", "red", "dog", "sits", "by", "the", "tree"]
    text = st.lists(st.sampled_from(words), min_size=1, max_size=8).map(" ".join)
    rows = []
    for _ in range(data.draw(st.integers(1, 4))):
        images = [tiny.picture(data.draw(st.integers(0, 2))) for _ in range(data.draw(st.integers(0, 2)))]
        row = tiny.rows(1)[0] | {"images": images}
        for name in ("chosen", "rejected"):
            row[name] = [{"role": "assistant", "content": data.draw(text)}]
        row["prompt"] = [{"role": "user", "content": data.draw(text)}]
        rows.append(row)
    rows += rows[: data.draw(st.integers(0, 1))]
    multiple = data.draw(st.sampled_from([None, 8]))
    model, processor = tiny.model(), tiny.processor()
    results = []
    for layout in (FLAT, PACKED_ROW, PACKED_ROWS):
        own = copy.deepcopy(model)
        own.set_attn_implementation("eager" if layout == PACKED_ROWS else "sdpa")
        batch = MFPOCollator(processor, layout=layout, pad_to_multiple_of=multiple)(rows)
        with torch.no_grad():
            logps, there = scores(prepared(own, layout), batch)
        results.append(logps.masked_fill(~there, 0))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(results[2], results[0], rtol=1e-5, atol=2e-5)


def test_a_batch_by_hand():
    """One prompt of 4 tokens, answers of 2 and 1: prefix of 3, and each answer behind a copy of the last prompt token."""
    row = tiny.rows(1, images=lambda n: [])[0]
    processor = tiny.processor(tiny.LLAVA_TEMPLATE)
    collator = MFPOCollator(processor, layout=PACKED_ROW, add_eos=False)
    batch = collator([row])
    encoded = collator.encode(row)
    prompt = encoded["image", "chosen"].prompt.tokens["input_ids"].tolist()
    chosen, rejected = encoded["image", "chosen"].completion, encoded["image", "rejected"].completion
    last = prompt[-1:]
    assert batch["input_ids"].tolist() == [prompt[:-1] + last + chosen[:-1] + last + rejected[:-1]]
    prefix = len(prompt) - 1
    assert batch["shift_labels"].tolist() == [[-100] * prefix + chosen + rejected]
    assert batch["branches"].tolist() == [[0, prefix, len(chosen)], [0, prefix + len(chosen), len(rejected)]]
    assert batch["prefixes"].tolist() == [[0, prefix], [0, prefix]]
    assert batch["pairs"].tolist() == [[0, 1, -1]]


def test_mask_by_hand():
    """Prefix of 2, branches of 2 and 1, and one token of padding."""
    group, branch, position = token_ids([(0, 2, 2, 0, 2), (0, 4, 1, 0, 2)], rows=1, width=6)
    seen = dense_mask(group, branch, torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert position.tolist() == [[0, 1, 2, 3, 2, 0]]


def trainer_with(tmp_path, sharing: str, rows: list[dict], lora: bool = False, **settings) -> MFPOTrainer:
    data = Dataset.from_list(rows, features=tiny.dataset(1).features)
    args = MFPOConfig(output_dir=str(tmp_path / sharing), prefix_sharing=sharing, **{**CPU, **settings})
    peft = (
        {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])} if lora else {"ref_model": tiny.model(1)}
    )
    trainer = MFPOTrainer(model=tiny.model(), args=args, train_dataset=data, processing_class=tiny.processor(), **peft)
    return trainer


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_training_is_the_same_in_both_layouts(tmp_path, lora, checkpointing):
    histories = []
    for sharing in ("off", "on"):
        options = {"optim": "sgd", "learning_rate": 1e-2, "gradient_checkpointing": checkpointing}
        trainer = trainer_with(tmp_path, sharing, mixed_rows(8), lora, **options)
        assert trainer.layout.name == (FLAT if sharing == "off" else PACKED_ROW)
        trainer.train()
        histories.append([line for line in trainer.state.log_history if "loss" in line])
    for flat, packed in zip(*histories, strict=True):
        for key in flat.keys() - {"rewards/modality_balance", "tokens/padding"}:  # a ratio of two small differences
            assert packed[key] == pytest.approx(flat[key], rel=1e-4, abs=2e-5), key


def test_pairs_on_one_prompt_share_their_branches():
    """Four ranked responses make six pairs: four clean branches, and one dispreferred image with three chosen ones."""
    row, answers = tiny.rows(1)[0], ["a cat", "two birds", "a red dog by a tree", "grass"]
    message = [[{"role": "assistant", "content": answer}] for answer in answers]
    rows = [row | {"chosen": message[i], "rejected": message[j]} for i in range(4) for j in range(i + 1, 4)]
    processor, model = tiny.processor(), tiny.model()
    batch = MFPOCollator(processor, layout=PACKED_ROW)(rows)
    assert len(batch["branches"]) == 7 and len(batch["pixel_values"]) == 2
    flat = MFPOCollator(processor)(rows)
    expected = gradients(prepared(copy.deepcopy(model), FLAT), flat)
    assert_same_gradients(expected, gradients(prepared(model, PACKED_ROW), batch))


@pytest.mark.parametrize("family", [*PACKED_FAMILIES, *FLAT_FAMILIES])
def test_equal_images_are_encoded_once(family):
    """In flat rows the clean image stands twice; the tower sees it once, and gradients are as if it had seen it twice."""
    model, processor = families.FAMILIES[family]()
    rows = [row for row in mixed_rows() if row["images"]]
    batch = MFPOCollator(processor)(rows)
    plain = copy.deepcopy(model)
    add_fused_lm_head(plain, outputs=("log_probs",))
    seen = []
    model = prepared(model, FLAT)
    for own in (plain, model):
        own.get_encoder(modality="image").register_forward_pre_hook(
            lambda tower, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
        )
    inputs = {name: value for name, value in batch.items() if name not in ("pairs", "branches")}
    expected = plain(**inputs, fused_lm_head=True).log_probs
    found = model(**inputs, fused_lm_head=True).log_probs
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert seen[1] < seen[0]
    for loss in (expected.sum(), found.sum()):
        loss.backward()
    grads = [{n: p.grad for n, p in own.named_parameters() if p.grad is not None} for own in (plain, model)]
    assert_same_gradients(*grads)


def test_images_are_told_apart_bit_by_bit():
    pixels = torch.rand(4, 3, 5, 5)
    pixels[2] = pixels[0]
    pixels[3] = pixels[1].flip(-1)
    assert same_images(pixels, [1] * 4) == [0, 1, 0, 3]
    assert same_images(pixels.flatten(0, 1), [3, 3, 3, 3]) == [0, 1, 0, 3]
    assert same_images(pixels.flatten(0, 1)[:9], [3, 6]) == [0, 1]


def test_nothing_is_built_for_positions_without_a_label(monkeypatch):
    """What reaches the LM head is as long as the labels, in both layouts."""
    from trl.trainer import utils

    seen, function = [], utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        utils._ChunkedLogProbFunction,
        "apply",
        lambda hidden, *rest: (seen.append(len(hidden)), function(hidden, *rest))[1],
    )
    for layout in (FLAT, PACKED_ROW):
        batch = MFPOCollator(tiny.processor(), layout=layout)(tiny.rows(3))
        scores(prepared(tiny.model(), layout), batch)
        assert seen.pop() == int(batch["branches"][:, 2].sum())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_attn_implementation_internal": "flash_attention_2"}, "flash_attention_2 takes no mask"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of linear_attention"),
        ({"sliding_window": 32}, "window of 32"),
    ],
)
def test_what_stays_flat_says_why(change, reason):
    model = tiny.model()
    for name, value in change.items():
        setattr(model.config.text_config, name, value)
    layout = choose_layout(model, "auto")
    assert layout.name == FLAT and reason in layout.reason
    with pytest.raises(ValueError, match="prefix_sharing='on' is not possible"):
        choose_layout(model, "on")


def test_mixing_by_convolution_stays_flat():
    """As in state-space and hybrid language parts; a convolution of the vision tower is none."""
    model = tiny.model()
    assert any(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    model.model.language_model.layers[0].mixer = torch.nn.Conv1d(32, 32, 4)
    layout = choose_layout(model, "auto")
    assert layout.name == FLAT and "recurrent or convolutional" in layout.reason


def test_the_log_says_once_which_layout_runs_and_why(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        trainer_with(tmp_path, "auto", tiny.rows(4), max_steps=2).train()
    said = [record for record in caplog.records if "Layout:" in record.message]
    assert len(said) == 1 and said[0].message.endswith("Layout: packed row (llava with sdpa attention).")
    caplog.clear()
    model, processor = families.FAMILIES["paligemma"]()
    data = Dataset.from_list(tiny.rows(4), features=tiny.dataset(1).features)
    args = MFPOConfig(output_dir=str(tmp_path), **CPU)
    MFPOTrainer(model=model, ref_model=copy.deepcopy(model), args=args, train_dataset=data, processing_class=processor)
    said = [record for record in caplog.records if "Layout:" in record.message]
    assert len(said) == 1 and said[0].levelno == logging.WARNING and "both directions" in said[0].message


@pytest.mark.parametrize("layout", [FLAT, PACKED_ROW])
def test_the_processors_padding_side_does_not_matter(layout):
    model = prepared(tiny.model(), layout)
    found = []
    for side in ("right", "left"):
        processor = tiny.processor()
        processor.tokenizer.padding_side = side
        found.append(scores(model, MFPOCollator(processor, layout=layout)(mixed_rows()))[0])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bit_packed_rows_equal_flat_rows(tmp_path, dtype):
    """NF4 weights; with bfloat16 arithmetic as far apart as its rounding."""
    tiny.allow_four_bits()
    path = tiny.save_pretrained(tmp_path / "weights")
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    found = []
    for layout in (FLAT, PACKED_ROW):
        model = tiny.LlavaForConditionalGeneration.from_pretrained(path, quantization_config=four_bit, dtype=dtype)
        with torch.no_grad():
            logps, there = scores(prepared(model, layout), MFPOCollator(tiny.processor(), layout=layout)(mixed_rows()))
        found.append(logps[there].float())
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 5e-3, "atol": 0.05}
    torch.testing.assert_close(*found, **tolerance)


def test_an_untested_family_is_compared_on_its_first_batch(tmp_path, monkeypatch):
    """Gemma 3 with its obstacle forgotten: its image tokens see each other, and a packed row is refused by its numbers."""
    monkeypatch.setattr("mfpo_trl.batch.choice.PACKED_FAMILIES", ())
    assert (
        choose_layout(tiny.model(), "auto").name == FLAT and "not tested" in choose_layout(tiny.model(), "auto").reason
    )
    trainer = trainer_with(tmp_path, "on", tiny.rows(4), max_steps=1)
    assert not trainer.layout.proven
    trainer.train()
    assert trainer.layout.proven
    monkeypatch.setattr("mfpo_trl.batch.choice._obstacle", lambda *_: None)
    model, processor = families.FAMILIES["gemma3"]()
    model.set_attn_implementation("sdpa")
    data = Dataset.from_list(tiny.rows(4), features=tiny.dataset(1).features)
    settings = {**CPU, "max_steps": 1, "prefix_sharing": "on", "image_loss_weight": 0.0}
    trainer = MFPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=MFPOConfig(output_dir=str(tmp_path / "gemma"), **settings),
        train_dataset=data,
        processing_class=processor,
    )
    with pytest.raises(ValueError, match="packed and flat rows differ"):
        trainer.train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untested_family_is_compared_before_its_reference_is_kept(tmp_path, monkeypatch, dtype):
    """The same Gemma 3: no value of a layout that is refused reaches the cache."""
    monkeypatch.setattr("mfpo_trl.batch.choice.PACKED_FAMILIES", ())
    monkeypatch.setattr("mfpo_trl.batch.choice._obstacle", lambda *_: None)
    model, processor = families.FAMILIES["gemma3"]()
    model.set_attn_implementation("sdpa")
    tiny.dataset(4).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="packed and flat rows differ"):
        MFPOTrainer(
            model=model.to(dtype),
            args=MFPOConfig(
                output_dir=str(tmp_path / "gemma"), **CPU, prefix_sharing="on", precompute_ref_log_probs=True
            ),
            train_dataset=load_from_disk(tmp_path / "data"),
            processing_class=processor,
        )
    assert not list((tmp_path / "data").glob("mfpo-reference-*"))


def test_a_prompt_that_ends_with_an_image_is_not_shared():
    """Its last token, a part of the image, cannot be repeated."""
    rows = [row | {"prompt": "USER: what? <image>", "chosen": "a cat", "rejected": "a dog"} for row in tiny.rows(2)]
    model = tiny.model()
    found = []
    for layout in (FLAT, PACKED_ROW):
        with torch.no_grad():
            batch = MFPOCollator(tiny.processor(), layout=layout)(rows)
            found.append(scores(prepared(copy.deepcopy(model), layout), batch)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_generation_and_checkpoints_know_nothing_of_it(tmp_path):
    trainer = trainer_with(tmp_path, "on", tiny.rows(4), max_steps=1)
    assert trainer.model.config.text_config._attn_implementation == PACKED_SDPA
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = tiny.LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert again.config.text_config._attn_implementation == "sdpa"
    inputs = trainer.processing_class(
        text=["USER: <image> what? ASSISTANT:", "hm"], images=[tiny.picture(0)], padding=True, return_tensors="pt"
    )
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(trainer.model.eval().generate(**inputs, **options), again.generate(**inputs, **options))
    assert not math.isnan(trainer.state.log_history[0]["loss"])
