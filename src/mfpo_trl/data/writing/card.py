"""The card of a built data set, and its way to the Hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import hub
from ...card import hub_id, plain
from ..mirror import STEPS
from .citations import CONVENTIONS, CORRUPTIONS, DIFFICULTIES, GROUNDERS, KEYWORDS, PAPERS, PUBLISHED
from .licence import licence_of, source_name
from .parts import replace

# Without `configs`: the names of the parts say what they are, and with them `datasets` would take two folders of the same name
# for the same data set, and give the cached rows of one for the other.
HEAD = {
    "tags": ["mfpo", "preference", "vision-language"],
    "task_categories": ["image-text-to-text"],
}


def card(options: Any, report: Mapping[str, Any], section: str = "") -> str:
    """The text of `README.md`: what was built from what, how, with which counts, under which licence, and what to cite.

    Args:
        section: where the pairs were made and not read, how.
    """
    import yaml

    kept = {key: value for key, value in report["options"].items() if key not in ("dataset", "image_root", "version")}
    rate = report["grounding_failure_rate"]
    failed = "every row: nothing was grounded" if rate is None else f"{rate:.1%} of the rows with images"
    quantiles = ", ".join(f"{key}: {value:.1%}" for key, value in report["mask_area_quantiles"].items())
    where = {
        "random": "in rectangles drawn at random, a control for key regions",
        "none": "nowhere in particular: the whole image is corrupted, a control for key regions",
    }.get(kept["grounder"], "in the key regions of the chosen answer")
    licence, from_where = licence_of(options.dataset)
    papers = cited(options, report["source"])
    if section:
        papers.pop("key words")
    used = "\n".join(f"| {what} | {name} | {_links(keys)} |" for what, (name, keys) in papers.items())
    bibtex = "\n\n".join(
        PAPERS[key].bibtex for key in dict.fromkeys(key for _, keys in papers.values() for key in keys)
    )
    twins, about_twins = _twins(options, report)
    return f"""---
{yaml.safe_dump({**licence, **HEAD}, sort_keys=False)}---

# Image-preference data, built from {source_name(options.dataset)}

Preference rows whose dispreferred image differs from the original only {where}, built by
mfpo_trl {report["options"]["version"]} with `mfpo build`.

| | |
|---|---|
| rows of the source | {report["rows_in"]} |
| rows | {report["rows_out"]}, {report["with_images"]} of them with images |
{twins}| rejected | {report["rejected"]} |
| nothing grounded, so that the whole image is corrupted | {failed} |
| share of the image under the regions, quantiles | {quantiles or "-"} |
| key words a row | {report["keywords_per_row"]:.1f} |

`key_regions` are COCO run-length encodings, one list for each image, with the phrase that was grounded and its score, if any.
`corruption` is the recipe of the dispreferred image; `rejected_images`, where the column is there, are those images as PNG.
Images are the bytes of the source{about_twins} `stage` is 0 for the easiest rows by `difficulty`.

{section}
## Options

```json
{json.dumps(kept, indent=2, default=str)}
```

## Licence

{from_where} The images and texts are those of the source, under its terms and those of whoever made the images; read its card
before you share them.

## Citation

| for | used here | paper |
|---|---|---|
{used}

```bibtex
{bibtex}
```
"""


def _twins(options: Any, report: Mapping[str, Any]) -> tuple[str, str]:
    """The line of the table and the sentence about edited images, both of a build without any too."""
    if "mirror" not in report:
        return "", "."
    by = f"written by {plain(options.served_model)}" if options.mirror_answer == "endpoint" else "by rule"
    said = (
        f", but for rows with `mirror_of`, twins of the rows with that id: in their image one object was replaced by another one (`{options.mirror_editor}`), "
        f"and their `chosen` is that row's with its name replaced ({by})."
    )
    return f"| of them twins, with an edited image | {report['mirror'][STEPS[-1]]} |\n", said


def cited(options: Any, source: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What a build stands on: for what, what it used (Markdown), and the keys of the papers.

    Args:
        options: of the build.
        source: the convention that the source was read as.
    """
    published = PUBLISHED.get(options.dataset)
    pairs, papers = source_name(options.dataset), (published.paper,) if published else ()
    if not published and not hub_id(options.dataset) and source in CONVENTIONS:
        form = CONVENTIONS[source]
        pairs += f", in the form of {source_name(form)}; cite its paper if the rows are from there"
        papers = (PUBLISHED[form].paper,)
    weights = [own for own in (options.grounder_model, options.segmenter_model) if own]
    grounder = f"`{options.grounder}`" + "".join(f", {source_of_weights(own)}" for own in weights)
    found = {
        "method": ("mfpo_trl", ("mfpo",)),
        "preference pairs": (pairs, papers),
        "key words": (f"`{options.keywords.variant}`", KEYWORDS[options.keywords.variant]),
        "regions": (grounder, GROUNDERS.get(options.grounder, ())),
        "dispreferred images": (f"`{options.corruption}`", CORRUPTIONS.get(options.corruption, ())),
        "difficulty": (f"`{options.scorer}`", DIFFICULTIES.get(options.scorer, ())),
    }
    return {what: own for what, own in found.items() if own[1] or what in ("preference pairs", "regions")}


def source_of_weights(name: str) -> str:
    """A model on the Hub as a link, or the name of a local one without where it lies."""
    return f"[{name}](https://huggingface.co/{name})" if hub_id(name) else plain(Path(name).resolve().name)


def _links(keys: tuple[str, ...]) -> str:
    return ", ".join(f"[{PAPERS[key].name}]({PAPERS[key].address})" for key in keys) or "–"


def write_card(options: Any, report: Mapping[str, Any], section: str = "") -> None:
    """Write `README.md` into the data set's folder, and push the data set where that is asked for.

    Raises:
        ValueError: the card or the report holds an access token.
        RuntimeError: the Hub did not take it; the folder is complete.
    """
    text = card(options, report, section)
    replace(options.output / "README.md", lambda path: path.write_text(text, encoding="utf-8"))
    if options.push_to_hub:
        push(options)


def push(options: Any) -> None:
    """Upload the data set's rows, card and report to the Hub."""
    url = hub.push(
        options.output,
        options.push_to_hub,
        repo_type="dataset",
        private=options.private,
        commit_message="Image-preference data built with mfpo_trl",
    )
    print(f"The data set is at {url}", flush=True)
