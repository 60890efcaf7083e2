"""How many kernels the packed attention starts in a step, and what starting them costs beside the step itself.

    python benchmarks/kernel_launches.py                     # 32 groups, 32 layers, as in docs/scaling.md

Every PyTorch operation of one layer's packed attention that computes is counted as a launch, forward and backward with
gradient checkpointing (the forward runs twice); views and allocations are not. The attention's own backward is counted as
the three kernels that it starts on a GPU. One call over a whole row is counted beside it. A launch takes about 5
microseconds of the processor; the step's time is that of docs/scaling.md's formula, for as many pairs.
"""

import argparse
from collections import Counter
from typing import Any

import torch
from scaling import CHOSEN, IMAGE, LLAVA_7B, LORA, PROMPT, REJECTED, compute_seconds
from torch.utils._python_dispatch import TorchDispatchMode

from mfpo_trl.batch.packing import attend_by_group

LAUNCH = 5e-6
ATTENTION_BACKWARD = 3
TARGET = 0.03
NO_KERNEL = ("empty", "detach", "lift", "_to_copy.out", "new_empty", "unsafe_split")


class Launches(TorchDispatchMode):
    """Counts the operations that compute, by name."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        view = any(
            result.alias_info is not None and not result.alias_info.is_write for result in function._schema.returns
        )
        if not view and not name.startswith(NO_KERNEL):
            backward = "attention" in name and name.endswith("backward")
            self.found[name] += ATTENTION_BACKWARD if backward else 1
        return function(*args, **(kwargs or {}))


def table(groups: int) -> list[tuple[int, int, int, int, int]]:
    """The spans of a row: in turn a pair's group with both answers, and the one with the dispreferred image; short, because
    lengths change no count."""
    spans, at = [], 0
    for number in range(groups):
        lengths = (3, 2) if number % 2 == 0 else (3,)
        start = at + 4
        for length in lengths:
            spans.append((0, start, length, at, 4))
            start += length
        at = start
    return spans


def count(groups: int) -> Counter[str]:
    """Launches of one layer's attention in a step, by operation."""
    spans = table(groups)
    width = max(start + length for _, start, length, _, _ in spans)
    query, key, value = (torch.randn(1, 2, width, 8, requires_grad=True) for _ in range(3))

    def attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        return out.transpose(1, 2).contiguous()

    attend_by_group(attend, spans, query, key, value)  # the masks are made once for all layers
    with Launches() as launches:
        with torch.no_grad():
            attend_by_group(attend, spans, query, key, value)
        attend_by_group(attend, spans, query, key, value).sum().backward()
    return launches.found


def share(groups: int, layers: int, launches: int) -> tuple[float, float]:
    """Seconds of a step by docs/scaling.md's formula, and what starting so many kernels a layer is of it."""
    tokens = groups * (IMAGE + PROMPT) + groups // 2 * (2 * CHOSEN + REJECTED)
    step = compute_seconds(LLAVA_7B, LORA, tokens)
    return step, layers * launches * LAUNCH / step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=32, help="two a pair: the image's, and the dispreferred image's")
    parser.add_argument("--layers", type=int, default=LLAVA_7B.layers)
    args = parser.parse_args()
    found = count(args.groups)
    for name, number in found.most_common():
        print(f"{number:6d} {name}")
    launches = args.layers * found.total()
    step, part = share(args.groups, args.layers, found.total())
    print(f"{found.total()} a layer, {launches} in {args.layers} layers: {1e3 * launches * LAUNCH:.0f} ms")
    print(
        f"step of {args.groups // 2} pairs by docs/scaling.md: {1e3 * step:.0f} ms; share {part:.1%}, at most {TARGET:.0%}"
    )


if __name__ == "__main__":
    main()
