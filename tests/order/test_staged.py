"""A curriculum on the real trainer: which rows each optimizer step sees, resuming, and the reference of a stage."""

import copy
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny
import torch
import warm
from datasets import Dataset, Value
from peft import AdaLoraConfig, LoraConfig
from test_trainer import CPU
from transformers import BitsAndBytesConfig, TrainerCallback

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.data.difficulty.measures import build_difficulty
from mfpo_trl.order import check_stage_reference
from mfpo_trl.reference import references as reference

DIFFICULTY = [(5 * n) % 13 + n / 100 for n in range(13)]
"""Of rows 0 to 12; the easiest five, then four, then four make the stages."""
SCRIPT = Path(__file__).parent / "two_processes_staged.py"


def data(count: int = 13, difficulty=DIFFICULTY, **columns) -> Dataset:
    own = {"difficulty": lambda n: difficulty[n]} if difficulty is not None else {}
    features = {"difficulty": Value("float64")} if difficulty is not None else {}
    return tiny.dataset(count, features | columns.pop("features", {}), **own, **columns)


class Recording(MFPOTrainer):
    """Notes which rows, told by their prompts, each optimizer step computes on."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        rows = inputs["input_ids"][inputs["branches"][inputs["pairs"][:, 0], 0]]
        numbers = [int(re.search(r"image (\d+)", text)[1]) for text in self.processing_class.batch_decode(rows)]
        self.seen.setdefault(self.state.global_step, []).extend(numbers)
        return super().training_step(model, inputs, num_items_in_batch)

    @property
    def seen(self) -> dict[int, list[int]]:
        return self.__dict__.setdefault("_seen", {})


def trainer_of(
    folder,
    rows=None,
    kind=Recording,
    lora=False,
    evaluate=False,
    adapter=None,
    model=None,
    quantization_config=None,
    **settings,
) -> MFPOTrainer:
    options = {**CPU, "max_steps": -1, "per_device_train_batch_size": 2, "curriculum": "staged", "num_train_epochs": 1}
    options |= {"learning_rate": 1e-2, "optim": "sgd", "prefix_sharing": "off", **settings}
    rows = data() if rows is None else rows
    if lora:
        adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    return kind(
        model=model or tiny.model(),
        args=MFPOConfig(output_dir=str(folder), **options),
        train_dataset=rows,
        eval_dataset=rows.select([0, 1]) if evaluate is True else evaluate or None,
        processing_class=tiny.processor(),
        peft_config=adapter,
        quantization_config=quantization_config,
        ref_model=None if adapter or options.get("precompute_ref_log_probs") else tiny.model(),
    )


def losses(trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [3, 2, 2]),
        ({"curriculum": "anti"}, [2, 2, 3]),
        ({"curriculum": "sorted", "gradient_accumulation_steps": 2}, [2, 1, 1]),
        ({"dataloader_drop_last": True}, [2, 2, 2]),
        ({"curriculum_epochs": [2, 1, 0.5]}, [5, 2, 1]),
        ({"num_train_epochs": 2, "dataloader_num_workers": 2}, [5, 4, 4]),
        ({"curriculum_stages": 2, "group_by_prompt": True}, [4, 3]),
        ({"curriculum_group_by_length": True}, [3, 2, 2]),
    ],
    ids=str,
)
def test_every_step_sees_rows_of_its_stage(tmp_path, settings, steps):
    trainer = trainer_of(tmp_path, **settings)
    trainer.train()
    ranked = np.array_split(np.argsort(DIFFICULTY), settings.get("curriculum_stages", 3))
    ranked = ranked[::-1] if settings.get("curriculum") == "anti" else ranked
    stage_of_step = [stage for stage, count in enumerate(steps) for _ in range(count)]
    assert len(trainer.seen) == len(stage_of_step) == trainer.state.global_step
    size = 2 * settings.get("gradient_accumulation_steps", 1)
    logs = [line for line in trainer.state.log_history if "loss" in line]
    for step, stage in enumerate(stage_of_step):
        rows = trainer.seen[step]
        assert len(rows) == size and set(rows) <= set(ranked[stage].tolist())
        assert logs[step]["curriculum/stage"] == stage + 1
        assert logs[step]["curriculum/difficulty"] == pytest.approx(np.mean([DIFFICULTY[row] for row in rows]))
    seen = [row for step in range(len(steps)) for row in trainer.seen[step]]
    if not settings.get("dataloader_drop_last") and "curriculum_epochs" not in settings:
        assert {row for rows in trainer.seen.values() for row in rows} == set(range(13)), seen
    if settings.get("curriculum") == "sorted":
        order = [DIFFICULTY[row] for step in range(2) for row in trainer.seen[step]]
        assert order == sorted(order)


def test_padding_is_said(tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer_of(tmp_path, log_level="info")
    assert "rows are repeated (+) or left out (-): +1 of 5 in stage 1" in caplog.text
    assert "Stage 1 of 3: 5 rows, difficulty 0 to " in caplog.text and "1 epoch(s), 3 steps" in caplog.text


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_sees_what_an_uninterrupted_run_sees(tmp_path, accumulation):
    """From inside of the first stage, from its end, and from the second pass over a later one."""
    settings = {"curriculum_epochs": [1, 2, 1], "gradient_accumulation_steps": accumulation, "save_steps": 1}
    settings |= {"save_strategy": "steps", "optim": "adamw_torch"}
    whole = trainer_of(tmp_path, **settings)
    whole.train()
    last = whole.state.global_step
    for step in {1, whole.curriculum.plan.ends[0], whole.curriculum.plan.ends[1] - 1}:
        again = trainer_of(tmp_path, **settings)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert again.seen == {own: rows for own, rows in whole.seen.items() if own >= step}
        assert losses(again) == pytest.approx(losses(whole), rel=1e-5) and again.state.global_step == last


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_policy_at_the_end_of_a_stage_is_the_next_reference(tmp_path, lora, cached, monkeypatch):
    """At the first step of a stage policy and reference agree, so that every reward is 0 and the text loss log 2; and a run
    that goes on from inside of the last stage has the same reference as one that never stopped."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    settings = {"curriculum_reference": "stage", "precompute_ref_log_probs": cached, "save_strategy": "steps"}
    settings |= {"save_steps": 1, "curriculum_epochs": [1, 1, 2], "learning_rate": 0.5 if lora else 0.05}
    whole = trainer_of(tmp_path / "out", lora=lora, evaluate=True, eval_strategy="epoch", **settings)
    whole.train()
    logs = [line for line in whole.state.log_history if "loss" in line]
    ends = whole.curriculum.plan.ends
    for step, line in enumerate(logs):
        first = step in (0, *ends[:-1])
        assert (abs(line["loss/text"] - math.log(2)) < 1e-5) == first, step
        assert (abs(line["rewards/chosen"]) < 1e-5) == first and (abs(line["rewards/image_margins"]) < 1e-5) == first
    # The evaluation at a stage's end is against that stage's reference, which is not the policy any more.
    evaluations = [line["eval_loss/text"] for line in whole.state.log_history if "eval_loss" in line]
    assert len(evaluations) == 3 and all(abs(value - math.log(2)) > 1e-5 for value in evaluations)
    for step in (ends[1], ends[1] + 1):
        again = trainer_of(tmp_path / "out", lora=lora, evaluate=True, eval_strategy="epoch", **settings)
        again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        assert losses(again) == pytest.approx(losses(whole), rel=1e-5)


