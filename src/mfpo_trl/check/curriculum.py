"""What `mfpo check` finds about the order of the rows."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerState

from ..checkpoints import TRAINER_STATE
from ..config import MFPOConfig
from ..order import (
    Plan,
    check_curriculum,
    check_difficulties,
    describe,
    given_difficulties,
    kept_order,
    plan,
    reference_of_stage,
    with_stages,
)
from .table import OK, WARNING, Finding


def order(training: MFPOConfig, dataset: Any, processes: int, checkpoint: str | None, adapter: bool) -> list[Finding]:
    """The stages of a curriculum, as training would cut them; nothing without one.

    Args:
        processes: that share a step.
        checkpoint: that training would go on from, if any.
        adapter: whether there is one.

    Raises:
        ValueError: training would refuse it.
    """
    check_curriculum(training, dataset)
    if training.curriculum == "none":
        return []
    check_difficulties(training, dataset)
    given = given_difficulties(training, dataset)
    # Stages are of equal size whatever the difficulties are.
    found = np.arange(len(dataset), dtype=np.float64) if given is None else given
    made = plan(training, dataset, *with_stages(training, found), processes)
    warnings = [] if checkpoint is None else _resumed(training, made, checkpoint, adapter, given is not None)
    rows, steps = [len(stage.rows) for stage in made.stages], [int(own) for own in np.diff([0, *made.ends])]
    how = (
        f"by column {training.curriculum_column!r}" if given is not None else f"computed: {training.curriculum_score}"
    )
    value = "\n".join(describe(made)) if given is not None else _counted(made, steps)
    details = {"rows": rows, "steps": steps, "computed": given is None, "step_rows": made.step_rows}
    return [Finding("curriculum", OK, f"{how}\n{value}", details=details), *warnings]


def _counted(made: Plan, steps: list[int]) -> str:
    """A line for each stage whose difficulties are not known yet."""
    return "\n".join(
        f"Stage {number} of {len(steps)}: {len(stage.rows)} rows, {stage.epochs:g} epoch(s), {count} steps."
        for number, (stage, count) in enumerate(zip(made.stages, steps, strict=True), 1)
    )


def _resumed(training: MFPOConfig, made: Plan, checkpoint: str, adapter: bool, known: bool) -> list[Finding]:
    """Whether training can go on there; `known` where the difficulties are, and with them the order of the rows."""
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE)))
    if known:
        kept_order(state, made)
    # Where stages end does not depend on what is in them.
    stage, whole = made.stage_of(state.global_step), state.global_step in made.ends
    in_memory = not adapter and not training.precompute_ref_log_probs
    if training.curriculum_reference == "stage" and in_memory and stage and not whole:
        reference_of_stage(stage, checkpoint)
    if known:
        return []
    return [
        Finding(
            "resuming",
            WARNING,
            f"{Path(checkpoint).name} is gone on from only in the order of rows that it was written in",
            "difficulties are computed when training begins, and the orders compared then; keep data, curriculum, seed, batch "
            "size, accumulation and number of processes",
        )
    ]
