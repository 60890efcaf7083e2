"""What `mfpo train --accelerate-config` starts: what it is told and how, how it ends, and what others see of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from mfpo_trl.train import launch

ROOT = Path(__file__).parents[2]
TOKENS = [f"hf_{letter * 34}" for letter in "abcdef"]
# Each way in which a token can be given.
FORMS = [
    "--hub_token",
    TOKENS[0],
    f"--hub_token={TOKENS[1]}",
    "--hub-token",
    TOKENS[2],
    "--model_init_kwargs",
    json.dumps({"token": TOKENS[3]}),
    f"--hub_tokn={TOKENS[4]}",
    TOKENS[5],
]
# A line of Python that starts what its standard input says, as `mfpo train` does.
START = "import json, sys; from mfpo_trl.train.launch import launch; sys.exit(launch(*json.load(sys.stdin)))"


def heed_signals() -> None:
    for own in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(own, signal.SIG_DFL)


class Launched:
    """A process that launches `tests/train/launched.py` and waits for it, in a session of its own as at a terminal."""

    def __init__(self, configuration: str, folder: Path, deed: str):
        self.folder, self.ranks = folder, 1 if "NO" in Path(configuration).read_text() else 2
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests' / 'train'}",
        }
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(
            [sys.executable, "-c", START],
            env=environment,
            text=True,
            start_new_session=True,
            # Whoever runs the tests may ignore some of them, as a shell or nohup does for what it starts in the background.
            preexec_fn=heed_signals,
            **pipes,
        )
        told = [["--config_file", configuration, "-m", "launched"], [str(folder), deed, *FORMS]]
        self.process.stdin.write(json.dumps(told))
        self.process.stdin.close()
        self.process.stdin = None

    def seen(self) -> list[dict]:
        """What each rank has written down, once it has."""
        files = [self.folder / f"rank-{rank}.json" for rank in range(self.ranks)]
        while not all(file.exists() for file in files):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        return [json.loads(file.read_text()) for file in files]

    def end(self) -> tuple[int, str]:
        """Exit status, and what was said."""
        said = "".join(self.process.communicate(timeout=120))
        return self.process.returncode, said


@pytest.fixture
def launched():
    """Starts a `Launched`, which does not outlive the test."""
    started = []

    def start(*arguments) -> Launched:
        started.append(Launched(*arguments))
        return started[-1]

    yield start
    for own in started:
        own.process.terminate()


@pytest.fixture
def configuration(tmp_path):
    """The path of a configuration of accelerate, by its launcher."""

    def write(kind: str) -> str:
        name = {"one process": "cpu", "two processes": "ddp", "deepspeed": "zero2"}[kind]
        settings = yaml.safe_load((ROOT / "recipes" / "accelerate" / f"{name}.yaml").read_text())
        # A port of their own, as tests run beside each other.
        settings |= {"use_cpu": True} | ({} if name == "cpu" else {"num_processes": 2, "main_process_port": 0})
        (tmp_path / "launcher.yaml").write_text(yaml.safe_dump(settings))
        return str(tmp_path / "launcher.yaml")

    return write


ENDS = [
    # launcher, deed, signal to the waiting process or its whole terminal, exit status
    ("one process", "exit=0", None, 0),
    ("one process", "exit=2", None, 2),
    ("one process", "die=SIGKILL", None, 137),
    ("one process", "wait", (os.killpg, signal.SIGINT), 130),
    *(("one process", "wait", (os.kill, own), 9) for own in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)),
    ("two processes", "exit=2", None, 2),
    ("two processes", "die=SIGKILL", None, 137),
    ("two processes", "wait", (os.killpg, signal.SIGINT), 130),
    ("two processes", "wait", (os.kill, signal.SIGTERM), 143),
    ("deepspeed", "exit=1", None, 1),
]
IDS = [f"{kind}-{deed}{'' if sent is None else '-' + sent[1].name}".replace(" ", "-") for kind, deed, sent, _ in ENDS]


@pytest.mark.parametrize(("kind", "deed", "sent", "status"), ENDS, ids=IDS)
def test_how_a_launched_training_is_told_and_ends(kind, deed, sent, status, configuration, launched, tmp_path):
    own = launched(configuration(kind), tmp_path, deed)
    seen = own.seen()
    if sent is not None:
        send, number = sent
        send(own.process.pid, number)
    found, said = own.end()
    assert found == status, said
    # No traceback of the launcher, no process left behind, no signal twice.
    assert "Traceback" not in said and "Error" not in said, said
    assert not any(psutil.pid_exists(rank["pid"]) for rank in seen)
    assert ("ended by SIGKILL" in said) == (deed == "die=SIGKILL")
    if sent is not None:
        caught = [(tmp_path / f"caught-{rank}").read_text() for rank in range(own.ranks)]
        assert caught == [number.name] * own.ranks
    for rank in seen:
        assert rank["fields"] == [str(tmp_path), deed, *FORMS] and rank["arguments"] == [] and not rank["inherited"]
        shown = [*rank["command_lines"], said]
        assert sum("launched" in line for line in shown) >= 2 and not any(
            token in line for line in shown for token in TOKENS
        )


def test_a_signal_before_there_is_a_training_ends_the_launcher(configuration, launched, tmp_path):
    own, child = launched(configuration("one process"), tmp_path, "wait"), None
    while child is None:
        child = next(iter(psutil.Process(own.process.pid).children()), None)
    os.kill(own.process.pid, signal.SIGINT)
    assert own.end() == (130, "")
    assert not child.is_running() and not (tmp_path / "rank-0.json").exists()


def test_what_is_ignored_is_not_handed_on():
    """As under `nohup`, or in a script's background."""
    before = {own: signal.signal(own, signal.SIG_DFL) for own in launch.FORWARDED}
    try:
        for ignored in launch.FORWARDED:
            signal.signal(ignored, signal.SIG_IGN)
            assert launch._heeded() == [own for own in launch.FORWARDED if own != ignored]
            signal.signal(ignored, signal.SIG_DFL)
    finally:
        for own, handler in before.items():
            signal.signal(own, handler)