def test_a_reference_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    settings = {"curriculum_reference": "stage", "save_strategy": "steps", "save_steps": 1}
    for cached, match in (
        (False, "the policy at the end of stage 1, and .*_checkpoint-stage-1 is not there"),
        (True, "no longer in"),
    ):
        folder = tmp_path / str(cached)
        trainer_of(folder, precompute_ref_log_probs=cached, **settings).train()
        for path in (*folder.glob("_checkpoint-stage-*"), *(tmp_path / "cache").rglob("part-*.parquet")):
            subprocess.run(["rm", "-r", str(path)], check=True)
        with pytest.raises(ValueError, match=match):
            trainer_of(folder, precompute_ref_log_probs=cached, **settings).train(
                resume_from_checkpoint=str(folder / "checkpoint-4")
            )


def test_a_reference_of_another_training_is_refused(tmp_path):
    """Which a folder holds whose new training saves nothing where a stage ends."""

    class BestAtFour(Recording):
        def _determine_best_metric(self, metrics, trial):
            return self.state.global_step == 4

    settings = {"curriculum_reference": "stage", "save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"metric_for_best_model": "mean_token_accuracy", "evaluate": True, "kind": BestAtFour}
    trainer_of(tmp_path, curriculum_reference="stage", save_strategy="steps", save_steps=4, max_steps=4).train()
    stage = tmp_path / "_checkpoint-stage-1"
    earlier = (stage / "trainer_state.json").read_text()
    trainer_of(tmp_path, max_steps=4, **settings).train()
    assert (stage / "trainer_state.json").read_text() == earlier
    with pytest.raises(ValueError, match="_checkpoint-stage-1 is that of another training than .*checkpoint-4"):
        trainer_of(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_the_policy_becomes_no_shards_reference(tmp_path):
    trainer = trainer_of(tmp_path, lora=True, curriculum="none")
    trainer.is_deepspeed_enabled = True
    trainer.args.curriculum_reference = "stage"
    with pytest.raises(ValueError, match="not done for the shards of DeepSpeed or FSDP"):
        check_stage_reference(trainer)


class Slow(TrainerCallback):
    """Makes every checkpoint look minutes older than the next, as in a real training."""

    def on_save(self, args, state, control, **kwargs):
        for path in Path(args.output_dir).glob("*checkpoint-*"):
            os.utime(path, (time := path.stat().st_mtime - 600, time))


def test_checkpoints_are_named_after_stages(tmp_path):
    """Their models stay where only the last checkpoint is kept, and take no room for their weights twice."""
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer.add_callback(Slow())
    trainer.train()
    names = {path.name for path in tmp_path.glob("*checkpoint-*")}
    assert names == {"checkpoint-7", *(f"_checkpoint-stage-{n}" for n in (1, 2, 3))}
    for stage, step in ((1, 3), (2, 5), (3, 7)):
        folder = tmp_path / f"_checkpoint-stage-{stage}"
        assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == step
        tiny.LlavaForConditionalGeneration.from_pretrained(folder)
        assert not any(folder.glob("optimizer*")) and not any(folder.glob("rng_state*"))
    last, named = tmp_path / "checkpoint-7", tmp_path / "_checkpoint-stage-3"
    assert os.path.samefile(last / "model.safetensors", named / "model.safetensors")
    assert not os.path.samefile(last / "trainer_state.json", named / "trainer_state.json")
    # A kill between a checkpoint and its second name.
    shutil.rmtree(named)
    trainer_of(tmp_path, save_strategy="no").train(resume_from_checkpoint=str(last))
    assert (named / "model.safetensors").exists()


@pytest.mark.parametrize(
    "changed",
    [{"curriculum": "anti"}, {"curriculum_stages": 2}, {"seed": 1}, {"gradient_accumulation_steps": 2}],
    ids=str,
)
def test_another_order_is_not_resumed(tmp_path_factory, changed):
    folder = tmp_path_factory.getbasetemp() / "ordered"
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    if not folder.exists():
        trainer_of(folder, **settings).train()
    with pytest.raises(
        ValueError, match="was written in another order of the rows; resume with the data, curriculum, seed"
    ):
        trainer_of(folder, **{**settings, **changed}).train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_a_stage_goes_on_in_another_folder(tmp_path):
    """Its reference lies beside the checkpoint, not in the new folder; and a trainer whose reference has moved does not start again."""
    settings = {"curriculum_reference": "stage", "save_strategy": "steps", "save_steps": 4, "learning_rate": 0.05}
    whole = trainer_of(tmp_path / "one", **settings)
    whole.train()
    again = trainer_of(tmp_path / "two", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-4"))
    assert losses(again) == pytest.approx(losses(whole), rel=1e-5)
    with pytest.raises(ValueError, match="has changed the reference of this trainer; build another"):
        whole.train()


@pytest.mark.parametrize("first", [4, 5], ids=["from the end of a stage", "from inside of one"])
def test_a_stage_goes_on_from_folder_to_folder(tmp_path, first):
    """Each run goes on from the one before it, inside of the second stage, whose reference the first of them has saved."""
    settings = {"curriculum_reference": "stage", "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.05}
    settings |= {"curriculum_stages": 2, "per_device_train_batch_size": 1, "rows": data(7)}
    whole = trainer_of(tmp_path / "0", **settings)
    whole.train()
    assert whole.curriculum.plan.ends == [4, 7]
    for hop, step in enumerate((first, first + 1)):
        again = trainer_of(tmp_path / str(hop + 1), **settings)
        again.train(resume_from_checkpoint=str(tmp_path / str(hop) / f"checkpoint-{step}"))
        assert losses(again) == pytest.approx(losses(whole), rel=1e-5)


def test_the_reference_of_a_compiled_model_follows_it(tmp_path):
    """Whose weights have other names while it is compiled; and a run goes on inside of a stage as if it had not ended."""
    settings = {"curriculum_reference": "stage", "save_strategy": "steps", "save_steps": 4, "learning_rate": 0.05}
    plain = trainer_of(tmp_path / "plain", **settings)
    plain.train()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    whole, again = (trainer_of(tmp_path / "compiled", **settings, **compiled) for _ in range(2))
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "compiled" / "checkpoint-4"))
    assert losses(whole) == pytest.approx(losses(plain), rel=1e-4) and losses(again) == pytest.approx(
        losses(whole), rel=1e-4
    )


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_follows_the_loss_is_refused_where_its_reference_moves(tmp_path, schedule):
    settings = {"lr_scheduler_type": schedule, "eval_strategy": "steps", "eval_steps": 2, "evaluate": True}
    with pytest.raises(
        ValueError, match=f"lr_scheduler_type='{schedule}' lowers the learning rate where 'loss' gets worse"
    ):
        trainer_of(tmp_path, curriculum_reference="stage", **settings)
    trainer_of(tmp_path, **settings)


LORAS = {
    "dropout": (LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"]), {}),
    "embedding": (LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]), {}),
    "four bits": (LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), {"precompute_ref_log_probs": True}),
    "adalora": (AdaLoraConfig(init_r=4, total_step=20, target_modules=["q_proj", "v_proj"]), {"learning_rate": 500}),
}


