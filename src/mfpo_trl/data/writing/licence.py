"""Under which licence a source is: what its own card says, where that can be read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...card import hub_id, plain
from .citations import PUBLISHED

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""Of an identifier on the Hub, which refuses a card with anything else."""

FIELDS = ("license_name", "license_link")
"""What a card says beside `license: other`."""

ADDRESS = re.compile(r"https?://\S+")


def licence_of(dataset: str) -> tuple[dict[str, Any], str]:
    """The licence of a source for the card of what is built from it.

    Args:
        dataset: an id on the Hub, a folder or a file; local ones may bring a card as `README.md` in their folder.

    Returns:
        Metadata: `license` as the source's card has it, or `other`; and a sentence that says where it is from.
    """
    name = source_name(dataset)
    try:
        said = _metadata(dataset)
    except Exception as error:
        # A card that cannot be had must not end a build: no network, no access, no YAML.
        return {"license": "other"}, (
            f"The card of {name} could not be read ({type(error).__name__}), so that its licence is not told here."
            f"{_known(dataset)}"
        )
    licence = said.get("license")
    given = licence if isinstance(licence, list) else [licence]
    if not given or not all(isinstance(own, str) and LICENCE.fullmatch(own) for own in given):
        whose = f"The card of {name} names no licence" if said else f"{name} brings no card that names a licence"
        return {"license": "other"}, f"{whose}.{_known(dataset)}"
    more = {field: said[field] for field in FIELDS if _is_usable(field, said.get(field))} if given == ["other"] else {}
    shown = " and ".join(f"`{own}`" for own in given) + "".join(f", {plain(own)}" for own in more.values())
    return {"license": licence, **more}, f"{shown}: that of {name}, by its card."


def source_name(dataset: str) -> str:
    """The source as Markdown: a link to the Hub, or the name of a local file or folder without where it lies."""
    known = hub_id(dataset)
    if known:
        return f"[{known}](https://huggingface.co/datasets/{known})"
    return plain(Path(dataset).resolve().name) or "a local data set"


def _metadata(dataset: str) -> Mapping[str, Any]:
    """The YAML of the source's card; empty where it has none."""
    from huggingface_hub import hf_hub_download, metadata_load

    if hub_id(dataset):
        path = Path(hf_hub_download(dataset, "README.md", repo_type="dataset"))
    else:
        folder = Path(dataset) if Path(dataset).is_dir() else Path(dataset).parent
        path = folder / "README.md"
    return (metadata_load(path) or {}) if path.is_file() else {}


def _known(dataset: str) -> str:
    licence = PUBLISHED[dataset].licence if dataset in PUBLISHED else None
    return f" It was `{licence}` when this version of mfpo_trl was written." if licence else ""


def _is_usable(field: str, value: Any) -> bool:
    """A link to a file of the source's repository leads nowhere from another one."""
    pattern = ADDRESS if field == "license_link" else LICENCE
    return isinstance(value, str) and pattern.fullmatch(value) is not None
