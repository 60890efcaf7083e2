"""The README's table and what else a run found, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

GIB = 2**30
BASE = "DPOTrainer"
GOALS = {"MFPO packed + cached": 0.85, "MFPO packed": 1.10}
"""Seconds a step beside DPOTrainer's, at most, under LoRA in 16 bits."""


def steps_table(results: Mapping[str, Any]) -> list[str]:
    """Markdown: a line a training."""
    heads = ("", "seconds a step", "ratio", "tokens/s", "peak GiB", "estimate GiB (error)", "utilisation", "MFU")
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    base = results.get(BASE, {}).get("seconds", {}).get("median")
    for name, found in results.items():
        if "failed" in found:
            lines.append(f"| {name} | {found['failed'][:60]} |" + " – |" * (len(heads) - 2))
            continue
        seconds = found["seconds"]
        ratio = f"{seconds['median'] / base:.2f}" if base else "–"
        estimate = f"{found['estimate'] / GIB:.1f}" if "estimate" in found else "–"
        if "estimate error" in found:
            estimate += f" ({found['estimate error']:+.0%})"
        peak = f"{found['peak'] / GIB:.1f}" if found["peak"] else "–"
        shares = [f"{found[key]:.0%}" if key in found else "–" for key in ("utilisation", "mfu")]
        timed = f"{seconds['median']:.3g} ({seconds['min']:.3g}–{seconds['max']:.3g})"
        cells = [name, timed, ratio, f"{found['tokens/s']:.0f}", peak, estimate, *shares]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


TITLES = {
    "lora": "LLaVA-1.5-7B, LoRA, bfloat16",
    "qlora": "LLaVA-1.5-7B, QLoRA",
    "full": "LLaVA-1.5-7B, full fine-tuning, AdamW in 8 bits",
    "large": "LLaVA-1.5-13B, packed rows and cached reference",
    "sizes": "LLaVA-1.5-7B, LoRA, packed rows and cached reference, by micro-batch",
}


def text(report: Mapping[str, Any]) -> str:
    """All tables of a report, in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"{report['card']}, {report['date']}{', a rehearsal on a CPU' if report['rehearsed'] else ''}; {versions}"
    ]
    for name, part in report["parts"].items():
        lines += ["", f"{TITLES.get(name, name)}: {part['status']}, {part['seconds']:.0f} s", ""]
        lines += steps_table(part["results"]) if name in TITLES else _plain(part["results"])
    return "\n".join(lines if report["rehearsed"] else [*lines, "", *goals(report)])


def goals(report: Mapping[str, Any]) -> list[str]:
    """Each goal of a run on a device, and whether it was reached."""
    lora = report["parts"].get("lora", {}).get("results", {})
    base = lora.get(BASE, {}).get("seconds", {}).get("median")
    lines = []
    for name, most in GOALS.items():
        own = lora.get(name, {}).get("seconds", {}).get("median")
        if base and own:
            lines.append(f"- {name} beside {BASE}: {own / base:.2f}, goal {most:.2f} at most")
    errors = [
        found["estimate error"]
        for part in report["parts"].values()
        for found in part["results"].values()
        if isinstance(found, dict) and "estimate error" in found
    ]
    if errors:
        lines.append(f"- memory estimates: {min(errors):+.0%} to {max(errors):+.0%}, goal within 10 %")
    if best := lora.get("MFPO packed + cached", {}).get("mfu"):
        lines.append(f"- model FLOPs utilisation: {best:.0%}, goal 45 % at least")
    return lines


def _plain(results: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in results.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {name}:", *_plain(value, indent + "  ")]
        else:
            lines.append(f"{indent}- {name}: {f'{value:.4g}' if isinstance(value, float) else value}")
    return lines