@pytest.mark.parametrize("name", LORAS)
def test_every_adapter_follows_its_policy(tmp_path, name, monkeypatch):
    """Rewards are 0 where a stage begins, and a run that goes on inside of a stage is one that never stopped."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    adapter, settings = LORAS[name]
    stages = {"curriculum_reference": "stage", "save_strategy": "steps", "save_steps": 4, "learning_rate": 0.5}
    settings = stages | settings
    model = {}
    if name == "four bits":
        tiny.allow_four_bits()
        model = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)}
        model["model"] = tiny.save_pretrained(tmp_path / "model")
    whole = trainer_of(tmp_path / "out", adapter=adapter, **settings, **model)
    whole.train()
    logs = [line for line in whole.state.log_history if "loss" in line]
    for step, line in enumerate(logs):
        assert (abs(line["rewards/chosen"]) < 1e-6) == (step in (0, *whole.curriculum.plan.ends[:-1])), step
    again = trainer_of(tmp_path / "out", adapter=adapter, **settings, **model)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert losses(again) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize("begin", [True, "pissa", "olora"])
def test_a_new_reference_leaves_the_policy_as_it_was(tmp_path, begin):
    """Adapters that begin with a part of the model's own weights too: where the second stage begins, the policy is the one of a
    run that keeps its first reference."""
    adapter = LoraConfig(r=4, init_lora_weights=begin, target_modules=["q_proj", "v_proj"])
    found = []
    for reference_of in ("initial", "stage"):
        settings = {"curriculum_reference": reference_of, "curriculum_stages": 2, "learning_rate": 0.5}
        trainer = trainer_of(tmp_path, data(4), adapter=copy.deepcopy(adapter), **settings)
        trainer.train()
        found.append([line["logps/chosen"] for line in trainer.state.log_history if "loss" in line])
    assert len(found[0]) == 2 and found[1] == pytest.approx(found[0], abs=1e-5)


def test_rows_to_evaluate_on_follow_the_reference_too(tmp_path, monkeypatch):
    """Cached and live agree at the end of every stage, also where the training data are evaluated on."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = data()
    found = []
    for cached in (False, True):
        settings = {"curriculum_reference": "stage", "precompute_ref_log_probs": cached, "learning_rate": 0.05}
        evaluated = {"train": rows, "other": data(3)}
        trainer = trainer_of(tmp_path, rows, evaluate=evaluated, eval_strategy="epoch", **settings)
        trainer.train()
        found.append(
            [v for line in trainer.state.log_history for k, v in line.items() if re.fullmatch("eval_.*_loss", k)]
        )
    assert len(found[0]) == 6 and found[1] == pytest.approx(found[0], rel=1e-5)


