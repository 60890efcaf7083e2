"""The only file that knows what TRL, transformers and datasets keep private, and the contract that they must meet."""

import copy
import inspect
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
import trl
from datasets import Dataset, DatasetDict, IterableDataset
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import UnidentifiedImageError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from trl import DPOTrainer
from trl.models import prepare_deepspeed
from trl.trainer import dpo_trainer
from trl.trainer.utils import disable_dropout_in_model

from .objective import IGNORED_LABEL, gather_branches, label_positions, labelled, of_pairs, shifted_labels
from .rows import REFERENCE, ROW_NUMBER, row_error
from .weights import refuse_pickled_checkpoint

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
    "push_to_hub": "commit_message blocking token revision private",
    "init_hf_repo": "token private",
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

PER_TOKEN_OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""What TRL's fused LM head returns for every label position; None where nobody asked for it."""


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


def has_vision_data(trainer: DPOTrainer) -> bool:
    """Whether TRL took the training data for rows with images."""
    return trainer._is_vision_dataset


def tokenizer_of(trainer: DPOTrainer) -> Any:
    """The tokenizer, also where the processing class is a processor."""
    return trainer._tokenizer


def micro_batch_size(trainer: DPOTrainer) -> int:
    """Rows of a micro-batch of one process in training."""
    return trainer._train_batch_size


def method_of(trainer: DPOTrainer) -> tuple[str, dict[str, str]]:
    """What a trainer's class says of itself: the name of its method, and `title`, `id` and `citation` of its paper as far as
    there are any."""
    kind = type(trainer)
    return kind._name, kind._paper


def card_of(trainer: DPOTrainer, write: Callable[..., None], *named: Any) -> ModelCard:
    """The model card that TRL would write.

    Args:
        write: `create_model_card` of TRL.
        named: what it is called with.
    """
    args = trainer.args
    with TemporaryDirectory() as folder:
        trainer.args = copy.copy(args)
        trainer.args.output_dir = folder
        try:
            write(*named)
        finally:
            trainer.args = args
        return ModelCard.load(os.path.join(folder, "README.md"))


def metrics_of(trainer: DPOTrainer, mode: str) -> dict[str, list[float]]:
    """What TRL has gathered since it logged last; `mode` is `train` or `eval`."""
    return trainer._metrics[mode]


def keep_columns(trainer: DPOTrainer, columns: Sequence[str]) -> None:
    """Add columns to those that reach the collator."""
    trainer._signature_columns = list(dict.fromkeys([*trainer._signature_columns, *columns]))


def set_scheduler(trainer: DPOTrainer, scheduler: Any) -> Any:
    """Make a learning-rate scheduler the trainer's, as one that it has made itself; returns it."""
    trainer.lr_scheduler, trainer._created_lr_scheduler = scheduler, True
    return scheduler


