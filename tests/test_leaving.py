"""The end of a training's processes: what gloo's threads still hold must not meet an interpreter that is ending."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).parents[1]

HELD = """
import atexit, os, sys, threading, time
from pathlib import Path

import torch
import torch._dynamo  # as a training has it before there is a group: what it imports would keep the group
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mfpo_trl import leaving


class Held:
    def __init__(self, going):
        self.going = going

    def __del__(self):
        assert threading.current_thread() is not threading.main_thread()
        self.going.set()
        time.sleep(2)


def main(folder, rank, ending):
    going, dropped = threading.Event(), folder / "dropped"
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meeting")
    wrapped = DistributedDataParallel(torch.nn.Linear(2, 2))
    if rank == 1:
        while not dropped.exists():
            time.sleep(0.01)
        dist.all_reduce(torch.ones(1))
        return None
    tensor = torch.ones(1)
    tensor.held = Held(going)
    dist.all_reduce(tensor, async_op=True)
    del tensor
    # Nobody has hold of it now but the thread of gloo that waits for the other rank.
    dropped.touch()
    going.wait()
    leaving.keep_group()
    dist.destroy_process_group()
    atexit.register(lambda: print("registered for the end, in a group:", dist.is_initialized()))
    return ending()


def fork(folder, rank, ending):
    \"\"\"The process of a rank, which has the imports behind it.\"\"\"
    process = os.fork()
    if process:
        return process
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    leaving.run(lambda: main(folder, rank, ending))


ranks = {}
for number, code in enumerate(sys.argv[2:]):
    own = Path(sys.argv[1], str(number))
    own.mkdir()
    exec(f"def ending():\\n    {code}")
    ranks[own] = [fork(own, rank, ending) for rank in (0, 1)]
for own, processes in ranks.items():
    status = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    (own / "status").write_text(str(status[0]))
"""

ENDINGS = {
    "return None": 0,
    "return 3": 3,
    "sys.exit(4)": 4,
    "sys.exit('a sentence')": 1,
    "raise KeyError('why')": 1,
    "raise KeyboardInterrupt": 130,
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, tuple[int, str, str]]:
    """How the first of two ranks ends, while a thread of gloo is busy letting go of a tensor: its status and what it said."""
    folder = tmp_path_factory.mktemp("endings")
    (folder / "script.py").write_text(HELD)
    command = [sys.executable, str(folder / "script.py"), str(folder), *ENDINGS]
    subprocess.run(command, env={**os.environ, "RANK": "0"}, check=True, timeout=240)
    return {
        ending: (int((own / "status").read_text()), (own / "stdout-0").read_text(), (own / "stderr-0").read_text())
        for ending, own in ((ending, folder / str(number)) for number, ending in enumerate(ENDINGS))
    }


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_with_its_own_status(ended, ending):
    """What is registered for the end is called, and everything is printed."""
    status, said, error = ended[ending]
    assert status == ENDINGS[ending], error[-2000:]
    assert said == "registered for the end, in a group: False\n"
    assert "terminate called" not in error
    assert ("KeyError: 'why'" in error) == ("KeyError" in ending)
    assert ("a sentence" in error) == ("a sentence" in ending)


ALONE = """
import datetime, sys, time
import torch
import torch.distributed as dist

from mfpo_trl import leaving

meeting, rank = sys.argv[1], int(sys.argv[2])


def main():
    limit = datetime.timedelta(minutes=30)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method="file://" + meeting, timeout=limit)
    dist.barrier()
    if rank == 0:
        time.sleep(1000)
    dist.all_reduce(torch.ones(1), async_op=True)
    raise KeyError("why")


leaving.run(main)
"""


def test_a_rank_that_fails_does_not_wait_for_a_collective_that_nobody_joins(tmp_path):
    """The group's destructor would, for as long as the group's own limit; a launcher that sees the end ends the others."""
    script = tmp_path / "script.py"
    script.write_text(ALONE)
    command = [sys.executable, str(script), str(tmp_path / "meeting")]
    options = {"text": True, "stderr": subprocess.PIPE, "env": {**os.environ, "RANK": "0"}}
    with subprocess.Popen([*command, "0"], **options) as other, subprocess.Popen([*command, "1"], **options) as own:
        try:
            said = own.communicate(timeout=240)[1]
            assert own.returncode == 1 and "[rank1]: KeyError: 'why'" in said and other.poll() is None
        finally:
            own.kill()
            other.kill()


def test_outside_of_a_group_the_interpreter_ends_as_always(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import threading, time\nfrom mfpo_trl import leaving\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('done'))).start()\nleaving.run(lambda: 5)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (5, "done\n")


LAUNCHED = {
    "src/mfpo_trl/train": "tear_down",
    "examples/drop_in.py": "tear_down",
    "examples/qlora_single_gpu.py": "tear_down",
    "examples/build_and_train.py": "tear_down",
    "examples/train_mfpo.py": "train",
    "tests/two_processes.py": "train",
    "tests/order/two_processes_staged.py": "tear_down",
    "tests/test_engines.py": "tear_down",
}
"""Every file or package that a launcher starts as a rank, and what tears the group down there."""


def left_by_run(path: Path) -> bool:
    """Whether a file calls `run` of `mfpo_trl.leaving`, and nothing else of that name."""
    tree = ast.parse(path.read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("leaving")
        for alias in node.names
    }
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return "leaving.run" in calls or ("run" in imported and "run" in calls)


def test_the_command_leaves_in_order():
    """Which a launcher may start as a rank: `torchrun --no-python mfpo train`."""
    (start,) = [own for own in importlib.metadata.entry_points(group="console_scripts") if own.name == "mfpo"]
    code = f"import os, sys; os.environ['RANK'] = '0'; from {start.module} import {start.attr} as program; "
    code += "os._exit = lambda status: sys.exit(40 + status); sys.argv = ['mfpo', 'train']; program()"
    done = subprocess.run([warm.executable(), "-c", code], capture_output=True, text=True)
    assert done.returncode == 42 and "--model_name_or_path is needed" in done.stderr, done.stderr


def test_every_script_of_a_rank_leaves_in_order():
    for name, torn_down in LAUNCHED.items():
        called = [
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            for path in ((ROOT / name).glob("*.py") if (ROOT / name).is_dir() else [ROOT / name])
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        ]
        assert torn_down in called, name
        assert any(
            left_by_run(path) for path in ((ROOT / name).glob("*.py") if (ROOT / name).is_dir() else [ROOT / name])
        ), name


def test_every_script_that_trains_is_known():
    """A file of the examples, or of the tests with a foot of its own, that builds a trainer."""
    scripts = [*(ROOT / "examples").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    found = {
        str(path.relative_to(ROOT))
        for path in scripts
        if "__main__" in (text := path.read_text()) or path.stem.startswith("two_processes")
        if ".train(" in text or "train(trainer" in text
    }
    alone = {"tests/hub/test_hub.py", "tests/test_kept.py", "tests/test_leaving.py"}
    assert found - alone == set(LAUNCHED) - {"src/mfpo_trl/train"}
