"""How an answer ends."""

from typing import Any

from transformers import PreTrainedTokenizerBase


def end_completion(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """End a completion with the end-of-sequence token, so that stopping is learnt.

    A completion that ends with a special token, such as a chat template's end of turn, up to blank tokens, stays as it
    is. Otherwise blank tokens that the template left behind the answer make room for the end-of-sequence token.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token.
    """
    eos = end_of_sequence(tokenizer)
    last = len(ids)
    while last and not tokenizer.decode([ids[last - 1]]).strip():
        last -= 1
    added = tokenizer.added_tokens_decoder
    closed = last and (ids[last - 1] == eos or (ids[last - 1] in added and added[ids[last - 1]].special))
    return ids if closed else [*ids[:last], eos]


def end_answers(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`end_completion` of both answers of a row without images, as TRL has tokenized it."""
    return {name: end_completion(row[name], tokenizer) for name in ("chosen_ids", "rejected_ids")}


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a completion.

    Raises:
        ValueError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("add_eos=True needs a tokenizer with an end-of-sequence token; set it, or set add_eos=False")
    return tokenizer.eos_token_id
