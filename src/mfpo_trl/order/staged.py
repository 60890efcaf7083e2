"""What a curriculum does to a trainer where a stage begins and ends, and what a run goes on from."""

import os
import shutil
import uuid
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.logging import get_logger
from peft import PeftModel
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from .. import _trl
from ..checkpoints import TRAINER_STATE, ResumeError
from ..requirements import schedule
from .curriculum import Plan
from .ranking import plan_of
from .sampling import EpochSampler

logger = get_logger(__name__)

STAGE_CHECKPOINT = "_checkpoint-stage-{}"
"""The underscore keeps it out of the Trainer's rotation, which takes every `checkpoint-*`, and out of its pushes."""

OF_TRAINING = (
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "training_args.bin",
    "global_step*",
    "latest",
    "zero_to_fp32.py",
)
"""What training goes on from; a stage's checkpoint is for its model."""


# Going on from a checkpoint


def kept_order(state: TrainerState, plan: Plan) -> dict[str, Any]:
    """What a curriculum has kept in the state of a checkpoint.

    Raises:
        ResumeError: the checkpoint was written in another order of the rows.
    """
    kept = state.stateful_callbacks.get(Curriculum.__name__, {}).get("attributes", {})
    if kept.get("plan") != plan.digest:
        raise ResumeError(
            "the checkpoint was written in another order of the rows; resume with the data, curriculum, seed, batch size, "
            "accumulation and number of processes that it was written with"
        )
    return kept


def reference_of_stage(stage: int, checkpoint: str) -> str:
    """The folder of the model at the end of a stage, from 1, that is the reference of the next one.

    Raises:
        ResumeError: it is not there, or another training has written it.
    """
    # Beside the checkpoint, which need not lie in this run's folder.
    folder = _named(stage, os.path.dirname(os.path.abspath(checkpoint)))
    if not os.path.isdir(folder):
        raise ResumeError(
            f"the reference of stage {stage + 1} is the policy at the end of stage {stage}, and {folder} is not there; keep "
            "the checkpoints that are named after stages, or start that stage again"
        )
    if _run_of(folder) != _run_of(checkpoint):
        raise ResumeError(
            f"the reference of stage {stage + 1} is the policy at the end of stage {stage}, and {folder} is that of another "
            f"training than {checkpoint}; go on from a checkpoint of stage {stage}, or train anew in an empty folder"
        )
    return folder


def _run_of(checkpoint: str) -> str | None:
    """The training that has written a checkpoint, None in one that does not tell."""
    state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE))
    return state.stateful_callbacks.get(Curriculum.__name__, {}).get("attributes", {}).get("run")


# What happens where a stage ends


