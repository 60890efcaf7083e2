"""Drawn answers: the model's distribution, the same ones wherever they are drawn, each prompt read once."""

import logging

import families
import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from mfpo_trl.evaluation.generation import drawing as module
from mfpo_trl.evaluation.generation.drawing import Drawing, draw, first_sentence
from mfpo_trl.evaluation.generation.generate import Decoding, answer, encode, written
from mfpo_trl.evaluation.generation.prompts import Prompt, one_turn


def prompt(text: str, *pictures, name=0) -> Prompt:
    return Prompt({"id": name}, one_turn(text, len(pictures)), lambda: list(pictures))


PROMPTS = [prompt("what is in it?", tiny.picture(1, 40, 40), name="a"), prompt("a red dog?", tiny.picture(2, 40, 40))]
SEEDS = [[11, 12, 13], [21, 22, 23]]


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


def test_answers_follow_the_models_probabilities():
    """2,000 first tokens of one prompt against the softmax of its logits, at a temperature and with a cut (chi-squared, by hand)."""
    model, processor = tiny.model(), tiny.processor()
    inputs = encode(processor, PROMPTS[:1])
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1].double()
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.6)):
        drawn = draw(model, processor, PROMPTS[:1], Drawing(temperature, top_p, 1), [list(range(2000))])[0]
        chances = (logits / temperature).softmax(-1)
        if top_p < 1:
            order = chances.argsort(descending=True)
            kept = order[: int((chances[order].cumsum(0) < top_p).sum()) + 1]
            chances = torch.zeros_like(chances).index_copy(0, kept, chances[kept] / chances[kept].sum())
        expected: dict[str, float] = {}
        for token, chance in enumerate(chances.tolist()):
            text = processor.tokenizer.decode([token], skip_special_tokens=True)
            expected[text] = expected.get(text, 0) + chance * len(drawn)
        common = {text: count for text, count in expected.items() if count >= 20}
        assert all(expected[text] > 0 for text in drawn)
        distance = sum((drawn.count(text) - count) ** 2 / count for text, count in common.items())
        # Its mean is the number of cells, its variance twice that.
        assert len(common) > 3 and distance < len(common) + 4 * np.sqrt(2 * len(common))


def test_the_numbers_are_those_of_the_cpu_whatever_the_device():
    """Where the probabilities add up to the answer's next number, by NumPy; a token without probability is never drawn."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4, 3, 50)).astype(np.float32)
    logits[:, :, 7] = -np.inf
    seeds, own = [5, 6, 7], [torch.Generator("cpu").manual_seed(seed) for seed in (5, 6, 7)]
    drawn = module._Drawn(Drawing(temperature=0.7), seeds, PROMPTS)
    for step in logits:
        chances = np.exp(step.astype(float) / 0.7)
        sums = np.cumsum(chances, axis=1) / chances.sum(axis=1, keepdims=True)
        numbers = [torch.rand(1, generator=one, dtype=torch.float64).item() for one in own]
        expected = [int(np.argmax(row > number)) for row, number in zip(sums, numbers, strict=True)]
        found = drawn(None, torch.from_numpy(step))
        assert found.argmax(dim=-1).tolist() == expected and 7 not in expected
        assert found.isfinite().sum() == 3


def test_a_begun_answer_goes_on():
    """The begun words stand where a training would have them: the greedy answer goes on as it would have."""
    model, processor = tiny.model(), tiny.processor()
    greedy = Drawing(temperature=0, max_new_tokens=8)
    (whole,) = draw(model, processor, PROMPTS[:1], greedy, [[0]])[0]
    tokens = processor.tokenizer(whole, add_special_tokens=False)["input_ids"]
    cuts = [
        n
        for n in range(1, len(tokens))
        if whole.startswith(begun := processor.tokenizer.decode(tokens[:n])) and begun.strip()
    ]
    assert cuts
    template = processor.chat_template
    for end in cuts[:3]:
        begun = processor.tokenizer.decode(tokens[:end])
        text = written(processor, PROMPTS[0], begun)
        assert text.endswith(f"ASSISTANT: {begun}".rstrip()) and "</s>" not in text
    assert processor.chat_template == template
    drawn = draw(model, processor, PROMPTS, Drawing(max_new_tokens=4), SEEDS, ["a red dog", ""])
    assert drawn[0] == draw(model, processor, PROMPTS[:1], Drawing(max_new_tokens=4), SEEDS[:1], ["a red dog"])[0]
    assert drawn[0] != draw(model, processor, PROMPTS[:1], Drawing(max_new_tokens=4), SEEDS[:1])[0]


@pytest.mark.parametrize(
    ("text", "first", "rest"),
    [
        ("A dog. A cat.", "A dog.", " A cat."),
        ("It is 1.5 m high! Look.", "It is 1.5 m high!", " Look."),
        ('He said "stop." Then', 'He said "stop."', " Then"),
        ("Mr. Smith waves. He", "Mr. Smith waves.", " He"),
        ("... A dog. B", "... A dog.", " B"),
        ("no end", "no end", ""),
        ("One.", "One.", ""),
        ("", "", ""),
        ("一只狗。 一只猫。", "一只狗。", " 一只猫。"),
    ],
)
def test_the_first_sentence(text, first, rest):
    assert first_sentence(text) == (first, rest)


def test_a_sentence_ends_the_writing():
    """Nothing is written behind the first sentence but the beginning of the next; others of the batch go on."""
    model, processor = tiny.model(), tiny.processor()
    seeds = [list(range(40))]
    whole = draw(model, processor, PROMPTS[:1], Drawing(max_new_tokens=40), seeds)[0]
    short = draw(model, processor, PROMPTS[:1], Drawing(max_new_tokens=40, sentence=True), seeds)[0]
    assert all(first_sentence(long)[0] == first_sentence(own)[0] for long, own in zip(whole, short, strict=True))
    assert sum(len(own) < len(long) for long, own in zip(whole, short, strict=True)) > 0
    assert all(len(first_sentence(own)[1].strip()) <= 12 for own in short)


def test_adapters_and_prompt_learning(caplog):
    """LoRA's past is that of its prompt; a prefix that an adapter writes itself is read with every answer, and a line says so."""
    processor = tiny.processor()
    lora = get_peft_model(tiny.model(), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    drawing = Drawing(max_new_tokens=4)
    together = draw(lora, processor, PROMPTS, drawing, SEEDS)
    assert together == [
        [draw(lora, processor, [own], drawing, [[s]])[0][0] for s in some]
        for own, some in zip(PROMPTS, SEEDS, strict=True)
    ]
    assert together != draw(tiny.model(), processor, PROMPTS, drawing, SEEDS)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with caplog.at_level(logging.WARNING, logger=module.logger.name):
        assert module._alone(get_peft_model(tiny.model(), config)) and not module._alone(lora)


def test_a_model_without_numbers_is_named():
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="no finite probabilities for its answer to {'id': 'a'}"):
        draw(model, tiny.processor(), PROMPTS, Drawing(), SEEDS)


@pytest.mark.parametrize("own", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}])
def test_settings_out_of_range(own):
    with pytest.raises(ValueError, match="expected"):
        Drawing(**own)
