"""A step's numbers where they could go wrong without a word: another collator's tables, unequal micro-batches, cut prompts,
shared branches, a reference with another attention kernel, a compiled model."""

import copy
from functools import partial

import families
import numpy as np
import pytest
import tiny
import torch
from accelerate import ParallelismConfig
from peft import LoraConfig, get_peft_model
from test_trainer import TEXT_ONLY, build, history, policy
from trl import DPOTrainer

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.batch.packing import FLAT, PACKED_ROW, PACKED_ROWS
from mfpo_trl.images.dispreferred import DispreferredImages
from mfpo_trl.objective import BRANCHES, PRESETS
from mfpo_trl.objective.terms import TERMS as ALL_TERMS

TERMS = tuple(PRESETS["mfpo"].weights)


def first_loss(tmp_path, config=None, rows=None, **kwargs) -> float:
    """Of the first micro-batch, the weights as they are."""
    trainer = build(MFPOTrainer, {"max_steps": 1, **(config or {})}, tmp_path, **kwargs)
    trainer.model.train()
    batch = trainer.data_collator(tiny.rows(4, key_regions=tiny.boxes) if rows is None else rows)
    return float(trainer.compute_loss(trainer.model, batch).detach())


# Rows that are read as one sequence


def test_activated_lora_is_trained_in_flat_rows(tmp_path):
    """Its invocation tokens stand in every prompt; a packed row would switch it on for the last group alone."""
    tokens = tiny.tokenizer()("ASSISTANT", add_special_tokens=False)["input_ids"]
    losses = {}
    for sharing in ("auto", "off"):
        lora = LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, alora_invocation_tokens=tokens
        )
        trainer = build(MFPOTrainer, {"prefix_sharing": sharing}, tmp_path, peft_config=lora, reference=False)
        assert trainer.layout.name == FLAT
        batch = trainer.data_collator(tiny.rows(4))
        losses[sharing] = float(trainer.compute_loss(trainer.model, batch).detach())
    assert losses["auto"] == losses["off"]
    with pytest.raises(ValueError, match="activated LoRA"):
        build(MFPOTrainer, {"prefix_sharing": "on"}, tmp_path, peft_config=lora, reference=False)


def test_noise_on_the_input_is_that_of_dpo(tmp_path):
    """alpha / sqrt(L d), with L the tokens of a row: the same draws and the same training as DPOTrainer's."""
    config, found = {"neftune_noise_alpha": 20.0, "max_steps": 2}, []
    for cls, extra in ((DPOTrainer, {}), (MFPOTrainer, {**TEXT_ONLY, "add_eos": False})):
        trainer = build(cls, {**config, **extra}, tmp_path)
        trainer.train()
        found.append([line["loss"] for line in history(trainer) if "loss" in line])
    assert trainer.layout.name == FLAT and "neftune_noise_alpha" in trainer.layout.reason
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    with pytest.raises(ValueError, match="neftune_noise_alpha"):
        build(MFPOTrainer, {**config, "prefix_sharing": "on"}, tmp_path)


@pytest.mark.parametrize("axis", ["cp_size", "sp_size"])
def test_rows_that_would_be_cut_over_processes(tmp_path, axis):
    with pytest.raises(ValueError, match="context and sequence parallelism cut the rows"):
        build(MFPOTrainer, {"parallelism_config": ParallelismConfig(**{axis: 2})}, tmp_path)


# A collator of the caller


@pytest.mark.parametrize("missing", BRANCHES)
def test_a_collator_without_a_branch_that_a_term_reads(tmp_path, missing):
    """For every branch: told when the trainer is built, and, behind a function that hides the collator, at the first batch."""
    branches = [name for name in BRANCHES if name != missing]
    collator = MFPOCollator(tiny.processor(), branches=branches, add_eos=False)
    reads = " and ".join(f"term {name!r}" for name in TERMS if missing in ALL_TERMS[name].reads)
    with pytest.raises(ValueError, match=f"{reads} read '{missing}'"):
        build(MFPOTrainer, {}, tmp_path, data_collator=collator)
    hidden = build(MFPOTrainer, {}, tmp_path, data_collator=lambda rows: collator(rows))
    with pytest.raises(ValueError, match=f"no '{missing}' branch for 4 of its 4 samples, which {reads} read"):
        hidden.compute_loss(hidden.model, hidden.data_collator(tiny.rows(4)))


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)])
def test_a_collator_with_what_the_terms_read_is_enough(tmp_path, weights):
    """The loss is that of the trainer's own collator."""
    config = {f"{name}_loss_weight": float(weight) for name, weight in zip(TERMS, weights, strict=True)}
    branches = MFPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **config).branches
    own = build(MFPOTrainer, config, tmp_path)
    collator = MFPOCollator(tiny.processor(), branches=branches, dispreferred=own.data_collator.dispreferred)
    given = build(MFPOTrainer, config, tmp_path, data_collator=collator)
    rows = tiny.rows(4, key_regions=tiny.boxes)
    losses = [float(one.compute_loss(one.model, one.data_collator(rows)).detach()) for one in (own, given)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"branches": ("chosen", "rejectd")}, "'rejectd' is unknown"), ({"layout": "packed"}, "'packed' is unknown")],
)
def test_a_collator_with_unknown_names(options, message):
    with pytest.raises(ValueError, match=message):
        MFPOCollator(tiny.processor(), **options)