def test_the_card_shows_the_stages(tmp_path):
    trainer = trainer_of(tmp_path, evaluate=True, eval_strategy="epoch")
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    evaluations = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert len(evaluations) == 3
    low, high = sorted(DIFFICULTY)[5], sorted(DIFFICULTY)[8]
    assert f"| 2 | 4 | {low:.4g} to {high:.4g} | 1 | 5 | {evaluations[1]:.4g} |" in card
    assert "`staged` by `difficulty`" in card


def test_the_learning_rate_begins_anew_in_every_stage(tmp_path):
    """Linear from 1 to 0 over the 3, 2 and 2 steps of the stages, and over all 7."""
    cosine = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 5e-4}}
    waves = [[0.75 + math.cos(math.pi * n / steps) / 4 for n in range(steps)] for steps in (3, 2, 2)]
    for kind, expected, shape in (
        ("restart", [1, 2 / 3, 1 / 3, 1, 1 / 2, 1, 1 / 2], {"lr_scheduler_type": "linear"}),
        ("restart", [rate for wave in waves for rate in wave], cosine),
        ("single", [1 - n / 7 for n in range(7)], {"lr_scheduler_type": "linear"}),
    ):
        trainer = trainer_of(tmp_path, curriculum_scheduler=kind, learning_rate=1e-3, **shape)
        trainer.train()
        rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
        assert rates == pytest.approx([1e-3 * factor for factor in expected])
    with pytest.raises(ValueError, match="needs a schedule that is a function of the step"):
        trainer = trainer_of(
            tmp_path,
            curriculum_scheduler="restart",
            lr_scheduler_type="reduce_lr_on_plateau",
            evaluate=True,
            eval_strategy="epoch",
        )
        trainer.train()


