"""What a model's forward learns: to score labelled positions only, to read packed rows, to encode an image once.

`prepare(model)` hangs three hooks into a model that TRL has given its fused LM head. They change nothing for a caller who
passes none of the keywords below.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .._trl import attention_kernel
from .packing import FLAT, PACKED_ROW, attend_by_group, dense_mask, multi_axis_positions, spans, token_ids, visibility

PACKED_SDPA = "packed_sdpa"
"""PyTorch's scaled dot-product attention, group by group where the mask is the table of a packed row."""


def packed_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention function for transformers' `AttentionInterface`; the table of a packed row is an int32 `attention_mask` of
    shape (1, 1, N, 5), any other mask is `sdpa`'s own."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return sdpa_attention_forward(module, query, key, value, mask, is_causal=mask is None, **kwargs)[0]

    table = [tuple(line) for line in attention_mask[0, 0].tolist()]
    return attend_by_group(attend, table, query, key, value), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside of an adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def prepare(model: nn.Module, layout: str = FLAT) -> None:
    """Hang the hooks into a model with TRL's fused LM head.

    With them the model also takes

    - `scored`: rows and positions, counted from the end of a row, that carry a label, (L,) each: only they reach the LM
      head, and `shift_labels` and everything per token is (1, L);
    - `branches` and `prefixes`, (N, 3) and (N, 2), the tables of packed rows (`mfpo_trl.batch.packing`), which become the mask
      and the positions of its attention kernel.

    Equal images of a batch are encoded once.

    Args:
        model: a model, or an adapter around it.
        layout: of the batches that will come. Where all groups lie in one row, `sdpa` is replaced by `PACKED_SDPA` in its
            language part; every other kernel, also `sdpa` over several rows, reads a mask.
    """
    base = unwrapped(model)
    if layout == PACKED_ROW and attention_kernel(base.config.get_text_config()) == "sdpa":
        base.set_attn_implementation({"text_config": PACKED_SDPA})
    rows = _Rows()
    base.base_model.register_forward_pre_hook(rows.enter, with_kwargs=True)
    base.base_model.register_forward_hook(rows.leave)
    tower = base.get_encoder(modality="image")
    if tower is not base:
        images = _DistinctImages()
        tower.register_forward_pre_hook(images.enter, with_kwargs=True)
        tower.register_forward_hook(images.leave)


class _Rows:
    """Hooks of the backbone: tables to mask and positions before it, labelled positions only behind it."""

    def __init__(self):
        self.scored: tuple[Tensor, Tensor] | None = None

    def enter(self, backbone: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs = dict(kwargs)
        self.scored = kwargs.pop("scored", None)
        branches, prefixes = kwargs.pop("branches", None), kwargs.pop("prefixes", None)
        if prefixes is not None:
            # A model's own forward gives its backbone some of them by their places.
            kwargs |= dict(zip(signature(backbone.forward).parameters, args, strict=False))
            args = ()
            kwargs |= _packed_arguments(backbone, spans(branches, prefixes), kwargs)
        return args, kwargs

    def leave(self, backbone: PreTrainedModel, args: tuple, output: Any) -> Any:
        if self.scored is not None:
            row, position = self.scored
            output.last_hidden_state = output.last_hidden_state[row, position][None]
        return output


def _packed_arguments(backbone: PreTrainedModel, table: list, inputs: dict[str, Any]) -> dict[str, Any]:
    """`attention_mask` and `position_ids` of a packed batch, in the form that the model's attention kernel takes."""
    tokens = inputs["input_ids"]
    group, branch, position = (ids.to(tokens.device) for ids in token_ids(table, *tokens.shape))
    kernel = attention_kernel(backbone.config.get_text_config())
    if kernel == PACKED_SDPA:
        assert len(tokens) == 1, "PACKED_SDPA reads one row that holds all groups"
        mask: Any = torch.tensor(table, dtype=torch.int32)[None, None]
    elif kernel == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        rule, (rows, width) = visibility(group, branch), tokens.shape
        mask = create_block_mask(rule, rows, None, width, width, device=tokens.device)
    else:
        mask = dense_mask(group, branch, backbone.get_input_embeddings().weight.dtype)
    # A model's own count of positions covers several axes only where it was given images.
    if hasattr(backbone, "get_rope_index") and inputs.get("image_grid_thw") is not None:
        read = signature(backbone.get_rope_index).parameters
        named = {name: value for name, value in inputs.items() if name in read and name != "attention_mask"}
        position = multi_axis_positions(backbone.get_rope_index, table, named)
    return {"attention_mask": mask, "position_ids": position}


class _DistinctImages:
    """Hooks of the vision tower: equal images go in once, and what comes out is repeated.

    Images lie along the first dimension, or, with a `grid_thw` of (time, height, width) in patches for each image, one
    after the other as patches.
    """

    def __init__(self):
        self.repeats: tuple[list[int], list[int]] | None = None

    def enter(self, tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        self.repeats = None
        pixels = args[0] if args else kwargs.get("pixel_values", kwargs.get("hidden_states"))
        grid = kwargs.get("grid_thw")
        if not isinstance(pixels, Tensor) or (len(args) > 1 and grid is None):
            return None
        sizes = grid.prod(dim=-1).tolist() if grid is not None else [1] * len(pixels)
        index = same_images(pixels, sizes)
        first = sorted(set(index))
        if len(first) == len(index):
            return None
        self.repeats = [sizes[n] for n in first], [first.index(n) for n in index]

        def distinct(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) not in (len(pixels), len(sizes)):
                return value
            return torch.cat([part for n, part in enumerate(_split(value, sizes)) if n in set(first)])

        return tuple(map(distinct, args)), {name: distinct(value) for name, value in kwargs.items()}

    def leave(self, tower: nn.Module, args: tuple, output: Any) -> Any:
        if self.repeats is None:
            return output
        sizes, index = self.repeats

        def repeated(value: Any) -> Any:
            if isinstance(value, dict):
                for name in list(value):
                    value[name] = repeated(value[name])
                return value
            if isinstance(value, tuple | list):
                return type(value)(map(repeated, value))
            if not isinstance(value, Tensor):
                return value
            parts = _split(value, sizes)
            return torch.cat([parts[n] for n in index])

        return repeated(output)


def _split(value: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """The part of each image: a tensor with one entry an image, or with a fixed number of entries a patch or of patches an
    entry."""
    if len(value) == len(sizes):
        return value.split(1)
    return value.split([size * len(value) // sum(sizes) for size in sizes])


def same_images(pixels: Tensor, sizes: Sequence[int]) -> list[int]:
    """For each image the number of the first one that has the same pixels.

    Args:
        pixels: the images one after the other along the first dimension.
        sizes: how many entries of it each image takes.
    """
    images = pixels.split(list(sizes))
    if len(images) == 1:
        return [0]
    # One transfer from the device; equal sums are then compared bit by bit.
    sums = torch.stack([image.float().abs().sum() for image in images]).tolist()
    seen: dict[tuple, list[int]] = {}
    index = []
    for number, image in enumerate(images):
        alike = seen.setdefault((sums[number], tuple(image.shape)), [])
        index.append(next((other for other in alike if torch.equal(images[other], image)), number))
        alike.append(number)
    return index
