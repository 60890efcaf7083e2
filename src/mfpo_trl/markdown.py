"""Words of others on a card: nothing in them is read as Markdown or HTML."""

import os
import re

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
