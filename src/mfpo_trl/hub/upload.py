"""The way up to the Hugging Face Hub, and what is said when files do not arrive."""

import glob
import logging
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..card import told_of_local_base
from .files import DATASET_FILES, MODEL_FILES, check_folder, files_to_push, kind_of, refuse_tokens, without_tokens

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"

WAITS = (1.0, 2.0, 4.0)
"""Seconds before each further try when the connection is lost."""

PASSING = (408, 429, 500, 502, 503, 504)
"""Status codes that a later try may not meet."""


COPIED = ".pushing"
"""What is pushed of a checkpoint, in the output folder; it stays where its push fails, until a later one arrives."""


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
    url = push(
        folder or args.output_dir,
        trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).resolve().name,
        private=bool(args.hub_private_repo if private is None else private),
        token=token or args.hub_token,
        revision=revision or args.hub_revision,
        commit_message=commit_message,
    )
    shutil.rmtree(Path(args.output_dir, COPIED), ignore_errors=True)
    return url


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