class Curriculum(TrainerCallback, ExportableState):
    """Watches a training go through its stages.

    At the end of each it asks for a log line, an evaluation and a checkpoint where the strategies of the configuration allow,
    keeps the checkpoint's model under the stage's name, and, with `curriculum_reference="stage"`, makes the policy the reference
    before the next step.

    Args:
        trainer: an `MFPOTrainer` with a curriculum.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.plan = plan_of(trainer)
        self.renews = trainer.args.curriculum_reference == "stage"
        # Digests of the weights that the cached values of the current stage are of.
        self.weights: list[tuple[str, str]] | None = None
        # By which the checkpoints of one training know each other, whatever else its folder holds.
        self.run: str | None = uuid.uuid4().hex
        self._began = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"weights": self.weights, "plan": self.plan.digest, "run": self.run}}

    def sampler(self) -> EpochSampler:
        """All stages as the one epoch of the trainer: an epoch that a sampler has to know does not always reach it."""
        return EpochSampler(lambda epoch: self.plan.order, lambda: 0, len(self.plan.order))

    def metrics(self) -> dict[str, float]:
        """What is logged of the step that is being computed."""
        step = min(self.trainer.state.global_step, self.plan.ends[-1] - 1)
        return {
            "curriculum/stage": float(self.plan.stage_of(step) + 1),
            "curriculum/difficulty": float(self.plan.step_difficulty[step]),
        }

    def evaluations(self) -> list[dict[str, float]]:
        """What was measured at the end of each stage, by the names of the log."""
        history = self.trainer.state.log_history
        return [
            {name: value for line in history if line["step"] == end for name, value in line.items() if "eval_" in name}
            for end in self.plan.ends
        ]

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """The learning-rate schedule of the configuration, once for each stage.

        Raises:
            ValueError: a schedule that is no function of the step.
        """
        args = self.trainer.args
        starts = [0, *self.plan.ends[:-1]]
        factors = []
        for start, end in zip(starts, self.plan.ends, strict=True):
            one = schedule(args, end - start)
            assert isinstance(one, torch.optim.lr_scheduler.LambdaLR), "another kind was refused before"
            factors.append(one.lr_lambdas[0])

        def factor(step: int) -> float:
            stage = min(self.plan.stage_of(step), len(starts) - 1)
            return factors[stage](step - starts[stage])

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    # Called by the trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Go on where a checkpoint was written: in the same order of rows, with the reference of its stage.

        Raises:
            ResumeError: the rows come in another order, or the reference of the stage is gone.
        """
        if self._began and self.renews and not state.global_step:
            raise ResumeError(
                "curriculum_reference='stage' has changed the reference of this trainer; build another to train again"
            )
        self._began = True
        if not state.global_step:
            return
        kept = kept_order(state, self.plan)
        self.run = kept.get("run")
        self._bring_stages()
        if state.global_step in self.plan.ends:
            # A kill may have come between the checkpoint and its second name.
            self._name_checkpoint(state.global_step, self.trainer.resumed_from)
        if self.renews:
            self._bring_back_reference(state.global_step, kept)

    def _bring_stages(self) -> None:
        """Into the folder of this run, from that of the checkpoint that it goes on from: what is saved here needs them too."""
        args, accelerator = self.trainer.args, self.trainer.accelerator
        there = os.path.dirname(os.path.abspath(self.trainer.resumed_from))
        accelerator.wait_for_everyone()
        if args.should_save and there != os.path.abspath(args.output_dir):
            for stage in range(1, self.plan.stage_of(self.trainer.state.global_step) + 1):
                if os.path.isdir(_named(stage, there)):
                    _keep(_named(stage, there), _named(stage, args.output_dir))
        accelerator.wait_for_everyone()

    def _bring_back_reference(self, step: int, kept: Mapping[str, Any]) -> None:
        stage, trainer = self.plan.stage_of(step), self.trainer
        _trl.settle_reference_adapter(trainer)
        if not stage or step in self.plan.ends:
            return
        self.weights = [(model, adapters) for model, adapters in kept.get("weights") or ()] or None
        if trainer.ref_model is not None:
            folder = reference_of_stage(stage, trainer.resumed_from)
            _trl.load_full_weights(_trl.unwrapped_of(trainer, trainer.ref_model), folder)
        elif trainer.references is not None:
            own = None if isinstance(trainer.model, PeftModel) else self.weights
            assert own or isinstance(trainer.model, PeftModel), (
                "a stage's checkpoint tells the weights of its reference"
            )
            trainer.references.restore(self.plan.stages[stage].rows, stage + 1, own)

    def on_step_begin(self, args, state, control, **kwargs):
        """Make the policy the reference of the stage that begins."""
        if not self.renews or state.global_step not in self.plan.ends[:-1]:
            return
        stage, trainer = self.plan.stage_of(state.global_step), self.trainer
        _trl.policy_to_reference(trainer)
        if trainer.references is not None:
            trainer.references.renew(self.plan.stages[stage].rows, stage + 1)
            self.weights = trainer.references.weights
        logger.info(f"The reference of stage {stage + 1} is the policy as it is now.")

    def on_step_end(self, args, state, control, **kwargs):
        """Log, evaluate and save where a stage ends, as where an epoch ends."""
        if state.global_step not in self.plan.ends:
            return
        # The last stage ends with the epoch, where what happens at epochs is asked for anyway.
        never = ("no", "epoch") if state.global_step == self.plan.ends[-1] else ("no",)
        control.should_log = control.should_log or args.logging_strategy not in never
        control.should_evaluate = control.should_evaluate or args.eval_strategy not in never
        control.should_save = control.should_save or args.save_strategy not in (*never, "best")

    def on_save(self, args, state, control, **kwargs):
        """Keep the model at the end of a stage under a name that no limit of checkpoints removes."""
        if state.global_step in self.plan.ends:
            self._name_checkpoint(state.global_step)

    def _name_checkpoint(self, step: int, source: str | None = None) -> None:
        args, accelerator = self.trainer.args, self.trainer.accelerator
        source = source or os.path.join(args.output_dir, f"checkpoint-{step}")
        accelerator.wait_for_everyone()
        if args.should_save and os.path.isdir(source):
            _keep(source, _named(self.plan.ends.index(step) + 1, args.output_dir))
        accelerator.wait_for_everyone()


def _named(stage: int, folder: str) -> str:
    return os.path.join(folder, STAGE_CHECKPOINT.format(stage))


def _keep(source: str, target: str) -> None:
    """The model of a checkpoint under another name, whole or not at all."""
    unfinished = f"{target}.tmp"
    for folder in (unfinished, target):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, unfinished, copy_function=_link, ignore=shutil.ignore_patterns(*OF_TRAINING))
    os.rename(unfinished, target)


def _link(source: str, target: str) -> None:
    """A hard link to weights, which are never written in place and so take no further room; a copy of anything else, and
    where the file system has no links."""
    if not source.endswith(".safetensors"):
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
