"""Which files of a folder go to the Hugging Face Hub, and which never do."""

import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

MODEL_FILES = (
    "*.safetensors *.safetensors.index.json */adapter_model.safetensors */adapter_config.json *config.json "
    "tokenizer.json tokenizer.model special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt *.tiktoken "
    "spiece.model sentencepiece*.model chat_template.json chat_template.jinja additional_chat_templates/*.jinja "
    "README.md LICENSE*"
).split()
"""What a model, or an adapter, is loaded from and described by."""

DATASET_FILES = ("data/*.parquet", "README.md", "report.json")
"""What `mfpo build` makes of a data set, without its rejected rows and its notes on the build."""

STATE = ("training_args.bin", "optimizer*", "scheduler*", "scaler*", "rng_state*")
"""What a training goes on from."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
"""Files that can run code when they are loaded."""

NEVER = (*STATE, *PICKLES, "checkpoint-*", "runs", "wandb", ".*", "_*")
"""Names of files and folders that stay, whatever is asked for."""

BINARY = (".safetensors", ".parquet", ".png", ".model")
"""Suffixes of the files that are not searched for an access token."""

ACCESS_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}|hf_(oauth|jwt)_[\w.-]{30,}|api_org_[A-Za-z0-9]{30,}")

PICTURE = re.compile(r"[^\s()<>\[\]\"']+\.png")


def kind_of(folder: Path) -> str:
    """The type of the repository that a folder is for: "dataset" for what `mfpo build` has finished, or "model"."""
    return "dataset" if any(folder.glob("data/*.parquet")) and (folder / "report.json").is_file() else "model"


def check_folder(folder: Path, repo_type: str) -> None:
    """Refuse a folder that cannot be loaded from the Hub.

    Raises:
        ValueError: says what was looked for.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    if repo_type == "dataset":
        found = any(folder.glob("data/*.parquet"))
    elif repo_type == "model":
        pickles = _pickled_weights(folder)
        if pickles and not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"{folder} has weights as pickles only ({', '.join(pickles[:3])}), which can run code when they are "
                f"loaded. Load the model and save it again with `model.save_pretrained({str(folder)!r})`, which writes "
                "safetensors"
            )
        _check_shards(folder)
        adapter = all((folder / f"adapter_{name}").is_file() for name in ("config.json", "model.safetensors"))
        found = adapter or ((folder / "config.json").is_file() and any(folder.glob("*.safetensors")))
    else:
        raise ValueError(f"a repository of type {repo_type!r} is unknown here; expected 'model' or 'dataset'")
    if not found:
        raise ValueError(
            f"{folder} holds no {'data set' if repo_type == 'dataset' else 'model, adapter or data set'}; looked for "
            "config.json with *.safetensors (a model), adapter_config.json with adapter_model.safetensors (an adapter), "
            "and data/*.parquet with report.json (a data set of mfpo build)"
        )


def _pickled_weights(folder: Path) -> list[str]:
    names = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in STATE)]


def _check_shards(folder: Path) -> None:
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise ValueError(f"{index} names weights that are not there: {', '.join(missing)}. Save the model again")


def files_to_push(folder: Path, allow: Sequence[str]) -> list[str]:
    """The files that match the patterns, and the pictures that the card shows, by their paths inside the folder, sorted.

    Args:
        folder: of the files.
        allow: glob patterns; `*` stays within a folder.
    """
    found = {path.relative_to(folder).as_posix() for pattern in allow for path in folder.glob(pattern)}
    found |= set(_pictures(folder)) if "README.md" in found else set()
    return sorted(
        name
        for name in found
        if (folder / name).is_file() and not any(fnmatch(part, own) for part in name.split("/") for own in NEVER)
    )


def _pictures(folder: Path) -> Iterator[str]:
    for name in PICTURE.findall((folder / "README.md").read_text(encoding="utf-8")):
        path = Path(name)
        if not path.is_absolute() and ".." not in path.parts:
            yield path.as_posix()


def refuse_tokens(folder: Path, files: Sequence[str], token: str) -> None:
    """Refuse texts that hold an access token, which everybody could use who sees the repository.

    Raises:
        ValueError: names the file.
    """
    for name in files:
        if (folder / name).suffix not in BINARY:
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            if token in text or ACCESS_TOKEN.search(text):
                raise ValueError(f"{folder / name} holds an access token of the Hub; take it out and push again")


def without_tokens(text: str, token: str | None = None) -> str:
    """The same text without this token, and without what looks like one of the Hub."""
    return ACCESS_TOKEN.sub("<token>", text.replace(token, "<token>") if token else text)