# How hard the rows are


def test_a_column_of_stages_is_taken_as_it_is(tmp_path):
    rows = data(7, None, stage=lambda n: n % 2 * 5, features={"stage": Value("int64")})
    trainer = trainer_of(tmp_path, rows, curriculum_column="stage")
    assert [stage.rows.tolist() for stage in trainer.curriculum.plan.stages] == [[0, 2, 4, 6], [1, 3, 5]]
    with pytest.raises(ValueError, match="no column 'stage'; curriculum_column='difficulty'"):
        trainer_of(tmp_path, data(), curriculum_column="stage")


def test_nll_is_that_of_the_build(tmp_path, monkeypatch):
    """The same numbers as `mfpo build --difficulty nll` gives for the same model; and with the cache no forward more."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = data(6, None)
    score = build_difficulty("nll", model=tiny.save_pretrained(tmp_path / "model"), device="cpu")
    calls = []
    counted = reference.score_reference
    monkeypatch.setattr(reference, "score_reference", lambda *given: calls.append(1) or counted(*given))
    for cached in (False, True):
        trainer = trainer_of(tmp_path / str(cached), rows, kind=MFPOTrainer, precompute_ref_log_probs=cached)
        np.testing.assert_allclose(trainer.curriculum.plan.difficulties, score(list(rows)), rtol=1e-4)
    # Three batches of two rows, once: the second trainer finds what the first has written.
    assert len(calls) == 3


def straight_logp(model, row: dict, field: str) -> float:
    """Of one answer from one call of the plain model by a plain processor, in nats."""
    processor = tiny.processor()
    prompt = f"USER: <image>\n{row['prompt'][0]['content']} ASSISTANT:"
    inputs = processor(text=[prompt], images=row["images"], return_tensors="pt")
    answer = processor.tokenizer(f" {row[field][0]['content']} </s>", add_special_tokens=False, return_tensors="pt")
    tokens = torch.cat([inputs["input_ids"], answer["input_ids"]], dim=1)
    with torch.no_grad():
        logits = model.eval()(input_ids=tokens, pixel_values=inputs["pixel_values"]).logits[0]
    ids = answer["input_ids"][0]
    return logits[-len(ids) - 1 : -1].log_softmax(dim=-1)[torch.arange(len(ids)), ids].sum().item()


WEIGHTS = [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
"""Of the text, image and anchor term."""


@pytest.mark.parametrize("score", ["nll", "reference_margin"])
def test_a_score_reads_its_branches_whatever_is_trained(tmp_path, score, monkeypatch):
    """Every term alone and all of them, with and without the cache, with a reference of its own and with an adapter, and with a
    collator of the caller's: the difficulty is that of plain logits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = data(3, None)
    chosen, rejected = (
        np.array([straight_logp(tiny.model(1), row, field) for row in rows]) for field in ("chosen", "rejected")
    )
    ids = [
        tiny.tokenizer()(f" {row['chosen'][0]['content']} </s>", add_special_tokens=False)["input_ids"] for row in rows
    ]
    expected = rejected - chosen if score == "reference_margin" else -chosen / np.array(list(map(len, ids)))
    for text, image, anchor in WEIGHTS:
        settings = {**CPU, "max_steps": 1, "curriculum": "staged", "curriculum_stages": 1, "curriculum_score": score}
        settings |= {"text_loss_weight": text, "image_loss_weight": image, "anchor_loss_weight": anchor}
        branches = MFPOConfig("out", **settings).branches
        adapter = {"model": tiny.model(1), "peft_config": LoraConfig(r=4, target_modules=["q_proj"])}
        other = {"model": tiny.model(), "ref_model": tiny.model(1)}
        collator = {"data_collator": MFPOCollator(tiny.processor(), branches=branches)}
        for cached, given in (
            (False, other),
            (False, other | collator),
            (False, adapter),
            (True, other),
            (True, adapter),
        ):
            args = MFPOConfig(output_dir=str(tmp_path / "out"), precompute_ref_log_probs=cached, **settings)
            trainer = MFPOTrainer(
                args=args, train_dataset=rows, processing_class=tiny.processor(), **copy.deepcopy(given)
            )
            np.testing.assert_allclose(trainer.curriculum.plan.difficulties, expected, rtol=1e-4)
    trainer.train()
    read = set(map(str, trainer.data_collator.branches))
    assert read == {"chosen", "corrupted"}  # what is trained stays what it was


