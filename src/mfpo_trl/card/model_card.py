"""What is written beside the weights."""

import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

from huggingface_hub import ModelCard

from ..images import AUTO, NO_CORRUPTION
from ..objective import PRESETS
from ..objective.terms import Weighted
from .curves import write_curves
from .dispreferred import describe_corruption, used_in
from .facts import describe_training, describe_versions
from .markdown import hub_id, plain
from .papers import MFPO_CITATION, citations
from .scores import Scores, describe_scores, evaluation_results, read_scores
from .training import Training

CARD_METRICS = ("loss", "rewards/accuracies", "rewards/margins", "rewards/image_margins")
"""Of an evaluation, what the card shows."""

CURVES_IN_WORDS = (
    "Training curves over the steps: the loss and its terms, the text and image margins, and their balance; points and "
    "dashed lines are evaluations"
)

NO_LICENCE = "None was named. Those of the base model and of the data set may limit what this model may be used for."

LINES = ("text", "image", "anchor")
"""Terms that have a line on every card."""

TEXT = """\
# {model_name}

{base} trained with {own}{method} on {data}, by `mfpo_trl` on top of [TRL](https://github.com/huggingface/trl).

{badges}## Objective

| term | weight | formula |
|---|---|---|
| text (DPO, `{loss_type}`) | {text} | {text_formula} |
| image | {image} | `-log sigma(beta * [r(y_w given m) - r(y_w given m')])` |
| anchor | {anchor} | `-log sigma(beta * r(y_w given m) - {margin})` |
{others}
`beta` is {beta} in the text term and {image_beta} in the {which} terms; `r` is the log-probability under the
policy minus that under the reference, summed over the response. The end of an answer is {eos}.

## Dispreferred images

{corruption}

{curriculum}## Training

{training}

{curves}{scores}## Licence

{licence}

## Versions

{versions}

## Citations

{own_citation}{citations}
"""


def write_model_card(training: Training, card: ModelCard, model_name: str | None, dataset_name: str | None) -> None:
    """Write the card of a training into its output folder: TRL's metadata and its links to the trackers, and a text of our own.

    Whoever reads it meanwhile finds a whole one.

    Args:
        training: whose settings are told.
        card: TRL's own, which becomes this one.
        model_name: title of the card; the output folder's name when None.
        dataset_name: id of the data set; what the data set says of itself when None.
    """
    folder = training.args.output_dir
    data: Any = card.data  # its fields are those that a card has
    if hasattr(data, "licence"):
        del data.licence  # TRL's placeholder; the licence is the user's to name
    data.license = data.license or _licence(data.tags)
    data.library_name = "peft" if hasattr(training.model, "peft_config") else "transformers"
    data.pipeline_tag = "image-text-to-text" if training.has_images else "text-generation"
    data.base_model = hub_id(data.base_model)
    data.model_name = model_name or os.path.basename(os.path.normpath(folder))
    dataset = hub_id(dataset_name or hub_dataset(training.train_dataset))
    data.datasets = [dataset] if dataset else None
    scores = read_scores(folder)
    data.eval_results = evaluation_results(scores, data.pipeline_tag) or None
    badges = "\n".join(line for line in card.text.splitlines() if line.startswith("[<img"))
    picture = write_curves(folder, training.state.log_history)
    card.text = card_text(
        training, data.model_name, dataset, f"{badges}\n\n" if badges else "", data.license, picture, scores
    )
    unfinished = os.path.join(folder, "_README.md")
    card.save(unfinished)
    os.replace(unfinished, os.path.join(folder, "README.md"))


def card_text(
    training: Training,
    model_name: str,
    dataset_name: str | None,
    badges: str = "",
    licence: str | None = None,
    picture: str | None = None,
    scores: Sequence[Scores] = (),
) -> str:
    """The body of the card, in Markdown.

    Args:
        training: whose settings are told.
        model_name: title of the card.
        dataset_name: id of the data set on the Hub.
        badges: links to the trackers.
        licence: of the model, where one was named.
        picture: file of the training curves beside the card.
        scores: what benchmarks measured.
    """
    args = training.args
    made = used_in(training)
    base = hub_id(getattr(training.model.config, "_name_or_path", ""))
    own, own_citation = describe_subclass(*training.method)
    corruptions = {AUTO} if made is None else {own.corruption for own, _ in made}
    method = method_name(training.term_weights, corruptions, args.objective)
    return TEXT.format(
        model_name=plain(model_name),
        base=f"[{base}](https://huggingface.co/{base})" if base else "A model",
        data=describe_dataset(training.train_dataset, dataset_name),
        badges=badges,
        own=own,
        method=method,
        loss_type=", ".join(training.loss_types),
        # What was trained with, which is less than what was asked for where the data has no image.
        text=training.term_weights.get("text", 0),
        text_formula=(
            "`-log sigma(beta * [r(y_w given m) - r(y_l given m)])`"
            if training.loss_types == ["sigmoid"] and args.f_divergence_type == "reverse_kl"
            else "TRL's loss of that name"
        ),
        image=training.term_weights.get("image", 0),
        anchor=training.term_weights.get("anchor", 0),
        margin=args.anchor_margin,
        others=other_terms(training.terms),
        which="image and anchor" if set(training.term_weights) <= set(LINES) else "other",
        beta=args.beta,
        image_beta=training.image_beta,
        eos="always scored" if args.add_eos else "scored only where the chat template writes it",
        corruption=describe_corruption(training, made),
        curriculum=describe_curriculum(training),
        training=describe_training(training),
        curves=f"![{CURVES_IN_WORDS}]({picture})\n\n" if picture else "",
        scores=describe_scores(scores),
        licence=f"`{licence}`" if licence else NO_LICENCE,
        versions=describe_versions(training),
        own_citation=own_citation,
        citations=citations([method, *(own.term.source for own in training.terms)]),
    )


