"""Words of others on a card: nothing in them is read as Markdown or HTML, and no path is told."""

import json
import os
import re
from pathlib import Path

SPECIAL = re.compile(r"([\\`*_\[\]|~$])")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def plain(text: str) -> str:
    """The text as one line of Markdown that shows it as it is, in a table as well."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A bare address would become a link.
    return SPECIAL.sub(r"\\\1", text).replace("://", "&#58;//")


def hub_id(name: str | None) -> str | None:
    """The name where it can be an id on the Hub; None for a path, which is nobody else's business and leads nowhere."""
    return name if name and HUB_ID.fullmatch(name) and not os.path.exists(name) else None


def told_of_local_base(folder: Path) -> str | None:
    """What to say of an adapter whose configuration names its base model by a path; None of any other folder."""
    path = folder / "adapter_config.json"
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") if path.is_file() else None
    if not base or hub_id(base):
        return None
    return (
        f"{path} names the base model by a path, {base!r}, which the Hub will show and nobody else can load; set "
        "base_model_name_or_path there, and base_model in README.md, to the base model's id on the Hub, and push again"
    )
