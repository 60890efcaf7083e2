"""The way up to the Hugging Face Hub: which files of a folder go there, and what is said when they do not arrive."""

import argparse
import glob
import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..card import told_of_local_base

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

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

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"

WAITS = (1.0, 2.0, 4.0)
"""Seconds before each further try when the connection is lost."""

PASSING = (408, 429, 500, 502, 503, 504)
"""Status codes that a later try may not meet."""


class PushError(RuntimeError):
    """The Hub did not take the files; they are where they were."""


def push(
    folder: str | Path,
    repo: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    allow: Sequence[str] | None = None,
    commit_message: str = "Pushed with mfpo_trl",
) -> str:
    """Upload a model, an adapter or a data set; the repository and the branch are created where they are missing.

    Args:
        folder: what `save_pretrained`, a trainer or `mfpo build` has written.
        repo: id on the Hub, `user/name`.
        repo_type: "model" or "dataset".
        private: nobody else may see the repository.
        token: with write access; that of `hf auth login` or of HF_TOKEN when None.
        revision: branch; `main` when None.
        allow: glob patterns of the files, relative to the folder; those of the type when None. Pictures that the card
            shows go along, names in `NEVER` do not.
        commit_message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the folder holds nothing of that type, its weights are pickles, a file of it holds an access token, or
            `repo` is no id.
        PushError: there is no token, or the Hub did not take the files; says what the Hub said and how to try again.
    """
    folder = Path(folder)
    check_folder(folder, repo_type)
    files = files_to_push(folder, allow or {"model": MODEL_FILES, "dataset": DATASET_FILES}[repo_type])
    if "README.md" not in files:
        logger.warning("%s has no README.md, so that %s will have no card", folder, repo)
    if said := told_of_local_base(folder):
        logger.warning(said)
    stay = sorted({path.name for path in folder.iterdir()} - {name.split("/")[0] for name in files})
    if stay:
        logger.info("not pushed: %s", ", ".join(stay))
    again = ["mfpo", "push", str(folder), repo, *(["--private"] if private else [])]
    again += ["--revision", revision] if revision else []
    again += ["--type", repo_type] if repo_type != kind_of(folder) else []
    kept = f"The files are kept in {folder}; try again with: {shlex.join(again)}"
    try:
        token = token_for(repo, token)
    except PushError as error:
        raise PushError(f"{error}. {kept}") from None
    refuse_tokens(folder, files, token)
    for wait in (*WAITS, None):
        try:
            return _upload(folder, files, repo, repo_type, private, token, revision, commit_message)
        except Exception as error:
            said, passes = _judged(error)
            said = without_tokens(said, token)
            if wait is None or not passes:
                raise PushError(f"{repo} was not pushed: {said}. {kept}") from error
            logger.warning("%s; trying again in %g s", said, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def token_for(repo: str, token: str | None = None) -> str:
    """The token to push with; worth asking before the work whose result is to be pushed.

    Args:
        repo: id on the Hub.
        token: taken if given; else that of `hf auth login` or of HF_TOKEN.

    Raises:
        ValueError: `repo` is no id.
        PushError: there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    token = token or get_token()
    if not token:
        raise PushError(f"the Hub needs a token with write access, and there is none: {LOG_IN}")
    return token


def check_login(repo: str, token: str | None = None) -> None:
    """Ask the Hub what the token may do, and create nothing.

    Raises:
        ValueError: `repo` is no id.
        PushError: there is no token, or the Hub does not take it; says what the Hub said.
    """
    from huggingface_hub import HfApi

    token = token_for(repo, token)
    try:
        known = HfApi(token=token).whoami()
    except Exception as error:
        raise _closed(repo, _judged(error)[0], token) from error
    if known.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise _closed(repo, "the token may not write there: it needs write access to that repository", token)


def open_repository(repo: str, *, private: bool = False, token: str | None = None) -> None:
    """Create a model's repository where it is missing, before the work that is to be pushed there.

    Raises:
        ValueError: `repo` is no id.
        PushError: there is no token, or the Hub does not open the repository; says what the Hub said.
    """
    from huggingface_hub import HfApi

    token = token_for(repo, token)
    try:
        HfApi(token=token).create_repo(repo, private=private or None, exist_ok=True)
    except Exception as error:
        raise _closed(repo, _judged(error)[0], token) from error


def _closed(repo: str, said: str, token: str) -> PushError:
    return PushError(
        f"{repo} cannot be pushed to: {without_tokens(said, token)}. Leave out push_to_hub to train without, and push later "
        "with `mfpo push`"
    )


def push_trained(
    trainer: "Trainer",
    commit_message: str = "End of training",
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    folder: Path | None = None,
) -> str | None:
    """Push what a trainer has saved; the main process does.

    Args:
        trainer: its arguments say where, and hold for what is None here.
        commit_message, token, revision, private: as for `push`.
        folder: with weights and card; the trainer's output folder when None.

    Returns:
        The address of the repository; None in the other processes.

    Raises:
        PushError: the Hub did not take the files; weights and card are in the folder.
    """
    if not trainer.is_world_process_zero():
        return None
    args = trainer.args
    return push(
        folder or args.output_dir,
        trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).resolve().name,
        private=bool(args.hub_private_repo if private is None else private),
        token=token or args.hub_token,
        revision=revision or args.hub_revision,
        commit_message=commit_message,
    )


# What is pushed


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


# How it gets there


def _upload(
    folder: Path,
    files: Sequence[str],
    repo: str,
    repo_type: str,
    private: bool,
    token: str,
    revision: str | None,
    commit_message: str,
) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    # None leaves it to the organisation, which may have private repositories as its default.
    url = api.create_repo(repo, repo_type=repo_type, private=private or None, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise ValueError("it exists already and is public. Make it private in its settings, or name another")
    if revision and not revision.startswith("refs/"):
        api.create_branch(url.repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    api.upload_folder(
        repo_id=url.repo_id,
        repo_type=repo_type,
        folder_path=folder,
        allow_patterns=[glob.escape(name) for name in files],
        revision=revision,
        commit_message=commit_message,
    )
    return f"{url}/tree/{revision}" if revision else str(url)


def _judged(error: BaseException) -> tuple[str, bool]:
    """What went wrong, and whether it may go well the next time: a lost connection, or a Hub that is out of order."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, ValueError):
        return " ".join(str(error).split()), False
    cause: BaseException | None = error
    while cause and not (_status(cause) or _is_lost(cause)):
        cause = cause.__cause__
    error = cause or error
    status = _status(error)
    said = " ".join((getattr(error, "server_message", None) or str(error)).split()).rstrip(".")
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push", False
    if status == 401:
        return f"the Hub does not accept the token ({said}): {LOG_IN} to a token with write access", False
    if status == 403:
        return f"the token may not write there ({said}): it needs write access to that repository", False
    if status:
        return f"the Hub answered {status} ({said})", status in PASSING
    if _is_lost(error):
        return f"the connection to the Hub was lost ({type(error).__name__}: {said})", True
    return f"{type(error).__name__}: {said}", False


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_lost(error: BaseException) -> bool:
    # The HTTP library of huggingface_hub changes from version to version; the name of this class does not.
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or "TransportError" in names


def without_tokens(text: str, token: str | None = None) -> str:
    """The same text without this token, and without what looks like one of the Hub."""
    return ACCESS_TOKEN.sub("<token>", text.replace(token, "<token>") if token else text)


# On the command line


def add_push(commands: Any) -> None:
    """Add `push` to the commands of a parser."""
    parser = commands.add_parser(
        "push",
        help="upload a model, an adapter or a built data set to the Hugging Face Hub",
        description="Upload the safetensors, configurations, tokenizer, processor, chat template and card of a model or an "
        "adapter, or the rows, card and report of a built data set. Checkpoints, optimizer states, pickles and logs stay. "
        "Needs a token with write access: log in with `hf auth login`, or set HF_TOKEN.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="what training or mfpo build has written")
    parser.add_argument("repo", metavar="REPO", help="id on the Hub, user/name; created where it is missing")
    parser.add_argument("--private", action="store_true", help="nobody else may see it")
    parser.add_argument("--type", choices=("model", "dataset"), help="of the repository; guessed from what DIR holds")
    parser.add_argument("--revision", help="branch, created where it is missing (default: main)")
    parser.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mfpo push: %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        repo_type = args.type or kind_of(args.folder)
        print(push(args.folder, args.repo, repo_type=repo_type, private=args.private, revision=args.revision))
    except KeyboardInterrupt:
        print("mfpo push: stopped; the same command tries again.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"mfpo push: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
