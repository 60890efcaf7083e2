"""The reference cache: the same numbers as a live reference, reused, told when it is not, and resumed."""

import copy
import gc
import json
import logging
import os
import re
import shutil
import weakref

import datasets
import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets, load_from_disk
from peft import LoraConfig, get_peft_model
from test_trainer import CPU

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.order import ranking
from mfpo_trl.reference import cache as reference_cache
from mfpo_trl.reference import references as reference
from mfpo_trl.reference.references import VALUES, ReferenceCache, weights_digest


@pytest.fixture
def data(tmp_path) -> Dataset:
    """On disk, with a row without an image."""
    images = {"images": lambda n: [] if n == 2 else [tiny.picture(n, 40 + n)]}
    Dataset.from_list(tiny.rows(6, **images), features=tiny.dataset(1).features).save_to_disk(tmp_path / "data")
    return load_from_disk(tmp_path / "data")


def trainer_with(
    tmp_path, data, cached: bool = True, lora: bool | LoraConfig = False, model=None, **settings
) -> MFPOTrainer:
    options = {**CPU, "precompute_ref_log_probs": cached, "learning_rate": 1e-2, "optim": "sgd", **settings}
    peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora is True else lora or None
    model = model or tiny.model()
    return MFPOTrainer(
        model=model,
        ref_model=None if cached or lora else copy.deepcopy(model),
        args=MFPOConfig(output_dir=str(tmp_path / "out"), **options),
        train_dataset=data,
        eval_dataset=data.select([0, 1]),
        processing_class=tiny.processor(),
        peft_config=peft,
    )


