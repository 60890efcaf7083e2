"""What is measured of a model, by the commands that users have."""

import contextlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mfpo_trl.cli import main as mfpo

from .captioner import MOST_NEW_TOKENS

BATCH = "250"


def measured(model: Path, base: Path, held_out: Path, folder: Path, thorough: bool = True) -> dict[str, Any]:
    """The figures of a model.

    Args:
        model: its folder.
        base: the reference of rewards.
        held_out: scenes, questions and pairs.
        folder: where answers and reports go.
        thorough: with questions and `mfpo reliance`; captions alone without.

    Returns:
        `captions`, `objects`, `sizes` and `reliance`, each a mapping of figures to values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = answers(model, held_out / "captions.parquet", folder / "captions.jsonl")
    truth = ["--ground-truth", str(held_out / "truth.json"), "--synonyms", str(held_out / "synonyms.txt")]
    found = {"captions": _all(report(["score", "chair", "--responses", str(said), *truth], folder / "chair.json"))}
    if not thorough:
        return found
    for group in ("objects", "sizes"):
        said = answers(model, held_out / f"{group}.parquet", folder / f"{group}.jsonl")
        command = ["score", "pope", "--responses", str(said), "--questions", str(held_out / f"{group}.jsonl")]
        found[group] = _all(report(command, folder / f"{group}.json"))
    command = ["reliance", "--model", str(model), "--dataset", str(held_out / "pairs.parquet"), "--num-rows", "100000"]
    command += ["--ref-model", str(base), "--perturb", "diffusion:500", "--batch-size", "60", "--random-regions", "1"]
    content = report([*command, "--max-new-tokens", str(MOST_NEW_TOKENS)], folder / "reliance.json")
    found["reliance"] = {
        name: figure["value"]
        for group in ("answers", "preference", "preference_by_reward", "rewards", "key_regions")
        for name, figure in content.get(group, {}).items()
        if name != "words" and not (group == "preference_by_reward")
    }
    return found


def answers(model: Path, rows: Path, output: Path) -> Path:
    """The file of a model's answers to rows."""
    output.unlink(missing_ok=True)
    command = ["generate", "--model", str(model), "--dataset", str(rows), "--output", str(output)]
    run([*command, "--max-new-tokens", str(MOST_NEW_TOKENS), "--batch-size", BATCH])
    return output


def report(command: Sequence[str], path: Path) -> dict[str, Any]:
    """What a command with `--json` found."""
    run([*command, "--json", str(path)])
    return json.loads(path.read_text(encoding="utf-8"))


def run(command: Sequence[str]) -> None:
    """A command of `mfpo`, in this process.

    Raises:
        RuntimeError: it failed.
    """
    if mfpo(list(command)):
        raise RuntimeError(f"mfpo {' '.join(command)} failed, see above")


def _all(content: dict[str, Any]) -> dict[str, float]:
    """The figures of the one group of a report."""
    groups = [own for own in content.values() if isinstance(own, dict) and all(map(_is_figure, own.values())) and own]
    return {name: figure["value"] for name, figure in groups[0].items()}


def _is_figure(own: Any) -> bool:
    return isinstance(own, dict) and "value" in own


def negatives(recipe: Path) -> dict[str, float]:
    """What `mfpo check --negatives` says of the dispreferred images of a recipe: the area under the curve of a linear probe that tells
    them from real ones, and what the image is worth to the base, in nats a row and a token of the key words."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        # Where nothing was trained yet.
        empty = ["--output_dir", str(recipe.parent / "negatives")]
        run(["check", "--config", str(recipe), *empty, "--rows", "128", "--negatives", "--json"])
    (found,) = [own for own in json.loads(said.getvalue())["findings"] if own["check"] == "negatives"]
    details = found["details"]
    return {
        "area": details["area"]["value"],
        "drop": details["drop"],
        "drop_per_key_word_token": details["drop_per_key_word_token"],
    }


def of_training(folder: Path) -> dict[str, float]:
    """What the training logged last: margins, losses and the gradient's norm."""
    states = sorted(folder.glob("**/trainer_state.json"))
    if not states:
        return {}
    log = json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]
    last = [own for own in log if "loss" in own][-3:]
    names = [name for name in last[-1] if re.match(r"loss/|rewards/", name)]
    return {name: sum(own[name] for own in last) / len(last) for name in names}
