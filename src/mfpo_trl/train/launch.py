"""`mfpo train --accelerate-config NAME`: the same training, started by `accelerate launch`.

Three processes stand in line: `mfpo train`, which waits; this file as a program, which is accelerate's launcher; and the training,
once or once a device. What the training is told travels in the environment: everybody on a machine can read a command line,
launchers print theirs, and a field may be a token.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..recipes import accelerate_file

OPTIONS = {"--accelerate-config": "config", "--num-processes": "processes"}
FIELDS = "MFPO_TRAIN_FIELDS"
"""The environment variable that the fields of a launched training travel in."""

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def command(argv: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """The arguments of `accelerate launch` that `argv` asks for, and the training's fields; None where it asks for none.

    `--accelerate-config` takes a path, or a name that `mfpo recipes` lists; `--num-processes` beside it wins over the
    number in that file. Both are written with hyphens or underscores; every other argument is a field.

    Raises:
        ValueError: an option without a value, or a configuration that is not known or cannot be used.
    """
    given, fields = split(argv)
    if "config" not in given:
        if "processes" in given:
            raise ValueError("--num-processes needs --accelerate-config; without, there is one process")
        return None
    path = config_file(given["config"])
    launcher = ["--config_file", str(path)]
    if "processes" in given:
        check_processes(path, given["processes"])
        launcher += ["--num_processes", given["processes"]]
    return [*launcher, "-m", "mfpo_trl.train"], fields


def split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The launcher's options of `argv` and their values, and what is left.

    Raises:
        ValueError: an option without a value.
    """
    given, rest = {}, []
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        name = OPTIONS.get(option.replace("_", "-"))
        if name is None:
            rest.append(argument)
            continue
        given[name] = value if equals else next(arguments, "")
        if not given[name] or given[name].startswith("--"):
            raise ValueError(f"{option} needs a value")
    return given, rest


def config_file(name: str) -> Path:
    """The configuration of accelerate with this path or name.

    Raises:
        ValueError: there is none, or it cannot be used.
    """
    path = accelerate_file(name)
    check_reach(path)
    return path


def check_processes(path: Path, processes: str | int) -> None:
    """Refuse several processes for a configuration of one, which accelerate would start alone.

    Raises:
        ValueError: says which configuration is for several.
    """
    kind = _settings(path).get("distributed_type", "NO")
    if str(processes) != "1" and str(kind).upper() == "NO":
        raise ValueError(
            f"--num-processes {processes}: {path} is for one process; take --accelerate-config ddp for several"
        )


def check_reach(path: Path) -> None:
    """Refuse a configuration whose launcher starts processes on other machines, where command lines carry the environment.

    Raises:
        ValueError: says what to set instead.
    """
    settings = _settings(path)
    found = [name for name in ("mpirun_config", "tpu_use_cluster") if settings.get(name)]
    if settings.get("distributed_type") == "DEEPSPEED" and int(settings.get("num_machines") or 1) > 1:
        # accelerate takes pdsh where none is named.
        launcher = (settings.get("deepspeed_config") or {}).get("deepspeed_multinode_launcher") or "pdsh"
        found += [f"deepspeed_multinode_launcher: {launcher}"] if launcher != "standard" else []
    if found:
        raise ValueError(
            f"{path}: with {found[0]}, the launcher starts processes on other machines itself, and the environment, with any "
            "token in it, gets on its command lines; leave it out (deepspeed_multinode_launcher: standard), and give the "
            "command on each machine, as recipes/accelerate/multi_node.yaml says"
        )


def _settings(path: Path) -> Mapping[str, Any]:
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    return settings if isinstance(settings, dict) else {}


# The process that waits


def launch(launcher: Sequence[str], fields: Sequence[str]) -> int:
    """Start a training with accelerate, hand signals on to it, and wait for its end.

    Args:
        launcher: arguments of `accelerate launch`.
        fields: what the training is told; no command line has them.

    Returns:
        The training's exit status, 128 + n where signal n has ended it.
    """
    command = [sys.executable, "-m", "mfpo_trl.train.launch", *launcher]
    sys.stdout.flush()
    sys.stderr.flush()
    handed = _heeded()
    # Held back until there is somebody to hand them on, on either side.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handed)
    # In a session of its own, because what is typed at a terminal reaches every process of this one.
    child = subprocess.Popen(command, env={**os.environ, FIELDS: json.dumps(list(fields))}, start_new_session=True)
    handlers = {number: signal.signal(number, lambda own, _: child.send_signal(own)) for number in handed}
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        return _status(_ended(child))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def given_fields() -> list[str]:
    """The fields of this process: those that `launch` has handed over, or else those of its command line."""
    # Taken out, so that nothing that the training starts gets them.
    handed = os.environ.pop(FIELDS, None)
    return sys.argv[1:] if handed is None else json.loads(handed)


def _ended(child: "subprocess.Popen[Any]") -> int:
    """Its exit code, waited for in pieces: a signal that comes right before a call that waits is heeded behind that call alone."""
    while True:
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            continue


def _heeded() -> list[signal.Signals]:
    """The signals to hand on: not those that `nohup` or a shell has this process ignore."""
    return [number for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN]


def _status(code: int) -> int:
    """What a shell makes of the exit code of a process, which is -n where signal n has ended it."""
    return code if code >= 0 else 128 - code


# The process that is accelerate's launcher


def main(argv: Sequence[str] | None = None) -> int:
    """`accelerate launch`, with the training's exit status, and without a traceback of its own behind what the training said."""
    heeded = _heeded()
    for number in heeded:
        signal.signal(number, _hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(sys.argv[1:] if argv is None else argv))
    except subprocess.CalledProcessError as error:
        code = error.returncode
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
    except SignalException as error:
        code = -error.sigval
    except (ValueError, OSError, ImportError) as error:
        print(f"mfpo train: error: accelerate launch: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    else:
        code = 0
    if code < 0:
        print(f"mfpo train: ended by {signal.Signals(-code).name}", file=sys.stderr)
    return _status(code)


def _hand_on(number: int, _: Any) -> None:
    """Pass a signal on to the training; torch's launcher of several processes has its own way, which replaces this one."""
    import psutil

    children = psutil.Process().children()
    if not children:
        sys.exit(128 + number)
    for child in children:
        child.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
