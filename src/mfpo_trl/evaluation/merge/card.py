"""The card of a merged model: that of its adapter, with what was merged and what that changed."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ...card import hub_id, plain
from ..models import Place, Quantisation

HEAD = "## Merged weights"

UNFILLED = "[More Information Needed]"
"""What PEFT's own card of an adapter is full of."""


def write_card(
    folder: Path, name: str, place: Place, dtype: str, quantisation: Quantisation | None, change: Any
) -> None:
    """Write README.md of a merged model: the adapter's own card, if it has one, with a section on the merge.

    Args:
        folder: of the merged model.
        name: of the model.
        place: of the adapter and the model that it was merged into.
        dtype: of the weights.
        quantisation: of the weights that the adapter was trained on.
        change: what merging changed, where it was measured.
    """
    own = Path(place.name, "README.md")
    card = ModelCard.load(own) if own.is_file() else None
    if card is None or UNFILLED in card.text:
        card = ModelCard.from_template(
            ModelCardData(), template_str=f"---\n{{{{ card_data }}}}\n---\n\n# {plain(name)}\n"
        )
    data: Any = card.data  # its fields are those that a card has
    data.library_name = "transformers"
    data.pipeline_tag = data.pipeline_tag or "image-text-to-text"
    data.base_model = hub_id(place.base) or data.base_model
    data.tags = [tag for tag in data.tags or () if not _of_adapter(tag)] or None
    data.model_name = name
    card.text = card.text.rstrip("\n") + "\n\n" + section(place, dtype, quantisation, change)
    card.save(folder / "README.md")


def section(place: Place, dtype: str, quantisation: Quantisation | None, change: Any) -> str:
    """What was merged into what, and what that changed."""
    adapter, base = (hub_id(own) for own in (place.adapter, place.base))
    stored = (
        f", whose weights were in {quantisation} while it was trained and were dequantised first"
        if quantisation
        else ""
    )
    return (
        f"{HEAD}\n\n{f'The adapter {plain(adapter)}' if adapter else 'An adapter'} was merged into "
        f"{plain(base) if base else 'its model'}{stored}; these weights are in {dtype}.\n\n"
        f"- {change or 'what merging changed was not measured'}\n"
    )


def _of_adapter(tag: str) -> bool:
    return tag in ("lora", "peft", "adapter") or tag.startswith("base_model:adapter:")
