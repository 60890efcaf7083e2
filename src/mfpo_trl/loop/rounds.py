"""The rounds of `mfpo loop`, on the public doors of pairs, training and evaluation; what is done is not done again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.writing import replace
from ..evaluation import During, run_merge
from ..evaluation.generation import weights_told
from ..evaluation.models import load_base, load_processor, place_of, with_adapter
from ..pairs import make_pairs, options_of
from ..train import main as train
from .recipe import LoopRecipe

SCORED, TRAINED, TOLD = "scores.json", "trained.json", "round.json"


def run(recipe: LoopRecipe) -> Path:
    """All rounds, until the figure no longer improves.

    Folders: `start/` with the score of the policy at the beginning, `round-1/`, … with `pairs/`, `model/`, `merged/` where
    asked, `answers.jsonl`, `scores.json` and `round.json`, and `loop.json`, which names the best policy.

    Returns:
        The folder of the best policy, or the model's name where no round improved it.

    Raises:
        ValueError: options that cannot be used, a folder of rounds with other options, or a training that failed.
    """
    _remember(recipe)
    judge = During(recipe.score["benchmark"], recipe.score["data"], **_limits(recipe))
    if recipe.figure not in judge.better:
        raise ValueError(f"figure is {recipe.figure!r}; {judge.name} has {', '.join(judge.better)}")
    sign = -1.0 if judge.better[recipe.figure] is False else 1.0
    policy, best = recipe.model, recipe.model
    scores = [_score(recipe, judge, policy, recipe.output / "start")]
    print(f"start: {recipe.figure} {scores[0][recipe.figure]:.4g}", flush=True)
    top = sign * scores[0][recipe.figure]
    for number in range(1, recipe.rounds + 1):
        before, policy = policy, _round(recipe, number, policy)
        folder = recipe.output / f"round-{number}"
        scores.append(_score(recipe, judge, policy, folder))
        _tell(recipe, number, before, policy, scores[-1])
        value = scores[-1][recipe.figure]
        improved = sign * value > top + recipe.least_gain
        if improved:
            top, best = sign * value, policy
        print(
            f"round {number}: {recipe.figure} {value:.4g}{'' if improved else ', no better: the rounds end'}",
            flush=True,
        )
        if not improved:
            break
    content = {"best": best, "figure": recipe.figure, "scores": [own[recipe.figure] for own in scores]}
    _write(recipe.output / "loop.json", content)
    print(f"The best policy is {best}; the rounds are in {recipe.output}", flush=True)
    return Path(best)


def _limits(recipe: LoopRecipe) -> dict[str, Any]:
    return {name: recipe.score[name] for name in ("rows", "max_new_tokens") if name in recipe.score}


def _remember(recipe: LoopRecipe) -> None:
    """Raise ValueError where the folder holds rounds with other options, but for how many there may be."""
    own = {name: getattr(recipe, name) for name in ("model", "pairs", "train", "score", "figure", "merge")}
    own = json.loads(json.dumps(own, default=str))
    path = recipe.output / "options.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in own if before.get(name) != own[name]]
        if changed:
            raise ValueError(
                f"{recipe.output} holds rounds with other options: {changed[0]} was {before.get(changed[0])!r}, is "
                f"{own[changed[0]]!r}. Name another output, or delete it"
            )
        return
    _write(path, own)


def _round(recipe: LoopRecipe, number: int, policy: str) -> str:
    """Pairs of this policy and a training on them; returns where the new policy is."""
    folder = recipe.output / f"round-{number}"
    pairs, model, merged = folder / "pairs", folder / "model", folder / "merged"
    if not (pairs / "report.json").exists():
        seed = int(recipe.pairs.get("seed", 0)) + number
        make_pairs(options_of({**recipe.pairs, "model": policy, "output": pairs, "seed": seed}))
    if not (model / TRAINED).exists():
        fields = {**recipe.train, "model_name_or_path": policy, "dataset_name": str(pairs), "output_dir": str(model)}
        if any(model.glob("checkpoint-*")):
            fields["resume_from_checkpoint"] = True
        if train(arguments(fields)):
            raise ValueError(f"the training of round {number} failed, see above; the same command goes on with it")
        _write(model / TRAINED, {"from": policy})
    if not (recipe.merge and (model / "adapter_config.json").exists()):
        return str(model)
    if not (merged / TRAINED).exists():
        if run_merge([str(model), "--output", str(merged)], _no_rows):
            raise ValueError(f"the adapter of round {number} could not be merged, see above")
        _write(merged / TRAINED, {"from": str(model)})
    return str(merged)


def _no_rows(options: Any) -> Any:
    raise AssertionError("a merge without rows to compare asks for none")


def arguments(fields: Mapping[str, Any]) -> list[str]:
    """Fields as `mfpo train` takes them on its command line."""
    found: list[str] = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        words = [json.dumps(own) if isinstance(own, Mapping | bool | None) else str(own) for own in values]
        found += [f"--{name}", *words]
    return found


def _score(recipe: LoopRecipe, judge: During, policy: str, folder: Path) -> dict[str, float]:
    """The figures of a policy, written down with its answers."""
    path = folder / SCORED
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))["figures"]
    place = place_of(policy)
    model = load_base(place.base, scored=False)
    model = model if place.adapter is None else with_adapter(model, place.adapter)
    scored = judge.scored(judge.answer(model, load_processor(place), int(recipe.score.get("batch_size", 8))))
    rows = [{**prompt.row, "response": text} for prompt, text in zip(scored.prompts, scored.texts, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    _write(path, {"benchmark": judge.name, "figures": dict(scored.figures)})
    return dict(scored.figures)


def _tell(recipe: LoopRecipe, number: int, before: str, policy: str, figures: Mapping[str, float]) -> None:
    """Data, reference and scores of a round."""
    folder = recipe.output / f"round-{number}"
    report = json.loads((folder / "pairs" / "report.json").read_text(encoding="utf-8"))
    content = {
        "round": number,
        "reference": {"policy": before, "weights": weights_told(before)},
        "policy": {"policy": policy, "weights": weights_told(policy)},
        "data": {"rows": report["rows_out"], "rejected": report["rejected"], **report["pairs"]},
        "figures": dict(figures),
    }
    _write(folder / TOLD, content)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda own: own.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))
