"""What a trainer pushes, at the end and while it trains: `Trainer`'s way, with the files that `hub` lets through and no pickle."""

import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..config import MFPOConfig
from .files import MODEL_FILES, files_to_push
from .upload import COPIED, PushError, push_trained

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

STRATEGIES = (HubStrategy.END, HubStrategy.EVERY_SAVE)
"""Those that push models only."""


def check_strategy(args: MFPOConfig) -> None:
    """Refuse to push what a training goes on from: states of optimizer and random numbers, which are pickles.

    Raises:
        ValueError: `hub_strategy` asks for it.
    """
    if args.push_to_hub and args.hub_strategy not in STRATEGIES:
        raise ValueError(
            f"hub_strategy={HubStrategy(args.hub_strategy).value!r} pushes whole checkpoints, with the states of optimizer and random "
            "numbers, which are pickles; set every_save, which pushes the model of each checkpoint, or end"
        )


def push_model(
    trainer: "Trainer",
    commit_message: str | None = "End of training",
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    **card: Any,
) -> str | Future | None:
    """`MFPOTrainer.push_to_hub`: save the model, write its card and push both, as `Trainer` does, without pickles.

    Args:
        commit_message, blocking, token, revision, private: as `Trainer.push_to_hub` takes them.
        card: for `create_model_card`.

    Returns:
        The address of the repository, with `blocking=False` a future of it; None in all but the main process.

    Raises:
        PushError: the Hub did not take the files; weights and card are in the output folder.
    """
    args = trainer.args
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    if trainer.hub_model_id is None:
        # transformers up to 5.19 knows no such argument here and reads `hub_private_repo` alone.
        trainer.init_hf_repo(token=token, **({} if private is None else {"private": private}))
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    name = card.pop("model_name", None) or (args.hub_model_id or args.output_dir).rstrip("/").rpartition("/")[2]
    tags = card.pop("tags", None) or []
    tags = [tags] if isinstance(tags, str) else [*tags]
    trainer.create_model_card(name, tags=[*tags, *(getattr(trainer.model, "model_tags", None) or [])], **card)
    _wait(trainer)

    def push() -> str | None:
        return push_trained(trainer, commit_message or "End of training", token, revision, private)

    return push() if blocking else _in_background(push)


def push_checkpoint(trainer: "Trainer", folder: str) -> None:
    """Push the model of a checkpoint, where `hub_strategy` says so, in the background; one that fails is a warning.

    While one is under way, that of the next checkpoint is left out, unless `hub_always_push` has it wait.
    """
    args = trainer.args
    if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
        return
    under_way = trainer.push_in_progress
    if under_way is not None and not under_way.is_done() and not args.hub_always_push:
        return
    _wait(trainer)
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    copied, step = _copy(Path(folder), Path(args.output_dir)), trainer.state.global_step

    def push() -> None:
        try:
            push_trained(trainer, f"Training in progress, step {step}", folder=copied)
        except (PushError, ValueError, OSError) as error:
            logger.warning("The checkpoint of step %d was not pushed: %s", step, error)

    trainer.push_in_progress = PushInProgress([_in_background(push)])


def _copy(checkpoint: Path, output: Path) -> Path:
    """What is pushed of a checkpoint, in a folder that nothing writes to meanwhile: the output folder gets the next card and the trained
    weights, and a limit of checkpoints removes this one."""
    folder = output / COPIED
    shutil.rmtree(folder, ignore_errors=True)
    # An adapter's checkpoint has a card of PEFT's, which is empty but for the base model, and names that by its path.
    weights = set(files_to_push(checkpoint, MODEL_FILES)) - {"README.md"}
    for source, names in ((checkpoint, weights), (output, files_to_push(output, ["README.md"]))):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, folder / name)
    return folder


@contextmanager
def tokens_hidden(trainer: "Trainer") -> Iterator[None]:
    """Give a trainer arguments without tokens while it saves them, as a pickle, beside the weights."""
    given, trainer.args = trainer.args, trainer.args.without_tokens()
    try:
        yield
    finally:
        trainer.args = given


def _wait(trainer: "Trainer") -> None:
    if trainer.push_in_progress is not None:
        trainer.push_in_progress.wait_until_done()


def _in_background(job: Callable[[], Any]) -> Future:
    worker = ThreadPoolExecutor(1, "mfpo-push")
    future = worker.submit(job)
    worker.shutdown(wait=False)
    return future