def history(trainer: MFPOTrainer) -> list[dict]:
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line or "eval_loss" in line]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_cached_equals_live(tmp_path, data, lora, ld_alpha):
    settings = {"ld_alpha": ld_alpha, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    live, cached = (trainer_with(tmp_path, data, flag, lora, **settings) for flag in (False, True))
    assert cached.ref_model is None and cached.args.precompute_ref_log_probs
    lines = [history(live), history(cached)]
    for one, two in zip(*lines, strict=True):
        for key in one.keys() - {"epoch"}:
            # A comparison and a ratio of differences that are zero but for rounding at the first step.
            if not any(word in key for word in ("runtime", "per_second", "balance", "accuracies")):
                assert two[key] == pytest.approx(one[key], rel=1e-4, abs=2e-5), key


def folders(tmp_path) -> list:
    return sorted((tmp_path / "data").glob("mfpo-reference-*"))


def test_the_second_run_scores_nothing(tmp_path, data, monkeypatch):
    trainer_with(tmp_path, data)
    assert len(folders(tmp_path)) == 2  # train and eval
    monkeypatch.setattr(reference, "score_reference", None)
    trainer = trainer_with(tmp_path, data)
    assert trainer.references.of(data).shape == (6, len(VALUES))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_length": 200}, "max_length was None, is 200"),
        ({"ld_alpha": 0.5}, "ld_alpha was None, is 0.5"),
        ({"corruption_seed": 3}, "corruption_seed was 0, is 3"),
        ({"corruption_kwargs": {"step": 400}}, 'corruption_kwargs was {}, is {"step": 400}'),
        ({"model": "settings"}, "model config changed"),
        ({"model": "half"}, "precision was torch.float32 no, is torch.bfloat16 no"),
        ({"add_eos": False}, "add_eos was True, is False"),
        ({"image_loss_weight": 0.0}, "branches was chosen rejected corrupted, is chosen rejected"),
        ({"model": "other"}, "model weights changed"),
        ({"template": "other"}, "chat template changed"),
        ({"data": "other"}, "data changed"),
        ({"processor": "other"}, "processor changed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_changes_the_numbers_changes_the_key(tmp_path, data, change, told, caplog, monkeypatch):
    settings = {"max_length": None}
    trainer_with(tmp_path, data, **settings)
    before = len(folders(tmp_path))
    plain = tiny.processor
    if change == {"template": "other"}:
        monkeypatch.setattr(tiny, "processor", lambda: plain(tiny.LLAVA_TEMPLATE))
    elif change == {"processor": "other"}:
        monkeypatch.setattr(tiny, "processor", lambda: _normalised(plain()))
    elif change == {"data": "other"}:
        data = data.select([0, 1, 2, 3, 5])
    elif change == {"model": "other"}:
        settings["model"] = tiny.model(1)
    elif change == {"model": "settings"}:
        settings["model"] = tiny.model()
        settings["model"].config.text_config.rms_norm_eps = 1e-3
    elif change == {"model": "half"}:
        settings["model"] = tiny.model().to(torch.bfloat16)
    else:
        settings |= change
    with caplog.at_level(logging.WARNING):
        trainer_with(tmp_path, data, **settings)
    assert len(folders(tmp_path)) > before
    assert told in caplog.text and "computed again" in caplog.text
    assert not re.search("[0-9a-f]{16}", caplog.text)


def test_options_that_are_the_defaults_share_a_cache(tmp_path, data, caplog):
    """Nothing said, nothing by name, and the default by name; another one does not."""
    trainer_with(tmp_path, data)
    before = folders(tmp_path)
    for kwargs in ({}, {"step": 500}, {"step": 500, "schedule": "vcd_sigmoid"}):
        trainer_with(tmp_path, data, corruption="diffusion", corruption_kwargs=kwargs)
    assert folders(tmp_path) == before
    trainer_with(tmp_path, data, corruption="diffusion", corruption_kwargs={"step": 501})
    assert len(folders(tmp_path)) == 2 * len(before)


def test_a_cache_that_is_used_again_is_told(tmp_path, data, caplog):
    trainer_with(tmp_path, data)
    with caplog.at_level(logging.INFO, "mfpo_trl"):
        trainer_with(tmp_path, data)
    assert "The reference of train_dataset is taken from" in caplog.text


def _normalised(processor):
    processor.image_processor.image_mean = [0.4, 0.4, 0.4]
    return processor


def test_a_new_adapter_is_no_new_reference():
    """The base is the reference, and a fresh adapter's random weights do not count; a trained adapter's do."""
    model = get_peft_model(tiny.model(), LoraConfig(r=4, target_modules=["q_proj"]))
    other = get_peft_model(tiny.model(), LoraConfig(r=4, target_modules=["q_proj"]))
    names = ["default", "ref"]
    assert weights_digest(model.get_base_model(), names) == weights_digest(other.get_base_model(), names)
    for own in (model, other):
        own.add_adapter("ref", LoraConfig(r=4, target_modules=["q_proj"]))
    digests = [weights_digest(own.get_base_model(), names) for own in (model, other)]
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]


def test_settings_of_the_reference_adapter_are_part_of_the_key(tmp_path, data, caplog):
    """The same weights with another `lora_alpha` are another reference."""
    for alpha in (8, 64):
        model = get_peft_model(tiny.model(), LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"]))
        torch.manual_seed(0)
        for name, value in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(value)
        with caplog.at_level(logging.WARNING):
            trainer_with(tmp_path, data, model=model)
    assert "adapter config changed" in caplog.text and "adapter was" not in caplog.text


def test_full_and_lora_share_the_cache_of_a_base(tmp_path, data, monkeypatch):
    trainer_with(tmp_path, data)
    monkeypatch.setattr(reference, "score_reference", None)
    trainer_with(tmp_path, data, lora=True)


FILES = {
    "images": (lambda path: {"images": [path]}, {"images": List(Value("large_string"))}),
    "rejected_images": (lambda path: {"rejected_images": [path]}, {"rejected_images": List(Image())}),
    "key_regions": (lambda path: {"key_regions": [{"mask": path}]}, {"key_regions": List({"mask": Value("string")})}),
}


@pytest.mark.parametrize("column", FILES)
def test_files_that_change_in_place_are_noticed(tmp_path, column):
    """A picture or a mask under the same path, in a data set with the same fingerprint."""
    path = tmp_path / "picture.png"
    make, features = FILES[column]
    rows = [row | make(str(path)) for row in tiny.rows(2, images=lambda n: [tiny.picture(n)])]
    found = []
    for seed in (1, 2):
        picture = tiny.picture(seed)
        (picture.point(lambda value: 255 * (value > 128)) if column == "key_regions" else picture).save(path)
        os.utime(path, (seed, seed))
        data = Dataset.from_list(rows, features=Features(tiny.FEATURES | features))
        data = data.__class__(data.data, fingerprint="the same")
        found.append(trainer_with(tmp_path, data).references.of(data))
    assert abs(found[0] - found[1]).max() > 1e-3


def test_rows_of_a_transform_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match="train_dataset has a transform"):
        trainer_with(tmp_path, data.with_transform(lambda batch: batch))


def test_no_dropout_in_the_pass(tmp_path, data):
    values = []
    for seed in (1, 2):
        model = tiny.model()
        model.config.text_config.attention_dropout = 0.5
        for layer in model.model.language_model.layers:
            layer.self_attn.attention_dropout = 0.5
        trainer = trainer_with(tmp_path / str(seed), data, model=model, disable_dropout=False, seed=seed)
        values.append(trainer.references.of(data))
        for folder in folders(tmp_path):
            shutil.rmtree(folder)
    np.testing.assert_array_equal(*values)


def test_a_given_reference_model_is_used_and_let_go(tmp_path, data):
    """Its values lie under its own key, nothing keeps it in memory, and data that come later are refused."""
    other = tiny.model(1)
    live = MFPOTrainer(
        model=tiny.model(),
        ref_model=copy.deepcopy(other),
        args=MFPOConfig(output_dir=str(tmp_path / "live"), **CPU),
        train_dataset=data,
        processing_class=tiny.processor(),
    )
    for peft in (None, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])):
        args = MFPOConfig(output_dir=str(tmp_path / "out"), **CPU, precompute_ref_log_probs=True)
        given = copy.deepcopy(other)
        trainer = MFPOTrainer(
            model=tiny.model(),
            ref_model=given,
            args=args,
            train_dataset=data,
            processing_class=tiny.processor(),
            peft_config=peft,
        )
        rows = [{**row, "row_number": n} for n, row in enumerate(data)]
        expected = reference.score_reference(live, live.data_collator(rows), live.ref_model)
        np.testing.assert_allclose(trainer.references.of(data), expected.detach(), rtol=1e-5, atol=1e-5)
        gone = weakref.ref(given)
        del given
        gc.collect()
        assert gone() is None
        with pytest.raises(ValueError, match="no cached reference"):
            trainer.evaluate(data.select([3, 4]))


