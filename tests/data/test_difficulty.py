"""How hard a row is: against plain logits, against hand arithmetic, and in any order and batch."""

import math
import os
import random
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.generation import GenerationConfig

from mfpo_trl.data.difficulty.measures import DIFFICULTIES, build_difficulty
from mfpo_trl.data.difficulty.semantic_entropy import same_words, semantic_entropy
from mfpo_trl.order.curriculum import stages
from mfpo_trl.rows.schema import ROW_NUMBER, RowError, to_rgb


@cache
def sharp() -> tiny.LlavaForConditionalGeneration:
    """The tiny model with a distribution far from uniform, so that its entropies differ between rows."""
    model = tiny.model().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(6)
    return model


@cache
def processor() -> tiny.LlavaProcessor:
    return tiny.processor()


SAMPLING = {"samples": 4, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A model with a published model's generation settings, which would make all of its samples one."""
    path = str(tmp_path_factory.mktemp("model"))
    sharp().save_pretrained(path)
    tiny.processor().save_pretrained(path)
    GenerationConfig(do_sample=True, top_k=1, eos_token_id=[2, 5], pad_token_id=0).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder):
    """The scorer of a name on that model, loaded once."""
    return cache(lambda name: build_difficulty(name, model=folder, device="cpu"))


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """One picture, two, none, a plain row without, one of a single answer token, one picture as the bytes of a file."""
    from test_rows import encoded

    found = tiny.rows(6)
    found[1]["images"] = [tiny.picture(1), tiny.picture(2, 30, 50)]
    found[2]["images"] = []
    found[3] = {"prompt": "two birds sit by", "chosen": " a tree", "rejected": " the grass"}
    found[4]["chosen"] = [{"role": "assistant", "content": "a"}]
    found[5]["images"] = [{"bytes": encoded(tiny.picture(5), "PNG"), "path": None}]
    return found


def straight(row: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (C, V) at the answer's positions and its ids (C,), from one call of the plain model by a plain processor."""
    if isinstance(row["prompt"], str):
        prompt, answer = row["prompt"], row["chosen"] + "</s>"
    else:
        pictures = "<image>\n" * len(row["images"])
        prompt = f"USER: {pictures}{row['prompt'][0]['content']} ASSISTANT:"
        answer = f" {row['chosen'][0]['content']} </s>"
    images = [to_rgb(image) for image in row.get("images") or []]
    inputs = processor()(text=[prompt], images=images or None, return_tensors="pt")
    ids = processor().tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
    tokens = torch.cat([inputs["input_ids"], ids], dim=1)
    pixels = {"pixel_values": inputs["pixel_values"]} if images else {}
    with torch.no_grad():
        logits = sharp()(input_ids=tokens, attention_mask=torch.ones_like(tokens), **pixels).logits[0]
    return logits[-ids.size(1) - 1 : -1], ids[0]


def test_nll_is_that_of_plain_logits(scorer, rows):
    found = scorer("nll")(rows)
    expected = []
    for row in rows:
        logits, ids = straight(row)
        expected.append(torch.nn.functional.cross_entropy(logits, ids).item())
    assert len(set(np.round(expected, 3))) == len(rows)
    assert found == pytest.approx(expected, abs=1e-4)


def test_token_entropy_is_that_of_plain_logits(scorer, rows):
    found = scorer("token-entropy")(rows)
    expected = []
    for row in rows:
        p = straight(row)[0].double().softmax(dim=-1)
        expected.append(-(p * p.log()).sum(dim=-1).mean().item())
    assert len(set(np.round(expected, 3))) == len(rows)
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["nll", "token-entropy"])
def test_a_row_does_not_feel_its_batch(scorer, rows, name, monkeypatch):
    score = scorer(name)
    whole = score(rows)
    assert [score([row])[0] for row in rows] == pytest.approx(whole, abs=1e-5)
    assert score(rows[::-1]) == pytest.approx(whole[::-1], abs=1e-5)
    monkeypatch.setattr("mfpo_trl.data.difficulty.measures.ROWS_AT_ONCE", 4)
    assert score(rows) == pytest.approx(whole, abs=1e-5)
    assert score([]) == []


