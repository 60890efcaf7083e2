"""`mfpo loop`: rounds of pairs, training and score in the demo's world, each from the policy of the one before."""

import gc
import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, set_seed

from mfpo_trl import MFPOTrainer
from mfpo_trl.cli import main
from mfpo_trl.demo.held_out import write_held_out
from mfpo_trl.demo.scenes import make_scenes
from mfpo_trl.demo.tiny_model import build_model, build_processor
from mfpo_trl.loop import rounds, start
from mfpo_trl.loop.recipe import read_recipe
from mfpo_trl.loop.start import arguments

sys.path.append(str(Path(__file__).parents[1] / "pairs"))
import world

TRAIN = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "report_to": "none"}
TRAIN |= {"save_strategy": "no", "logging_steps": 1, "gradient_checkpointing": False, "disable_tqdm": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A captioner that knows nothing, images to make pairs of, and others to score on."""
    root = tmp_path_factory.mktemp("loop")
    set_seed(0)
    processor = build_processor()
    build_model(processor).save_pretrained(root / "base")
    processor.save_pretrained(root / "base")
    get_peft_model(build_model(processor), LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(
        root / "adapter"
    )
    config = json.loads((root / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(root / "base")
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    world.write_world(root / "world.parquet", 8)
    write_held_out(root / "held-out", make_scenes(4, 77, 0.0))
    for number, scene in enumerate(make_scenes(4, 77, 0.0)):
        scene.image.save(root / "held-out" / f"{number}.png")
    return root


def recipe(folder: Path, output: Path, **changes) -> Path:
    pairs = {"dataset": str(folder / "world.parquet"), "verifier": "world:words_by_hash", "max_new_tokens": 8}
    content = {
        "output": str(output),
        "model": str(folder / "base"),
        "rounds": 2,
        "figure": "chair_s",
        "least_gain": -9,
        "pairs": {**pairs, "samples": 4, "length_ratio": 9},
        "train": {**TRAIN, "learning_rate": 1e-3},
        "score": {"benchmark": "chair", "data": str(folder / "held-out"), "max_new_tokens": 8},
        **changes,
    }
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def told(folder: Path, number: int) -> dict:
    return json.loads((folder / f"round-{number}" / "round.json").read_text())


@pytest.fixture(scope="module")
def looped(folder) -> Path:
    assert main(["loop", "--config", str(recipe(folder, folder / "rounds"))]) == 0
    return folder / "rounds"


def test_each_round_goes_on_from_the_one_before(folder, looped):
    first, second = told(looped, 1), told(looped, 2)
    assert first["reference"]["policy"] == str(folder / "base")
    assert second["reference"] == first["policy"] and second["policy"]["weights"] != first["policy"]["weights"]
    assert first["data"]["rows"] > 0 and set(first["data"]["pairs_by_rule"]) and "chair_s" in first["figures"]
    report = json.loads((looped / "round-1" / "pairs" / "report.json").read_text())
    # Answers are rejected too, and told of under this name.
    assert first["data"]["rows_set_aside"] == report["rejected"]
    assert first["data"]["rejected"] == report["pairs"]["rejected"]
    done = json.loads((looped / "loop.json").read_text())
    assert len(done["scores"]) == 3 and done["best"] == second["policy"]["policy"]
    # Other images would be the same draws; another round draws others.
    seeds = [
        json.loads((looped / f"round-{n}" / "pairs" / "build" / "options.json").read_text())["seed"] for n in (1, 2)
    ]
    assert seeds == [1, 2]


@pytest.mark.parametrize(
    "lost", ["round-2/scores.json", "round-2/model", "round-2/pairs/report.json", "round-2", "loop.json"]
)
def test_it_goes_on_wherever_it_was_stopped(lost, folder, looped, tmp_path):
    copy = tmp_path / "rounds"
    shutil.copytree(looped, copy)
    gone = copy / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    path = recipe(folder, copy)
    # The folder has moved: what is remembered names no place of its own.
    assert main(["loop", "--config", str(path)]) == 0
    assert (copy / "loop.json").exists() and json.loads((copy / "loop.json").read_text())["scores"] == json.loads(
        (looped / "loop.json").read_text()
    )["scores"]
    # Scores of so small a world are often the same.
    for number in (1, 2):
        assert told(copy, number)["policy"]["weights"] == told(looped, number)["policy"]["weights"]


def test_an_adapter_stays_the_same_one(folder, tmp_path):
    """The adapter of round 1 is trained further in round 2, from its own state as reference."""
    path = recipe(folder, tmp_path / "rounds", model=str(folder / "adapter"))
    assert main(["loop", "--config", str(path)]) == 0
    second = tmp_path / "rounds" / "round-2" / "model"
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder / "base")
    states = [
        load_file(own / "adapter_model.safetensors")
        for own in (folder / "adapter", tmp_path / "rounds" / "round-1" / "model", second)
    ]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(
        (
            states[n]["base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight"]
            != states[n + 1]["base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight"]
        ).any()
        for n in (0, 1)
    )


def test_an_adapter_is_merged_where_asked(folder, tmp_path):
    train = {**TRAIN, "use_peft": True, "lora_r": 2, "learning_rate": 1e-3}
    path = recipe(folder, tmp_path / "rounds", merge=True, train=train)
    assert main(["loop", "--config", str(path)]) == 0
    second = tmp_path / "rounds" / "round-2"
    assert told(tmp_path / "rounds", 2)["reference"]["policy"].endswith("round-1/merged")
    # A kill behind the merge finds it whole.
    (second / "scores.json").unlink()
    written = (second / "merged" / "model.safetensors").stat().st_mtime_ns
    assert main(["loop", "--config", str(path)]) == 0
    assert (second / "merged" / "model.safetensors").stat().st_mtime_ns == written
    assert not (second / "merged" / "trained.json").exists()
    assert (second / "merged" / "model.safetensors").exists() and (second / "model" / "adapter_config.json").exists()


@pytest.mark.parametrize(("start", "merge"), [("adapter", False), ("base", True)])
def test_rounds_in_four_bits(start, merge, folder, tmp_path):
    """QLoRA: answers, training and score on a model in 4 bits; the adapter of round 1 is trained further on it, or merged and a new
    one begun."""
    tiny.allow_four_bits()
    train = {**TRAIN, "use_peft": True, "load_in_4bit": True, "lora_r": 2, "learning_rate": 1e-3}
    score = {"benchmark": "chair", "data": str(folder / "held-out"), "max_new_tokens": 8, "load_in_4bit": True}
    path = recipe(folder, tmp_path / "rounds", model=str(folder / start), merge=merge, train=train, score=score)
    content = yaml.safe_load(path.read_text())
    content["pairs"]["load_in_4bit"] = True
    path.write_text(yaml.safe_dump(content))
    assert main(["loop", "--config", str(path)]) == 0
    rounds = [tmp_path / "rounds" / f"round-{number}" for number in (1, 2)]
    own = [json.loads((one / "model" / "adapter_config.json").read_text()) for one in rounds]
    before = str(rounds[0] / "merged") if merge else str(folder / "base")
    assert [one["base_model_name_or_path"] for one in own] == [str(folder / "base"), before]
    states = [load_file(one / "model" / "adapter_model.safetensors") for one in rounds]
    names = [name for name in states[0] if "lora_B" in name]
    assert names and all((states[0][name] != states[1][name]).any() for name in names)
    # The adapter that is trained further has moved by two steps of 1e-3 at most, a new one begins at 0.
    moved = max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0] if name in states[1])
    assert merge or moved <= 2.1e-3
    for one in rounds:
        assert "- quantisation: 4-bit NF4 (bitsandbytes)" in (one / "model" / "README.md").read_text()
    assert told(tmp_path / "rounds", 2)["reference"]["policy"] == str(rounds[0] / ("merged" if merge else "model"))


def test_it_ends_when_the_score_no_longer_improves(folder, tmp_path, capsys):
    path = recipe(folder, tmp_path / "rounds", rounds=3, least_gain=2)
    assert main(["loop", "--config", str(path)]) == 0
    done = json.loads((tmp_path / "rounds" / "loop.json").read_text())
    assert len(done["scores"]) == 2 and done["best"] == str(folder / "base")
    assert done["ended"] == "round 1 is no better" and "round 1 is no better" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"figure": "chair_x"}, "chair has chair_s, chair_i"),
        ({"pairs": {"model": "x"}}, "'model' is set by each round"),
        ({"train": {"output_dir": "x"}}, "'output_dir' is set by each round"),
        ({"score": {"benchmark": "chair"}}, "'data' is missing"),
        ({"score": {"benchmark": "chair", "data": "x", "row": 3}}, "unknown key 'row'"),
        ({"pair": {}}, "did you mean 'pairs'"),
        ({"model": None}, "lacks 'model'"),
        ({"train": []}, "'train' is a list"),
        ({"pairs": {"dataset": "x", "sample": 3}}, "did you mean 'samples'"),
        ({"pairs": {"samples": 3}}, "pairs: --dataset is missing"),
        ({"pairs": {"dataset": "x", "samples": "many"}}, "pairs: argument --samples: invalid int value: 'many'"),
        ({"pairs": {"dataset": "x", "seed": "one"}}, "pairs: argument --seed: invalid int value"),
        ({"pairs": {"dataset": "x", "by": "word"}}, "pairs: argument --by: invalid choice: 'word'"),
        ({"pairs": {"dataset": "x", "samples": 1}}, "pairs: --samples is 1; a pair needs 2"),
        ({"pairs": {"dataset": "x", "shards": 2}}, "pairs: 'shards' does not go with rounds"),
        ({"pairs": {"dataset": "x", "push_to_hub": "me/pairs"}}, "pairs: 'push_to_hub' does not go with rounds"),
        ({"pairs": {1: "x"}}, "pairs: the key 1 is no text"),
        ({"train": {**TRAIN, "learning_rat": 1}}, "did you mean --learning_rate"),
        ({"train": {**TRAIN, "learning_rate": "fast"}}, "learning_rate"),
        ({"train": {**TRAIN, "config": "methods/nothing"}}, "methods/nothing"),
        ({"train": {**TRAIN, "accelerate_config": "nothing"}}, "nothing"),
        ({"train": {**TRAIN, "num_processes": 2}}, "num_processes needs accelerate_config"),
        ({"merge": True}, "merge is of an adapter, and each round begins a new one; set use_peft: true"),
        ({"train": {**TRAIN, "load_in_4bit": True}}, "quantised weights cannot be trained; set use_peft: true"),
        (
            {"score": {"benchmark": "chair", "data": "x", "load_in_4bit": "nf4"}},
            "score: load_in_4bit is 'nf4'; expected true or false",
        ),
        ({"train": {**TRAIN, "push_to_hub": True}}, "'push_to_hub' does not go with rounds"),
        ({"train": {**TRAIN, "use_peft": True, "freeze_vision_tower": False}}, "freeze_vision_tower=False"),
        ({"model": "/nowhere/model"}, "there is no such folder"),
        ({"rounds": "3"}, "rounds is '3'; expected a whole number"),
        ({"rounds": True}, "rounds is True; expected a whole number"),
        ({"model": 5}, "model is 5; expected a text"),
        ({"least_gain": "some"}, "least_gain is 'some'; expected a number"),
        ({"least_gain": float("nan")}, "least_gain is nan"),
        ({"merge": "yes"}, "merge is 'yes'; expected true or false"),
        ({"figure": ["chair_s"]}, "figure is ['chair_s']; expected a text"),
        ({"score": {"benchmark": "pop", "data": "x"}}, "benchmark is 'pop'; expected amber, chair, pope"),
        ({"score": {"benchmark": "chair", "data": 7}}, "score: data is 7; expected a text"),
        (
            {"score": {"benchmark": "chair", "data": "x", "rows": "all"}},
            "score: rows is 'all'; expected a whole number",
        ),
        ({"score": {"benchmark": "chair", "data": "x", "batch_size": 0}}, "score: batch_size is 0"),
    ],
)
def test_recipes_that_make_no_sense(changes, words, folder, tmp_path, capsys):
    """And nothing is begun: the mended recipe finds an empty place."""
    assert main(["loop", "--config", str(recipe(folder, tmp_path / "rounds", **changes))]) == 1
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not (tmp_path / "rounds").exists()


def test_an_output_that_is_no_folder(folder, tmp_path, capsys):
    path = recipe(folder, tmp_path / "rounds")
    path.write_text(path.read_text().replace(str(tmp_path / "rounds"), "5"))
    assert main(["loop", "--config", str(path)]) == 1
    assert "output is 5; expected a text" in capsys.readouterr().err


def test_a_figure_of_which_neither_way_is_better(folder, tmp_path, capsys):
    asked = {"question_id": 1, "image": "0.png", "text": "Is there a dog in the image?", "label": "no"}
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "coco_pope_random.json").write_text(json.dumps(asked))
    shutil.copy(folder / "held-out" / "0.png", tmp_path / "pope")
    score = {"benchmark": "pope", "data": str(tmp_path / "pope")}
    path = recipe(folder, tmp_path / "rounds", figure="pope_yes_ratio", score=score)
    assert main(["loop", "--config", str(path)]) == 1
    assert "of which neither more nor less is better; pope has pope_accuracy" in capsys.readouterr().err


def test_one_process_only(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["loop", "--config", str(recipe(folder, tmp_path / "rounds"))]) == 1
    assert "mfpo loop is one process" in capsys.readouterr().err


def test_an_adapter_on_the_hub_is_refused(folder, tmp_path, capsys, monkeypatch):
    """As the cache of the Hub has one, which score and pairs would take and the training would not."""
    cached = str(folder / "adapter" / "adapter_config.json")
    monkeypatch.setattr("transformers.utils.cached_file", lambda *given, **options: cached)
    assert main(["loop", "--config", str(recipe(folder, tmp_path / "rounds", model="some/adapter"))]) == 1
    assert "'some/adapter', an adapter on the Hub" in capsys.readouterr().err


def test_other_options_are_other_rounds(folder, looped, capsys):
    before = (looped / "options.json").read_text()
    path = recipe(folder, looped, train={**TRAIN, "learning_rate": 1e-2})
    assert main(["loop", "--config", str(path)]) == 1
    assert "other options: train.learning_rate changed" in capsys.readouterr().err
    assert (looped / "options.json").read_text() == before


@pytest.fixture
def begun(folder, looped, tmp_path):
    """Rounds of a recipe that names a file of fields, of a file of questions and of an adapter on a base of its own."""
    for name in ("base", "adapter"):
        shutil.copytree(folder / name, tmp_path / name)
    config = tmp_path / "adapter" / "adapter_config.json"
    named = json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    config.write_text(json.dumps(named))
    (tmp_path / "fields.yaml").write_text("learning_rate: 1e-3\nper_device_train_batch_size: 2\n")
    (tmp_path / "questions.txt").write_text("What is there?\n")
    path = recipe(folder, tmp_path / "rounds", model=str(tmp_path / "adapter"), train={**TRAIN, "config": ""})
    content = yaml.safe_load(path.read_text())
    content["train"]["config"] = str(tmp_path / "fields.yaml")
    content["pairs"]["questions"] = str(tmp_path / "questions.txt")
    path.write_text(yaml.safe_dump(content))
    _remember(read_recipe(path))
    return tmp_path


def _remember(own):
    start._remember(own, start.pair_options(own, 1, own.model))


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (None, None),
        ("learning_rate: 1e-4\n", "train.learning_rate"),
        ("learning_rate: 1e-3\nseed: 5\n", "train.seed"),
        # Where, how fast, in which pieces; and what the loop's own recipe says in its place.
        ("learning_rate: 1e-3\nper_device_train_batch_size: 1\nmax_steps: 99\n", None),
        ("questions", "pairs.questions"),
        ("base", "model"),
        ("adapter", "model"),
    ],
)
def test_what_files_hold_is_remembered(change, changed, begun, capsys):
    """Not what they are called: of a file of fields those that count, of questions the text, of an adapter its weights and its base's."""
    if change == "questions":
        (begun / "questions.txt").write_text("What is not there?\n")
    elif change in ("base", "adapter"):
        (path,) = (begun / change).glob("*.safetensors")
        save_file({name: value + 1 for name, value in load_file(path).items()}, path, {"format": "pt"})
    elif change:
        (begun / "fields.yaml").write_text(change)
    if changed is None:
        _remember(read_recipe(begun / "rounds.yaml"))
        return
    assert main(["loop", "--config", str(begun / "rounds.yaml")]) == 1
    said = capsys.readouterr().err
    assert f"other options: {changed} changed." in said and len(said.splitlines()) == 1


def test_a_moved_file_of_fields_is_no_change(begun):
    shutil.move(begun / "fields.yaml", begun / "others.yaml")
    content = yaml.safe_load((begun / "rounds.yaml").read_text())
    content["train"]["config"] = str(begun / "others.yaml")
    (begun / "rounds.yaml").write_text(yaml.safe_dump(content))
    _remember(read_recipe(begun / "rounds.yaml"))


def test_a_plug_in_of_the_working_folder(folder, looped, tmp_path, monkeypatch):
    """As a console script is started, which does not look there; a module there hides none that is installed."""
    path = recipe(folder, tmp_path / "rounds")
    content = yaml.safe_load(path.read_text())
    content["pairs"]["verifier"] = "of_mine:verify"
    path.write_text(yaml.safe_dump(content))
    shutil.copytree(looped / "start", tmp_path / "rounds" / "start")
    (tmp_path / "of_mine.py").write_text("def verify(images, answers, row):\n    return [[] for _ in answers]\n")
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [own for own in sys.path if own not in ("", str(tmp_path))])
    before = list(sys.path)
    assert main(["loop", "--config", str(path)]) == 0
    assert sys.path == [*before, str(tmp_path)]
    assert "round 1 has no pairs" in (tmp_path / "rounds" / "loop.json").read_text()


