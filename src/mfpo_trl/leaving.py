"""How the processes of a training end: engine and process group first, then the process, without ending the interpreter."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn


def tear_down(trainer: Any) -> None:
    """End trackers, engines and process group, when every rank has come so far; nothing that the ranks do together works behind it.

    What one rank does alone comes after it: the others would wait here, no longer than `ddp_timeout`.
    """
    trainer.accelerator.wait_for_everyone()
    keep_group()
    # DeepSpeed's engines, one for each model, hold buffers and hooks on communication of their own.
    for model in (trainer.model_wrapped, trainer.ref_model):
        getattr(model, "destroy", lambda: None)()
    trainer.end()


_kept: list[Any] = []


def keep_group() -> None:
    """Have the process group, once destroyed, stay in memory to the end of this process; call it before.

    Whoever is last to let go of the group runs its destructor, which waits for the threads of gloo. They may wait for Python's lock,
    to let go of a tensor, and the reducer of `DistributedDataParallel` has it while it lets go of the group: neither would end.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        _kept.append(distributed.group.WORLD)


def leave(status: int = 0) -> None:
    """End this process with a status, where it took part in a process group; call it last. Returns in any other process.

    gloo works in threads of its own (`pt_gloo_runloop` of `c10d::ProcessGroupGloo`), which let go of a tensor some time after its
    work was waited for, and need Python's lock for that. The group's destructor joins them, but `destroy_process_group` does not
    reach it: `DistributedDataParallel`, DeepSpeed's parameters and FSDP's meshes keep the group, and defaults of the functions in
    `torch.distributed.nn.functional` do for good. A thread that asks for the lock of an interpreter that is ending is ended by
    Python up to 3.13 with `pthread_exit`, whose unwinding meets a destructor that lets nothing pass: `std::terminate`, "terminate
    called without an active exception", and the status of a training that succeeded is that of an abort. So the interpreter is
    not ended: what is registered for its end is called, as `multiprocessing` does in its children, and the process is left.
    """
    if not joined_a_group():
        return
    threading._shutdown()  # type: ignore[attr-defined]  # typeshed leaves it out
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # Nobody may be left to read it.
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def joined_a_group() -> bool:
    """Whether this process is a rank, by what every launcher leaves in the environment, or is in a process group without one."""
    distributed = sys.modules.get("torch.distributed")
    return "RANK" in os.environ or bool(distributed and distributed.is_available() and distributed.is_initialized())


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call the main function of a script and end the process with what it returns, or with 1 behind the traceback of what it
    raises; a rank that fails does not wait for the others, as the interpreter's end does in a collective that they do not join."""
    try:
        status = main() or 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException as error:
        # torch's own says which rank it is of.
        sys.excepthook(*sys.exc_info())
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    leave(status)
    sys.exit(status)