@pytest.mark.parametrize("layout", [PACKED_ROW, PACKED_ROWS])
@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_a_packing_collator_for_a_model_that_cannot_read_it(tmp_path, family, layout):
    model, processor = families.FAMILIES[family]()
    collator = MFPOCollator(processor, layout=layout)
    with pytest.raises(ValueError, match=f"layout='{layout}', which is not possible: .* both directions"):
        build(
            MFPOTrainer,
            {},
            tmp_path,
            model,
            ref_model=copy.deepcopy(model),
            processing_class=processor,
            data_collator=collator,
        )


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", [FLAT, PACKED_ROW, PACKED_ROWS])
def test_a_collators_layout_with_either_kernel(tmp_path, kernel, layout):
    model = policy()
    model.set_attn_implementation(kernel)
    make = partial(MFPOCollator, tiny.processor(), dispreferred=DispreferredImages("mean"))
    given = first_loss(tmp_path, model=model, data_collator=make(layout=layout))
    assert given == pytest.approx(first_loss(tmp_path, data_collator=make()), rel=1e-5)


def test_a_packing_collator_of_an_untested_family_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("mfpo_trl.batch.choice.PACKED_FAMILIES", ())
    trainer = build(MFPOTrainer, {}, tmp_path, data_collator=MFPOCollator(tiny.processor(), layout=PACKED_ROW))
    assert not trainer.layout.proven


@pytest.mark.parametrize("layout", [PACKED_ROW, PACKED_ROWS])
@pytest.mark.parametrize(
    "wrap", [lambda own: lambda rows: own(rows), lambda own: partial(own)], ids=["function", "partial"]
)
def test_a_packing_collator_inside_of_another_is_refused(tmp_path, layout, wrap):
    """Nobody has looked whether the model may read what it gives; flat rows it may."""
    made = partial(MFPOCollator, tiny.processor())
    with pytest.raises(ValueError, match="gives packed rows, and what the model may read is looked at where"):
        first_loss(tmp_path, data_collator=wrap(made(layout=layout)))
    assert first_loss(tmp_path, data_collator=wrap(made())) == pytest.approx(
        first_loss(tmp_path, data_collator=made())
    )


# A reference that is not built as the policy is


def test_a_reference_with_an_adapter_is_refused(tmp_path):
    """TRL's own trainer ends in an AttributeError; merged, it scores."""
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with pytest.raises(ValueError, match=r"give `ref_model.merge_and_unload\(\)`"):
        first_loss(tmp_path, ref_model=get_peft_model(tiny.model(), lora))
    first_loss(tmp_path, ref_model=get_peft_model(tiny.model(), lora).merge_and_unload())


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
@pytest.mark.parametrize("kernels", [("eager", "sdpa"), ("sdpa", "eager"), ("eager", "eager"), ("sdpa", "sdpa")])
def test_a_reference_with_another_attention_kernel(tmp_path, kernels, dtype):
    """The loss is that of flat rows, where nothing depends on the kernel."""
    models = policy(), tiny.model()
    for model, kernel in zip(models, kernels, strict=True):
        model.set_attn_implementation(kernel)
    losses = [
        first_loss(
            tmp_path, {"prefix_sharing": sharing}, model=copy.deepcopy(models[0]), ref_model=copy.deepcopy(models[1])
        )
        for sharing in ("on", "off")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    if dtype == "bf16":
        trainer = build(MFPOTrainer, {"bf16": True}, tmp_path, models[0], ref_model=models[1])
        with trainer.compute_loss_context_manager():
            mixed = trainer.compute_loss(trainer.model, trainer.data_collator(tiny.rows(4, key_regions=tiny.boxes)))
        assert float(mixed.detach()) == pytest.approx(losses[1], rel=0.1)


def test_text_and_vision_parts_with_different_kernels(tmp_path):
    """TRL gives the reference that it loads the kernel of the whole model, not of its parts."""
    path = tiny.save_pretrained(tmp_path / "weights")
    losses = []
    for sharing in ("on", "off"):
        model = tiny.LlavaForConditionalGeneration.from_pretrained(path)
        model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.01)
        losses.append(first_loss(tmp_path, {"prefix_sharing": sharing}, model=model, reference=False))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_reference_that_cannot_read_packed_rows(tmp_path):
    reference = tiny.model()
    reference.config.text_config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="of the reference model, flash_attention_2 takes no mask"):
        build(MFPOTrainer, {"prefix_sharing": "on"}, tmp_path, ref_model=reference)


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_compiled_model_trains(tmp_path, lora, cached):
    """With the numbers of the same model as it is."""
    histories = []
    for compiled in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        # Whose tracing takes the time: a second step has other shapes, and every shape is traced.
        config = {"max_steps": 1, "precompute_ref_log_probs": cached, **compiled}
        kwargs = {"reference": False, "peft_config": LoraConfig(r=4, target_modules=["q_proj"])} if lora else {}
        trainer = build(MFPOTrainer, config, tmp_path, **kwargs)
        trainer.train()
        histories.append([line[key] for line in trainer.state.log_history[:1] for key in ("loss", "grad_norm")])
    assert histories[0] == pytest.approx(histories[1], rel=1e-4) and histories[0][1] > 0


