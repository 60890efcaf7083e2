"""What TRL must have for the trainer to stand on it, by name and parameters."""

import inspect

import trl
from trl import DPOTrainer

CONTRACT = {
    "__init__": (
        "model ref_model args data_collator train_dataset eval_dataset processing_class compute_metrics callbacks "
        "optimizers quantization_config peft_config"
    ),
    "_compute_loss": "model inputs return_outputs",
    "compute_ref_log_probs": "model inputs",
    "_prepare_dataset": "dataset processing_class args dataset_name",
    "_set_signature_columns_if_needed": "",
    "_remove_unused_columns": "dataset description",
    "_get_train_sampler": "train_dataset",
    "create_scheduler": "num_training_steps optimizer",
    "create_accelerator_and_postprocess": "",
    "_precompute_ref_logps": "dataset name batch_size",
    "evaluate": "eval_dataset ignore_keys metric_key_prefix",
    "create_model_card": "model_name dataset_name tags",
    "log": "logs start_time",
    "_load_from_checkpoint": "resume_from_checkpoint model",
    "_load_best_model": "",
    "_prepare_inputs": "inputs",
    "prediction_step": "model inputs prediction_loss_only ignore_keys",
    "_save": "output_dir state_dict",
    "_push_from_checkpoint": "checkpoint_folder",
    "push_to_hub": "commit_message blocking token revision",
    "init_hf_repo": "token",
}
"""Every method of DPOTrainer that is called or overridden beyond its documented use, with its first parameters."""

CLASS_ATTRIBUTES = ("_tag_names", "_name", "_paper")
"""What the class of DPOTrainer says of itself, and ours in its place."""

ATTRIBUTES = (
    "_is_vision_dataset",
    "_tokenizer",
    "_metrics",
    "_signature_columns",
    "_train_batch_size",
    "_created_lr_scheduler",
    "_total_train_tokens",
)
"""Every private attribute that is read or set of a DPOTrainer that is built."""


def check_contract() -> None:
    """Refuse an installed TRL that no longer has what is built upon.

    A renamed method would not fail by itself: the trainer would silently run plain DPO.

    Raises:
        RuntimeError: names what is gone or has other parameters.
    """
    for name, expected in CONTRACT.items():
        method = getattr(DPOTrainer, name, None)
        found = [] if method is None else list(inspect.signature(method).parameters)[1:]
        if found[: len(expected.split())] != expected.split():
            raise _unknown_version(
                f"DPOTrainer.{name}({', '.join(found)}) {'is gone' if method is None else 'has other parameters'}"
            )
    for name in CLASS_ATTRIBUTES:
        if not hasattr(DPOTrainer, name):
            raise _unknown_version(f"DPOTrainer.{name} is gone")


def check_attributes(trainer: DPOTrainer) -> None:
    """Refuse a trainer that TRL has built without an attribute that is read or set here: a new name beside the old
    one would fail late, or not at all.

    Raises:
        RuntimeError: names those that are missing.
    """
    missing = [name for name in ATTRIBUTES if not hasattr(trainer, name)]
    if missing:
        raise _unknown_version(f"its trainer has no attribute {', '.join(missing)}")


def _unknown_version(what: str) -> RuntimeError:
    return RuntimeError(
        f"mfpo_trl does not know this version of TRL ({trl.__version__}): {what}. Install trl==1.16.0, or a newer mfpo_trl."
    )
