"""Packed rows: branches that share image and prompt share the prompt's tokens.

A packed row holds, one after the other, *groups* of

    prompt without its last token | last prompt token + response 1 | last prompt token + response 2 | ...

each response without its last token, so that every position of a branch predicts exactly one of its labels. A branch sees
its prompt and itself, never its sister, and its positions continue the prompt's. Beside `branches` (N, 3) of
`mfpo_trl.objective.branches` a packed batch has `prefixes`, (N, 2): start and length of the tokens of its row that a branch sees
before its own.

Shapes: N branches, R rows, T tokens of a row, L labels, A axes of a position.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

FLAT, PACKED_ROWS, PACKED_ROW = "flat", "packed rows", "packed row"
"""The layouts: a row a branch; groups in rows, each row with a mask of its own; all groups of a batch in one row."""

Span = tuple[int, int, int, int, int]
"""Row, start and length of a branch, start and length of its prefix."""


def spans(branches: Tensor, prefixes: Tensor) -> list[Span]:
    """The two tables as one list of integers."""
    return [tuple(line) for line in torch.cat([branches, prefixes], dim=1).tolist()]


def token_ids(table: Sequence[Span], rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each token belongs to.

    Returns:
        Its group, its branch within the row (0 in a prompt), and its position; (R, T) each. Padding is in group -1.
    """
    group = torch.full((rows, width), -1)
    branch = torch.zeros(rows, width, dtype=torch.long)
    position = torch.zeros(rows, width, dtype=torch.long)
    for number, (row, start, length, first, prefix) in enumerate(table, 1):
        group[row, first : first + prefix] = first
        position[row, first : first + prefix] = torch.arange(prefix)
        group[row, start : start + length] = first
        branch[row, start : start + length] = number
        position[row, start : start + length] = torch.arange(prefix, prefix + length)
    return group, branch, position


def visibility(group: Tensor, branch: Tensor) -> Callable[..., Tensor]:
    """The rule of who sees whom as a function of indices `(row, head, query, key)`, as flex attention asks for it."""

    def sees(row: Tensor, head: Any, query: Tensor, key: Tensor) -> Tensor:
        own = (branch[row, key] == 0) | (branch[row, key] == branch[row, query])
        return (key <= query) & (group[row, key] == group[row, query]) & own

    return sees


