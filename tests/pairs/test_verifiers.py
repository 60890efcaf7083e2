"""Verifiers on rows whose objects are known: what they call present is there, what they call absent is not, and how often."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import world
from stand_in_chat import StandInChat, text_of

from mfpo_trl.data.grounding.grounders import Grounded, Plugged
from mfpo_trl.data.reading.files import JsonRows
from mfpo_trl.demo.scoring import hallucinated, mentions
from mfpo_trl.endpoint import client
from mfpo_trl.endpoint.client import Endpoint, EndpointError
from mfpo_trl.evaluation.benchmarks import Objects
from mfpo_trl.pairs.claims import ABSENT, PRESENT, UNCERTAIN, Answer, Rule, choose_pairs
from mfpo_trl.pairs.options import PairOptions
from mfpo_trl.pairs.policies import Served
from mfpo_trl.pairs.verifiers.asked import JUDGED, Confided, Judged, verdict_of
from mfpo_trl.pairs.verifiers.detector import Detected, build_detected
from mfpo_trl.pairs.verifiers.labels import Labels, of_column, of_truth

# Three pictures with what they show, and what was said of them: right, wrong, in the plural, by another name, denied.
ROWS = [
    (
        ("dog", "car", "tree"),
        ["A dog sits beside two cars.", "A brown dog and a cat lie under a tree.", "There is no cat, only a car."],
    ),
    (
        ("person", "bicycle"),
        ["A man rides a bike.", "A woman with an umbrella waits for a bus.", "It is a sunny day."],
    ),
    (("pizza", "fork"), ["A pizza lies beside a knife.", "Forks and a pizza.", "A hot dog."]),
]
SAID = [
    [{"dog": 1, "car": 1}, {"dog": 1, "cat": 0, "tree": 1}, {"car": 1}],
    [{"person": 1, "bicycle": 1}, {"person": 1, "umbrella": 0, "bus": 0}, {}],
    [{"pizza": 1, "knife": 0}, {"fork": 1, "pizza": 1}, {"hot dog": 0}],
]
"""By hand: what each answer names, and whether it is there."""

SYNONYMS = "dog\ncar\ntree\ncat\nperson, man, woman\nbicycle, bike\numbrella\nbus\npizza\nfork\nknife\nhot dog\n"


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.05)


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    found = []
    for number, (objects, _) in enumerate(ROWS):
        picture = tiny.picture(number)
        picture.save(tmp_path / f"{number}.png")
        file = {"bytes": (tmp_path / f"{number}.png").read_bytes(), "path": None}
        published = {"objects": list(objects), "image_id": number}
        found.append({"number": number, "pictures": [picture], "images": [file], "published": published})
    return found


ANSWERS = [texts for _, texts in ROWS]


def judged(claims) -> list[list[dict[str, str]]]:
    return [[{own.counted_as: own.verdict for own in some} for some in texts] for texts in claims]


def precision_and_recall(found, name: str, capsys) -> dict[str, float]:
    """Of what is called absent (a hallucination) and present, over all objects that the answers name."""
    counts: Counter[str] = Counter()
    for texts, truths in zip(found, SAID, strict=True):
        for verdicts, truth in zip(texts, truths, strict=True):
            for thing, there in truth.items():
                counts[f"{'there' if there else 'not there'}, {verdicts.get(thing, 'unseen')}"] += 1
            counts["too much"] += sum(thing not in truth for thing in verdicts)
    right, wrong = counts["not there, absent"], counts["there, absent"]
    missed = counts["not there, present"] + counts["not there, unseen"] + counts["not there, uncertain"]
    figures = {"precision": right / max(1, right + wrong), "recall": right / max(1, right + missed)}
    with capsys.disabled():
        print(
            f"\n{name}: hallucinations found with precision {figures['precision']:.2f}, recall {figures['recall']:.2f}; {dict(counts)}"
        )
    return figures


@pytest.mark.parametrize("source", ["column", "ground truth"])
def test_labels_by_hand(source, rows, tmp_path, capsys):
    (tmp_path / "synonyms.txt").write_text(SYNONYMS)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row["published"] for row in rows]))
    if source == "column":
        own = of_column(JsonRows(path), 3, tmp_path / "synonyms.txt")
    else:
        (tmp_path / "truth.json").write_text(json.dumps({str(n): objects for n, (objects, _) in enumerate(ROWS)}))
        own = PairOptions(
            dataset="",
            output=tmp_path,
            model="m",
            ground_truth=tmp_path / "truth.json",
            synonyms=tmp_path / "synonyms.txt",
        )
        own = of_truth(own, JsonRows(path), 3)
    found = judged(own.verify(rows, ANSWERS, tmp_path))
    assert found == [
        [{thing: (ABSENT, PRESENT)[there] for thing, there in own.items()} for own in texts] for texts in SAID
    ]
    assert precision_and_recall(found, f"labels by {source}", capsys) == {"precision": 1, "recall": 1}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("There is no dog.", {}),
        ("No dogs, but a cat near no brown dog.", {"cat"}),
        ("A cat without a hot dog and a dog.", {"cat", "dog"}),
        ("No, there is a dog.", {"dog"}),
        ("There is no sign of a dog.", {"dog"}),
        ("A dog in a piano, without any water.", {"dog"}),
        ("no", {}),
    ],
)
def test_what_is_denied_is_no_claim(text, named):
    """ "There is no dog" is true where there is none, and must not lose against an answer that names one."""
    own = Labels(lambda rows: [frozenset()], Objects({name: name for name in ("dog", "cat", "hot dog")}))
    assert {claim.name for claim in own.verify([{}], [[text]], None)[0][0]} == set(named)


def test_labels_know_the_names_of_the_data_set(rows, tmp_path):
    """Every other name of the data set counts as absent, and no other word is a claim."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row["published"] for row in rows]))
    own = of_column(JsonRows(path), 3, None)
    assert judged(own.verify(rows[:1], [["A dog, a pizza and an umbrella."]], tmp_path)) == [
        [{"dog": PRESENT, "pizza": ABSENT}]
    ]
    with pytest.raises(ValueError, match="field 'objects' holds 'horse'"):
        own.verify([{**rows[0], "published": {"objects": ["horse"]}}], [["A dog."]], tmp_path)
    path.write_text("[{}]")
    with pytest.raises(ValueError, match="no row has a column 'objects'"):
        of_column(JsonRows(path), 1, None)


