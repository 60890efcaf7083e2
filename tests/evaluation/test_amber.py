"""AMBER's figures against a transcription of its rules, word by word and question by question, on the real annotations."""

import json
import math
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from mfpo_trl.evaluation import main
from mfpo_trl.evaluation.benchmarks import amber
from mfpo_trl.evaluation.benchmarks.nouns import by_rules, finder

BENCHMARKS = os.environ.get("MFPO_BENCHMARKS", "")
real = pytest.mark.skipif(not BENCHMARKS, reason="MFPO_BENCHMARKS names the folder with the benchmarks' files")
DATA = Path(BENCHMARKS) / "amber"

ASSOCIATION = {
    "man": ["person", "people"],
    "woman": ["person"],
    "person": ["people"],
    "people": [],
    "dog": [],
    "sofa": ["couch"],
    "tree": ["forest"],
    "camera": [],
    "cat": [],
}
ROWS = [
    {"id": 1, "type": "generative", "truth": ["man", "woman", "sofa"], "hallu": ["dog", "tree"]},
    {"id": 2, "type": "generative", "truth": ["dog"], "hallu": []},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 5, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 6, "type": "discriminative-attribute-action", "truth": "no"},
    {"id": 7, "type": "relation", "truth": "no"},
    {"id": 8, "type": "discriminative-relation", "truth": "yes"},
]


@pytest.fixture
def small(tmp_path):
    folder = tmp_path / "amber"
    folder.mkdir()
    (folder / "annotations.json").write_text(json.dumps(ROWS))
    (folder / "relation.json").write_text(json.dumps(ASSOCIATION))
    (folder / "safe_words.txt").write_text("camera\ncat")
    return folder


def answered(path, texts):
    path.write_text("\n".join(json.dumps({"id": own, "response": text}) for own, text in texts.items()))
    return path