# What is counted


def test_image_rewards_weigh_what_they_count(tmp_path):
    """Seven rows with an image in eight, or two, three ...: the same means however they are cut into micro-batches."""
    has_image = [True, False, False, True, True, False, True, True]
    rows = tiny.rows(8, images=lambda n: [tiny.picture(n)] if has_image[n] else [])
    found = []
    for size, steps in ((8, 1), (4, 2), (2, 4), (1, 8)):
        config = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": steps,
            "max_steps": 1,
            "learning_rate": 0.0,
        }
        data = tiny.Dataset.from_list(rows, features=tiny.dataset(1).features)
        trainer = build(MFPOTrainer, {**config, "train_sampling_strategy": "sequential"}, tmp_path, data=data)
        trainer.train()
        line = history(trainer)[0]
        found.append({name: value for name, value in line.items() if "rewards/image" in name})
    assert found[0].keys() == {f"rewards/image_{name}" for name in ("margins", "accuracies", "rejected")}
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=2e-5)


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_an_evaluation_weighs_what_it_counts(tmp_path, size):
    """The terms sum to `eval_loss`, which `Trainer` weighs by rows, also where the last batch is smaller."""
    data = tiny.Dataset.from_list(
        tiny.rows(8, images=lambda n: [tiny.picture(n)] if n % 3 else []), features=tiny.dataset(1).features
    )
    trainer = build(MFPOTrainer, {"per_device_eval_batch_size": size}, tmp_path, data=data, eval_dataset=data)
    found = trainer.evaluate()
    assert sum(found[f"eval_loss/{name}"] for name in TERMS) == pytest.approx(found["eval_loss"], rel=1e-5)
    whole = build(MFPOTrainer, {"per_device_eval_batch_size": 8}, tmp_path, data=data, eval_dataset=data).evaluate()
    for name in ("margins", "accuracies", "rejected"):
        key = f"eval_rewards/image_{name}"
        assert found[key] == pytest.approx(whole[key], rel=1e-4, abs=2e-5)


LOSS_TYPES = [
    *(
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
    ),
    *("apo_down", "discopop", "sft", "sigmoid_norm"),
]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_prompt_that_is_cut_whole(tmp_path, loss_type):
    """Text rows whose answers alone fill `max_length`, cut at their beginning: loss and gradient of DPOTrainer."""
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in tiny.rows(4)]
    data = tiny.Dataset.from_list(rows)
    found = []
    for cls, extra in ((DPOTrainer, {}), (MFPOTrainer, {**TEXT_ONLY, "add_eos": False})):
        config = {
            "loss_type": [loss_type],
            "max_length": 6,
            "truncation_mode": "keep_end",
            "label_smoothing": 0.1,
            "max_steps": 1,
        }
        trainer = build(cls, {**config, **extra}, tmp_path, data=data)
        trainer.train()
        found.append(
            {name: history(trainer)[0][name] for name in ("loss", "grad_norm", "num_tokens", "rewards/margins")}
        )
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=2e-5)


@pytest.mark.parametrize("sharing", ["on", "off"])
@pytest.mark.parametrize("weights", [{}, TEXT_ONLY], ids=["mfpo", "dpo"])
def test_tokens_are_those_of_the_pairs(tmp_path, sharing, weights):
    """Four times the same pair and two more on its prompt, which packed rows score once: DPOTrainer's count."""
    row, other = tiny.rows(2)
    rows = [row] * 4 + [row | {"rejected": other["rejected"]}, row | {"chosen": other["chosen"]}]
    data = tiny.Dataset.from_list(rows, features=tiny.dataset(1).features)
    counts = []
    config = {"per_device_train_batch_size": 6, "max_steps": 1}
    for cls, extra in ((DPOTrainer, {}), (MFPOTrainer, {**weights, "add_eos": False, "prefix_sharing": sharing})):
        trainer = build(cls, {**config, **extra}, tmp_path, data=data)
        trainer.train()
        counts.append(history(trainer)[0]["num_tokens"])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("weights", [{}, TEXT_ONLY], ids=["mfpo", "dpo"])
