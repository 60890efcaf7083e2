"""What `mfpo check` found: one finding a check, as a table for a terminal and as JSON."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OK, WARNING, PROBLEM = "ok", "warning", "problem"
STATUSES = (OK, WARNING, PROBLEM)

SHOWN = 3
"""Rows that a finding names in the table; JSON has all of them."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        check: its name.
        status: `ok`, `warning` (training runs, but perhaps not as meant) or `problem` (something would go wrong).
        value: what was found, in words.
        advice: what to do, where something is not ok.
        details: the same in numbers and lists.
    """

    check: str
    status: str
    value: str
    advice: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def worst(findings: Sequence[Finding]) -> str:
    """The gravest status of all."""
    return max((finding.status for finding in findings), key=STATUSES.index, default=OK)


def some(lines: Sequence[str]) -> str:
    """The first of these lines, and how many more there are; empty for none."""
    more = f"\n... and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "\n".join(lines[:SHOWN]) + more


def table(findings: Sequence[Finding], width: int) -> str:
    """Status, check and value in columns, the advice below with an arrow, and a last line that counts.

    Args:
        findings: in the order in which they are shown.
        width: of the terminal, in characters.
    """
    first = max(len(status) for status in STATUSES) + 2
    second = max((len(finding.check) for finding in findings), default=0) + 2
    room = max(width - first - second, 40)
    lines = []
    for finding in findings:
        said = _wrapped(finding.value, room)
        if finding.advice:
            said += _wrapped(f"-> {finding.advice}", room, "   ")
        head = f"{finding.status:<{first}}{finding.check:<{second}}"
        lines += [f"{head if n == 0 else ' ' * len(head)}{line}" for n, line in enumerate(said)]
    counts = {status: sum(finding.status == status for finding in findings) for status in STATUSES}
    end = ", ".join(f"{counts[status]} {status}{'s' * (counts[status] != 1)}" for status in (PROBLEM, WARNING))
    return "\n".join([*lines, "", f"{end}, {counts[OK]} ok"])


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return [
        line
        for n, paragraph in enumerate(text.split("\n"))
        for line in textwrap.wrap(
            paragraph,
            width,
            initial_indent=indent if n else "",
            subsequent_indent=indent or "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


def as_json(findings: Sequence[Finding], status: int) -> str:
    """One JSON object: the gravest status, the exit code and every finding with its details."""
    found = [asdict(finding) for finding in findings]
    return json.dumps(
        {"status": worst(findings), "exit_code": status, "findings": found}, indent=2, ensure_ascii=False
    )
