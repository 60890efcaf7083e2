"""Pushing while a model is trained: `hub_strategy="every_save"` without the pickles that `Trainer` pushes along."""

import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .hub import MODEL_FILES, PushError, files_to_push, push

logger = logging.getLogger(__name__)


class PushCheckpoints(TrainerCallback):
    """Pushes the model of every checkpoint in the background; one that fails is a warning, and training goes on.

    While a push is under way, that of the next checkpoint is left out, unless `hub_always_push` has it wait.

    Args:
        trainer: whose `hub_model_id` names the repository.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.worker = ThreadPoolExecutor(1)
        self.under_way: Future | None = None

    def on_save(self, args, state, control, **kwargs):
        """Bring the checkpoint's model beside the card, where no limit of checkpoints removes it, and push both."""
        if not state.is_world_process_zero:
            return
        if self.under_way is not None and not self.under_way.done() and not args.hub_always_push:
            return
        self._wait()
        checkpoint, output = Path(args.output_dir, f"checkpoint-{state.global_step}"), Path(args.output_dir)
        for name in files_to_push(checkpoint, MODEL_FILES):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkpoint / name, output / name)
        self.under_way = self.worker.submit(self._push, args, state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        """Let the last push end before the final one."""
        self._wait()

    def _wait(self) -> None:
        if self.under_way is not None:
            self.under_way.result()

    def _push(self, args: Any, step: int) -> None:
        try:
            push(
                args.output_dir,
                self.trainer.hub_model_id,
                private=bool(args.hub_private_repo),
                token=args.hub_token,
                revision=args.hub_revision,
                commit_message=f"Training in progress, step {step}",
            )
        except (PushError, ValueError, OSError) as error:
            logger.warning("The checkpoint of step %d was not pushed: %s", step, error)