def test_a_later_round_may_be_made_otherwise(folder, looped, tmp_path):
    """As after a lack of memory: what says where, how fast and in which pieces."""
    copy = tmp_path / "rounds"
    shutil.copytree(looped, copy)
    for lost in ("round-2/model", "round-2/scores.json", "round-2/pairs"):
        gone = copy / lost
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    content = yaml.safe_load(recipe(folder, copy).read_text())
    content["pairs"] |= {"batch_size": 2, "num-proc": 1, "judge_concurrency": 2}
    content["train"] |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "logging_steps": 2}
    content["score"] |= {"batch_size": 1}
    path = copy.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    assert main(["loop", "--config", str(path)]) == 0
    fields = json.loads((copy / "round-2" / "model" / "trained.json").read_text())["fields"]
    assert fields["per_device_train_batch_size"] == 1 and told(copy, 1) == told(looped, 1) | {
        key: told(copy, 1)[key] for key in ("policy",)
    }


def test_no_token_is_written_down_or_told(folder, looped, tmp_path, capsys):
    token, other = "hf_" + "a" * 34, "hf_" + "b" * 34
    copy = tmp_path / "rounds"
    shutil.copytree(looped, copy)
    for lost in ("options.json", "round-2/model/trained.json"):
        (copy / lost).unlink()
    train = {**TRAIN, "learning_rate": 1e-3, "hub_token": "secret", "run_name": f"with {token}"}
    train["model_init_kwargs"] = {"token": "secret", "low_cpu_mem_usage": True}
    assert main(["loop", "--config", str(recipe(folder, copy, train=train))]) == 0
    written = [path.read_text() for path in (copy / "options.json", copy / "round-2" / "model" / "trained.json")]
    assert all("secret" not in own and token not in own and "low_cpu_mem_usage" in own for own in written)
    # Another token is no other option; a refusal tells the key alone.
    train |= {"hub_token": other, "learning_rate": 1e-2}
    assert main(["loop", "--config", str(recipe(folder, copy, train=train))]) == 1
    said = capsys.readouterr()
    assert "train.learning_rate changed" in said.err
    assert main(["loop", "--config", str(recipe(folder, copy, figure=token))]) == 1
    said = said.out + said.err + "".join(capsys.readouterr())
    assert "<token>" in said and not any(own in said for own in (token, other, "secret"))


