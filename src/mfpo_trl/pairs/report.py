"""What is said of pairs: what the rules let pass, and how chosen and rejected answers differ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.writing import Said
from ..rows import VERDICTS
from .claims import RULES
from .options import PairOptions

LEAK = 0.6
"""Share of pairs whose chosen answer is the shorter one from which a model may learn to say less instead of what is true."""


def said(options: PairOptions, reports: Sequence[Mapping[str, Any]]) -> Said:
    """Of a build of pairs, from the reports of its parts."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report["counts"])
    pairs = max(1, counts["rule: kept"])
    means = {
        name: {what: counts[f"{name} {what}"] / pairs for what in ("words", "present", "absent")}
        for name in ("chosen", "rejected")
    }
    shorter = counts["chosen shorter"] / pairs
    summary = {
        "verifier": options.verifier,
        "answers": counts["answers"],
        "empty_answers": counts["empty answers"],
        "claims": {verdict: counts[f"claims: {verdict}"] for verdict in VERDICTS},
        "pairs_by_rule": {name: counts[f"rule: {name}"] for name in RULES},
        "chosen": means["chosen"],
        "rejected": means["rejected"],
        "chosen_shorter": shorter,
        "chosen_longer": counts["chosen longer"] / pairs,
    }
    warnings = []
    if counts["rule: kept"] and shorter > LEAK:
        warnings.append(
            f"{shorter:.0%} of the chosen answers are shorter than the rejected ones, from which a model may learn to "
            "say less; lower --length-ratio"
        )
    return Said({"pairs": summary}, lines(summary), section(options, summary), warnings)


def lines(summary: Mapping[str, Any]) -> dict[str, str]:
    """For the table on the terminal."""
    empty = f", {summary['empty_answers']} of them empty" if summary["empty_answers"] else ""
    return {
        "answers": f"{summary['answers']}{empty}",
        "claims in them": ", ".join(f"{count} {name}" for name, count in summary["claims"].items()),
        "pairs of answers": " → ".join(f"{count} {name}" for name, count in summary["pairs_by_rule"].items()),
        **{f"{name} answers": _told(summary[name]) for name in ("chosen", "rejected")},
        "chosen is shorter": f"{summary['chosen_shorter']:.0%} (longer: {summary['chosen_longer']:.0%})",
    }


def _told(means: Mapping[str, float]) -> str:
    return (
        f"{means['words']:.1f} words, {means['present']:.2f} things that are there, {means['absent']:.2f} that are not"
    )


def section(options: PairOptions, summary: Mapping[str, Any]) -> str:
    """For the card."""
    who = f"`{options.served_model}` behind a server" if options.endpoint else "the policy itself"
    by = "sentence by sentence behind a clean beginning" if options.by == "sentence" else "answer by answer"
    rows = "\n".join(f"| {name} | {own} |" for name, own in lines(summary).items())
    return f"""## Pairs

On-policy pairs made with `mfpo pairs`, {by}: {options.samples} answers a prompt were drawn from {who} (temperature
{options.temperature:g}), the verifier `{options.verifier}` told which of their claims are true, and the more faithful one is chosen.
`keywords` are the claims of the chosen answer that were found present.

| | |
|---|---|
{rows}
"""
