"""`mfpo methods`, and what the table of objectives says: papers, settings, cost; the recipe of each."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mfpo_trl import cli
from mfpo_trl.objective import PAPERS, PRESETS, papers_in
from mfpo_trl.objective.command import number
from mfpo_trl.objective.terms import TERMS

ROOT = Path(__file__).parents[2]


def told(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main(["methods", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_list_has_all_that_a_preset_says(capsys):
    status, listed, _ = told(capsys)
    blocks = [flat(own) for own in listed.split("\n\n")[1:-1]]
    assert status == 0 and len(blocks) == len(PRESETS)
    for block, (name, preset) in zip(blocks, PRESETS.items(), strict=True):
        cost = "-" if preset.cost is None else f"{preset.cost:.2f}"
        assert block.startswith(f"{name} {cost} {preset.formula}")
        for said in (preset.needs, preset.published, *(f"arXiv {paper.arxiv}" for paper in papers_in(preset.paper))):
            assert said in block, (name, said)


@pytest.mark.parametrize("name", PRESETS)
def test_one_is_shown_whole(name, capsys):
    status, shown, _ = told(capsys, name)
    shown, preset = flat(shown), PRESETS[name]
    assert status == 0 and f"recipe methods/{name} " in shown
    for term, weight in preset.weights.items():
        assert f"{weight:g} {term} {flat(TERMS[term].formula)} " in shown
    for said in (
        preset.formula,
        preset.needs,
        preset.settings,
        preset.says,
        preset.published,
        preset.corruption or "diffusion",
    ):
        assert flat(said) in shown, said
    assert all(flat(paper.bibtex) in shown for paper in papers_in(preset.paper))


@pytest.mark.parametrize(("name", "words"), [("sympo", "did you mean 'symmpo'?"), ("zzz", "expected dpo, mdpo, mfpo")])
def test_an_unknown_name(name, words, capsys):
    status, shown, error = told(capsys, name)
    assert status == 2 and shown == "" and f"there is no objective {name!r}" in error and words in error


def test_the_list_loads_nothing_heavy_and_a_pager_may_stop_reading():
    code = (
        "import sys; from mfpo_trl import cli; cli.main(['methods']); "
        "print([own for own in ('torch', 'numpy', 'transformers') if own in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(f'{sys.executable} -c "{code}" | head -1', shell=True, capture_output=True, text=True)
    assert done.stderr == "[]\n" and done.stdout.startswith("objective ")


# Papers


def test_every_paper_is_whole():
    assert (
        len({paper.key for paper in PAPERS.values()}) == len(PAPERS) == len({paper.name for paper in PAPERS.values()})
    )
    for own, paper in PAPERS.items():
        assert paper.title and 2023 <= paper.year <= 2026 and paper.arxiv == own
        assert paper.bibtex.count("{") == paper.bibtex.count("}") and f"eprint        = {{{own}}}" in paper.bibtex
    sources = [preset.paper for preset in PRESETS.values()] + [term.source for term in TERMS.values()]
    assert {paper.arxiv for source in sources for paper in papers_in(source)} <= set(PAPERS)
    assert all(papers_in(source) or source in ("here", "") for source in sources)


def test_of_an_unknown_paper_the_number_is_cited():
    (own,) = papers_in("mine, arXiv 2601.99999")
    assert own.name == "arXiv 2601.99999" and "title" not in own.bibtex and "author" not in own.bibtex
    assert "https://arxiv.org/abs/2601.99999" in own.bibtex and papers_in("a book of 1990") == []


# Recipes


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_has_the_settings_of_its_paper(name):
    text, preset = (ROOT / "recipes" / "methods" / f"{name}.yaml").read_text(), PRESETS[name]
    fields = yaml.safe_load(text)
    assert fields.get("objective", name) == name and fields["beta"] == (preset.beta or 0.1)
    head = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    settings = {"beta": preset.beta, "learning rate": preset.learning_rate, "epochs": preset.epochs}
    said = f"Published: {', '.join(f'{key} {number(value)}' for key, value in settings.items())}"
    assert said + (f": {preset.settings}." if preset.settings else ".") in head
    assert all(f"arXiv {paper.arxiv}" in head for paper in papers_in(preset.paper))
    if preset.learning_rate is not None:
        assert fields["learning_rate"] == preset.learning_rate
    # The four that model recipes stand on leave the number of passes to them.
    if preset.epochs is not None and "objective" in fields:
        assert fields["num_train_epochs"] == preset.epochs


def test_every_recipe_is_of_a_preset():
    assert {path.stem for path in (ROOT / "recipes" / "methods").glob("*.yaml")} == set(PRESETS)
