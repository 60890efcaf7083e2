"""Reports of `mfpo score` on a card: what is read of them, and where they go in a card that is there."""

import json
import logging

import pytest

from mfpo_trl.card.scores import describe_scores, evaluation_results, read_scores, with_section

FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 1200}


def read(tmp_path, content: dict):
    (tmp_path / "scores").mkdir(exist_ok=True)
    (tmp_path / "scores" / "pope.json").write_text(json.dumps(content))
    return read_scores(tmp_path)


def test_groups_of_figures(tmp_path):
    content = {
        "benchmark": "POPE",
        "random": {"accuracy": FIGURE, "words": {**FIGURE, "value": 2.5}},
        "macro": {"accuracy": FIGURE, "precision": dict.fromkeys(FIGURE)},
        "shares": ["accuracy"],
        "settings": {"judge": "a|b"},
        "notes": ["x"],
        "differences": {"random": {"accuracy": {**FIGURE, "p": 0.1, "test": "McNemar"}}},
        "published": [{"accuracy": 1}],
    }
    scores = read(tmp_path, content)
    section = describe_scores(scores)
    assert section.splitlines()[2:] == [
        "| benchmark | metric | value | 95 % interval | n |",
        "|---|---|---|---|---|",
        "| POPE, random | accuracy | 50.0 % | 40.0 % to 60.0 % | 1,200 |",
        "| POPE, random | words | 2.50 | 0.40 to 0.60 | 1,200 |",
        "| POPE, macro | accuracy | 50.0 % | 40.0 % to 60.0 % | 1,200 |",
        "",
        "- POPE: judge: a\\|b",
        "",
    ]
    results = {(own.dataset_config, own.metric_name): own.metric_value for own in evaluation_results(scores, "t")}
    assert results == {("random", "accuracy"): 0.5, ("random", "words"): 2.5, ("macro", "accuracy"): 0.5}


def test_groups_alone_are_named_after_their_file(tmp_path):
    (found,) = read(tmp_path, {"all": {"accuracy": FIGURE}})
    assert (found.benchmark, found.group, found.metrics) == ("pope", "", {"accuracy": 0.5})


def test_both_forms_share_a_table(tmp_path):
    read(tmp_path, {"benchmark": "CHAIR", "all": {"chair_s": FIGURE}})
    (tmp_path / "scores" / "own.json").write_text(json.dumps({"benchmark": "MME", "metrics": {"score": 1500}}))
    assert "| MME | score | 1500 | – | – |" in describe_scores(read_scores(tmp_path))


@pytest.mark.parametrize("end", ["low", "n"])
def test_a_figure_without_an_end(tmp_path, caplog, end):
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, {"all": {"accuracy": {**FIGURE, end: "1"}}}) == []
    assert f"metric 'accuracy {end}' is '1'; expected a finite number" in caplog.text


SECTION = "## Evaluation\n\nnew\n\n"
CARDS = {
    "none": ("# M\n", "# M\n\n" + SECTION),
    "before the licence": ("# M\n\n## Licence\n\nMIT\n", f"# M\n\n{SECTION}## Licence\n\nMIT\n"),
    "in place": ("# M\n\n## Evaluation\n\nold\n\n### More\n\n## Next\n", f"# M\n\n{SECTION}## Next\n"),
    "in place, last": ("# M\n\n## Evaluation\n\nold\n", f"# M\n\n{SECTION}"),
    "other line ends": ("# M\r\n\r\n## Evaluation\r\n\r\nold\r\n\r\n## Next\r\n", f"# M\r\n\r\n{SECTION}## Next\r\n"),
    "another's": ("# M\n\n## Evaluation of others\n\nold\n", f"# M\n\n## Evaluation of others\n\nold\n\n{SECTION}"),
}


@pytest.mark.parametrize(("text", "expected"), CARDS.values(), ids=CARDS)
def test_where_the_section_goes(text, expected):
    assert with_section(text, SECTION) == expected
    assert with_section(expected, SECTION) == expected
