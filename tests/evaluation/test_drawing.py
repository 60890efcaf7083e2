"""Drawn answers: the model's distribution, the same ones wherever they are drawn, each prompt read once."""

import logging

import families
import pytest
import tiny

from mfpo_trl.evaluation import drawing as module
from mfpo_trl.evaluation.drawing import Drawing, draw
from mfpo_trl.evaluation.generate import Decoding, answer
from mfpo_trl.evaluation.prompts import Prompt, one_turn


def prompt(text: str, *pictures, name=0) -> Prompt:
    return Prompt({"id": name}, one_turn(text, len(pictures)), lambda: list(pictures))


PROMPTS = [prompt("what is in it?", tiny.picture(1, 40, 40), name="a"), prompt("a red dog?", tiny.picture(2, 40, 40))]
SEEDS = [[11, 12, 13], [21, 22, 23]]
NOT_SHARED = ("gemma3", "paligemma")


@pytest.mark.parametrize("family", families.FAMILIES)
def test_an_answer_depends_on_its_seed_only(family, caplog):
    """Together with others, their prompts read once, or alone: for every family, and no family is read again without a word."""
    model, processor = families.FAMILIES[family]()
    drawing = Drawing(temperature=1.0, max_new_tokens=6)
    with caplog.at_level(logging.WARNING, logger=module.logger.name):
        together = draw(model, processor, PROMPTS, drawing, SEEDS)
    assert bool(caplog.records) == (family == "gemma3")
    alone = [
        [draw(model, processor, [own], drawing, [[seed]])[0][0] for seed in seeds]
        for own, seeds in zip(PROMPTS, SEEDS, strict=True)
    ]
    assert together == alone
    assert len({text for texts in together for text in texts}) > 1
    greedy = draw(model, processor, PROMPTS, Drawing(temperature=0, max_new_tokens=6), [[1, 2], [3, 4]])
    plain = {id(own): text for batch in answer(model, processor, PROMPTS, Decoding(6), 2) for own, text in batch}
    assert [[text.strip() for text in own] for own in greedy] == [[plain[id(own)]] * 2 for own in PROMPTS]
