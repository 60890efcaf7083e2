"""Digests of what a cached reference depends on: weights, processor, settings, files."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate
from numbers import Real
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..batch import unwrapped
from ..rows import image_columns


def weights_digest(model: nn.Module, read: Collection[str] = ()) -> tuple[str, str]:
    """Digests of what a forward reads, as this process holds it: of the model's own tensors, and of its adapters.

    Args:
        model: a model, or an adapter around it.
        read: the names of the adapters that are switched on. What the others hold counts nowhere.
    """
    own, adapters = hashlib.blake2b(digest_size=12), hashlib.blake2b(digest_size=12)
    base, owners = unwrapped(model), _adapter_owners(model)
    inside = next(f"{name}." if name else "" for name, module in model.named_modules() if module is base)
    for name, value in sorted(_tensors(model).items()):
        owner = next((owners[part] for part in accumulate(name.split("."), "{}.{}".format) if part in owners), None)
        if owner is None and name.startswith(inside):
            # Where an adapter has wrapped a layer, its tensors bear other names.
            _update(own, re.sub(WRAPPED, "", name.removeprefix(inside)), value)
        elif read and owner in (None, *read):
            _update(adapters, name, value)
    for name, value in _kept_by_name(model, read):
        if isinstance(value, Tensor):
            _update(adapters, name, value)
    return own.hexdigest(), adapters.hexdigest()


def adapter_settings(model: nn.Module, adapters: Collection[str]) -> list[Any]:
    """What these adapters of a model are told, in their configurations and since: a scaling can be set in the layers."""
    told = [(name, value) for name, value in _kept_by_name(model, adapters) if not isinstance(value, Tensor)]
    owner: Any = model
    return [[lasting(owner.peft_config[name].to_dict()) for name in adapters], told]


WRAPPED = re.compile(r"\b(original_module|token_adapter|base_layer)\.")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by its name, with what quantised layers keep beside their weights."""
    # Named by `state_dict` too, but not those that no checkpoint holds, such as the random projections of VeRA.
    tensors = {**model.state_dict(), **dict(model.named_buffers(remove_duplicate=False))}
    for name, value in model.named_parameters(remove_duplicate=False):
        if hasattr(value, "ds_tensor"):
            tensors[name] = value.ds_tensor
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def _tuners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that keep a thing of each adapter under its name."""
    for name, module in model.named_modules():
        if isinstance(module, PeftModel | BaseTuner | BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield f"{name}." if name else "", module


def _adapter_owners(model: nn.Module) -> dict[str, str]:
    """The beginnings of the names of tensors that belong to an adapter, each with the adapter's name."""
    known = getattr(model, "peft_config", {})
    return {
        f"{prefix}{child}.{adapter}": adapter
        for prefix, tuner in _tuners(model)
        for child, kept in tuner.named_children()
        for adapter in getattr(kept, "keys", tuple)()
        if adapter in known
    }


def _kept_by_name(model: nn.Module, adapters: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The numbers, words and tensors that adapters have without being parameters or buffers, a scaling for example."""
    for prefix, tuner in _tuners(model):
        for name, kept in vars(tuner).items():
            for adapter in adapters if isinstance(kept, Mapping) else ():
                value = kept.get(adapter)
                items = value if isinstance(value, list | tuple) else [value]
                if all(isinstance(item, Tensor | Real | str) for item in items):
                    yield from ((f"{prefix}{name}.{adapter}.{place}", item) for place, item in enumerate(items))


def _update(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    # Of a tensor that FSDP has sharded, this process's own part.
    value = value.to_local() if hasattr(value, "to_local") else value
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def processor_digest(processor: Any) -> str:
    """Of everything but the chat template: the tokenizer with its added tokens, and the settings."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    # A call with padding or truncation leaves them behind in the tokenizer.
    settings = processor.to_dict() | {"special": tokenizer.special_tokens_map, "chat_template": None}
    image_processor = getattr(processor, "image_processor", None)
    settings["image_processor"] = image_processor.to_dict() if image_processor is not None else None
    # Pictures that Pillow has resized are others than those of torchvision, under the same settings.
    settings["classes"] = [type(processor).__name__, type(image_processor).__name__]
    if getattr(tokenizer, "split_special_tokens", False):
        settings["split_special_tokens"] = True
    return settings_digest([{**words, "padding": None, "truncation": None}, settings])


def settings_digest(settings: Any) -> str:
    """A short name of nested settings, the same in every process."""

    def plain(value: Any) -> Any:
        return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)

    return text_digest(json.dumps(settings, sort_keys=True, default=plain))


def files_digest(dataset: Dataset) -> str:
    """Of the size and the time of every image and mask that a data set keeps as a path: its fingerprint knows the path only."""
    digest = hashlib.blake2b(digest_size=12)
    for column in (*image_columns(dataset.column_names), "key_regions"):
        if column in dataset.column_names:
            for batch in dataset.select_columns(column).with_format("arrow").iter(1024):
                for path in _paths(batch[column].combine_chunks()):
                    # Of a picture inside of an archive, the archive.
                    file = path.split("::")[-1]
                    found = os.stat(file) if os.path.exists(file) else None
                    digest.update(f"{path} {found and (found.st_size, found.st_mtime_ns)}".encode())
    return digest.hexdigest()


NAMED = ("box", "mask", "rle")
"""Where a row's region stands among other things (`mfpo_trl.images.regions`); any of them may be the path of a mask."""


def _paths(values: pa.Array) -> Iterator[str]:
    """The paths in a column of images or regions, of lists of them, or of such lists."""
    kind = values.type
    if isinstance(kind, pa.JsonType):
        for text in values.storage.drop_null().to_pylist():
            yield from _paths_of(json.loads(text))
    elif isinstance(kind, pa.BaseExtensionType):
        yield from _paths(values.storage)
    elif pa.types.is_dictionary(kind):
        yield from _paths(values.dictionary_decode())
    elif any(holds(kind) for holds in LISTS):
        yield from _paths(values.flatten())
    elif pa.types.is_struct(kind):
        fields = dict(zip(kind.names, values.flatten(), strict=True))
        given = fields["bytes"].is_valid().to_pylist() if "bytes" in fields else [False] * len(values)
        for path, has_bytes in zip(fields["path"].to_pylist(), given, strict=True) if "path" in fields else ():
            if isinstance(path, str) and not has_bytes:
                yield path
        for name in NAMED:
            yield from _paths(fields[name]) if name in fields else ()
    elif any(holds(kind) for holds in STRINGS):
        yield from values.drop_null().to_pylist()


LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
)
STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def _paths_of(value: Any) -> Iterator[str]:
    """The same for what a column of JSON holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _paths_of(item)
    elif isinstance(value, dict):
        names = NAMED if value.get("bytes") is not None else (*NAMED, "path")
        for name in names:
            yield from _paths_of(value.get(name))


def text_digest(text: str) -> str:
    """A short name of a text."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


PASSING = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "attn_implementation",
    "_attn_implementation",
    "base_model_name_or_path",
    "peft_version",
    "auto_mapping",
    "inference_mode",
    "revision",
}


def lasting(config: Any) -> Any:
    """The configuration of a model or adapter without what changes no number: names, versions, what generation reads, and
    what saving and loading fill in. Precision is told by the weights."""
    if isinstance(config, dict):
        return {key: lasting(value) for key, value in config.items() if key not in PASSING}
    return config