def scored(path, data, capsys, *more):
    """The JSON of a report."""
    capsys.readouterr()
    status = main(["amber", "--responses", str(path), "--data", str(data), "--json", *map(str, more)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def refused(path, data, capsys, *more):
    capsys.readouterr()
    assert main(["amber", "--responses", str(path), "--data", str(data), *map(str, more)]) == 1
    return capsys.readouterr().err


# The rules once more, in a straight line


def described(rows, texts, association, neutral, alike):
    """CHAIR, Cover, Hal and Cog in per cent; `alike(one, other)` tells whether two words are similar enough."""
    chair_score, chair_num = 0, 0.001
    cover_score, cover_num = 0, 0.001
    cog_score, cog_num = 0, 0.001
    free_score, free_num = 0, 0.001
    vocabulary = [*association, *(word for others in association.values() for word in others)]
    for row in rows:
        safe = [other for word in row["truth"] for other in association[word]] + row["truth"]
        safe_place = [n for n, word in enumerate(row["truth"]) for _ in association[word]]
        safe_place += range(len(row["truth"]))
        bad = [other for word in row["hallu"] for other in association[word]] + row["hallu"]
        bad_place = [n for n, word in enumerate(row["hallu"]) for _ in association[word]]
        bad_place += range(len(row["hallu"]))
        covered, imagined = [0] * len(row["truth"]), [0] * len(row["hallu"])
        said = [word for word in texts[row["id"]].split() if word in vocabulary]
        wrong = [0] * len(said)
        for place, word in enumerate(said):
            if word in neutral:
                continue
            if word in safe:
                covered[safe_place[safe.index(word)]] = 1
                continue
            if word in bad:
                imagined[bad_place[bad.index(word)]] = 1
            for n, other in enumerate(bad):
                if alike(word, other):
                    imagined[bad_place[n]] = 1
                    break
            excused = False
            for n, other in enumerate(safe):
                if alike(word, other):
                    excused = True
                    covered[safe_place[n]] = 1
                    break
            if not excused:
                wrong[place] = 1
        chair_score += sum(wrong)
        chair_num += len(wrong)
        cover_score += sum(covered)
        cover_num += len(covered)
        cog_score += sum(imagined)
        cog_num += len(imagined)
        free_score += not any(wrong)
        free_num += 1
    return {
        "chair": round(chair_score / chair_num * 100, 1),
        "cover": round(cover_score / cover_num * 100, 1),
        "hal": round(100 - free_score / free_num * 100, 1),
        "cog": round(cog_score / cog_num * 100, 1),
    }


TYPES = {
    "existence": ["discriminative-hallucination"],
    "state": ["discriminative-attribute-state"],
    "number": ["discriminative-attribute-number"],
    "action": ["discriminative-attribute-action"],
    "attribute": [f"discriminative-attribute-{one}" for one in ("state", "number", "action")],
    "relation": ["discriminative-relation", "relation"],
}


def questioned(rows, texts, group):
    """Accuracy, precision, recall and F1 in per cent."""
    counts = {}
    # Five tallies, each from 0.001 up: the attributes' are added, and all other types share one.
    for kind in TYPES[group] if group == "attribute" else [group]:
        counts[kind] = {"right": 0, "all": 0.001, "hit": 0, "said": 0.001, "found": 0, "true": 0.001}
    for row in rows:
        tally = next(
            (name for name in ("state", "number", "action", "existence") if row["type"] in TYPES[name]), "relation"
        )
        if group == "attribute":
            tally = row["type"]
        own = counts.get("discriminative" if group == "discriminative" else tally)
        if row["type"] == "generative" or own is None:
            continue
        own["all"] += 1
        if row["truth"] == "yes":
            own["right"] += texts[row["id"]] == "Yes"
        else:
            own["true"] += 1
            own["right"] += texts[row["id"]] == "No"
            own["found"] += texts[row["id"]] == "No"
        if texts[row["id"]] == "No":
            own["said"] += 1
            own["hit"] += row["truth"] == "no"
    total = {name: sum(one[name] for one in counts.values()) for name in next(iter(counts.values()))}
    accuracy = round(total["right"] / total["all"] * 100, 1)
    precision = round(total["hit"] / total["said"] * 100, 1)
    recall = round(total["found"] / total["true"] * 100, 1)
    more = 0.001 if group == "existence" else 0.0001
    f1 = round(2 * (precision / 100) * (recall / 100) / ((precision / 100) + (recall / 100) + more) * 100, 1)
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def per_cent(group):
    return {name: round(own["value"] * 100, 6) for name, own in group.items() if name != "words"}


# Held against it


@real
@pytest.mark.parametrize("seed, size, alike", [(0, 1004, 0), (1, 30, 0), (2, 1004, 3000), (3, 200, 20000)])
def test_descriptions_are_scored_as_by_the_rules(seed, size, alike, tmp_path, capsys):
    """Random words of the vocabulary, true ones, listed hallucinations and others, with and without similar words."""
    draw = random.Random(seed)
    rows = [row for row in json.loads((DATA / "annotations.json").read_text()) if row["type"] == "generative"]
    rows = draw.sample(rows, size)
    association = json.loads((DATA / "relation.json").read_text())
    words = sorted({*association, *(word for others in association.values() for word in others)})
    texts = {}
    for row in rows:
        near = [
            *row["truth"],
            *row["hallu"],
            *(other for word in row["truth"] + row["hallu"] for other in association[word]),
        ]
        texts[row["id"]] = " ".join(
            draw.choices(near, k=draw.randrange(9)) + draw.choices([*words, "Tree", "the"], k=draw.randrange(4))
        )
    pairs = [(draw.choice(words), draw.choice(words), round(draw.uniform(0.6, 1), 2)) for _ in range(alike)]
    table = {}
    for one, other, value in pairs:
        if other not in table.get(one, {}) and one not in table.get(other, {}):
            table.setdefault(one, {})[other] = value
    known = {frozenset((one, other)): value for one, others in table.items() for other, value in others.items()}
    (tmp_path / "table.json").write_text(json.dumps(table))
    more = ["--similarity", tmp_path / "table.json"] if alike else []
    found = scored(answered(tmp_path / "a.jsonl", texts), DATA, capsys, "--nouns", "words", *more)
    neutral = (DATA / "safe_words.txt").read_text().split("\n")
    expected = described(
        rows,
        texts,
        association,
        neutral,
        lambda one, other: one == other or known.get(frozenset((one, other)), 0) > 0.8,
    )
    assert per_cent(found["generative"]) == expected
    assert 0 < expected["cover"] < 100


@real
@pytest.mark.parametrize("seed", range(3))
def test_questions_are_scored_as_by_the_rules(seed, tmp_path, capsys):
    draw = random.Random(seed)
    rows = [row for row in json.loads((DATA / "annotations.json").read_text()) if row["type"] != "generative"]
    rows = draw.sample(rows, [14216, 100, 8][seed])
    said = ["Yes", "No", "No", "yes", "No.", "", "not sure"]
    texts = {row["id"]: draw.choice(said) if draw.random() < 0.5 else row["truth"].capitalize() for row in rows}
    found = scored(answered(tmp_path / "a.jsonl", texts), DATA, capsys)
    groups = {group for group in found if group in {"discriminative", *TYPES}}
    asked = {row["type"] for row in rows}
    assert groups == {"discriminative"} | {group for group, types in TYPES.items() if asked & {*types}}
    assert {group: per_cent(found[group]) for group in groups} == {
        group: questioned(rows, texts, group) for group in groups
    }


@real
def test_always_no(tmp_path, capsys):
    rows = json.loads((DATA / "annotations.json").read_text())
    path = answered(tmp_path / "a.jsonl", {row["id"]: "No" for row in rows if row["type"] != "generative"})
    found = scored(path, DATA, capsys)
    assert per_cent(found["discriminative"]) == {"accuracy": 66.3, "precision": 66.3, "recall": 100.0, "f1": 79.7}
    assert found["discriminative"]["accuracy"]["n"] == 14216 and found["discriminative"]["recall"]["n"] == 9427
    assert any("1,004 generative" in note for note in found["notes"])


@real
@pytest.mark.parametrize("group", ["generative", "discriminative"])
def test_the_order_of_answers_changes_nothing(group, tmp_path, capsys):
    draw = random.Random(0)
    rows = [
        row
        for row in json.loads((DATA / "annotations.json").read_text())
        if (row["type"] == group) == (group == "generative")
    ]
    texts = {
        row["id"]: " ".join(draw.choices(row["truth"] + row["hallu"], k=5))
        if group == "generative"
        else draw.choice(["Yes", "No"])
        for row in draw.sample(rows, 300)
    }
    reports = []
    for _ in range(3):
        order = draw.sample(list(texts), len(texts))
        reports.append(scored(answered(tmp_path / "a.jsonl", {own: texts[own] for own in order}), DATA, capsys))
    assert reports[0] == reports[1] == reports[2]


# By hand


def test_by_hand(small, tmp_path, capsys):
    """
    1: "people" is associated with the first true word, man: covered; the table's first true word that "person" equals is man's
       as well, so that "woman" alone covers the woman; dog is listed: imagined and wrong; forest stands for tree: the same; couch covers
       the sofa; the camera is neutral, but a word; "lamp" is none. Named 7, wrong 2, covered 3 of 3, imagined 2 of 2.
    2: empty: 0 named, 0 of 1 covered, nothing listed.
    CHAIR 2/7.001, Cover 3/4.001, Hal 1/2, Cog 2/2.001.
    """
    texts = {1: "people person woman dog forest couch camera lamp", 2: ""}
    found = scored(answered(tmp_path / "a.jsonl", texts), small, capsys, "--nouns", "words")
    assert per_cent(found["generative"]) == {"chair": 28.6, "cover": 75.0, "hal": 50.0, "cog": 100.0}
    assert found["generative"]["words"]["value"] == 4.0
    assert "1 answers are empty" in str(found["notes"]) and "empty description counts as one without" in str(
        found["notes"]
    )


def test_person_stands_for_the_man_and_never_for_the_woman(small, tmp_path, capsys):
    """What is associated is looked up before the true words, and the first match ends it: 1 of 3 covered."""
    found = scored(answered(tmp_path / "a.jsonl", {1: "person person"}), small, capsys)
    assert per_cent(found["generative"])["cover"] == 33.3


@pytest.mark.parametrize(
    "table, expected",
    {
        # cat is neutral; dog is listed, similar to man: imagined, and excused
        '{"dog": {"man": 0.81}}': {"chair": 0.0, "cover": 33.3, "hal": 0.1, "cog": 50.0},
        '{"man": {"dog": 0.81}}': {"chair": 0.0, "cover": 33.3, "hal": 0.1, "cog": 50.0},
        '{"dog": {"man": 0.8}}': {"chair": 50.0, "cover": 0.0, "hal": 100.0, "cog": 50.0},
        # the similar word before dog itself is marked as well
        '{"dog": {"forest": 0.9}}': {"chair": 50.0, "cover": 0.0, "hal": 100.0, "cog": 100.0},
        "{}": {"chair": 50.0, "cover": 0.0, "hal": 100.0, "cog": 50.0},
    }.items(),
)
def test_similar_words(table, expected, small, tmp_path, capsys):
    """Of "dog cat" on the first picture, whose listed words in their order are forest, dog, tree."""
    (tmp_path / "table.json").write_text(table)
    path = answered(tmp_path / "a.jsonl", {1: "dog cat"})
    assert per_cent(scored(path, small, capsys, "--similarity", tmp_path / "table.json")["generative"]) == expected


def test_without_a_table_the_report_says_so(small, tmp_path, capsys):
    path = answered(tmp_path / "a.jsonl", {1: "a dog"})
    assert "exact associations only" in scored(path, small, capsys)["settings"]["similarity"]
    (tmp_path / "table.json").write_text("{}")
    assert (
        "table.json" in scored(path, small, capsys, "--similarity", tmp_path / "table.json")["settings"]["similarity"]
    )
    assert main(["amber", "--responses", str(path), "--data", str(small)]) == 0
    shown = capsys.readouterr().out
    assert "exact associations only" in shown and "nouns: rules" in shown


# What is named


@pytest.mark.parametrize(
    "text, expected",
    {
        "Two dogs and three children on benches": "dog child bench",
        "Trees line the road; a tree": "road tree",
        "people watch the boats": "people boat",
        "trees line the road": "tree road",
        "a line of trees": "line tree",
        "a man watches the sea": "man sea",
        "a watch on a table": "watch table",
        "the dog can swim": "dog",
        "a can of beer, a trash can, and a beer can": "can beer can beer can",
        "a light blue wall under a light": "wall light",
        "an orange shirt, an orange": "orange",
        "the man's hat": "man hat",
        "leaves, glasses and shelves": "glass shelf",
        "knives, mice, geese, tomatoes, women": "knife mouse goose tomato woman",
        "skies and skis": "sky ski",
        "a TV": "TV",
        "an e-book, air-conditioning": "e-book air-conditioning",
        "sunglasses, slippers, chopsticks": "",
        # WordNet has "men" and "vas", the shortest lemmas of these, and neither TV nor e-book
        "two men, a man, vases, a vase": "man vase",
        "TVs and e-books": "",
        # what NLTK's tokenizer leaves in one piece is no word
        "man/dog, _dog_, dog.jpg, **dog**, 'man', dog...": "dog man dog",
        "a hot day": "",
        "several individual trees, an individual": "tree individual",
        "a man plugs it in; the plug. Its plug": "man plug plug",
        "the rock rocks gently": "rock",
        "a can on the table. The wall's plate. A line": "can table wall plate line",
        "": "",
    }.items(),
)
def test_nouns_by_rules(text, expected):
    vocabulary = frozenset(
        "dog child bench tree road people boat line man sea watch table can beer light wall orange hat leave glass shelf knife "
        "mouse goose tomato woman sky ski TV e-book air-conditioning sunglasses slippers chopsticks vase hot individual plug rock "
        "plate".split()
    )
    assert " ".join(by_rules(text, vocabulary)) == expected


def test_words_are_taken_as_they_stand():
    assert finder("words", ["dog", "TV"])("Dog dogs dog's TV,dog tv dog-house") == ["dog", "TV", "dog"]


# What is refused


def test_bad_answers(small, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    for content, words in {
        '{"id": 1, "response": "a"}\n{"id": "1", "response": "b"}': "line 2: 'id' 1 has an answer already",
        '{"id": 99, "response": "a"}': "line 1: id '99' is not among",
        '{"id": 1}': "line 1: 'response' is missing",
        '{"response": "a"}': "'id' is missing",
        '{"id": 1, "resp': "line 1 is not JSON",
        "": "no answers",
    }.items():
        path.write_text(content)
        assert words in refused(path, small, capsys), content
    path.write_bytes(b'{"id": 1, "response": "caf\xe9"}')
    assert "line 1 is not UTF-8" in refused(path, small, capsys)


def test_a_long_answer(small, tmp_path, capsys):
    found = scored(answered(tmp_path / "a.jsonl", {1: "dog " * 25_000}), small, capsys)
    assert per_cent(found["generative"])["chair"] == 100.0


def test_bad_data(small, tmp_path, capsys):
    path = answered(tmp_path / "a.jsonl", {1: "dog"})
    assert "--spacy-model" in refused(path, small, capsys, "--nouns", "spacy")
    table = tmp_path / "table.json"
    for content, words in {
        '["dog"]': "no table of similarities",
        '{"dog": {"cat": "much"}}': "the similarity of 'dog' and 'cat' is 'much'; expected a number",
        '{"dog": {"cat": 0.5}, "cat": {"dog": 0.6}}': "says two things of 'cat' and 'dog'",
    }.items():
        table.write_text(content)
        assert words in refused(path, small, capsys, "--similarity", table)
    (small / "annotations.json").write_text(
        json.dumps([{"id": 1, "type": "generative", "truth": ["moth"], "hallu": []}])
    )
    assert "row 1: 'truth' is ['moth']; expected words of relation.json" in refused(path, small, capsys)
    (small / "annotations.json").write_text(json.dumps([{"id": 1, "type": "other", "truth": "no"}]))
    assert "row 1: type 'other' with truth 'no' is none of AMBER's" in refused(path, small, capsys)
    (small / "relation.json").unlink()
    (small / "safe_words.txt").unlink()
    said = refused(path, small, capsys)
    assert "no relation.json, no safe_words.txt; get them from https://github.com/junyangwang0410/AMBER" in said
    assert "Apache-2.0" in said


def test_a_whole_checkout_is_found(small, tmp_path, capsys):
    small.rename(tmp_path / "data")
    assert scored(answered(tmp_path / "a.jsonl", {1: "dog"}), tmp_path, capsys)["generative"]


def test_rounding_is_python_s():
    assert amber.tenths(np.array([0.25, 0.35, 2.675, 66.65])).tolist() == [
        round(one, 1) for one in (0.25, 0.35, 2.675, 66.65)
    ]
    assert math.isnan(amber.tenths(math.nan))


def test_with_spacy(small, tmp_path, capsys):
    """A pipeline with three word vectors, and a tagger that knows three words."""
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    for word, vector in {"forest": [0.6, 0.8], "man": [0.8, 0.6], "dog": [-1.0, 0.0]}.items():
        nlp.vocab.set_vector(word, np.array(vector, dtype=np.float32))
    ruler = nlp.add_pipe("attribute_ruler")
    ruler.add([[{"ORTH": "dogs"}], [{"ORTH": "forests"}]], {"TAG": "NNS"})
    for word in ("dog", "forest"):
        ruler.add([[{"ORTH": f"{word}s"}]], {"LEMMA": word})
    ruler.add([[{"ORTH": "man"}]], {"TAG": "VB", "LEMMA": "man"})
    nlp.to_disk(tmp_path / "model")
    path = answered(tmp_path / "a.jsonl", {1: "dogs forests man"})
    found = scored(path, small, capsys, "--nouns", "spacy", "--spacy-model", tmp_path / "model")
    # man is tagged as a verb; dog is listed, forest is listed and similar to man, by 0.96
    assert per_cent(found["generative"]) == {"chair": 50.0, "cover": 33.3, "hal": 100.0, "cog": 100.0}
    assert f"spaCy {tmp_path / 'model'}" in found["settings"]["similarity"] and found["settings"]["nouns"] == "spacy"
    spacy.blank("en").to_disk(tmp_path / "small")
    assert "has no word vectors" in refused(path, small, capsys, "--spacy-model", tmp_path / "small")
    assert "python -m spacy download nothing" in refused(path, small, capsys, "--spacy-model", "nothing")


def test_without_spacy(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    path = answered(tmp_path / "a.jsonl", {1: "dog"})
    assert "pip install spacy && python -m spacy download m" in refused(path, small, capsys, "--spacy-model", "m")