def test_a_figure_that_is_no_number(folder, tmp_path, capsys):
    """CHAIRi of answers that name no object: a captioner that knows nothing says nothing."""
    score = {"benchmark": "chair", "data": str(folder / "held-out"), "max_new_tokens": 1}
    path = recipe(folder, tmp_path / "rounds", figure="chair_i", score=score)
    assert main(["loop", "--config", str(path)]) == 1
    assert "chair_i of" in (said := capsys.readouterr().err) and "nothing was counted" in said
    figures = json.loads((tmp_path / "rounds" / "start" / "scores.json").read_text(), parse_constant=pytest.fail)
    assert figures["figures"]["chair_i"] is None


def test_a_policy_without_pairs_ends_the_rounds(folder, looped, tmp_path, capsys):
    path = recipe(folder, tmp_path / "rounds")
    content = yaml.safe_load(path.read_text())
    content["pairs"]["verifier"] = "world:nothing"
    path.write_text(yaml.safe_dump(content))
    shutil.copytree(looped / "start", tmp_path / "rounds" / "start")
    for _ in range(2):  # and again where it is done
        assert main(["loop", "--config", str(path)]) == 0
        assert "The rounds end: round 1 has no pairs" in capsys.readouterr().out
    done = json.loads((tmp_path / "rounds" / "loop.json").read_text())
    assert done["best"] == str(folder / "base") and len(done["scores"]) == 1 and "no pairs" in done["ended"]