def test_compute_metrics_gets_the_rows_of_dpo(tmp_path, weights):
    """Two batches, of the second of which `Trainer` cuts rows off, of both alike."""
    data, seen = tiny.dataset(6), []

    def metrics(prediction):
        seen.append(prediction)
        return {"seen": len(prediction.label_ids)}

    for cls, extra in ((DPOTrainer, {}), (MFPOTrainer, {**weights, "add_eos": False})):
        trainer = build(cls, extra, tmp_path, data=data, eval_dataset=data, compute_metrics=metrics)
        found = trainer.evaluate()
        assert found["eval_seen"] == len(seen[-1].label_ids)
    theirs, ours = seen
    assert theirs.label_ids.shape == ours.label_ids.shape
    # What TRL's collator writes behind the end of a row is no token of it.
    kept = ours.label_ids > 0
    assert np.array_equal(theirs.label_ids[kept], ours.label_ids[kept])
    np.testing.assert_allclose(ours.predictions[kept], theirs.predictions[kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prefix_sharing": "on"}, "compute_metrics reads the logits of one answer a row"),
        ({"text_loss_weight": 0.0}, "text_loss_weight=0"),
        ({"include_for_metrics": ["inputs"]}, "include_for_metrics"),
    ],
)
def test_compute_metrics_that_cannot_have_its_rows(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        build(MFPOTrainer, config, tmp_path, eval_dataset=tiny.dataset(4), compute_metrics=lambda _: {})


def test_predictions_of_packed_rows_are_refused(tmp_path):
    """`predict` asks for logits without `compute_metrics`."""
    trainer = build(MFPOTrainer, {}, tmp_path)
    assert trainer.layout.name == PACKED_ROW
    with pytest.raises(ValueError, match="prefix_sharing='off'"):
        trainer.predict(tiny.dataset(4))
    flat = build(MFPOTrainer, {"prefix_sharing": "off", "add_eos": False}, tmp_path)
    assert len(flat.predict(tiny.dataset(4)).predictions) == 8


@pytest.mark.parametrize("sharing", ["off", "auto"])
@pytest.mark.parametrize("workers", [0, 2])
def test_answers_that_are_cut_are_counted(tmp_path, caplog, workers, sharing):
    """Each once with the total at the end, whichever process makes the batches, in training and not in evaluations."""
    rows = tiny.dataset(8, tiny.BOXES, key_regions=tiny.boxes)
    whole = [MFPOCollator(tiny.processor())([row]) for row in rows]
    # The chosen and the rejected answer of each row; the chosen one stands once more under the dispreferred image.
    lengths = torch.cat([batch["attention_mask"].sum(dim=1)[batch["branches"][:2, 0]] for batch in whole])
    limit = int(lengths.median())
    config = {"max_length": limit, "prefix_sharing": sharing, "dataloader_num_workers": workers, "max_steps": -1}
    config |= {"num_train_epochs": 1, "eval_strategy": "epoch", "logging_steps": 1}
    trainer = build(MFPOTrainer, config, tmp_path, data=rows, eval_dataset=rows)
    trainer.train()
    cut = int((lengths > limit).sum())
    assert 0 < cut < len(lengths) == 16
    assert (
        caplog.text.count(f"max_length={limit} has cut the end of {cut} of the 16 answers that were trained on") == 1
    )
    shares = [line["completions/clipped_ratio"] for line in history(trainer) if "loss" in line]
    assert len(shares) > 1 and np.mean(shares) == pytest.approx(cut / 16)
    assert history(trainer)[-2]["eval_completions/clipped_ratio"] == pytest.approx(cut / 16)
    trainer.train()
    assert caplog.text.count(f"{cut} of the 16 answers that were trained on in this run") == 2


def test_terms_are_means_of_steps_where_the_last_is_short(tmp_path):
    """Three rows, two a step: `loss` is a mean over two steps, the second of one row, and so are its terms."""
    config = {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1,
        "learning_rate": 0.0,
        "max_steps": -1,
    }
    config |= {"num_train_epochs": 1, "logging_steps": 2, "lr_scheduler_type": "constant"}
    trainer = build(MFPOTrainer, config, tmp_path, data=tiny.dataset(3, tiny.BOXES, key_regions=tiny.boxes))
    trainer.train()
    (line,) = [line for line in history(trainer) if "loss" in line]
    assert trainer.state.global_step == 2
    assert sum(line[f"loss/{name}"] for name in TERMS) == pytest.approx(line["loss"], rel=1e-5)
