"""Weights are read from safetensors only: a pickle can run code when it is loaded."""

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Name = str | os.PathLike[str]

MODEL = (
    "from transformers import {kind} as Model; "
    'Model.from_pretrained({folder}, dtype="auto", weights_only=True{variant}).save_pretrained({folder}{variant})'
)
ADAPTER = (
    "import torch; from safetensors.torch import save_file; folder = {folder}; "
    'weights = torch.load(folder + "/adapter_model.bin", map_location="cpu", weights_only=True); '
    "save_file({{name: value.contiguous() for name, value in weights.items()}}, "
    'folder + "/adapter_model.safetensors", {{"format": "pt"}})'
)
"""Programs that write the weights of a folder again, as safetensors; torch's loader of weights runs no code."""


@contextmanager
def safetensors_only(
    name: Name, options: Mapping[str, Any] | None = None, failure: type[Exception] = OSError
) -> Iterator[None]:
    """Around a `from_pretrained(name, use_safetensors=True)`: refuse pickles, and say how to convert them.

    Args:
        name: a folder, or an id on the Hub.
        options: those of `from_pretrained`.
        failure: what is raised where there are no safetensors.

    Raises:
        ValueError: the weights, or those of an adapter beside them, are pickles only.
    """
    options = options or {}
    # With an adapter's weights, transformers does not ask for safetensors.
    _refuse(name, _pickled_adapter(_finder(name, options)), options)
    try:
        yield
    except failure as error:
        _refuse(name, pickled_only(name, options), options, error)
        raise


def refuse_pickles(name: Name, options: Mapping[str, Any] | None = None) -> None:
    """Refuse a model or an adapter that is loaded from pickles, for want of safetensors.

    Raises:
        ValueError: says which, and how to convert them.
    """
    options = options or {}
    _refuse(name, pickled_only(name, options), options)


def refuse_pickled_checkpoint(folder: Name) -> None:
    """Refuse a checkpoint whose model, or one of whose adapters, `Trainer` would read from a pickle.

    Raises:
        ValueError: says which, and how to convert them.
    """
    for own in (Path(folder), *(config.parent for config in sorted(Path(folder).glob("*/adapter_config.json")))):
        refuse_pickles(own)


def pickled_only(name: Name, options: Mapping[str, Any]) -> list[str]:
    """The pickles that stand where there are no safetensors: of the adapter, if there is one, or of the model.

    Args:
        name: a folder, an id on the Hub, or nothing for a model that was not loaded.
        options: those of `from_pretrained`; `subfolder`, `variant` and what tells a repository from another are read.
    """
    if not name:
        return []
    there = _finder(name, options)
    own = f".{options['variant']}" if options.get("variant") else ""
    safe = f"model{own}.safetensors", f"model.safetensors.index{own}.json"
    if (found := _pickled_adapter(there)) or options.get("gguf_file") or any(map(there, safe)):
        return found
    return [file for file in (f"pytorch_model{own}.bin", f"pytorch_model.bin.index{own}.json") if there(file)]


def _pickled_adapter(there: Callable[[str], bool]) -> list[str]:
    pickled = there("adapter_config.json") and not there("adapter_model.safetensors") and there("adapter_model.bin")
    return ["adapter_model.bin"] if pickled else []


def _finder(name: Name, options: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a file is in the folder, or in the repository on the Hub."""
    from transformers.utils.hub import has_file

    where = {key: options[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in options}

    def there(file: str) -> bool:
        try:
            return has_file(name, str(Path(options.get("subfolder") or "", file)), **where)
        except (OSError, ValueError):
            # What is wrong with the repository is said when it is read.
            return False

    return there


def _refuse(name: Name, pickles: list[str], options: Mapping[str, Any], cause: Exception | None = None) -> None:
    if pickles:
        raise ValueError(
            f"the weights of {name} are pickles only ({', '.join(pickles)}), which can run code when they are loaded; they "
            f"become safetensors with: {_conversion(name, pickles, options.get('subfolder') or '', options.get('variant'))}"
        ) from cause


def _conversion(name: Name, pickles: list[str], subfolder: str, variant: str | None) -> str:
    """The shell command that writes pickled weights as safetensors beside them; a repository is downloaded first."""
    local = Path(name).is_dir()
    folder = str(name) if local else str(name).rpartition("/")[2]
    program = ADAPTER if pickles == ["adapter_model.bin"] else MODEL
    quoted = json.dumps(str(Path(folder, subfolder)), ensure_ascii=False)
    own = f", variant={json.dumps(variant)}" if variant else ""
    code = program.format(folder=quoted, kind=_architecture(name, subfolder), variant=own)
    download = "" if local else f"{shlex.join(['hf', 'download', str(name), '--local-dir', folder])} && "
    return download + shlex.join(["python", "-c", code])


def _architecture(name: Name, subfolder: str) -> str:
    """The class of a model in transformers, by its configuration."""
    import transformers

    try:
        found = transformers.PreTrainedConfig.get_config_dict(name, subfolder=subfolder)[0].get("architectures")
    except (OSError, ValueError):
        found = None
    kind = str(found[0]) if found else ""
    # What is shown to be run is not taken from a configuration, which can say anything.
    return kind if hasattr(transformers, kind) else "AutoModelForImageTextToText"
