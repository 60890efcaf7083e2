"""Which checkpoint to go on from: the last one that was written to its end."""

import json
import logging
import os
import re
import zipfile
from pathlib import Path

from .weights import pickled_only, refuse_pickled_checkpoint

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint-(\d+)")
TRAINER_STATE = "trainer_state.json"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"
FSDP_FILES = ("pytorch_model_fsdp.bin", "optimizer.bin")
FSDP_FOLDERS = ("pytorch_model_fsdp_0", "optimizer_0")


class ResumeError(ValueError):
    """Training cannot go on from a checkpoint as it was asked to."""


def resume_point(value: str | bool | None, output_dir: str | Path, save_only_model: bool = False) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means; None to start from the beginning.

    Args:
        value: a folder; true (also as text) for the last complete checkpoint in `output_dir`; false or None for none.

    Raises:
        ValueError: the folder that is named is no complete checkpoint, or its weights are pickles.
    """
    word = str(value).lower()
    if value is None or word in ("false", "none", ""):
        if _folders(Path(output_dir)):
            logger.warning(
                "%s has checkpoints of an earlier training. This one begins anew, and save_total_limit may remove them; "
                "resume_from_checkpoint=true goes on from the last.",
                output_dir,
            )
        return None
    if word == "true":
        found = last_complete_checkpoint(output_dir, save_only_model)
        if found is None:
            logger.warning("No complete checkpoint in %s: training starts from the beginning.", output_dir)
        return None if found is None else str(found)
    refuse_pickled_checkpoint(str(value))
    if problem := what_is_missing(Path(str(value)), save_only_model):
        raise ValueError(
            f"resume_from_checkpoint={value!r} cannot be used: {problem}; give a complete checkpoint, or true for the "
            "last complete one in output_dir"
        )
    return str(value)


def last_complete_checkpoint(output_dir: str | Path, save_only_model: bool = False) -> Path | None:
    """The `checkpoint-N` folder with the largest N in which nothing is missing or cut off; a warning names each one
    after it. None where there is no such folder.

    Args:
        save_only_model: the checkpoints were written without optimizer and scheduler.
    """
    for folder in _folders(Path(output_dir)):
        problem = what_is_missing(folder, save_only_model)
        if problem is None:
            return folder
        logger.warning("%s is not complete (%s): it is skipped for the checkpoint before it.", folder, problem)
    return None


def _folders(output_dir: Path) -> list[Path]:
    """The checkpoints in a folder, the last one first."""
    found = output_dir.iterdir() if output_dir.is_dir() else ()
    numbered = [(int(name[1]), path) for path in found if path.is_dir() and (name := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, key=lambda own: own[0], reverse=True)]


def what_is_missing(folder: Path, save_only_model: bool = False) -> str | None:
    """Why training cannot go on from a checkpoint; None where it can.

    Looked at are the trainer's state, which is written last, the length of every safetensors file against its header,
    the end of every file of torch.save, and, with DeepSpeed or FSDP, the files that they write when they are done.
    """
    try:
        state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{TRAINER_STATE} is missing"
    except ValueError:
        return f"{TRAINER_STATE} is cut off"
    if not isinstance(state, dict) or "global_step" not in state:
        return f"{TRAINER_STATE} has no global_step"
    try:
        return _states(folder, save_only_model) or _weights(folder) or _cut_off(folder)
    except OSError as error:
        return f"cannot be read: {error}"


def _states(folder: Path, save_only_model: bool) -> str | None:
    """What is missing of optimizer and scheduler."""
    if any(folder.glob("global_step*")) or (folder / "latest").exists():
        return _deepspeed(folder)
    if any((folder / name).exists() for name in (*FSDP_FILES, *FSDP_FOLDERS)):
        return _fsdp(folder)
    if save_only_model:
        return None
    if not any(folder.glob("rng_state*.pth")):
        return "rng_state.pth is missing"
    return _absent(folder, "optimizer.pt", "scheduler.pt")


def _deepspeed(folder: Path) -> str | None:
    # `latest` names the folder of the states, and is written when every process has written its own.
    if not (folder / "latest").is_file():
        return "DeepSpeed's file 'latest' is missing"
    states = folder / (folder / "latest").read_text().strip()
    if states == folder or not states.is_dir() or not any(states.glob("*optim_states.pt")):
        return f"DeepSpeed's folder {states.name!r} is missing or has no optimizer states"
    return None


def _fsdp(folder: Path) -> str | None:
    for file, shards in zip(FSDP_FILES, FSDP_FOLDERS, strict=True):
        # `.metadata` is written when every process has written its shard.
        if not (folder / file).is_file() and not (folder / shards / ".metadata").is_file():
            return f"{file} is missing, and {shards}/.metadata too"
    return _absent(folder, "scheduler.pt")


def _weights(folder: Path) -> str | None:
    """What is missing of the weights; those of DeepSpeed and FSDP may be among their states only."""
    if (folder / INDEX).is_file():
        try:
            shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            return f"{INDEX} is cut off"
        return _absent(folder, *sorted(shards))
    elsewhere = (folder / "latest", *(folder / name for name in (*FSDP_FILES, *FSDP_FOLDERS)))
    if any((folder / name).is_file() for name in WEIGHTS) or any(path.exists() for path in elsewhere):
        return None
    if pickles := pickled_only(folder, {}):
        return f"its weights are pickles ({', '.join(pickles)}), which are not loaded"
    return f"there is none of {', '.join((*WEIGHTS, INDEX))}"


def _absent(folder: Path, *names: str) -> str | None:
    missing = [name for name in names if not (folder / name).is_file()]
    return f"{', '.join(missing)} is missing" if missing else None


def _cut_off(folder: Path) -> str | None:
    """The first file that ends before its end."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.suffix not in WHOLE or WHOLE[path.suffix](path)
        if not whole:
            return f"{path.relative_to(folder)} is cut off"
    return None


def _whole_safetensors(path: Path) -> bool:
    """Eight bytes with the length of the header, the header in JSON, then as many bytes as its offsets reach."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length or length == 0:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    if not isinstance(header, dict):
        return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


# torch.save writes a zip archive, whose directory stands at its end.
WHOLE = {
    ".safetensors": _whole_safetensors,
    ".pt": zipfile.is_zipfile,
    ".pth": zipfile.is_zipfile,
    ".bin": zipfile.is_zipfile,
}
"""Suffix of a file -> whether the file was written to its end."""