def test_coco_names_and_captions_say_what_is_there(rows, tmp_path):
    """CHAIR's synonyms: a puppy is a dog. The annotations are read once."""
    images = [{"id": 7}]
    content = {
        "images": images,
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": 1}],
    }
    (tmp_path / "instances_val2014.json").write_text(json.dumps(content))
    captions = {"images": images, "annotations": [{"image_id": 7, "caption": "a frisbee"}]}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(captions))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"image_id": 7}, {"image_id": 8}]))
    options = PairOptions(dataset="", output=tmp_path, model="m", coco_annotations=tmp_path)
    own = of_truth(options, JsonRows(path), 2)
    for name in ("instances", "captions"):
        (tmp_path / f"{name}_val2014.json").unlink()
    row = {**rows[0], "published": {"image_id": 7}}
    found = own.verify([row], [["A puppy catches a frisbee beside a cat."]], tmp_path)
    assert judged(found) == [[{"dog": PRESENT, "frisbee": PRESENT, "cat": ABSENT}]]
    assert [claim.phrase for claim in found[0][0]] == ["puppy", "frisbee", "cat"]
    with pytest.raises(ValueError, match="'8' is not among the images"):
        own.verify([{**row, "published": {"image_id": 8}}], [["A cat."]], tmp_path)
    with pytest.raises(ValueError, match="'image_id' is missing"):
        own.verify([{**row, "published": {}}], [["A cat."]], tmp_path)


class Scored:
    """A detector that gives these scores."""

    def __init__(self, scores):
        self.scores, self.asked = scores, []

    def ground(self, images, phrases):
        self.asked += phrases
        mask = np.ones((2, 2), dtype=bool)
        return [
            [
                Grounded(mask, phrase, self.scores[phrase])
                for phrase in own
                if self.scores.get(phrase, 0.0) is None or self.scores.get(phrase)
            ]
            for own in phrases
        ]


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (0.5, None, PRESENT),
        (0.5, 0.5, PRESENT),
        (0.3, 0.5, UNCERTAIN),
        (0.3, 0.3, UNCERTAIN),
        (0.5, 0.1, UNCERTAIN),
        (0.1, 0.1, ABSENT),
        (0.0, 0.3, UNCERTAIN),
        (0.35, 0.35, PRESENT),
        (0.25, 0.25, UNCERTAIN),
        (0.249, 0.249, ABSENT),
    ],
)
def test_two_detectors_must_agree(one, other, verdict, rows, tmp_path):
    detectors = [(Scored({"dog": score}), 0.25, 0.35) for score in ((one, other) if other is not None else (one,))]
    found = Detected(detectors).verify(rows[:1], [["A dog."]], tmp_path)[0][0]
    assert [(own.name, own.verdict) for own in found] == [("dog", verdict)]
    assert len(found[0].regions) == (one >= 0.35)