def test_a_harder_answer_is_harder(scorer, rows):
    """The model's own most probable token as the answer has the smallest likelihood loss of all single tokens."""
    score = scorer("nll")
    row, tokenizer = rows[3], processor().tokenizer
    logits, _ = straight(row)
    best, worst = (tokenizer.decode([int(n)]) for n in (logits[0, 6:].argmax() + 6, logits[0, 6:].argmin() + 6))
    easy, hard = score([row | {"chosen": best}, row | {"chosen": worst}])
    assert easy < hard


@pytest.mark.parametrize("name", ["nll", "semantic-entropy"])
def test_a_number_that_is_not_finite_names_the_row(tmp_path, rows, name):
    model = tiny.model()
    with torch.no_grad():
        model.get_output_embeddings().weight[:] = math.nan
    model.save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    score = build_difficulty(name, model=str(tmp_path), device="cpu", **SAMPLING)
    with pytest.raises(RowError, match="row 7 .*what is in image 0"):
        score([rows[0] | {ROW_NUMBER: 7}])


def test_semantic_entropy_by_hand():
    """Ten answers in clusters of 5, 3 and 2."""
    texts = ["A dog.", "a cat", "the dog", "two birds", "dog", "Cat!", "dog", "a  dog", "cat", "Two birds."]
    expected = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    assert semantic_entropy(texts, None, same_words) == pytest.approx(expected, abs=1e-12)
    assert semantic_entropy(texts, None, lambda *_: True) == 0 == semantic_entropy(["a"], [-3.0], same_words)
    assert semantic_entropy(texts, None, lambda *_: False) == pytest.approx(math.log(10))


def test_rao_blackwell_by_hand():
    """Probabilities 0.2, 0.1 and 0.1 in clusters {0, 2} and {1}: masses 0.75 and 0.25, whatever the common factor."""
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    for factor in (0.0, -2000.0):
        logps = [math.log(p) + factor for p in (0.2, 0.1, 0.1)]
        assert semantic_entropy(["cat", "dog", "a cat"], logps, same_words) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("logps", [[0.0], [0.0, math.nan], [0.0, -math.inf]])
def test_semantic_entropy_refuses(logps):
    with pytest.raises(ValueError, match="expected a finite log-probability each"):
        semantic_entropy(["a", "b"], logps, same_words)
    with pytest.raises(ValueError, match="at least one answer"):
        semantic_entropy([], None, same_words)


def test_clusters_compare_with_their_first_member_only():
    """Numbers that mean the same when they differ by 1 at most: 1 takes 2 in, and 3, a neighbour of 2 alone, stays out."""
    asked = []

    def near(one: str, other: str) -> bool:
        asked.append((one, other))
        return abs(int(one) - int(other)) <= 1

    found = semantic_entropy(["1", "2", "3", "0", "4"], None, near)
    assert asked == [("1", "2"), ("1", "3"), ("1", "0"), ("1", "4"), ("3", "4")]
    assert found == pytest.approx(-(0.6 * math.log(0.6) + 0.4 * math.log(0.4)))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("A red dog.", "the RED dog", True),
        ("an apple", "apple", True),
        ("snow-covered", "snow covered", True),
        ("1.5 m", "15 m", False),
        ("a theatre", "theatre", True),
        ("theatre", "atre", False),
        ("किताब", "कतब", False),
    ],
)
def test_normal_form(one, other, expected):
    assert same_words(one, other) is expected


