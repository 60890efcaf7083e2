"""The card of a built data set, and its way to the Hub."""

import json
from collections.abc import Mapping
from typing import Any

from .. import hub
from ..model_card import MFPO_CITATION
from .parts import replace

# Without `configs`: the names of the parts say what they are, and with them `datasets` would take two folders of the same name
# for the same data set, and give the cached rows of one for the other.
HEAD = """\
---
tags:
- mfpo
- preference
- vision-language
task_categories:
- image-text-to-text
---
"""


def card(options: Any, report: Mapping[str, Any]) -> str:
    """The text of `README.md`: what was built from what, how, with which counts, and what to cite."""
    name = options.dataset if not options.dataset.startswith(("/", ".", "~")) else "a local data set"
    kept = {key: value for key, value in report["options"].items() if key not in ("dataset", "image_root", "version")}
    rate = report["grounding_failure_rate"]
    failed = "every row: nothing was grounded" if rate is None else f"{rate:.1%} of the rows with images"
    quantiles = ", ".join(f"{key}: {value:.1%}" for key, value in report["mask_area_quantiles"].items())
    where = {
        "random": "in rectangles drawn at random, a control for key regions",
        "none": "nowhere in particular: the whole image is corrupted, a control for key regions",
    }.get(kept["grounder"], "in the key regions of the chosen answer")
    return f"""{HEAD}
# Image-preference data, built from {name}

Preference rows whose dispreferred image differs from the original only {where}, built by
mfpo_trl {report["options"]["version"]} with `mfpo build`.

| | |
|---|---|
| rows of the source | {report["rows_in"]} |
| rows | {report["rows_out"]}, {report["with_images"]} of them with images |
| rejected | {report["rejected"]} |
| nothing grounded, so that the whole image is corrupted | {failed} |
| share of the image under the regions, quantiles | {quantiles or "-"} |
| key words a row | {report["keywords_per_row"]:.1f} |

`key_regions` are COCO run-length encodings, one list for each image, with the phrase that was grounded and its score, if any.
`corruption` is the recipe of the dispreferred image; `rejected_images`, where the column is there, are those images as PNG.
Images are the bytes of the source. `stage` is 0 for the easiest rows by `difficulty`.

## Options

```json
{json.dumps(kept, indent=2, default=str)}
```

## Licence

The images and texts are those of the source, under the licence of the source; read its card before you share them.

## Citation

```bibtex
{MFPO_CITATION}
```
"""


def write_card(options: Any, report: Mapping[str, Any]) -> None:
    """Write `README.md` into the data set's folder, and push the data set where that is asked for.

    Raises:
        ValueError: the card or the report holds an access token.
        RuntimeError: the Hub did not take it; the folder is complete.
    """
    text = card(options, report)
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