def test_a_score_needs_our_collator(tmp_path):
    args = MFPOConfig(output_dir=str(tmp_path), **{**CPU, "curriculum": "staged"})
    with pytest.raises(
        ValueError, match="curriculum_score='nll' needs MFPOCollator; leave data_collator out, or give"
    ):
        MFPOTrainer(
            model=tiny.model(),
            ref_model=tiny.model(),
            args=args,
            train_dataset=data(3, None),
            data_collator=lambda rows: {},
            processing_class=tiny.processor(),
        )


def test_areas_of_regions(tmp_path):
    # Boxes of 16 x 16 pixels on pictures of (40 + n) x 32.
    boxed = data(4, None, key_regions=lambda n: [tiny.boxes(n), [], tiny.boxes(n), None][n], features=tiny.BOXES)
    trainer = trainer_of(tmp_path, boxed, kind=MFPOTrainer, curriculum_score="mask_area", curriculum_stages=2)
    expected = [1 - 256 / (40 * 32), 0, 1 - 256 / (42 * 32), 0]
    assert trainer.curriculum.plan.difficulties.tolist() == pytest.approx(expected)


def test_rows_without_difficulty_are_counted_or_come_last(tmp_path, caplog):
    holes = [None if n in (3, 8) else math.nan if n == 5 else value for n, value in enumerate(DIFFICULTY)]
    with pytest.raises(ValueError, match=r"3 of 13 rows have no finite 'difficulty' \(the first is row 3\)"):
        trainer_of(tmp_path, data(difficulty=holes))
    with caplog.at_level("WARNING"):
        trainer = trainer_of(tmp_path, data(difficulty=holes), curriculum_missing="hard")
    assert "3 of 13 rows have no finite 'difficulty' and count as the hardest" in caplog.text
    assert set(trainer.curriculum.plan.stages[2].rows.tolist()) >= {3, 5, 8}


def test_a_column_that_is_empty_everywhere_counts_as_none(tmp_path, caplog):
    """As `mfpo build` writes it without a model."""
    with caplog.at_level("INFO"):
        trainer = trainer_of(tmp_path, data(6, [None] * 6), kind=MFPOTrainer, log_level="info")
    assert "it is computed as nll" in caplog.text and np.isfinite(trainer.curriculum.plan.difficulties).all()