def test_sampling_does_not_depend_on_order_or_on_the_global_seed(folder, rows):
    score = build_difficulty("semantic-entropy", model=folder, device="cpu", **SAMPLING)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    samples = [score.sample(row)[0] for row in rows]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(len(own) == 4 for own in samples)
    assert len({text for own in samples for text in own}) > 12, "top_k=1 of the published settings must not rule"
    order = random.Random(0).sample(range(len(rows)), len(rows))
    torch.manual_seed(2)
    again = build_difficulty("semantic-entropy", model=folder, device="cpu", **SAMPLING)
    assert [again.sample(rows[n])[0] for n in order] == [samples[n] for n in order]
    assert again(rows)[::-1] == score(rows[::-1])
    assert again(rows) == [semantic_entropy(own, None, same_words) for own in samples]
    other = build_difficulty("semantic-entropy", model=folder, device="cpu", seed=1, **SAMPLING)
    assert all(other.sample(row)[0] != own for row, own in zip(rows, samples, strict=True))


def test_rao_blackwell_weighs_by_the_models_own_probabilities(folder, rows):
    """Each sample's tokens are scored again by the plain model, alone and at the temperature, to its end."""
    options = {"samples": 40, "max_new_tokens": 3, "temperature": 1.5, "rao_blackwell": True}
    score = build_difficulty("semantic-entropy", model=folder, device="cpu", **options)
    model, ended = sharp(), 0
    seen = {}
    real = score._mean_logps
    score._mean_logps = lambda tokens, scores: seen.setdefault("tokens", tokens) is None or real(tokens, scores)
    for row in rows[:3]:
        seen.clear()
        _, logps = score.sample(row)
        prompt = score.collator.encode(row)["image", "chosen"].prompt
        length, pixels = len(prompt.tokens["input_ids"]), prompt.vision
        for tokens, found in zip(seen["tokens"].tolist(), logps, strict=True):
            end = next((n + 1 for n, token in enumerate(tokens) if token in (2, 5)), len(tokens))
            if 4 in tokens[:end]:
                continue  # a sampled <image>, which the plain model would take for another picture
            ended += end < len(tokens)
            ids = torch.cat([prompt.tokens["input_ids"], torch.tensor(tokens[:end])])[None]
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits[0] / 1.5
            expected = logits[length - 1 : -1].log_softmax(-1)[range(end), tokens[:end]].mean()
            assert found == pytest.approx(expected.item(), abs=1e-4)
    assert ended, "no sample ended early, so the end was not tested"


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "cat", "red", "a", "what", "is"]


def nli(path, bias=None, labels=("contradiction", "neutral", "entailment"), limit=64) -> str:
    """A tiny random classifier, with safetensors weights; a `bias` makes one label win always."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=limit
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
    )
    model = BertForSequenceClassification(config)
    if bias is not None:
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor(bias))
    model.save_pretrained(path)
    return str(path)


def sampler(folder, nli_model):
    return build_difficulty("semantic-entropy", model=folder, device="cpu", nli_model=nli_model, **SAMPLING)


def test_entailment_decides_what_means_the_same(folder, rows, tmp_path):
    texts = [sampler(folder, None).sample(row)[0] for row in rows]
    always = sampler(
        folder, nli(tmp_path / "always", bias=[0.0, 0.0, 9.0], labels=("c", "n", "ENTAILMENT"), limit=500)
    )
    assert always(rows) == [0.0] * len(rows)
    never = sampler(folder, nli(tmp_path / "never", bias=[0.0, 9.0, 0.0], limit=500))
    assert never(rows) == pytest.approx([semantic_entropy(own, None, str.__eq__) for own in texts])


def test_entailment_goes_both_ways_and_reads_the_question(folder, tmp_path):
    """Against the classifier's own logits for every ordered pair of texts."""
    path = nli(tmp_path)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    same = sampler(folder, path)._same("what is")
    texts = ["dog", "cat", "red", "a", "dog cat", "red dog", "a cat", "is a dog", "cat cat red"]
    entails = {}
    for one in texts:
        for other in texts:
            with torch.no_grad():
                logits = model(**tokenizer(f"what is {one}", f"what is {other}", return_tensors="pt")).logits[0]
            entails[one, other] = int(logits.argmax()) == 2
    assert any(entails[a, b] and not entails[b, a] for a, b in entails), "a one-way case must be among them"
    assert any(entails[a, b] and entails[b, a] and a != b for a, b in entails)
    for one, other in entails:
        assert same(one, other) == (one == other or (entails[one, other] and entails[other, one])), (one, other)


