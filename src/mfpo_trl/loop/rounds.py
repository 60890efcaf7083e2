"""The rounds of `mfpo loop`, on the public doors of pairs, training and evaluation; what is done is not done again."""

import gc
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..data.writing import NoRows
from ..evaluation import During, run_merge
from ..evaluation.generation import weights_told
from ..evaluation.models import Quantisation, load_base, load_processor, place_of, with_adapter
from ..pairs import make_pairs
from ..train import main as train
from .recipe import LoopRecipe
from .start import arguments, check, pair_options, training_fields, without_secrets, write

SCORED, TRAINED, TOLD = "scores.json", "trained.json", "round.json"
STOPPED = 130
"""The exit status of a command that Ctrl-C has ended."""


def run(recipe: LoopRecipe) -> Path:
    """All rounds, until the figure no longer improves or a policy gives no pairs.

    Folders: `start/` with the score of the policy at the beginning, `round-1/`, … with `pairs/`, `model/`, `merged/` where
    asked, `answers.jsonl`, `scores.json` and `round.json`, and `loop.json`, which names the best policy so far.

    Returns:
        The folder of the best policy, or the model's name where no round improved it.

    Raises:
        ValueError: options that cannot be used, a folder of rounds with other options, a figure that is not a number, or a
            training that failed.
        KeyboardInterrupt: also where it has reached a step that ends itself on it.
    """
    judge = check(recipe)
    sign = 1.0 if judge.better[recipe.figure] else -1.0
    policy = best = recipe.model
    scores = [_figure(recipe, judge, policy, recipe.output / "start")]
    print(f"start: {recipe.figure} {scores[0]:.4g}", flush=True)
    ended = None
    for number in range(1, recipe.rounds + 1):
        _tell_all(recipe, best, scores, None)
        try:
            before, policy = policy, _round(recipe, number, policy)
        except NoRows as error:
            ended = f"round {number} has no pairs: {error}"
            break
        scores.append(_figure(recipe, judge, policy, recipe.output / f"round-{number}"))
        _tell(recipe, number, before, policy)
        print(f"round {number}: {recipe.figure} {scores[-1]:.4g}", flush=True)
        if not sign * (scores[-1] - scores[-2]) > recipe.least_gain:
            ended = f"round {number} is no better"
            break
        best = policy
    ended = ended or f"{recipe.rounds} of {recipe.rounds} rounds are done"
    _tell_all(recipe, best, scores, ended)
    print(f"The rounds end: {ended}\nThe best policy is {best}; the rounds are in {recipe.output}", flush=True)
    return Path(best)


def _tell_all(recipe: LoopRecipe, best: str, scores: list[float], ended: str | None) -> None:
    """What is known so far, so that nothing is lost where a round fails."""
    write(recipe.output / "loop.json", {"best": best, "figure": recipe.figure, "scores": scores, "ended": ended})


# A round


def _round(recipe: LoopRecipe, number: int, policy: str) -> str:
    """Pairs of this policy and a training on them; returns where the new policy is."""
    folder = recipe.output / f"round-{number}"
    pairs, model, merged = folder / "pairs", folder / "model", folder / "merged"
    if not (pairs / "report.json").exists():
        _alone(lambda: make_pairs(pair_options(recipe, number, policy)))
    if not (model / TRAINED).exists():
        fields = training_fields(recipe, number, policy)
        if any(model.glob("checkpoint-*")):
            fields["resume_from_checkpoint"] = True
        status = _alone(lambda: train(arguments(fields)))
        _succeeded(status, f"the training of round {number} failed, see above; the same command goes on with it")
        write(model / TRAINED, {"from": policy, "fields": without_secrets(recipe.train)})
    if not (recipe.merge and (model / "adapter_config.json").exists()):
        return str(model)
    # It gets its name when all of it is written.
    if not any(merged.glob("*.safetensors")):
        status = _alone(lambda: run_merge([str(model), "--output", str(merged)], _no_rows))
        _succeeded(status, f"the adapter of round {number} could not be merged, see above")
    return str(merged)


def _alone(step: Callable[[], Any]) -> Any:
    """Do a step, and give back what it has loaded, which lies in cycles: the next one needs the memory."""
    try:
        return step()
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _succeeded(status: int, failed: str) -> None:
    if status == STOPPED:
        raise KeyboardInterrupt
    if status:
        raise ValueError(failed)


def _no_rows(options: Any) -> Any:
    raise AssertionError("a merge without rows to compare asks for none")


# Scores


def _figure(recipe: LoopRecipe, judge: During, policy: str, folder: Path) -> float:
    """The figure that has to improve, from the figures that are written down or are now.

    Raises:
        ValueError: it is no number.
    """
    if not (folder / SCORED).exists():
        _alone(lambda: _score(recipe, judge, policy, folder))
    value = _figures(folder)[recipe.figure]
    if value is None:
        raise ValueError(
            f"{recipe.figure} of {policy} is no number: nothing was counted in the answers, which are in "
            f"{folder / 'answers.jsonl'}"
        )
    return value


def _figures(folder: Path) -> Mapping[str, float | None]:
    return json.loads((folder / SCORED).read_text(encoding="utf-8"))["figures"]


def _score(recipe: LoopRecipe, judge: During, policy: str, folder: Path) -> None:
    """Write down the figures of a policy, and its answers."""
    place = place_of(policy)
    stored = Quantisation() if recipe.score.get("load_in_4bit") else None
    model = load_base(place.base, quantisation=stored, scored=False)
    model = model if place.adapter is None else with_adapter(model, place.adapter)
    scored = judge.scored(judge.answer(model, load_processor(place), recipe.score.get("batch_size", 8)))
    rows = [{**prompt.row, "response": text} for prompt, text in zip(scored.prompts, scored.texts, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    # JSON has no word for what is not a number.
    figures = {name: value if math.isfinite(value) else None for name, value in scored.figures.items()}
    write(folder / SCORED, {"benchmark": judge.name, "figures": figures})


def _tell(recipe: LoopRecipe, number: int, before: str, policy: str) -> None:
    """Data, reference and scores of a round."""
    folder = recipe.output / f"round-{number}"
    report = json.loads((folder / "pairs" / "report.json").read_text(encoding="utf-8"))
    content = {
        "round": number,
        "reference": {"policy": before, "weights": weights_told(before)},
        "policy": {"policy": policy, "weights": weights_told(policy)},
        "data": {"rows": report["rows_out"], "rows_set_aside": report["rejected"], **report["pairs"]},
        "figures": _figures(folder),
    }
    write(folder / TOLD, content)