def test_what_accelerate_refuses_is_one_line(configuration, launched, tmp_path):
    path = Path(configuration("one process"))
    path.write_text(f"{path.read_text()}speed: 1\n")
    status, said = launched(str(path), tmp_path, "exit=0").end()
    assert status == 2 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("mfpo train: error: accelerate launch: The config file at ")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"deepspeed_config": {"deepspeed_multinode_launcher": "pdsh"}}, "deepspeed_multinode_launcher: pdsh"),
        ({"deepspeed_config": {"deepspeed_multinode_launcher": "slurm"}}, "deepspeed_multinode_launcher: slurm"),
        # Which is accelerate's own choice.
        ({"deepspeed_config": {"zero_stage": 3}}, "deepspeed_multinode_launcher: pdsh"),
        ({"mpirun_config": {"mpirun_hostfile": "hosts"}, "distributed_type": "MULTI_CPU"}, "mpirun_config"),
        ({"tpu_use_cluster": True, "distributed_type": "XLA"}, "tpu_use_cluster"),
    ],
)
def test_launchers_that_put_the_environment_on_command_lines_are_refused(settings, named, tmp_path):
    """The others are in the recipes, each of which `test_recipes` reads."""
    path = tmp_path / "launcher.yaml"
    path.write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "num_machines": 2} | settings))
    with pytest.raises(ValueError, match=f"with {named}, the launcher starts processes on other machines itself"):
        launch.command(["--accelerate-config", str(path)])
    for known in (ROOT / "recipes" / "accelerate").glob("*.yaml"):
        assert launch.command(["--accelerate-config", str(known)])


def test_fields_come_from_the_command_line_where_none_are_handed_over(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--beta", "0.2"])
    monkeypatch.delenv(launch.FIELDS, raising=False)
    assert launch.given_fields() == ["--beta", "0.2"]
    monkeypatch.setenv(launch.FIELDS, "[]")
    assert launch.given_fields() == [] and launch.FIELDS not in os.environ