def dense_mask(group: Tensor, branch: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask of eager attention, (R, 1, T, T): 0 where a token is seen, the smallest number elsewhere."""
    rows, width = group.shape
    row = torch.arange(rows, device=group.device)[:, None, None]
    place = torch.arange(width, device=group.device)
    seen = visibility(group, branch)(row, None, place[None, :, None], place[None, None, :])
    mask = torch.zeros(seen.shape, dtype=dtype, device=group.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def groups(table: Sequence[Span]) -> list[list[Span]]:
    """The spans of each group together, in the order of rows and starts."""
    found: dict[tuple[int, int], list[Span]] = {}
    for span in sorted(table):
        found.setdefault((span[0], span[3]), []).append(span)
    return list(found.values())


def attend_by_group(
    attend: Callable[..., Tensor], table: Sequence[Span], query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Attention over one packed row, group by group and without a mask of the whole row.

    A prompt attends to itself causally, and all branches of a group to that group in one call: nothing is computed
    between groups, nor from a prompt to its branches. Every group costs launches in every layer, so that what is not
    attention itself is done once for all groups (`benchmarks/kernel_launches.py` counts).

    Args:
        attend: (query, key, value, mask) -> (1, T', heads, D); a mask of None is a causal one, else it is added to the
            scores, (1, 1, T', S) in the type of the queries.
        table: the spans of the row, whose groups follow each other from its beginning.
        query, key, value: (1, heads, T, D).

    Returns:
        (1, T, heads, D); zero at padding.
    """
    grouped = groups(table)
    sizes = [(group[0][4], sum(span[2] for span in group)) for group in grouped]
    padding = query.size(2) - sum(map(sum, sizes))
    # Split, not sliced: the gradient of a slice is a tensor as large as what it was cut from.
    queries = query.split([*(length for size in sizes for length in size), padding], dim=2)
    index = _prompts_index(tuple(sizes), query.device)
    keys, values = (
        _PromptsAndGroups.apply(tensor, sizes, padding, index)  # type: ignore[no-untyped-call]
        for tensor in (key, value)
    )
    parts = []
    for number, (group, (prefix, _)) in enumerate(zip(grouped, sizes, strict=True)):
        if prefix:
            parts.append(attend(queries[2 * number], keys[2 * number], values[2 * number], None))
        mask = _branches_mask(tuple(group), query.device, query.dtype)
        parts.append(attend(queries[2 * number + 1], keys[2 * number + 1], values[2 * number + 1], mask))
    if padding:
        parts.append(parts[-1].new_zeros(1, padding, *parts[-1].shape[2:]))
    return torch.cat(parts, dim=1)


class _PromptsAndGroups(torch.autograd.Function):
    """Keys or values of each prompt and of each whole group, in turn, as parts of the same memory.

    Autograd alone would fill and add a tensor for each of them: here the gradients of all groups are put one behind the
    other, and those of all prompts are added in one go.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: Sequence[tuple[int, int]], padding: int, index: Tensor) -> Any:
        ctx.padding, ctx.index = padding, index
        parts, at = [], 0
        for prefix, rest in sizes:
            parts += [tensor.narrow(2, at, prefix), tensor.narrow(2, at, prefix + rest)]
            at += prefix + rest
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        parts = [*gradients[1::2]]
        if ctx.padding:
            parts.append(parts[0].new_zeros(*parts[0].shape[:2], ctx.padding, parts[0].shape[3]))
        whole = torch.cat(parts, dim=2)
        if len(ctx.index):
            whole.index_add_(2, ctx.index, torch.cat(gradients[0::2], dim=2))
        return whole, None, None, None


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _prompts_index(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """The places of all prompts' tokens in their row, (tokens,); kept as the masks are."""
    starts = [0, *accumulate(map(sum, sizes))]
    places = [range(start, start + prefix) for start, (prefix, _) in zip(starts, sizes, strict=False)]
    return torch.tensor([*chain(*places)], device=device)


MASK_ALIGNMENT = 16
"""Entries to which CUDA's attention kernels want the rows of a mask aligned; others are copied in each call."""


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _branches_mask(group: tuple[Span, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """What the branches of a group see of their group, (1, 1, labels of the group, tokens of the group): 0 where a token is
    seen, minus infinity elsewhere, as PyTorch would make it of a bool mask in each call; kept, because every layer of a
    model asks for the same one."""
    first, prefix = group[0][3], group[0][4]
    total = sum(span[2] for span in group)
    seen = torch.zeros(total, prefix + total, dtype=torch.bool)
    seen[:, :prefix] = True
    for _, start, length, _, _ in group:
        at = start - first - prefix
        triangle = torch.ones(length, length, dtype=torch.bool).tril()
        seen[at : at + length, prefix + at : prefix + at + length] = triangle
    width = -(-seen.size(1) // MASK_ALIGNMENT) * MASK_ALIGNMENT
    mask = torch.zeros(total, width, dtype=dtype)
    mask[:, : seen.size(1)].masked_fill_(~seen, float("-inf"))
    return mask.to(device)[None, None, :, : seen.size(1)]


def multi_axis_positions(
    rope_index: Callable[..., tuple[Tensor, Tensor]], table: Sequence[Span], inputs: Mapping[str, Tensor]
) -> Tensor:
    """Positions of models that count along several axes, (A, R, T): the first branch of each group goes on as the model's
    own `rope_index` says for prompt and response, and its sisters start where it started.

    Args:
        rope_index: the model's `get_rope_index`, called with keywords for a batch of ordinary rows.
        table: the spans of the batch.
        inputs: `input_ids` and `mm_token_type_ids`, (R, T), and what else `rope_index` reads.
    """
    grouped = groups(table)
    firsts = [group[0] for group in grouped]
    width = max(prefix + length for _, _, length, _, prefix in firsts)
    device = inputs["input_ids"].device
    mask = torch.zeros(len(firsts), width, dtype=torch.long, device=device)
    tokens = {name: torch.zeros_like(mask) for name in ("input_ids", "mm_token_type_ids")}
    for line, (row, start, length, first, prefix) in enumerate(firsts):
        mask[line, : prefix + length] = 1
        for name, values in tokens.items():
            values[line, :prefix] = inputs[name][row, first : first + prefix]
            values[line, prefix : prefix + length] = inputs[name][row, start : start + length]
    rest = {name: value for name, value in inputs.items() if name not in tokens}
    ordinary = rope_index(**tokens, **rest, attention_mask=mask)[0]
    positions = ordinary.new_zeros(ordinary.size(0), *inputs["input_ids"].shape)
    for line, group in enumerate(grouped):
        for row, start, length, first, prefix in group:
            positions[:, row, first : first + prefix] = ordinary[:, line, :prefix]
            steps = torch.arange(length, device=device)
            positions[:, row, start : start + length] = ordinary[:, line, prefix, None] + steps
    return positions