def test_a_thing_is_looked_for_once_in_a_picture(rows, tmp_path):
    detector = Scored({"dogs": None, "cat": 0.9})
    found = Detected([(detector, 0.25, 0.35)]).verify(
        rows[:1], [["Dogs and a cat.", "A dog, a cat and a mood.", "No dog."]], tmp_path
    )
    assert detector.asked == [["dogs", "cat"]]
    assert judged(found) == [[{"dog": PRESENT, "cat": PRESENT}, {"dog": PRESENT, "cat": PRESENT}, {}]]
    assert [own.phrase for own in found[0][1]] == ["dog", "cat"]


def test_detectors_on_hand_made_rows(rows, tmp_path, capsys):
    """One that sees everything under any name finds what the word lists find; and says nothing of a sunny day."""
    names = {"man": "person", "woman": "person", "bike": "bicycle"}

    class Seeing:
        def ground(self, images, phrases):
            shown = {id(row["pictures"][0]): row["published"]["objects"] for row in rows}
            mask = np.ones((2, 2), dtype=bool)
            return [
                [
                    Grounded(mask, phrase, None)
                    for phrase in own
                    if any(names.get(word, word).removesuffix("s") in shown[id(image)] for word in phrase.split()[-1:])
                ]
                for image, own in zip(images, phrases, strict=True)
            ]

    found = judged(Detected([(Seeing(), 0.5, 0.5)]).verify(rows, ANSWERS, tmp_path))
    named = [
        [{names.get(t, t).removeprefix("brown "): v for t, v in own.items() if t != "day"} for own in texts]
        for texts in found
    ]
    figures = precision_and_recall(named, "a detector that errs never", capsys)
    assert figures == {"precision": 1, "recall": 1}


def test_detectors_of_known_error_rates(capsys):
    """One misses 10 % of what is there and invents 5 % of what is not; two must agree, and err apart.

    Both may only err together: pairs of two are truer than those of one, and those with a margin of two claims truer still.
    """
    shares = {}
    for names in ("perfect", "first", "first second"):
        verifier = Detected([(Plugged(f"world:{name}"), 0.5, 0.5) for name in names.split()])
        for margin in (1, 2):
            shares[names, margin] = truly_better(verifier, Rule(margin=margin))
    with capsys.disabled():
        print(f"\nshare of pairs that are truly more faithful, by detectors and margin: {shares}")
    assert shares["perfect", 1] == shares["perfect", 2] == 1
    assert 0.88 < shares["first", 1] < 0.95 <= shares["first second", 1]
    assert 0.97 < shares["first", 2] <= shares["first second", 2]


def truly_better(verifier, rule: Rule) -> float:
    better = []
    for number, scene in enumerate(world.KNOWN.values()):
        texts = [world.told_by(scene, 1000 * number + n) for n in range(6)]
        claims = verifier.verify([{"pictures": [scene.image]}], [texts], Path())[0]
        answers = [Answer(*own) for own in zip(texts, claims, strict=True)]
        for pair in choose_pairs(answers, rule)[0]:
            chosen, rejected = ((set(hallucinated(texts[n], scene.names)), set(mentions(texts[n]))) for n in pair)
            better.append(len(chosen[0]) / len(chosen[1]) < len(rejected[0]) / len(rejected[1]))
    return float(np.mean(better))


def test_the_defaults_are_those_of_the_grounders(tmp_path):
    own = PairOptions(
        dataset="",
        output=tmp_path,
        model="m",
        detector=("world:first", "world:second"),
        present_from=0.7,
        absent_below=0.2,
    )
    assert [(low, high) for _, low, high in build_detected(own, "cpu", None).detectors] == [(0.2, 0.7)] * 2
    own = PairOptions(
        dataset="", output=tmp_path, model="m", detector=("world:first",), present_from=0.2, absent_below=0.7
    )
    with pytest.raises(ValueError, match=r"--absent-below is 0\.7"):
        build_detected(own, "cpu", None)


def test_weights_that_are_not_there_name_the_options_of_this_command(tmp_path):
    own = PairOptions(
        dataset="", output=tmp_path, model="m", detector=("owlv2",), detector_model=(str(tmp_path / "nowhere"),)
    )
    with pytest.raises(ValueError, match="--detector-model and .*labels, judge and confidence") as error:
        build_detected(own, "cpu", None)
    assert "--grounder" not in str(error.value)


