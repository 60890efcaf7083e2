"""Log-probabilities of the answers of preference rows, without a trainer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import _trl
from ..batch import MFPOCollator, choose_layout, prepare
from ..objective import BRANCHES, of_pairs, split_batch


class Answers:
    """Scores the answers of rows with a model that has TRL's fused LM head.

    Args:
        model: perhaps inside of an adapter; hooks are hung into it.
        processor: of the model.
        size: rows of a batch.
        prefix_sharing: as that of `MFPOConfig`.
    """

    def __init__(self, model: Any, processor: Any, size: int = 8, prefix_sharing: str = "auto"):
        self.model, self.size = model, size
        layout = choose_layout(model, prefix_sharing)
        prepare(model, layout.name)
        # An answer without a token for its end is scored as it stands.
        ends = processor.tokenizer.eos_token_id is not None
        self.collator = MFPOCollator(processor, branches=BRANCHES[:2], add_eos=ends, layout=layout.name)

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str] = ("chosen", "rejected")
    ) -> tuple[np.ndarray, np.ndarray]:
        """Summed log-probability of each answer, in nats, and its number of tokens, (rows, answers) each.

        Raises:
            RowError: a row that cannot be used.
        """
        collator = replace(self.collator, branches=tuple(answers))
        parts = [self._batch(collator, batch) for batch in _batches(rows, self.size)]
        logps, tokens = zip(*parts, strict=True)
        return np.concatenate(logps), np.concatenate(tokens)

    @torch.inference_mode()
    def _batch(self, collator: MFPOCollator, rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        inputs, branches, pairs = split_batch(collator(list(rows)))
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        replay = _trl.Replay(self.model, inputs, branches.to(self.model.device), pairs.to(self.model.device))
        replay.score()
        logps = replay.outputs.log_probs.double().sum(dim=1)
        columns = [(of_pairs(logps, replay.pairs, own), of_pairs(replay.branches[:, 2], replay.pairs, own)) for own in collator.branches]
        values, counts = zip(*columns, strict=True)
        return torch.stack(values, dim=1).cpu().numpy(), torch.stack(counts, dim=1).cpu().numpy()


def _batches(rows: Sequence[Mapping[str, Any]], size: int) -> Iterator[Sequence[Mapping[str, Any]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def spread(rows: int, count: int | None) -> list[int]:
    """The numbers of `count` rows that are spread evenly, the first and the last among them; all where there are no more."""
    if count is None or count >= rows:
        return list(range(rows))
    return np.unique(np.linspace(0, rows - 1, count).round().astype(int)).tolist()
