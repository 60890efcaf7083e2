"""What is shown of a prompt and a model's answers to it (`mfpo pairs`), their claims marked by what a verifier says of them."""

import re
from collections.abc import Mapping
from typing import Any

from ...rows import ROW_NUMBER, to_rgb
from .exhibit import Exhibit, Pair, cleaned
from .outlines import displayed

SIGNS = {"chosen": "+ ", "rejected": "- "}


def exhibit_of_samples(row: Mapping[str, Any]) -> Exhibit:
    """The picture, the prompt and every answer; an answer of a pair says so."""
    picture = to_rgb(row["image"])
    texts = {"prompt": cleaned(row["prompt"]).strip() or "(no text)"}
    if row.get("answer_prefix"):
        texts["begun"] = cleaned(row["answer_prefix"])
    marks = {}
    for number, sample in enumerate(row["samples"], 1):
        label = f"{SIGNS.get(sample['used'], '')}answer {number}"
        texts[label] = cleaned(sample["text"]) or "(no text)"
        marks[label] = {cleaned(claim["phrase"]): claim["verdict"] for claim in sample["claims"]}
    name = f"row {row[ROW_NUMBER]}  ·  {cleaned(row['id'])}"
    return Exhibit(name, [Pair(displayed(picture), None, ("",), [])], texts, marks)


def marked(text: str, claims: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """A text in pieces, each with the verdict on it, None where it claims nothing; the longest of several phrases counts.

    A phrase is found whatever its case and number: "red car" marks "Red cars".
    """
    known = {_key(phrase): verdict for phrase, verdict in claims.items() if phrase.strip()}
    if not known:
        return [(text, None)] if text else []
    words = sorted(known, key=len, reverse=True)
    pattern = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in words)
    found: list[tuple[str, str | None]] = []
    end = 0
    for match in re.finditer(rf"(?<!\w)({pattern})(?:'s|s|es)?(?!\w)", text, re.IGNORECASE):
        found += [(text[end : match.start()], None)] if match.start() > end else []
        found.append((match.group(), known[_key(match.group(1))]))
        end = match.end()
    return [*found, (text[end:], None)] if end < len(text) else found


def _key(phrase: str) -> str:
    return " ".join(phrase.lower().split())