def test_text_rows_have_a_curriculum_too(tmp_path):
    trainer = trainer_of(tmp_path, data().remove_columns("images"), kind=MFPOTrainer)
    trainer.train()
    assert [line["curriculum/stage"] for line in trainer.state.log_history if "loss" in line] == [1, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="computed for data with images only"):
        trainer_of(tmp_path, data(6, None).remove_columns("images"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential' would change that"),
        ({"ignore_data_skip": True}, "ignore_data_skip=True would change that"),
        ({"curriculum": "sorted", "group_by_prompt": True}, "group_by_prompt=True would change that"),
        ({"curriculum": "sorted", "curriculum_group_by_length": True}, "curriculum_group_by_length=True would change"),
        ({"restore_callback_states_from_checkpoint": True}, "a curriculum resumes by itself"),
        ({"curriculum_reference": "stage", "sync_ref_model": True}, "both change the reference; choose one"),
        (
            {
                "curriculum_reference": "stage",
                "save_strategy": "best",
                "metric_for_best_model": "loss",
            },
            "'loss' is measured against",
        ),
        ({"curriculum_epochs": 0.1, "curriculum_stages": 6}, "0.1 epochs: raise curriculum_epochs"),
        ({"max_steps": 8}, "max_steps=8 is more than the 7 steps of all stages"),
        ({"curriculum": "easy"}, "curriculum is 'easy'; expected .*'staged'"),
        ({"curriculum_stages": 0}, "curriculum_stages is 0"),
        ({"curriculum_epochs": [1, 0]}, "curriculum_epochs is .*a number above 0"),
        ({"curriculum_epochs": [1, 1]}, "has 2 numbers and the data 3 stages"),
    ],
    ids=str,
)
def test_what_does_not_go_together(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        trainer_of(tmp_path, **settings)


def test_a_curriculum_of_none_has_no_settings(tmp_path, caplog):
    trainer_of(tmp_path, curriculum="none", curriculum_reference="stage", curriculum_epochs=3)
    assert "curriculum='none': curriculum_epochs, curriculum_reference have no effect" in caplog.text


def test_a_text_reference_that_trl_computes_stays(tmp_path):
    with pytest.raises(ValueError, match="TRL computes before training for data without images"):
        rows = data().remove_columns("images")
        trainer_of(tmp_path, rows, curriculum_reference="stage", precompute_ref_log_probs=True)


def test_streams_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a map-style data set .*Load it without streaming"):
        trainer_of(tmp_path, data().to_iterable_dataset(), max_steps=2)
    with pytest.raises(ValueError, match="needs a map-style data set"):
        trainer_of(tmp_path, data().with_transform(lambda batch: batch))


def test_epochs_of_the_configuration():
    args = MFPOConfig("out", curriculum="staged", num_train_epochs=2, use_cpu=True, bf16=False)
    assert (args.curriculum_epochs, args.num_train_epochs) == ([2], 1)
    args = MFPOConfig("out", curriculum="staged", curriculum_epochs=3, use_cpu=True, bf16=False)
    assert (args.curriculum_epochs, args.num_train_epochs) == ([3], 1)
    args = MFPOConfig("out", curriculum_epochs=3, num_train_epochs=2, use_cpu=True, bf16=False)
    assert (args.curriculum_epochs, args.num_train_epochs) == ([3], 2)


# Two processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two gloo processes saw, by case: optimizer step -> rows of both."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        warm.executable(),
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(SCRIPT),
        str(folder),
    ]
    environment = {**os.environ, "PYTHON_EXEC": str(warm.executable())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def together(ranks, case: str) -> dict[int, list[int]]:
    return {int(step): sorted(rows + ranks[1][case][step]) for step, rows in ranks[0][case].items()}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_two_processes_see_what_one_sees(tmp_path, ranks, accumulation, drop_last):
    """One row a batch and process against two rows a batch: every optimizer step has the same rows."""
    alone = trainer_of(tmp_path, gradient_accumulation_steps=accumulation, dataloader_drop_last=drop_last)
    alone.train()
    case = f"{accumulation}-{drop_last}"
    assert together(ranks, case) == {step: sorted(rows) for step, rows in alone.seen.items()}
    assert ranks[0][case] != ranks[1][case]


def test_two_processes_resume_where_they_stopped(ranks):
    for step in (1, 3, 6):
        rest = together(ranks, f"resumed-{step}")
        assert rest == {own: rows for own, rows in together(ranks, "whole").items() if own >= step}
        for rank in ranks:
            assert rank[f"losses-{step}"] == pytest.approx(rank["losses"], rel=1e-5)
