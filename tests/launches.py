"""Real processes for the tests: what launchers are told where there is no GPU, and folders that test workers share."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import warm
from accelerate.utils.other import get_free_port
from filelock import FileLock

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes" / "accelerate"
SCRIPT = ROOT / "tests" / "two_processes.py"

# The processes that two cores carry instead of the file's, and a free port: two launches that begin at once would both find the usual
# one free, and meet there.
OVERRIDES = ("--num_processes", "2", "--main_process_port", "0")
# DeepSpeed would look for an accelerator; torch would take every core for each process.
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def run(*commands: Sequence, limit: float = 600, **environment: str) -> list[subprocess.CompletedProcess]:
    """Commands that run at the same time in the root of the repository, from the start of their processes to their end."""
    started = []
    for command in commands:
        said = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        options = {
            "env": {**os.environ, **ENVIRONMENT, **environment},
            "cwd": ROOT,
            "stdout": said[0],
            "stderr": said[1],
        }
        started.append((subprocess.Popen(list(map(str, command)), **options), said))
    late = None
    try:
        for process, _ in started:
            process.wait(limit)
    except subprocess.TimeoutExpired as error:
        late = error
    finally:
        for process, _ in started:
            # A launcher that is killed leaves its processes behind; one that is told to end takes them along.
            process.terminate()
            process.wait()
    ended = [
        subprocess.CompletedProcess(process.args, process.returncode, *(_read(file) for file in said))
        for process, said in started
    ]
    assert late is None, f"{late}\n" + "\n".join(f"{one.stdout[-3000:]}\n{one.stderr[-3000:]}" for one in ended)
    return ended


def _read(file) -> str:
    with file:
        file.seek(0)
        return file.read()


def run_warm(*commands: Sequence) -> list[subprocess.CompletedProcess]:
    """The same, where launcher and ranks have their imports behind them (`warm.py`)."""
    program = str(warm.executable())
    return run(*([program, *command] for command in commands), PYTHON_EXEC=program)


def accelerate(name: str) -> list[list]:
    """What `python` is told to launch with a shipped configuration, for each node of it."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{name}.yaml"]
    if name in ("cpu", "single_gpu"):
        return [launch]
    if name != "multi_node":
        return [[*launch, *OVERRIDES]]
    # Two nodes of one process on this machine.
    shared = ["--num_machines", 2, "--num_processes", 2, "--main_process_ip", "127.0.0.1"]
    shared += ["--main_process_port", get_free_port()]
    return [[*launch, *shared, "--machine_rank", rank] for rank in (0, 1)]


def train(name: str, weights: Path, output: Path, *cases: str) -> dict[str, list[dict]]:
    """Train with the engine of a shipped configuration; what each rank wrote down, by case."""
    engine = {"zero2": "deepspeed", "zero3": "deepspeed", "multi_node": "deepspeed", "fsdp2": "fsdp"}.get(
        name, "plain"
    )
    if engine == "deepspeed":
        build_deepspeed_extension()
    output.mkdir(exist_ok=True)
    told = [SCRIPT, weights, output, engine, *cases]
    for done in run_warm(*([*launch, *told] for launch in accelerate(name))):
        assert done.returncode == 0, done.stderr[-3000:]
    return reports(output, *cases)


def reports(output: Path, *cases: str) -> dict[str, list[dict]]:
    return {
        case: [json.loads(path.read_text()) for path in sorted((output / case).glob("rank-*.json"))] for case in cases
    }


@cache
def build_deepspeed_extension() -> None:
    """DeepSpeed compiles its communication at the first start, minutes; here once for an environment, and copied for each test run.

    torch takes a file `lock` in that folder each time an extension is loaded, and waits for ever for one that a killed process has
    left: a run has a folder of its own, which no run before it has touched.
    """
    kept = Path(sys.prefix, "torch_extensions", "deepspeed_shm_comm")
    own = Path(os.environ["TORCH_EXTENSIONS_DIR"], kept.name)
    kept.parent.mkdir(exist_ok=True)
    with FileLock(kept.parent / "building.lock"):
        if not (kept / "built").exists():
            shutil.rmtree(kept, ignore_errors=True)
            code = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as Builder; Builder().load(verbose=False)"
            (done,) = run(["env", f"TORCH_EXTENSIONS_DIR={kept.parent}", sys.executable, "-c", code], limit=1200)
            assert done.returncode == 0, done.stderr[-3000:]
            (kept / "built").touch()
        if not own.exists():
            # With its times, by which ninja sees that nothing is to be done.
            shutil.copytree(kept, own, ignore=shutil.ignore_patterns("lock"))


def shared(tmp_path_factory, name: str, fill: Callable[[Path], object]) -> Path:
    """A folder that is filled once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "filled").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            (folder / "filled").touch()
    return folder
