"""Published figures beside ours, with their sources: plain rows, in per cent as they were printed."""

from collections.abc import Mapping
from typing import Any

from ..figures import aligned

MFPO = "MFPO, arXiv 2410.15334 v2, main table"

# Figures of Object HalBench are CHAIRs and CHAIRi; single seeds, no intervals.
PUBLISHED: Mapping[str, tuple[tuple[str, str, Mapping[str, float]], ...]] = {
    "Object HalBench": (
        ("LLaVA-1.5-7B", MFPO, {"chair_s": 53.6, "chair_i": 25.2}),
        ("LLaVA-1.5-7B + DPO", MFPO, {"chair_s": 49.0, "chair_i": 13.0}),
        ("LLaVA-1.5-7B + mDPO", MFPO, {"chair_s": 35.7, "chair_i": 9.8}),
        ("LLaVA-1.5-7B + MFPO", MFPO, {"chair_s": 13.4, "chair_i": 6.6}),
        ("LLaVA-1.5-13B + MFPO", MFPO, {"chair_s": 11.4, "chair_i": 4.6}),
        ("LLaVA-1.6-7B + MFPO", MFPO, {"chair_s": 10.6, "chair_i": 5.1}),
    ),
    "MMHal-Bench": (
        ("LLaVA-1.5-7B", MFPO, {"score": 2.07, "hallucination_rate": 59.0}),
        ("LLaVA-1.5-7B + DPO", MFPO, {"score": 2.14, "hallucination_rate": 65.0}),
        ("LLaVA-1.5-7B + mDPO", MFPO, {"score": 2.39, "hallucination_rate": 54.0}),
        ("LLaVA-1.5-7B + MFPO", MFPO, {"score": 2.69, "hallucination_rate": 49.0}),
        ("LLaVA-1.5-13B + MFPO", MFPO, {"score": 2.94, "hallucination_rate": 42.0}),
        ("LLaVA-1.6-7B + MFPO", MFPO, {"score": 2.89, "hallucination_rate": 45.0}),
    ),
    "AMBER": (
        ("LLaVA-1.5-7B", MFPO, {"chair": 7.8, "cover": 51.0, "hal": 36.4, "cog": 4.2}),
        ("LLaVA-1.5-7B + DPO", MFPO, {"chair": 6.5, "cover": 55.5, "hal": 34.5, "cog": 2.3}),
        ("LLaVA-1.5-7B + mDPO", MFPO, {"chair": 4.4, "cover": 52.4, "hal": 24.5, "cog": 2.4}),
        ("LLaVA-1.5-7B + MFPO", MFPO, {"chair": 4.1, "cover": 55.7, "hal": 22.5, "cog": 1.9}),
        ("LLaVA-1.5-13B + MFPO", MFPO, {"chair": 3.4, "cover": 56.1, "hal": 19.4, "cog": 1.4}),
        ("LLaVA-1.6-7B + MFPO", MFPO, {"chair": 3.1, "cover": 58.8, "hal": 18.7, "cog": 1.1}),
    ),
}
"""By benchmark: model, source, figures."""


def published_rows(benchmark: str) -> list[dict[str, Any]]:
    """What was published of a benchmark: model, source and figures as they were printed (rates in per cent)."""
    return [{"model": model, "source": source, **figures} for model, source, figures in PUBLISHED.get(benchmark, ())]


def published_table(benchmark: str) -> str:
    """The same as lines for a terminal."""
    rows = PUBLISHED.get(benchmark, ())
    if not rows:
        return f"\nNo published rows of {benchmark} are known here.\n"
    names = list(dict.fromkeys(name for _, _, figures in rows for name in figures))
    cells = [
        [model, source, *(f"{figures[name]:g}" if name in figures else "–" for name in names)]
        for model, source, figures in rows
    ]
    return (
        "\n".join(["", "Published (rates in per cent, single seeds)", *aligned(["model", "source", *names], cells)])
        + "\n"
    )
