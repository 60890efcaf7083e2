"""Pushing to the Hub and reading back from it, against a stand-in on the loopback, in child processes that take it for the Hub.

`python tests/hub/test_hub.py FOLDER` runs the child at the foot of this file.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from safetensors.numpy import load, save_file
from stand_in_hub import BAD, READS, WRITES, StandInHub
from transformers.trainer_utils import HubStrategy

from mfpo_trl.hub import push_checkpoint
from mfpo_trl.hub import upload as hub_module

CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "max_steps": 2}
STRATEGIES = [own.value for own in HubStrategy]
STAYS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin")


@pytest.fixture
def hub():
    with StandInHub() as running:
        yield running


@pytest.fixture
def model(tmp_path) -> Path:
    """What a training leaves behind, with all that must stay."""
    folder = tmp_path / "trained"
    for own in ("checkpoint-1", "runs/today", "images"):
        (folder / own).mkdir(parents=True)
    save_file({"weight": np.random.default_rng(0).random((300, 100))}, folder / "model.safetensors")
    for name in ("config.json", "processor_config.json", "tokenizer.json", "trainer_state.json"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("# A model\n\n![Reliance](images/reliance.png) ![](../outside.png)\n")
    for name in (
        "images/reliance.png",
        "images/draft.png",
        "../outside.png",
        "checkpoint-1/adapter_model.safetensors",
    ):
        (folder / name).write_bytes(b"binary")
    for name in (*STAYS, "runs/today/events.out", ".cache.json", "checkpoint-1/config.json"):
        (folder / name).write_bytes(b"binary")
    return folder


def run(hub, tmp_path, *command, token=WRITES):
    """A child process that takes `hub` for the Hub; its token is in nothing it says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(tmp_path / "home", token)}
    # For the child of this file.
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, timeout=240
    )
    for secret in (READS, WRITES, BAD):
        assert secret not in done.stdout + done.stderr
        assert not any(secret.encode() in data for data in hub.objects.values())
        for repo in hub.repos.values():
            assert not any(secret.encode() in file.data for files in repo.commits.values() for file in files.values())
    return done


def push(hub, tmp_path, *arguments, token=WRITES):
    return run(hub, tmp_path, "-m", "mfpo_trl.cli", "push", *arguments, token=token)


def error_of(done) -> str:
    """The last line of what failed."""
    assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mfpo push: error: ")
    return last


# Which files


PUSHED = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "images/reliance.png",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
}


def test_junk_stays(hub, model, tmp_path):
    done = push(hub, tmp_path, model, "user/vlm", "--private")
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/user/vlm\n")
    files = hub.files("user/vlm")
    assert set(files) - {".gitattributes"} == PUSHED
    assert all(data == (model / name).read_bytes() for name, data in files.items() if name in PUSHED)
    assert hub.repos["models", "user/vlm"].private
    assert "not pushed: .cache.json, checkpoint-1, optimizer.pt, " in done.stderr

    (model / "config.json").write_text('{"changed": 1}')
    (model / "README.md").unlink()
    done = push(hub, tmp_path, model, "vlm", "--revision", "refined/1")
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/user/vlm/tree/refined/1\n")
    assert "has no README.md" in done.stderr
    assert hub.files("user/vlm", branch="refined/1")["config.json"] == b'{"changed": 1}'
    assert hub.files("user/vlm")["config.json"] == b"{}"


def test_what_never_goes_up(model):
    (model / "report.txt").write_text("of the user's own")
    files = set(hub_module.files_to_push(model, ["**/*"]))
    assert files == PUSHED | {"report.txt", "trainer_state.json", "images/draft.png"}


