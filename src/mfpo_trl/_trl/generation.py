"""A model in training that writes answers, and where these are logged, as TRL's trainers do it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers.integrations import is_comet_available, is_trackio_available, is_wandb_available
from transformers.utils import is_rich_available
from trl import DPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import log_table_to_comet_experiment, print_prompt_completions_sample


@contextmanager
def generating(trainer: DPOTrainer) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The policy with its weights together, as far as `generate` needs them, and the options with which it is called.

    Under FSDP every process goes through as many steps as the slowest one.
    """
    sharded, accelerator = trainer.is_fsdp_enabled, trainer.accelerator
    whole: Any = nullcontext()
    if sharded and not accelerator.is_fsdp2:
        from torch.distributed.fsdp import FullyShardedDataParallel

        whole = FullyShardedDataParallel.summon_full_params(trainer.model_wrapped, recurse=False)
    kwargs = trainer.args.gradient_checkpointing_kwargs
    with (
        unwrap_model_for_generation(trainer.model_wrapped, accelerator, gradient_checkpointing_kwargs=kwargs) as model,
        whole,
    ):
        yield model, {"synced_gpus": True} if sharded else {}


def log_answers(trainer: DPOTrainer, name: str, table: Mapping[str, Sequence[Any]], shown: int = 4) -> None:
    """Show the first rows of a table of prompts and completions on the terminal, and hand all of it to the reporters that take
    tables. Of the main process.

    Args:
        name: of the table.
        table: columns by name, `prompt` and `completion` among them.
        shown: rows on the terminal.
    """
    step, reporters = trainer.state.global_step, trainer.args.report_to or []
    if is_rich_available():
        print_prompt_completions_sample(
            list(table["prompt"][:shown]), list(table["completion"][:shown]), {}, None, step
        )
    import pandas as pd

    frame = pd.DataFrame({"step": [step] * len(table["prompt"]), **table})
    if "wandb" in reporters and is_wandb_available():
        import wandb

        if wandb.run is not None:
            wandb.log({name: wandb.Table(dataframe=frame)})
    if "trackio" in reporters and is_trackio_available():
        import trackio

        trackio.log({name: trackio.Table(dataframe=frame)})
    if "comet_ml" in reporters and is_comet_available():
        log_table_to_comet_experiment(name=f"{name}.csv", table=frame)