# Those that ask


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Yes", PRESENT),
        ("yes, there is.", PRESENT),
        ("**No**", ABSENT),
        ("no.", ABSENT),
        ("unsure", UNCERTAIN),
        ("", UNCERTAIN),
        ("Not sure", UNCERTAIN),
        ('{"verdict": ', UNCERTAIN),
        ("I think yes", UNCERTAIN),
    ],
)
def test_the_first_word_is_the_verdict(text, verdict):
    assert verdict_of(text) == verdict


def asked_of(body) -> str:
    """The phrase of a question."""
    return re.search(
        r"what this says of \"(.+?)\"|(?:Is there an?|Are there) (.+?) in the image", text_of(body)
    ).expand(r"\1\2")


NAMES = {"man": "person", "woman": "person", "bike": "bicycle", "brown dog": "dog", "cars": "car", "forks": "fork"}


@pytest.fixture
def judge(rows):
    """A judge that knows what is there, and is unsure of the day."""
    import base64

    objects = {base64.b64encode(row["images"][0]["bytes"]).decode(): row["published"]["objects"] for row in rows}

    def answer(body):
        there = objects[body["messages"][-1]["content"][0]["image_url"]["url"].partition(",")[2]]
        phrase = asked_of(body)
        return "unsure" if phrase == "day" else "Yes." if NAMES.get(phrase, phrase) in there else "No."

    with StandInChat(answer) as server:
        yield server


def test_a_judge_is_asked_claim_by_claim(rows, judge, tmp_path, capsys):
    own = Judged("judge", Endpoint(judge.url, "judge", timeout=1))
    found = judged(own.verify(rows, ANSWERS, tmp_path / "verdicts.jsonl"))
    named = [[{NAMES.get(t, t): v for t, v in some.items() if t != "day"} for some in texts] for texts in found]
    assert precision_and_recall(named, "judge", capsys) == {"precision": 1, "recall": 1}
    texts = [text_of(one["body"]) for one in judge.seen]
    assert JUDGED.format(sentence="A dog sits beside two cars.", phrase="dog") in texts
    assert all(one["body"]["temperature"] == 0 for one in judge.seen)
    # Nothing is asked twice, of another judge everything.
    before = len(judge.seen)
    assert judged(own.verify(rows, ANSWERS, tmp_path / "verdicts.jsonl")) == found and len(judge.seen) == before
    Judged("other", Endpoint(judge.url, "other")).verify(rows[:1], ANSWERS[:1], tmp_path / "verdicts.jsonl")
    assert len(judge.seen) > before


def test_one_phrase_in_two_pictures_is_asked_of_both(rows, judge, tmp_path):
    found = Judged("judge", Endpoint(judge.url, "judge")).verify(
        rows[:2], [["A dog."], ["A dog."]], tmp_path / "verdicts.jsonl"
    )
    assert judged(found) == [[{"dog": PRESENT}], [{"dog": ABSENT}]]


def test_a_judge_with_faults(rows, judge, tmp_path):
    """What passes is tried again; after what does not, the verdicts so far are kept."""
    question = JUDGED.format(sentence="A pizza lies beside a knife.", phrase="knife")
    judge.faults[question] = ["429", "broken", "hang", "empty", "null", "500", "400"]
    own = Judged("judge", Endpoint(judge.url, "judge", timeout=0.5, concurrency=1))
    with pytest.raises(EndpointError, match="the prompt is too long"):
        own.verify(rows[2:], [["A pizza lies beside a knife."]], tmp_path / "verdicts.jsonl")
    assert len(judge.seen) == 8
    found = own.verify(rows[2:], [["A pizza lies beside a knife."]], tmp_path / "verdicts.jsonl")
    assert len(judge.seen) == 9 and judged(found) == [[{"pizza": PRESENT, "knife": ABSENT}]]


def test_the_policy_is_asked_about_its_own_words(rows, judge, tmp_path, capsys):
    own = PairOptions(dataset="", output=tmp_path, endpoint=judge.url, served_model="policy")
    found = judged(Confided(lambda: Served(own), own.who).verify(rows, ANSWERS, tmp_path / "verdicts.jsonl"))
    named = [[{NAMES.get(t, t): v for t, v in some.items() if t != "day"} for some in texts] for texts in found]
    assert precision_and_recall(named, "confidence", capsys) == {"precision": 1, "recall": 1}
    asked = {text_of(one["body"]).partition(" in the")[0] for one in judge.seen}
    before = len(judge.seen)
    Confided(lambda: Served(own), own.who).verify(rows, ANSWERS, tmp_path / "verdicts.jsonl")
    assert len(judge.seen) == before
    assert {"Are there cars", "Is there an umbrella", "Is there a man"} <= asked
    assert all(one["body"]["temperature"] == 0 and "seed" not in one["body"] for one in judge.seen)