def on_device(trainer: DPOTrainer, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of the collator as a step gets it."""
    return trainer._prepare_inputs(batch)


def attention_kernel(config: Any) -> str:
    """The attention kernel of a model's configuration, or of a part's."""
    return config._attn_implementation


def model_id(config: Any) -> str:
    """The folder, or the name on the Hub, that a model was loaded from."""
    return config._name_or_path


def fingerprint(dataset: Dataset) -> str:
    """What `datasets` names the content of a data set."""
    return dataset._fingerprint


def _unshard_head(model: Any) -> None:
    """Under FSDP2, put a trained LM head together before the forward: TRL's fused head would do it in a way that leaves each
    rank with its own gradient instead of the mean of all."""
    head: Any = model.get_output_embeddings() if hasattr(model, "unshard") else None
    if hasattr(head, "unshard") and head.weight.requires_grad and torch.is_grad_enabled():
        head.unshard()


class Replay:
    """Stands in for the model inside TRL's own code: runs the real forward once, keeps what every branch got, and shows
    TRL the chosen and rejected branches as if they were the two halves of its own batch.

    Args:
        model: the wrapped model, with TRL's fused LM head.
        inputs: what the model reads, with `labels` or `shift_labels`.
        branches, pairs: the tables of `mfpo_trl.objective.branches`, (N, 3) and (B, 3).
    """

    def __init__(self, model: Callable[..., Any], inputs: dict[str, Any], branches: Tensor, pairs: Tensor):
        self.model, self.inputs, self.branches, self.pairs = model, inputs, branches, pairs
        self._outputs: SimpleNamespace | None = None

    def __call__(self, *, fused_lm_head: bool = False, **_: Any) -> Any:
        if not fused_lm_head:
            return self.model(**{key: value for key, value in self.inputs.items() if not key.endswith("labels")})
        if self._outputs is None:
            self.score()
        per_token = {name: getattr(self.outputs, name) for name in PER_TOKEN_OUTPUTS}
        halves = {name: None if value is None else self._halves(value) for name, value in per_token.items()}
        return SimpleNamespace(**halves, aux_loss=self.outputs.aux_loss)

    def score(self, **kwargs: Any) -> None:
        """The one forward over all rows of all branches; only positions with a label reach the LM head."""
        inputs = {key: value for key, value in self.inputs.items() if not key.endswith("labels")}
        rows, positions, branch, offset = labelled(self.branches)
        labels = shifted_labels(self.inputs)[rows, positions]
        # Counted from the end of a row, because prompt-learning adapters put virtual tokens before it.
        scored = rows, positions - self.inputs["input_ids"].size(1)
        _unshard_head(self.model)
        outputs = self.model(
            **inputs, **kwargs, scored=scored, shift_labels=labels[None], use_cache=False, fused_lm_head=True
        )
        shape = len(self.branches), int(offset.max()) + 1

        def per_branch(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.new_zeros(shape).index_put((branch, offset), value[0])

        per_token = {name: per_branch(getattr(outputs, name)) for name in PER_TOKEN_OUTPUTS}
        self._outputs = SimpleNamespace(**per_token, aux_loss=outputs.aux_loss)

    @property
    def outputs(self) -> SimpleNamespace:
        """Per token of each branch, (N, C): `log_probs`, and what else was asked of the LM head; and the `aux_loss`."""
        assert self._outputs is not None, "score comes first"
        return self._outputs

    @property
    def logps(self) -> Tensor:
        """Summed log-probability of each branch, (N,), in nats."""
        return self.outputs.log_probs.sum(dim=1)

    def preference_inputs(self) -> dict[str, Tensor]:
        """The batch that TRL's loss believes in: 2B rows of one prompt token and a completion, C + 1 tokens long. TRL reads
        `attention_mask` only to count tokens: it holds those that each chosen and rejected answer would have in a row of its
        own, in every layout."""
        scored = self._halves(gather_branches(label_positions(self.inputs), self.branches)).long()
        length = self._halves(self._lengths())[:, None]
        return {
            "input_ids": torch.zeros(len(scored), scored.size(1) + 1, dtype=torch.long, device=scored.device),
            "attention_mask": (torch.arange(int(length.max()), device=length.device) < length).long(),
            "completion_mask": torch.cat([self._halves(self._begins_row())[:, None].long(), scored], dim=1),
        }

    def _lengths(self) -> Tensor:
        """Tokens of each branch with its prompt, (N,)."""
        if "prefixes" in self.inputs:
            return self.branches[:, 2] + self.inputs["prefixes"][:, 1] + 1
        return self.inputs["attention_mask"].sum(dim=1)[self.branches[:, 0]]

    def _begins_row(self) -> Tensor:
        """Which branches begin with their row's first token, (N,) bool: `truncation_mode="keep_end"` may cut the whole prompt
        of a text. Nothing predicts that token, but TRL counts it where it divides by the number of tokens."""
        if "labels" not in self.inputs:
            return torch.zeros_like(self.branches[:, 0], dtype=torch.bool)
        return self.inputs["labels"][self.branches[:, 0], 0] != IGNORED_LABEL

    def _halves(self, per_branch: Tensor) -> Tensor:
        return torch.cat([of_pairs(per_branch, self.pairs, "chosen"), of_pairs(per_branch, self.pairs, "rejected")])


@contextmanager
def without_weights(architecture: Any) -> Iterator[None]:
    """Have TRL build its models by `architecture.from_pretrained(name, **options)` in place of the class that a model's
    configuration names, and hash none of their weights."""
    before = dpo_trainer.create_model_from_path, dpo_trainer.hash_module
    dpo_trainer.create_model_from_path = partial(before[0], architecture=architecture)
    dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path, dpo_trainer.hash_module = before


def placed(trainer: DPOTrainer, model: Any) -> Any:
    """A model that can run before training has begun: DeepSpeed places and gathers its weights only inside of an engine."""
    return prepare_deepspeed(model, trainer.accelerator) if trainer.is_deepspeed_enabled else model


def unwrapped_of(trainer: DPOTrainer, model: Any) -> Any:
    """The model inside of what engines and `torch.compile` have put around it, by whose names weights are saved."""
    return trainer.accelerator.unwrap_model(model, keep_torch_compile=False)


def forget_reference_model(trainer: DPOTrainer) -> None:
    """Let go of the reference model, which accelerate keeps as well."""
    models = trainer.accelerator._models
    models[:] = [model for model in models if model is not trainer.ref_model]
    trainer.ref_model = None


def policy_to_reference(trainer: DPOTrainer) -> None:
    """Make the policy as it is now the reference: its weights those of the reference model, or its adapter the frozen
    adapter `ref` that TRL scores with. Nothing where neither is kept.

    Raises:
        ValueError: weights are trained that belong to no adapter, or to one whose copy cannot be found.
    """
    policy = unwrapped_of(trainer, trainer.model)
    if trainer.ref_model is not None:
        unwrapped_of(trainer, trainer.ref_model).load_state_dict(policy.state_dict())
    elif isinstance(policy, PeftModel):
        if "ref" not in policy.peft_config:
            _add_reference_adapter(policy)
        pairs = dict(_adapter_pairs(policy))
        left = [name for name, value in policy.named_parameters() if value.requires_grad and name not in pairs]
        if left:
            raise ValueError(
                f"the reference cannot follow the policy in {', '.join(left[:3])}, which no adapter holds"
            )
        for name, reference in pairs.items():
            reference.data = policy.get_parameter(name).data.clone()
        settle_reference_adapter(trainer)


def _add_reference_adapter(policy: PeftModel) -> None:
    """An adapter `ref` of the active one's kind; the model's own weights stay what they are."""
    config = copy.copy(policy.peft_config[policy.active_adapter])
    # AdaLoRA takes a second adapter only where it is not to be trained.
    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        # PiSSA and its kin take what they begin with out of the weights of the model, which the policy reads too.
        config.init_lora_weights = True
    weights = [(value, value.data) for value in policy.get_base_model().parameters()]
    policy.add_adapter("ref", config)
    for value, data in weights:
        # KaSA has made others, without the smallest of the singular values that it has left.
        value.data = data


def trained_outside_of_adapter(policy: PeftModel) -> list[str]:
    """The names of the parameters that are trained and do not belong to the active adapter."""
    trained = (name for name, value in policy.named_parameters() if value.requires_grad)
    return [name for name in trained if f".{policy.active_adapter}." not in f".{name}."]


def settle_reference_adapter(trainer: DPOTrainer) -> None:
    """Make the adapter `ref`, which PEFT has just added or read from a checkpoint, what TRL makes of its own: frozen, in the
    policy's precision, without dropout."""
    policy = unwrapped_of(trainer, trainer.model)
    if not isinstance(policy, PeftModel) or "ref" not in policy.peft_config:
        return
    for name, reference in _adapter_pairs(policy):
        reference.data = reference.data.to(policy.get_parameter(name).dtype)
        reference.requires_grad_(False)
    if trainer.args.disable_dropout:
        disable_dropout_in_model(policy)


def _adapter_pairs(policy: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """The names of the active adapter's parameters, each with the parameter of `ref` for it."""
    own, parameters = policy.active_adapter, dict(policy.named_parameters())
    for name in parameters:
        # Most names end in `.weight`, those of embeddings in the adapter's.
        other = f"{name}.".replace(f".{own}.", ".ref.").removesuffix(".")
        if other != name and other in parameters:
            yield name, parameters[other]


@contextmanager
def precision_kept(model: torch.nn.Module) -> Iterator[None]:
    """Leave every parameter in its precision: PEFT reads the 16-bit adapter of a quantised model back in 32 bits, in which
    training would go on differently."""
    before = {name: value.dtype for name, value in model.named_parameters()}
    yield
    for name, value in model.named_parameters():
        if value.dtype != before.get(name, value.dtype):
            value.data = value.data.to(before[name])


def try_loss(trainer: DPOTrainer) -> None:
    """Run TRL's loss once, on two made-up answers of one token, and leave no trace.

    A loss or divergence that TRL does not know would be refused in the first step, after everything is loaded and scored.

    Raises:
        ValueError, NotImplementedError: as TRL's loss.
    """
    device = trainer.accelerator.device
    made = {name: torch.zeros(2, 1, device=device) for name in PER_TOKEN_OUTPUTS} | {
        "is_top1": torch.zeros(2, 1, dtype=torch.bool, device=device),
        "aux_loss": torch.zeros((), device=device),
    }
    tokens = torch.tensor([[0, 1], [0, 1]], device=device)
    inputs = {"input_ids": tokens, "attention_mask": tokens, "completion_mask": tokens}
    inputs |= {f"ref_{answer}_logps": torch.zeros(1, device=device) for answer in ("chosen", "rejected")}
    kept = trainer._metrics, trainer._total_train_tokens
    trainer._metrics = {mode: defaultdict(list) for mode in kept[0]}
    try:
        with reference_given(trainer), torch.no_grad():
            DPOTrainer._compute_loss(trainer, lambda **_: SimpleNamespace(**made), inputs, False)
    finally:
        trainer._metrics, trainer._total_train_tokens = kept


@contextmanager
def reference_given(trainer: DPOTrainer) -> Iterator[None]:
    """Make TRL's loss take the reference log-probabilities from the batch, as it does with a precomputed reference."""
    before = trainer.precompute_ref_logps
    trainer.precompute_ref_logps = True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = before


def has_full_weights(trainer: DPOTrainer, folder: str) -> bool:
    """Whether a checkpoint holds all weights of the model as `save_pretrained` writes them: not an adapter, not the shards
    of DeepSpeed or FSDP.

    Raises:
        ValueError: its weights are pickles.
    """
    refuse_pickled_checkpoint(folder)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or not isinstance(trainer.model, PreTrainedModel):
        return False
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def load_full_weights(model: PreTrainedModel, folder: str) -> None:
    """Load the weights of a checkpoint into the model.

    `save_pretrained` writes a LLaVA's weights under the names of its published checkpoints; `Trainer` reads them back by
    the names of the modules, finds none and goes on from the weights that it started with
    (https://github.com/huggingface/transformers/issues/43701). `from_pretrained` knows both. It reads all weights in one
    precision: the widest of the model's, from which each goes back to its own.
    """
    floats = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    saved = type(model).from_pretrained(folder, dtype=reduce(torch.promote_types, floats), use_safetensors=True)
    model.load_state_dict(saved.state_dict())


def undecoded(dataset: Any) -> Any:
    """A streamed data set whose images stay files until the collator reads them, where a bad one can be named; any other
    data set, or a dict of them, as it is."""
    if isinstance(dataset, dict) and not isinstance(dataset, DatasetDict):
        return {name: undecoded(own) for name, own in dataset.items()}
    if isinstance(dataset, IterableDataset) and dataset.features is not None:
        return dataset.decode(False)
    return dataset


class NumberedRows(Dataset):
    """A data set whose rows carry their number, and whose unreadable rows fail by name."""

    first: int | None = None

    @classmethod
    def of(cls, dataset: Dataset, first: int | None = None) -> "NumberedRows":
        """The same rows; where `first` is given, the place of the first one in the table of cached reference values, each
        with its own place there. Nothing is copied."""
        rows = cls(
            dataset.data,
            info=dataset.info.copy(),
            split=dataset.split,
            indices_table=dataset._indices,
            fingerprint=dataset._fingerprint,
        )
        form = dataset.format
        rows.set_format(form["type"], form["columns"], form["output_all_columns"], **form["format_kwargs"])
        rows.first = first
        return rows

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        """The rows at these positions, each with `row_number`; called by torch's data loader for a batch.

        Raises:
            ValueError: a row that `datasets` cannot decode; names the row and the field.
        """
        try:
            rows = super().__getitems__(keys)
        except Exception as error:
            raise self._unreadable(keys, error) from error
        rows = [{**row, ROW_NUMBER: int(key)} for key, row in zip(keys, rows, strict=True)]
        if self.first is None:
            return rows
        return [{**row, REFERENCE: self.first + row[ROW_NUMBER]} for row in rows]

    def _unreadable(self, keys: list[int], error: Exception) -> Exception:
        for key in map(int, keys):
            if self.format["type"] == "custom":
                try:
                    self[key]
                except Exception as cause:
                    return ValueError(f"row {key}: the data set's transform failed: {cause!r}")
                continue
            for column in self.column_names:
                try:
                    self[column][key]
                except Exception as cause:
                    return row_error({ROW_NUMBER: key}, column, f"cannot be read: {_of_image(cause)}")
        return error


def _of_image(error: Exception) -> str:
    """Pillow's message, where it names an object in memory instead of what is wrong."""
    unknown = isinstance(error, UnidentifiedImageError)
    return "the file is empty, or no image of a known format" if unknown else str(error)


def scored(model: PreTrainedModel, outputs: tuple[str, ...]) -> PreTrainedModel:
    """The same model with TRL's fused LM head, for a `Replay` without a trainer; `outputs` out of `PER_TOKEN_OUTPUTS`."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=outputs)
    return model