def test_a_killed_pass_goes_on_where_it_stopped(tmp_path, data, monkeypatch):
    monkeypatch.setattr(reference_cache, "PART", 2)
    scored, whole = [], reference.score_reference

    def dies(trainer, batch, model, columns):
        scored.append(len(batch["pairs"]))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return whole(trainer, batch, model, columns)

    monkeypatch.setattr(reference, "score_reference", dies)
    settings = {"precompute_ref_batch_size": 2}
    with pytest.raises(KeyboardInterrupt):
        trainer_with(tmp_path, data, **settings)
    (folder,) = folders(tmp_path)
    assert len(list(folder.glob("part-*.parquet"))) == 2 and not list(folder.glob("*.tmp"))
    scored.clear()
    monkeypatch.setattr(
        reference, "score_reference", lambda *args: scored.append(len(args[1]["pairs"])) or whole(*args)
    )
    again = trainer_with(tmp_path, data, **settings)
    assert scored == [2, 2]  # the last part of the train dataset, and the eval dataset
    monkeypatch.setattr(reference_cache, "PART", 256)
    for folder in folders(tmp_path):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    fresh = trainer_with(tmp_path, data, **settings)
    np.testing.assert_array_equal(again.references.of(data), fresh.references.of(data))


def test_parts_are_whole_or_absent(tmp_path):
    cache = ReferenceCache(tmp_path, {"data": "a"}, rows=3)
    assert cache.missing() == [0, 1, 2] and cache.changes() == []
    cache.store([(np.array([2, 0]), np.full((2, len(VALUES)), 1.0)), (np.array([1]), np.full((1, len(VALUES)), 2.0))])
    assert cache.missing() == [] and cache.read()[:, 0].tolist() == [1, 2, 1]
    assert ReferenceCache(tmp_path, {"data": "b"}, rows=3).changes() == ["data was a, is b"]
    assert json.loads((cache.folder / "key.json").read_text()) == {"data": "a"}


def test_data_that_comes_later_needs_a_reference(tmp_path, data):
    trainer = trainer_with(tmp_path, data, max_steps=1)
    later = data.select([3, 4])
    assert trainer.evaluate(later)["eval_loss"] > 0
    trainer.train()
    with pytest.raises(ValueError, match="no cached reference"):
        trainer.evaluate(data.select([4, 5]))
    adapter = trainer_with(tmp_path, data, lora=True, max_steps=1)
    adapter.train()
    assert adapter.evaluate(later)["eval_loss"] > 0


def test_a_model_that_is_trained_with_its_adapter_is_no_reference(tmp_path, data):
    """Biases of the model are trained too: an adapter that is switched off leaves them where they are."""
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], bias="all")
    settings = {"max_steps": 2, "learning_rate": 0.5}
    trainer = trainer_with(tmp_path, data, lora=adapter, **settings)
    expected = trainer_with(tmp_path / "other", data, lora=True).references.of(data)
    np.testing.assert_allclose(trainer.references.of(data), expected, rtol=1e-5, atol=1e-5)
    trainer.train()
    later = data.select([4, 5])
    before = len(folders(tmp_path))
    with pytest.raises(ValueError, match="a data set has no cached reference"):
        trainer.evaluate(later)
    assert len(folders(tmp_path)) == before, "values of the trained model are kept as the first one's"