def test_pickled_weights_are_refused(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pickles only \(pytorch_model.bin\).*model.save_pretrained\("):
        hub_module.push(model, "user/vlm", token=WRITES)


def test_missing_shards_are_refused(model):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names weights that are not there: model-00002-of-00002.safetensors"):
        hub_module.push(model, "user/vlm", token=WRITES)


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        hub_module.push(tmp_path / "nowhere", "user/vlm", token=WRITES)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no model, adapter or data set; looked for config.json with"):
        hub_module.push(tmp_path, "user/vlm", token=WRITES)
    with pytest.raises(ValueError, match="no data set; looked for .* data/\\*.parquet"):
        hub_module.push(tmp_path, "user/vlm", repo_type="dataset", token=WRITES)
    with pytest.raises(ValueError, match="'space' is unknown"):
        hub_module.push(tmp_path, "user/vlm", repo_type="space", token=WRITES)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    hub_module.check_folder(tmp_path, "model")
    with pytest.raises(ValueError, match="Repo id must"):
        hub_module.push(tmp_path, "a/b/c", token=WRITES)


@pytest.mark.parametrize("name", ["README.md", "config.json", "chat_template.jinja"])
@pytest.mark.parametrize("token", [READS, "another-kind-of-token"], ids=["hub", "other"])
def test_a_file_with_a_token_is_refused(model, name, token):
    (model / name).write_text(f"pushed with '{token}' and images/reliance.png")
    with pytest.raises(ValueError, match=f"{name} holds an access token") as refused:
        hub_module.push(model, "user/vlm", token="another-kind-of-token")
    assert token not in str(refused.value)


def test_the_example(hub, model, tmp_path):
    example = Path(__file__).parents[2] / "examples" / "push_to_hub.py"
    done = run(hub, tmp_path, example, model, "user/vlm")
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/user/vlm\n")
    assert set(hub.files("user/vlm")) - {".gitattributes"} == PUSHED and hub.repos["models", "user/vlm"].private


# What goes wrong


REFUSED = {
    BAD: "the Hub does not accept the token (Invalid credentials in Authorization header): log in with `hf auth login`, or",
    READS: "the token may not write there (You don't have the rights to create or change a repository of this namespace)",
    None: "there is none: log in with `hf auth login`, or set HF_TOKEN.",
}


@pytest.mark.parametrize(("token", "said"), REFUSED.items(), ids=["unknown", "reads", "none"])
def test_a_token_that_does_not_do(hub, model, tmp_path, token, said):
    error = error_of(push(hub, tmp_path, model, "user/vlm", "--private", token=token))
    assert said in error and "write access" in error
    assert f"The files are kept in {model}; try again with: mfpo push {model} user/vlm --private" in error
    assert not hub.repos and (model / "model.safetensors").stat().st_size > 200_000


def test_a_card_that_the_hub_refuses(hub, model, tmp_path):
    (model / "README.md").write_text("---\ntags: [\n---\n# A model\n")
    assert "user/vlm was not pushed: Invalid metadata in README.md. - " in error_of(
        push(hub, tmp_path, model, "user/vlm")
    )


def test_no_push_offline(model):
    with pytest.raises(hub_module.PushError, match="HF_HUB_OFFLINE is set; unset it to push. The files are kept in"):
        hub_module.push(model, "user/vlm", token=WRITES)


def test_a_lost_connection_is_tried_again(hub, model, tmp_path):
    """Twice in the weights, where huggingface_hub itself goes on, and twice in the commit, where it does not."""
    hub.faults = {"lfs": 2, "commit": 2}
    done = push(hub, tmp_path, model, "user/vlm")
    assert done.returncode == 0 and hub.faults == {"lfs": 0, "commit": 0}
    assert hub.files("user/vlm")["model.safetensors"] == (model / "model.safetensors").read_bytes()
    lines = [
        line for line in done.stderr.splitlines() if line.startswith("mfpo push: the connection to the Hub was lost")
    ]
    assert [line[-19:] for line in lines] == ["trying again in 1 s", "trying again in 2 s"]


def test_a_connection_that_stays_lost_is_reported(hub, model, tmp_path):
    hub.faults = {"lfs": 0, "commit": -1}
    error = error_of(push(hub, tmp_path, model, "user/vlm"))
    assert "the connection to the Hub was lost" in error
    assert error.endswith(f"The files are kept in {model}; try again with: mfpo push {model} user/vlm")
    commits = [request for request in hub.requests if "/commit/" in request]
    assert len(commits) == 4 and set(hub.files("user/vlm")) == {".gitattributes"}
    assert load((model / "model.safetensors").read_bytes())["weight"].shape == (300, 100)


def test_a_public_repository_is_not_taken_for_a_private_one(hub, model, tmp_path):
    assert push(hub, tmp_path, model, "user/vlm").returncode == 0
    (model / "config.json").write_text('{"secret": 1}')
    assert "exists already and is public" in error_of(push(hub, tmp_path, model, "user/vlm", "--private"))
    assert hub.files("user/vlm")["config.json"] == b"{}"


# What training and building push


def test_what_training_and_building_push_comes_back(hub, tmp_path):
    """One child for both, as its imports cost more than the rest."""
    done = run(hub, tmp_path, __file__, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    check_models(hub, tmp_path, done)
    check_strategies(hub, done)
    check_data_set(hub, tmp_path, done)
    check_cards(hub, tmp_path, done)


def check_models(hub, folder, done):
    for name, weights in (("full", "model"), ("lora", "adapter_model")):
        files = hub.files(f"user/{name}")
        needed = {f"{weights}.safetensors", "processor_config.json", "tokenizer.json", "chat_template.jinja"}
        assert needed <= set(files) and not any(path.startswith("checkpoint-") for path in files)
        card = files["README.md"].decode()
        assert f"library_name: {'peft' if name == 'lora' else 'transformers'}" in card
        assert "base_model: user/base" in card and "pipeline_tag: image-text-to-text" in card
        assert "(https://huggingface.co/datasets/user/pairs)" in card
    assert "adapter_config.json" in hub.files("user/lora") and "config.json" in hub.files("user/full")
    refused = "mfpo train: error: user/command-end cannot be pushed to: the Hub does not accept the token"
    assert refused in done.stderr and "push later with `mfpo push`" in done.stderr
    assert hub.repos["models", "user/full"].private and not hub.repos["models", "user/lora"].private
    # The push of step 2 was left out, as that of step 1 was under way; which had the files of step 1 all the same.
    full = hub.repos["models", "user/full"]
    assert full.messages == ["initial commit", "Training in progress, step 1", "End of training"]
    first, last = (files["model.safetensors"].data for files in list(full.commits.values())[1:])
    assert first == (folder / "full" / "checkpoint-1" / "model.safetensors").read_bytes() != last
    assert last == (folder / "full" / "checkpoint-2" / "model.safetensors").read_bytes()
    assert not (folder / "full" / ".pushing").exists()


def check_strategies(hub, done):
    """Whatever `hub_strategy` asks for, in a script or of `mfpo train`: models and cards, or a refusal."""
    for strategy in STRATEGIES:
        for way in ("script", "command"):
            repo = hub.repos.get(("models", f"user/{way}-{strategy}"))
            pushed = [] if repo is None else repo.messages[1:]
            if strategy not in ("end", "every_save"):
                assert not pushed, (way, strategy)
                continue
            # The second push of a script finds nothing new.
            ends = ["Model save" if way == "script" else "End of training"]
            steps = ["Training in progress, step 1", "Training in progress, step 2"]
            assert pushed == [*(steps if strategy == "every_save" else []), *ends], (way, strategy)
            commits = list(repo.commits.values())[1:]
            for files in commits:
                assert {Path(path).suffix for path in files} <= {"", ".safetensors", ".json", ".jinja", ".md", ".png"}
                assert not any("checkpoint" in path or path.startswith("optimizer") for path in files)
                assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(files)
            weights = {files["model.safetensors"].oid for files in commits}
            assert len(weights) == (2 if strategy == "every_save" else 1)
        if strategy not in ("end", "every_save"):
            said = f"hub_strategy='{strategy}' pushes whole checkpoints, with the states of optimizer and random"
            assert f"script: {said}" in done.stdout and f"mfpo train: error: {said}" in done.stderr


def check_data_set(hub, folder, done):
    files = hub.files("user/data", "datasets")
    parts = {f"data/train-{n:05d}-of-00002.parquet" for n in range(2)}
    assert set(files) - {".gitattributes"} == {"README.md", "report.json", *parts}
    assert json.loads(files["report.json"])["rows_out"] == 6
    assert f"The data set is at {hub.url}/datasets/user/data" in done.stdout
    failed = next(line for line in done.stderr.splitlines() if line.startswith("mfpo build: error: user/data"))
    assert REFUSED[BAD] in failed and failed.endswith(
        f"try again with: mfpo push {folder / 'set'} user/data --private"
    )
    assert hub.repos["datasets", "user/data"].private

    again = push(hub, folder, folder / "set", "user/again", "--private")
    assert (again.returncode, again.stdout) == (0, f"{hub.url}/datasets/user/again\n")
    assert hub.files("user/again", "datasets") == files and hub.repos["datasets", "user/again"].private


def check_cards(hub, folder, done):
    """A card that is pushed is the trainer's, of every step, and tells no path; of an adapter's configuration it is said."""
    pushed = list(hub.repos["models", "user/of-a-folder"].commits.values())[1:]
    assert len(pushed) >= 3
    for files in pushed:
        card = files["README.md"].data.decode()
        assert "## Objective" in card and str(folder) not in card
    said = f"{folder / 'of-a-folder'}/adapter_config.json names the base model by a path, '{folder / 'base'}'"
    assert said in done.stderr


# The child


def trained(folder: Path) -> None:
    """Train full weights and an adapter from a model on the Hub, push both, and load both from there."""
    import tiny
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mfpo_trl import MFPOConfig, MFPOTrainer

    hub_module.push(tiny.save_pretrained(folder / "base"), "user/base")
    settings = {**CPU, "push_to_hub": True, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    for name, own, lora in (
        ("full", {"hub_strategy": "every_save", "save_steps": 1, "hub_private_repo": True}, None),
        ("lora", {"hub_strategy": "end", "save_strategy": "no"}, LoraConfig(target_modules=["q_proj"], r=2)),
    ):
        args = MFPOConfig(str(folder / name), hub_model_id=f"user/{name}", **settings, **own)
        trainer = MFPOTrainer("user/base", args=args, train_dataset=tiny.dataset(8), peft_config=lora)
        if name == "full":
            ask("hold", True)
            trainer.train()
            trainer.save_model(_internal_call=True)
            ask("hold", False)
            trainer.push_to_hub(dataset_name="user/pairs")
        else:
            trainer.train()
            trainer.save_model(_internal_call=True)
            trainer.create_model_card(dataset_name="user/pairs")
            lost(trainer)
            assert hub_module.push_trained(trainer) == f"{os.environ['HF_ENDPOINT']}/user/{name}"
            assert not (folder / "lora" / ".pushing").exists()
        loaded = AutoModelForImageTextToText.from_pretrained(f"user/{name}", dtype=torch.float32, use_safetensors=True)
        processor = AutoProcessor.from_pretrained(f"user/{name}")
        assert processor.chat_template == trainer.processing_class.chat_template
        batch = processor(
            images=[tiny.picture(3)], text=["USER: <image>\nwhat is it? ASSISTANT:"], return_tensors="pt"
        )
        with torch.no_grad():
            expected, found, before = (
                model.eval()(**batch).logits
                for model in (trainer.model, loaded, AutoModelForImageTextToText.from_pretrained(folder / "base"))
            )
        assert torch.allclose(expected, found, atol=1e-5) and not torch.allclose(expected, before, atol=1e-3)


def strategies(folder: Path) -> None:
    """Every `hub_strategy`, in a script that has a plain `DPOConfig`, and of `mfpo train`."""
    import tiny
    from trl import DPOConfig

    from mfpo_trl import MFPOTrainer
    from mfpo_trl.train import main

    tiny.dataset(4).to_parquet(folder / "rows.parquet")
    common = {**CPU, "push_to_hub": True, "hub_always_push": True, "learning_rate": 1e-2}
    common |= {"save_strategy": "steps", "save_steps": 1}

    def command(strategy: str, token: str) -> tuple[int, bool]:
        """The status of `mfpo train`, and whether it has trained."""
        os.environ["HF_TOKEN"] = token
        output = folder / f"command-{strategy}"
        own = {"hub_strategy": strategy, "hub_model_id": f"user/command-{strategy}", "output_dir": output}
        fields = {**common, **own, "model_name_or_path": "user/base", "dataset_name": folder / "rows.parquet"}
        status = main([part for name, value in fields.items() for part in (f"--{name}", str(value))])
        return status, (output / "checkpoint-1").exists()

    # A token that does not do is told before anything is trained.
    assert command("end", BAD) == (2, False)
    for strategy in STRATEGIES:
        assert command(strategy, WRITES) == ((0, True) if strategy in ("end", "every_save") else (2, False))
    for strategy in STRATEGIES:
        settings = common | {"hub_strategy": strategy, "hub_model_id": f"user/script-{strategy}"}
        args = DPOConfig(str(folder / f"script-{strategy}"), **settings)
        try:
            trainer = MFPOTrainer("user/base", args=args, train_dataset=tiny.dataset(4))
        except ValueError as refused:
            print(f"script: {refused}")
            continue
        trainer.train()
        trainer.save_model()
        assert trainer.push_to_hub(blocking=False).result() == f"{os.environ['HF_ENDPOINT']}/user/script-{strategy}"


def ask(what: str, value: object) -> None:
    """Of the stand-in: how it behaves from now on."""
    urlopen(Request(f"{os.environ['HF_ENDPOINT']}/{what}", json.dumps(value).encode()), timeout=9)


def lost(trainer) -> None:
    """A push that fails for good: the trained weights and the card are where they were saved."""

    waits, hub_module.WAITS = hub_module.WAITS, (0.01,)
    ask("faults", {"commit": -1})
    # What a checkpoint's push has kept goes once a later push has arrived.
    trainer.args.hub_strategy = HubStrategy.EVERY_SAVE
    push_checkpoint(trainer, trainer.args.output_dir)
    trainer.push_in_progress.wait_until_done()
    trainer.args.hub_strategy = HubStrategy.END
    assert (Path(trainer.args.output_dir) / ".pushing" / "adapter_model.safetensors").exists()
    with pytest.raises(hub_module.PushError, match="the connection to the Hub was lost.* mfpo push .*/lora user/lora"):
        hub_module.push_trained(trainer)
    ask("faults", {"commit": 0})
    hub_module.WAITS = waits
    output = Path(trainer.args.output_dir)
    assert (output / "README.md").exists() and load((output / "adapter_model.safetensors").read_bytes())


def built(folder: Path) -> None:
    """Build a data set, push it, and load it from the Hub."""
    import tiny
    from datasets import load_dataset

    from mfpo_trl.cli import main

    source = folder / "rows.jsonl"
    rows = [{"image": f"{n}.png", "prompt": "What?", "chosen": "A red dog.", "rejected": "A cat."} for n in range(6)]
    for n in range(6):
        tiny.picture(n).save(folder / f"{n}.png")
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = ["build", f"--dataset={source}", f"--output={folder / 'set'}", "--grounder=random", "--part-rows=3"]
    arguments += ["--difficulty=mask-area", "--push-to-hub=user/data", "--private"]
    # Without a token nothing is begun, with one that does not do the finished rows are kept.
    del os.environ["HF_TOKEN"]
    assert main(arguments) == 1 and not (folder / "set").exists()
    os.environ["HF_TOKEN"] = BAD
    assert main(arguments) == 1 and len(list((folder / "set" / "data").glob("*.parquet"))) == 2
    os.environ["HF_TOKEN"] = WRITES
    assert main(arguments) == 0
    from_the_hub(folder)
    loaded, local = (load_dataset(name, split="train") for name in ("user/data", str(folder / "set")))
    assert len(loaded) == 6 and loaded.features == local.features
    for mine, theirs in zip(local, loaded, strict=True):
        assert mine["images"][0].tobytes() == theirs["images"][0].tobytes()
        assert {**mine, "images": None} == {**theirs, "images": None}


def from_the_hub(folder: Path) -> None:
    """Build from pictures that lie on the Hub, and from rows there that name files of the cache."""
    import tiny
    from huggingface_hub import HfApi, constants

    from mfpo_trl.cli import main

    texts = {"prompt": "What?", "chosen": "A red dog.", "rejected": "A cat."}
    tiny.picture(1).save(Path(constants.HF_HOME, "token"), "PNG")
    for name, files, rows in (
        ("photos", {"metadata.jsonl": [{"file_name": f"{n}.png", **texts} for n in range(2)]}, 2),
        ("theft", {"rows.jsonl": [{"image": own, **texts} for own in ("token", f"{constants.HF_HOME}/token")]}, 0),
    ):
        source = folder / name
        source.mkdir()
        for file, content in files.items():
            (source / file).write_text("".join(f"{json.dumps(row)}\n" for row in content))
        for n in range(rows):
            tiny.picture(n).save(source / f"{n}.png")
        (source / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
        HfApi().create_repo(f"user/{name}", repo_type="dataset")
        HfApi().upload_folder(repo_id=f"user/{name}", folder_path=source, repo_type="dataset")
        output = folder / f"built-{name}"
        arguments = ["build", f"--dataset=user/{name}", f"--output={output}", "--grounder=random"]
        assert main([*arguments, "--difficulty=mask-area"]) == (0 if rows else 1)
        report = json.loads((output / "report.json").read_text()) if rows else {"rows_out": 0}
        assert report["rows_out"] == rows
        assert not rows or (output / "README.md").read_text().startswith("---\nlicense: cc-by-4.0\n")


def of_a_folder(folder: Path) -> None:
    """An adapter on a base model that is no one else's: PEFT puts an empty card with the base's path into its checkpoints."""
    import tiny
    from peft import LoraConfig

    from mfpo_trl import MFPOConfig, MFPOTrainer

    settings = {
        **CPU,
        "push_to_hub": True,
        "hub_model_id": "user/of-a-folder",
        "hub_always_push": True,
        "save_steps": 1,
    }
    trainer = MFPOTrainer(
        str(folder / "base"),
        args=MFPOConfig(str(folder / "of-a-folder"), **settings),
        train_dataset=tiny.dataset(8),
        peft_config=LoraConfig(target_modules=["q_proj"], r=2),
    )
    trainer.train()
    assert str(folder / "base") in (folder / "of-a-folder" / "checkpoint-2" / "README.md").read_text()
    trainer.push_to_hub()


if __name__ == "__main__":
    trained(Path(sys.argv[1]))
    # Pictures have been pushed now; drawing takes longer than the trainings that follow.
    from mfpo_trl.card import model_card

    model_card.write_curves = lambda folder, log_history: None
    strategies(Path(sys.argv[1]))
    built(Path(sys.argv[1]))
    of_a_folder(Path(sys.argv[1]))