def test_a_classifier_that_cannot_be_used(folder, rows, tmp_path):
    with pytest.raises(
        ValueError, match=r"labels \['positive', 'negative'\]; expected one of them to be 'entailment'"
    ):
        sampler(folder, nli(tmp_path / "mood", labels=("positive", "negative")))
    with pytest.raises(ValueError, match="nli_model .*nowhere.* cannot be loaded"):
        sampler(folder, str(tmp_path / "nowhere"))
    with pytest.raises(RowError, match="what is in image 0.*tokens and nli_model reads 8; lower max_new_tokens"):
        sampler(folder, nli(tmp_path / "short", limit=8))(rows[:1])


def test_mask_area():
    score = build_difficulty("mask-area")
    assert score([{"mask_area": 0.25}, {}, {"mask_area": None}, {"mask_area": 1}]) == [0.75, 0.0, 0.0, 0.0]
    for area in (1.5, -0.1, math.nan):
        with pytest.raises(RowError, match="row 3, field 'mask_area'"):
            score([{"mask_area": area, ROW_NUMBER: 3}])


def test_names_and_settings(folder):
    assert build_difficulty("none") is None
    with pytest.raises(ValueError, match="unknown difficulty 'semantic_entropy'; did you mean 'semantic-entropy'"):
        build_difficulty("semantic_entropy")
    with pytest.raises(ValueError, match="unknown difficulty 'zzz'; did you mean"):
        build_difficulty("zzz")
    assert list(DIFFICULTIES) == ["nll", "token-entropy", "semantic-entropy", "mask-area", "none"]
    for name in ("nll", "token-entropy", "semantic-entropy"):
        with pytest.raises(ValueError, match="needs a model"):
            build_difficulty(name)
    for wrong in ({"samples": 1}, {"temperature": 0.0}, {"temperature": math.nan}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            build_difficulty("semantic-entropy", model=folder, **wrong)


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    path = tiny.save_pretrained(tmp_path)
    torch.save(tiny.model().state_dict(), tmp_path / "pytorch_model.bin")
    os.remove(tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"are pickles only \(pytorch_model.bin\).* become safetensors with: python -c"
    ):
        build_difficulty("nll", model=path)


def test_stages_by_hand():
    assert stages([5.0, 1.0, 3.0, 2.0, 9.0, 4.0]).tolist() == [2, 0, 1, 0, 2, 1]
    assert stages([1.0] * 7).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert stages([2.0, 1.0, 2.0, 1.0], count=2).tolist() == [1, 0, 1, 0]
    assert stages([3.0, 1.0], count=5).tolist() == [1, 0]
    assert stages([], count=3).tolist() == [] and stages(np.arange(4)).dtype == np.int64


def test_stages_refuse():
    with pytest.raises(ValueError, match="2 of 4 difficulties are not a number"):
        stages([1.0, math.nan, None, 2.0])
    with pytest.raises(ValueError, match="at least 1 stage"):
        stages([1.0], count=0)
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        stages(np.ones((1, 2)))


@given(st.lists(st.floats(allow_nan=False), max_size=40), st.integers(1, 7))
def test_stages_are_even_and_monotone(values, count):
    found = stages(values, count)
    sizes = np.bincount(found, minlength=count)
    assert len(sizes) == count and sizes.sum() == len(values) and sizes.max() - sizes.min() <= 1
    order = sorted(range(len(values)), key=lambda n: (values[n], n))
    assert (np.diff(found[order]) >= 0).all()