def test_a_round_that_fails_leaves_what_is_known(folder, looped, tmp_path, monkeypatch):
    copy = tmp_path / "rounds"
    shutil.copytree(looped, copy)
    shutil.rmtree(copy / "round-2")
    monkeypatch.setattr(rounds, "make_pairs", lambda options: (_ for _ in ()).throw(OSError("the disk is full")))
    assert main(["loop", "--config", str(recipe(folder, copy))]) == 1
    done = json.loads((copy / "loop.json").read_text())
    assert done["ended"] is None and len(done["scores"]) == 2 and done["best"].endswith("round-1/model")


@pytest.mark.parametrize("model", ["base", "adapter in 4 bits"])
def test_a_training_goes_on_from_its_checkpoint(model, folder, looped, tmp_path, capsys, monkeypatch):
    """Stopped in its third step, behind the checkpoint of the second; and its weights are those of a training in one go."""
    start, quantised = model.split()[0], model != "base"
    tiny.allow_four_bits()
    train = {
        **TRAIN,
        "load_in_4bit": quantised,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    begun = tmp_path / "begun"
    shutil.copytree(looped / "start", begun / "start")
    shutil.copytree(looped / "round-1" / "pairs", begun / "round-1" / "pairs")
    shutil.copytree(begun, tmp_path / "whole")
    step, steps = MFPOTrainer.training_step, []

    def stopped(self, *given, **options):
        steps.append(self.state.global_step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *given, **options)

    path = recipe(folder, begun, rounds=1, train=train, model=str(folder / start))
    with monkeypatch.context() as patch:
        patch.setattr(MFPOTrainer, "training_step", stopped)
        assert main(["loop", "--config", str(path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err and steps == [0, 1, 2]
    assert main(["loop", "--config", str(path)]) == 0
    assert "Going on from" in (said := capsys.readouterr().out) and "checkpoint-2" in said
    path = recipe(folder, tmp_path / "whole", rounds=1, train=train, model=str(folder / start))
    assert main(["loop", "--config", str(path)]) == 0
    assert told(begun, 1)["policy"]["weights"] == told(tmp_path / "whole", 1)["policy"]["weights"]


def test_no_step_finds_the_model_of_the_one_before(folder, tmp_path, monkeypatch):
    """Each loads its own, and there is memory for one."""
    found = []

    def models():
        return {id(own) for own in gc.get_objects() if isinstance(own, PreTrainedModel)}

    def watched(name):
        own = getattr(rounds, name)
        monkeypatch.setattr(rounds, name, lambda *given: (found.append((name, models() - before)), own(*given))[1])

    for name in ("make_pairs", "train", "_score", "run_merge"):
        watched(name)
    train = {**TRAIN, "use_peft": True, "lora_r": 2, "learning_rate": 1e-3}
    gc.collect()
    before = models()
    assert main(["loop", "--config", str(recipe(folder, tmp_path / "rounds", merge=True, train=train))]) == 0
    assert [name for name, _ in found][:5] == ["_score", "make_pairs", "train", "run_merge", "_score"]
    assert not any(own for _, own in found), found


def test_fields_on_a_command_line():
    own = {
        "use_peft": True,
        "lora_target_modules": ["a", "b"],
        "corruption_kwargs": {"step": 5},
        "learning_rate": 1e-5,
    }
    assert arguments(own) == [
        *("--use_peft", "true", "--lora_target_modules", "a", "b"),
        *("--corruption_kwargs", '{"step": 5}', "--learning_rate", "1e-05"),
    ]