def _licence(tags: Sequence[str] | None) -> str | None:
    """What the user's tags name: `license:apache-2.0`."""
    named = [tag.removeprefix("license:") for tag in tags or () if tag.startswith("license:")]
    return named[0] if named else None


def other_terms(terms: Sequence[Weighted]) -> str:
    """Lines of the table for terms beside the three, with their betas where they have their own, and their sources."""
    lines = []
    for own in terms:
        if own.term.name not in LINES:
            beta = f", b = {own.beta:g}" if own.beta is not None else ""
            formula = own.term.formula.replace("|", " given ").replace("`", "") or "the user's own"
            source = f" ({plain(own.term.source)})" if own.term.source not in ("", "here") else ""
            options = "".join(f", {name} = {value:g}" for name, value in {**own.term.options, **own.options}.items())
            lines.append(f"| `{own.term.name}`{source} | {own.weight:g} | `{formula}`{beta}{options} |\n")
    return "".join(lines)


def method_name(term_weights: Mapping[str, float], corruptions: Set[str], objective: str = "mfpo") -> str:
    """What the literature calls these terms with these corruptions.

    Args:
        objective: the preset that was asked for, which gives terms beside text, image and anchor their name.
    """
    terms = set(term_weights)
    if not terms <= set(LINES):
        preset = PRESETS[objective]
        paper = f" ({preset.paper})" if preset.paper != "here" else ""
        own = dict(preset.weights) == dict(term_weights)
        return f"**{objective}**{paper}" if own else f"the terms {', '.join(map(plain, sorted(terms)))}"
    if terms == {"text"}:
        return "**Direct Preference Optimization** (DPO)"
    if "image" not in terms:
        return "**DPO with an anchored reward**"
    if terms == {"text", "image"} and corruptions <= {NO_CORRUPTION}:
        return "**rDPO** (arXiv 2502.13146)"
    if terms == {"text", "image", "anchor"} and corruptions == {"crop"}:
        return "**mDPO**"
    return "**Modality-Fair Preference Optimization** (MFPO)"


def describe_subclass(name: str, paper: Mapping[str, str]) -> tuple[str, str]:
    """What a subclass of `MFPOTrainer` says of itself, as the words before the method and its citation; empty where it says
    nothing of its own.

    Args:
        name, paper: as `_trl.method_of` gives them.
    """
    if name == "MFPO" and paper.get("citation") == MFPO_CITATION:
        return "", ""
    title, number = plain(paper.get("title") or "its paper"), paper.get("id")
    about = f" ([{title}](https://huggingface.co/papers/{number}))" if number else ""
    if paper.get("citation") == MFPO_CITATION:
        return f"**{plain(name)}**, built on ", ""
    citation = f"{plain(name)}:\n\n```bibtex\n{paper['citation']}\n```\n\n" if paper.get("citation") else ""
    return f"**{plain(name)}**{about}, built on ", citation


def describe_curriculum(training: Training) -> str:
    """A section with a line for each stage: rows, difficulty, passes, steps, and what was measured at its end."""
    if training.plan is None:
        return ""
    args, plan, evaluations = training.args, training.plan, training.evaluations
    measured = [
        name for name in ("eval_loss", *sorted(set().union(*evaluations))) if any(name in own for own in evaluations)
    ]
    measured = [name for name in dict.fromkeys(measured) if name.endswith(CARD_METRICS)]
    lines = [
        f"| {number} | {len(stage.rows)} | {stage.difficulty[0]:.4g} to {stage.difficulty[1]:.4g} | {stage.epochs:g} | {end} | "
        + "".join(f"{own[name]:.4g} | " if name in own else "– | " for name in measured)
        for number, (stage, end, own) in enumerate(zip(plan.stages, plan.ends, evaluations, strict=True), 1)
    ]
    return (
        f"## Curriculum\n\n`{args.curriculum}` by `{args.curriculum_column}`; the reference is "
        f"{'that of the start' if args.curriculum_reference == 'initial' else 'the policy at the end of the stage before, so that losses of two stages cannot be compared'}.\n\n"
        f"| stage | rows | difficulty | epochs | last step | {''.join(f'{plain(name)} | ' for name in measured)}\n"
        f"|---|---|---|---|---|{'---|' * len(measured)}\n" + "\n".join(line.rstrip() for line in lines) + "\n\n"
    )


def describe_dataset(dataset: Any, name: str | None) -> str:
    """The data set's name, as a link where it is one on the Hub, and its number of rows where it is known."""
    rows = f" ({len(dataset):,} rows)" if hasattr(dataset, "__len__") else ""
    if name:
        return f"[{name}](https://huggingface.co/datasets/{name}){rows}"
    own = getattr(getattr(dataset, "info", None), "dataset_name", None)
    return f"{plain(own)}{rows}" if own else f"a data set without a name{rows}"


def hub_dataset(dataset: Any) -> str | None:
    """The id of the data set on the Hub that the rows were loaded from; None when they come from elsewhere."""
    sources = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    for source in sources:
        if source.startswith("hf://datasets/"):
            return source.removeprefix("hf://datasets/").split("@")[0]
    return None
