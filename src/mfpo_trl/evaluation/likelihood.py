"""Log-probabilities of the answers of preference rows, without a trainer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import _trl
from ..batch import MFPOCollator, choose_layout, prepare
from ..objective import BRANCHES, CHOSEN, BranchName, columns_of, of_pairs, split_batch
from .generation import Decoding, placed, plain_generation


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
        collator = replace(self.collator, branches=tuple(BranchName("image", own) for own in answers))
        parts = [self._batch(collator, batch) for batch in _batches(rows, self.size)]
        logps, tokens = zip(*parts, strict=True)
        return np.concatenate(logps), np.concatenate(tokens)

    @torch.inference_mode()
    def _batch(self, collator: MFPOCollator, rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        inputs, branches, pairs = split_batch(collator([dict(row) for row in rows]))
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        replay = _trl.Replay(self.model, inputs, branches.to(self.model.device), pairs.to(self.model.device))
        replay.score()
        logps = replay.outputs.log_probs.double().sum(dim=1)
        every = columns_of(collator.branches)
        columns = [
            (of_pairs(logps, replay.pairs, own, every), of_pairs(replay.branches[:, 2], replay.pairs, own, every))
            for own in collator.branches
        ]
        values, counts = zip(*columns, strict=True)
        return torch.stack(values, dim=1).cpu().numpy(), torch.stack(counts, dim=1).cpu().numpy()

    @torch.inference_mode()
    def greedy(self, rows: Sequence[Mapping[str, Any]], max_new_tokens: int) -> list[str]:
        """The model's own answer to each row's prompt and images, word by word the likeliest.

        Raises:
            RowError: a row that cannot be used.
        """
        collator = replace(self.collator, branches=(CHOSEN,))
        prompts = [collator.encode(row)[CHOSEN].prompt for row in rows]
        alike: dict[Any, list[int]] = {}
        for n, prompt in enumerate(prompts):
            # Rows of one length need no padding, and what is padded may be answered otherwise.
            shapes = tuple((name, value.shape[1:]) for name, value in sorted(prompt.vision.items()))
            alike.setdefault((len(prompt.tokens["input_ids"]), shapes), []).append(n)
        said = [""] * len(rows)
        with plain_generation(self.model, self.collator.processor, Decoding(max_new_tokens)):
            for group in alike.values():
                for batch in _batches(group, self.size):
                    for n, text in zip(batch, self._continued([prompts[n] for n in batch]), strict=True):
                        said[n] = text
        return said

    def _continued(self, prompts: Sequence[Any]) -> list[str]:
        inputs = {name: torch.stack([prompt.tokens[name] for prompt in prompts]) for name in prompts[0].tokens}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs |= {name: torch.cat([prompt.vision[name] for prompt in prompts]) for name in prompts[0].vision}
        found = self.model.generate(**placed(inputs, self.model))
        new = found[:, inputs["input_ids"].shape[1] :]
        said = self.collator.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in said]


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def spread(rows: int, count: int | None) -> list[int]:
    """The numbers of `count` rows that are spread evenly, the first and the last among them; all where there are no more."""
    if count is None or count >= rows:
        return list(range(rows))
    return np.unique(np.linspace(0, rows - 1, count).round().astype(int)).tolist()