def test_nothing_is_scored_before_a_layout_is_proven(tmp_path, data, monkeypatch):
    """Difficulties are read off packed rows too: those of an untested family are compared with flat ones first."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("mfpo_trl.batch.choice.PACKED_FAMILIES", ())
    proof = ranking.proven
    scored = []
    monkeypatch.setattr(reference, "score_reference", lambda *given: scored.append(1))

    def differs(layout, trainer, model):
        assert not scored and proof(layout, trainer, model).proven
        raise ValueError("they differ")

    monkeypatch.setattr(ranking, "proven", differs)
    with pytest.raises(ValueError, match="they differ"):
        trainer_with(tmp_path, data, cached=False, prefix_sharing="on", curriculum="staged", max_steps=-1)
    assert not scored and not folders(tmp_path)


@pytest.mark.parametrize("corruption", ["swap", "transplant"])
def test_data_to_evaluate_on_take_from_the_training_data(corruption, tmp_path):
    """Their key tells the files of the rows whose images or regions are taken."""
    path = tmp_path / "picture.png"
    rows = [{**row, "images": [{"bytes": None, "path": str(path)}]} for row in tiny.rows(2, key_regions=tiny.boxes)]
    regions = {"key_regions": tiny.boxes}
    keys = []
    for seed in (1, 2):
        tiny.picture(seed).save(path)
        os.utime(path, (seed, seed))
        train = Dataset.from_list(rows, features=tiny.dataset(1, tiny.BOXES, **regions).features)
        # The same training rows by their fingerprint, and other rows, with their own pictures, to evaluate on.
        train = train.__class__(train.data, fingerprint="the same")
        trainer = MFPOTrainer(
            model=tiny.model(),
            args=MFPOConfig(output_dir=str(tmp_path), **{**CPU, "corruption": corruption}),
            train_dataset=concatenate_datasets([train, tiny.dataset(1, tiny.BOXES, **regions)]),
            ref_model=tiny.model(),
            processing_class=tiny.processor(),
        )
        key = reference._key(
            trainer, tiny.dataset(2, tiny.BOXES, **regions), "eval_dataset", trainer.data_collator, []
        )
        keys.append(key["images to swap in"].split()[-1])
    assert keys[0] != keys[1]


ENGINES = {
    "one process": {},
    "FSDP": {"ACCELERATE_USE_FSDP": "true"},
    "DeepSpeed": {"ACCELERATE_USE_DEEPSPEED": "true"},
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("columns", [[], ["images"]], ids=["images", "text"])
@pytest.mark.parametrize("given", [False, True], ids=["", "ref_model"])
def test_a_reference_that_moves_is_not_cached(tmp_path, engine, adapter, columns, given, monkeypatch):
    """Said before anything is loaded, whatever would train."""
    settings = {**CPU, "precompute_ref_log_probs": True, "sync_ref_model": True}
    args = MFPOConfig(output_dir=str(tmp_path), **settings)
    for name, value in ENGINES[engine].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="sync_ref_model=True moves the reference while training"):
        MFPOTrainer(
            model="nowhere/at-all",
            ref_model=tiny.model() if given else None,
            args=args,
            train_dataset=tiny.dataset(4).remove_columns(columns),
            peft_config=adapter,
        )


@pytest.mark.parametrize("which", ["train_dataset", "eval_dataset"])
def test_streams_are_refused(tmp_path, data, which):
    datasets = {"train_dataset": data, "eval_dataset": data} | {which: data.to_iterable_dataset()}
    with pytest.raises(ValueError, match=f"map-style data sets.*; {which} is a IterableDataset"):
        MFPOTrainer(
            model=tiny.model(),
            args=MFPOConfig(output_dir=str(tmp_path), **{**CPU, "precompute_ref_log_probs": True, "max_steps": 1}),
            processing_class=tiny.processor(),
            **datasets,
        )


def test_foreign_collators_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match="needs the collator of MFPOTrainer"):
        MFPOTrainer(
            model=tiny.model(),
            args=MFPOConfig(output_dir=str(tmp_path), **{**CPU, "precompute_ref_log_probs": True}),
            train_dataset=data,
            data_collator=MFPOCollator(tiny.processor()),
            processing_class=tiny.processor(),
        )
