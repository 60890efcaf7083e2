"""What a training names and transformers makes for it, or another package brings: asked before anything is loaded.

transformers makes most of it when a training begins, after hours of work perhaps. Its own functions are called here, so that
they are what refuses.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks
from transformers.utils import is_bitsandbytes_available, is_liger_kernel_available
from trl import ModelConfig

from .config import MFPOConfig

STEPS = 100
"""Of a schedule that is made only to see whether it can be."""


def requirements(
    args: MFPOConfig, optimizers: tuple[Any, Any] = (None, None)
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What has to be there for these arguments: its name, and a call that raises `ValueError` or `ImportError` where it is not.

    Args:
        optimizers: the caller's own optimizer and schedule, if any.
    """
    if optimizers[0] is None:
        yield "optimizer", partial(check_optimizer, args)
    if optimizers[1] is None:
        yield "schedule", partial(schedule, args, STEPS)
    yield "reporters", partial(check_reporters, args)
    yield "kernels", partial(check_kernels, args)


def check_requirements(args: MFPOConfig, optimizers: tuple[Any, Any] = (None, None)) -> None:
    """Ask for all of `requirements`.

    Raises:
        ValueError, ImportError: the first that cannot be had.
    """
    for _, ask in requirements(args, optimizers):
        ask()


def check_optimizer(args: MFPOConfig) -> None:
    """Ask transformers for the optimizer.

    Raises:
        ImportError: its package is not installed.
        ValueError: options that it does not have.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, _NoModel())
    except _ModelAsked:
        # What is left to ask depends on the model.
        return
    except ImportError as error:
        raise ImportError(f"optim={args.optim.value!r}: {error}") from error
    except (ValueError, TypeError) as error:
        options = f" with optim_args={args.optim_args!r}" if args.optim_args else ""
        raise ValueError(f"optim={args.optim.value!r}{options}: {error}") from error


class _ModelAsked(Exception):
    pass


class _NoModel:
    """Stands where transformers reads a model."""

    def named_modules(self) -> NoReturn:
        raise _ModelAsked

    def parameters(self) -> Iterator[Any]:
        """None: transformers 5.17 looks here whether weights are spread over devices, whatever the optimizer."""
        return iter(())


def schedule(args: MFPOConfig, steps: int) -> LRScheduler:
    """The schedule of the learning rate over so many steps, made for an optimizer of its own, because it changes that.

    Raises:
        ValueError: options that it does not have or lacks, or one that cannot begin again at every stage.
    """
    name = args.lr_scheduler_type.value
    spare = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    try:
        made = get_scheduler(name, spare, args.get_warmup_steps(steps), steps, args.lr_scheduler_kwargs)
    except (ValueError, TypeError) as error:
        options = f" with lr_scheduler_kwargs={args.lr_scheduler_kwargs}" if args.lr_scheduler_kwargs else ""
        raise ValueError(f"lr_scheduler_type={name!r}{options}: {error}") from error
    if args.curriculum != "none" and args.curriculum_scheduler == "restart" and not isinstance(made, LambdaLR):
        raise ValueError(
            f"curriculum_scheduler='restart' needs a schedule that is a function of the step; lr_scheduler_type={name!r} "
            "is none"
        )
    return made


def check_reporters(args: MFPOConfig) -> None:
    """Ask transformers for the callbacks of `report_to`.

    Raises:
        ValueError: an unknown one, or one whose package is not installed.
    """
    there = get_available_reporting_integrations()
    for name in args.report_to:
        (callback,) = get_reporting_integration_callbacks([name])
        if name not in there:
            try:
                callback()
            except (RuntimeError, ImportError, ValueError) as error:
                # Of some it tells another cure than installing what they are called by.
                told = (
                    str(error) if "pip install" in str(error) else f"{name} is not installed; run `pip install {name}`"
                )
                raise ValueError(f"report_to={name!r}: {told}") from error


def check_kernels(args: MFPOConfig) -> None:
    """What Liger's kernels need, where they are asked for.

    Raises:
        ImportError: they are not installed.
    """
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("use_liger_kernel=True needs liger-kernel; run `pip install liger-kernel`")


def check_quantised(model: ModelConfig, adapter: bool) -> None:
    """What quantised weights need.

    Args:
        adapter: whether one is trained.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: they would be trained themselves.
    """
    asked = [name for name in ("load_in_4bit", "load_in_8bit") if getattr(model, name)]
    if asked and not is_bitsandbytes_available():
        raise ImportError(f"{asked[0]}=True needs bitsandbytes; run `pip install bitsandbytes`")
    if asked and not adapter:
        raise ValueError(f"quantised weights cannot be trained; set use_peft: true, or {asked[0]}: false")
