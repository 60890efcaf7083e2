"""Pairs sentence by sentence: each behind a clean beginning, which grows; of a server and of a loaded model."""

import html
import json
from collections import defaultdict
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import world
from datasets import load_dataset
from stand_in_chat import StandInChat
from test_make_pairs import contents, make, options, reasons, served
from test_trainer import CPU

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.data.preview import preview
from mfpo_trl.demo.scenes import OBJECTS
from mfpo_trl.demo.scoring import hallucinated, mentions
from mfpo_trl.evaluation.generation import Drawing
from mfpo_trl.pairs.asking import Asking, ReadPrompt
from mfpo_trl.rows.schema import plain_text


def sentences_of(scene, seed: int, begun: str) -> str:
    """The rest of a story: a sentence for each object that was not told yet, of which about every third is one that is not there."""
    rng = np.random.default_rng(seed)
    rest = [name for name in scene.names if name not in mentions(begun)]
    others = [name for name in OBJECTS if name not in scene.names]
    names = [name if rng.random() < 0.65 else str(rng.choice(others)) for name in rest]
    return " ".join(f"There is a {name} of 1.5 inches." for name in names)


class Storyteller(world.Captioner):
    def __call__(self, body):
        last = body["messages"][-1]
        return sentences_of(self.shown(body), body["seed"], last["content"] if last["role"] == "assistant" else "")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return folder / "world.parquet", world.write_world(folder / "world.parquet", 20)


BY_SENTENCE = {"by": "sentence", "pairs_per_prompt": 4, "max_new_tokens": 32}


def test_the_beginning_is_clean_and_grows(scenes, tmp_path):
    with StandInChat(Storyteller(scenes[1])) as server:
        own = make(options(scenes[0], tmp_path / "set", **served(server, **BY_SENTENCE)))
        seen = [one["body"] for one in server.seen]
    rows = load_dataset(str(own), split="train")
    of_scene = defaultdict(list)
    for row in rows:
        number = int(row["id"].removeprefix("row ").partition("-")[0])
        scene = scenes[1][number]
        prefix, chosen, rejected = row["answer_prefix"], plain_text(row["chosen"]), plain_text(row["rejected"])
        assert not hallucinated(prefix + chosen, scene.names) and hallucinated(rejected, scene.names)
        assert not prefix or prefix.endswith(". ")
        assert chosen.startswith("There is a ") and chosen.endswith(" of 1.5 inches.") and chosen.count("There") == 1
        assert row["keywords"] == mentions(chosen) and row["grounded"]
        of_scene[number].append(prefix)
    assert max(map(len, of_scene.values())) >= 3
    for prefixes in of_scene.values():
        assert all(later.startswith(earlier) and later != earlier for earlier, later in pairwise(prefixes))
    begun = [body for body in seen if body["messages"][-1]["role"] == "assistant"]
    assert all(body["continue_final_message"] and not body["add_generation_prompt"] for body in begun)
    assert {body["messages"][-1]["content"] for body in begun} >= {
        own.rstrip() for some in of_scene.values() for own in some
    } - {""}
    report = json.loads((own / "report.json").read_text())
    assert report["pairs"]["pairs_by_rule"]["kept"] == len(rows) == report["rows_out"]


def test_a_row_without_a_clean_sentence_says_so(scenes, tmp_path):
    with StandInChat(lambda body: f"A green star {body['seed']}. A blue star.") as server:
        own = options(
            scenes[0],
            tmp_path / "set",
            **{**served(server, by="sentence"), "verifier": "world:all_absent", "limit": 2},
        )
        with pytest.raises(ValueError, match="every row was rejected"):
            make(own)
    assert all("claims nothing false" in own for own in reasons(tmp_path / "set").values())


def test_a_loaded_model_goes_on_from_its_beginning(scenes, tmp_path):
    """Sentences of a tiny model, the same in one process and after a stop."""
    folder = tiny.save_pretrained(tmp_path / "model")
    changes = {
        "verifier": "world:words_by_hash",
        "limit": 4,
        "part_rows": 2,
        "batch_size": 2,
        "sentences": 3,
        "samples": 5,
    }
    changes |= {"model": folder, **BY_SENTENCE, "max_new_tokens": 12, "length_ratio": 9.0}
    one = make(options(scenes[0], tmp_path / "one", **changes))
    two = make(options(scenes[0], tmp_path / "two", **changes))
    rows = load_dataset(str(one), split="train")
    assert contents(one) == contents(two) and len(rows) > 0


def test_pairs_by_sentence_train_as_they_are(scenes, tmp_path):
    """The beginning is read with the prompt, by the objective whose rows these are."""
    with StandInChat(Storyteller(scenes[1])) as server:
        own = make(options(scenes[0], tmp_path / "set", **served(server, limit=4, **BY_SENTENCE)))
    rows = load_dataset(str(own), split="train").filter(lambda row: row["answer_prefix"])
    page = preview(own, 99, tmp_path / "page.html").read_text()
    assert page.count("<dt>begun</dt>") == len(rows) > 0 and html.escape(rows[0]["answer_prefix"].strip()) in page
    args = MFPOConfig(output_dir=str(tmp_path / "trained"), **{**CPU, "max_steps": 1})
    data = load_dataset(str(own), split="train")
    trainer = MFPOTrainer(tiny.model(1), tiny.model(), args, train_dataset=data, processing_class=tiny.processor())
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_kept_answers_know_behind_what_they_stand(scenes, tmp_path):
    """Asked again behind another beginning, or with other rows under way, the same file gives no answer of before, and loses none."""

    class Echo:
        seen: ClassVar[list] = []

        def answer(self, asked, drawing):
            for number, own in enumerate(asked):
                self.seen.append((own.prompt.row["row"], own.begun))
                yield number, [(place, f"{own.begun}|{seed}") for place, seed in enumerate(own.seeds)]

    read = ReadPrompt([scenes[0].parent])
    rows = [{**read(raw, n)[0], "number": n} for n, raw in enumerate(pq.read_table(scenes[0]).to_pylist()[:3])]
    own, path = Asking(Echo, "echo", Drawing(sentence=True), 0, 2), tmp_path / "answers.jsonl"
    first = own.answers(rows, path, ["A.", "B.", "C."], "sentence 1")
    assert own.answers(rows[1:], path, ["B.", "D."], "sentence 1")[0] == first[1]
    assert Echo.seen == [(0, "A."), (1, "B."), (2, "C."), (2, "D.")]
    assert own.answers(rows[:1], path, ["A."], "sentence 2") != [first[0]]
    path.write_bytes(path.read_bytes() + b'{"row": 0, "sam')
    assert own.answers(rows, path, ["A.", "B.", "C."], "sentence 1") == first and len(Echo.seen) == 5
    assert len(path.read_text().splitlines()) == 10
