"""What the card of a built data set says: counts, licence, papers; and what it must not say."""

import json
from pathlib import Path

import pytest
import tiny
from huggingface_hub import DatasetCard, constants
from markdown_it import MarkdownIt

from mfpo_trl.data.build import BuildOptions, run
from mfpo_trl.data.grounding import grounders as grounding
from mfpo_trl.data.keywords.extraction import WEIGHTS, KeywordOptions
from mfpo_trl.data.reading.sources import SOURCES
from mfpo_trl.data.writing import citations
from mfpo_trl.data.writing.card import card, cited
from mfpo_trl.data.writing.licence import licence_of, source_name
from mfpo_trl.data.writing.report import kind, without_folder
from mfpo_trl.hub.files import DATASET_FILES, files_to_push

HUB = "[{0}](https://huggingface.co/datasets/{0})"
BAD = ["../out.jpg", "none.jpg", "/etc/none.jpg", "~/a.jpg"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Three pairs with pictures in files, and four rows that quote paths."""
    folder = tmp_path_factory.mktemp("source") / "my place" / "pairs"
    (folder / "pictures").mkdir(parents=True)
    for n in range(3):
        tiny.picture(n).save(folder / "pictures" / f"{n}.png")
    texts = {"prompt": "What is here?", "chosen": "A red car beside a tall tree.", "rejected": "A cat."}
    rows = [{"image": name, **texts} for name in ("0.png", "1.png", "2.png", *BAD)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def built(dataset: str, output: Path, **changes) -> Path:
    own = {
        "grounder": "random",
        "difficulty": "mask-area",
        "progress": False,
        "image_root": Path(dataset).parent / "pictures",
    }
    return run(BuildOptions(dataset=dataset, output=output, **own | changes))


# Where the source lay


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ("{}/pairs.jsonl", ".."),
        ("pairs.jsonl", "."),
        ("pairs/pairs.jsonl", ".."),
        ("../pairs.jsonl", "pictures"),
    ],
)
def test_nothing_that_goes_to_the_hub_tells_it(place, tmp_path, monkeypatch, given, at):
    """Nor where the build was started: rejected rows quote paths, and options hold them."""
    monkeypatch.chdir(place / at)
    output = built(given.format(place), tmp_path / "set")
    report = json.loads((output / "report.json").read_text())
    assert report["rejected"] == 4 and report["options"]["dataset"] == "pairs.jsonl"
    assert report["options"]["image_root"] == "pictures"
    assert "# Image-preference data, built from pairs.jsonl\n" in (output / "README.md").read_text()
    pushed = files_to_push(output, DATASET_FILES)
    assert {"README.md", "report.json", "data/train-00000-of-00001.parquet"} == set(pushed)
    for name in pushed:
        data = (output / name).read_bytes()
        assert not any(word in data for word in (b"my place", b"pairs/", b"pictures/", b"out.jpg", b"/etc")), name


@pytest.mark.parametrize(
    "reason",
    [
        "'a/b 1.jpg' is not a file in '/home/me/my data'; see --image-root",
        "'a b.jpg' lies outside of '/home/me/x'",
        "cannot read /home/me/a.png: broken",
        "cannot read ~/a.png",
        "[Errno 13] Permission denied: '/home/me/a.png'",
        "could not open (../data/a.png)",
        "found file:///home/me/a.png",
    ],
)
def test_a_reason_tells_no_path(reason):
    assert not any(word in kind(reason) for word in ("home", "me/", "a.png", "a b", "b 1", "data"))


def test_words_with_a_stroke_are_no_path():
    assert kind("neither text and/or image; 3 of 5") == "neither text and/or image; … of …"


# Licence

CARDS = {
    "an id": ("license: mit", {"license": "mit"}, "`mit`: that of {}, by its card."),
    "several": (
        "license: [mit, cc-by-4.0]",
        {"license": ["mit", "cc-by-4.0"]},
        "`mit` and `cc-by-4.0`: that of {}, by its card.",
    ),
    "terms of its own": (
        "license: other\nlicense_name: my-terms\nlicense_link: https://e.org/t",
        {"license": "other", "license_name": "my-terms", "license_link": "https://e.org/t"},
        "`other`, my-terms, https&#58;//e.org/t: that of {}, by its card.",
    ),
    "terms in a file": (
        "license: other\nlicense_link: LICENSE",
        {"license": "other"},
        "`other`: that of {}, by its card.",
    ),
    "words": ("license: Free for all!", {"license": "other"}, "The card of {} names no licence."),
    "a number": ("license: 4", {"license": "other"}, "The card of {} names no licence."),
    "none": ("tags: [a]", {"license": "other"}, "The card of {} names no licence."),
    "no metadata": ("", {"license": "other"}, "{} brings no card that names a licence."),
    "broken": (
        "license: [",
        {"license": "other"},
        "The card of {} could not be read (ParserError), so that its licence is not told here.",
    ),
}


def in_cache(folder: Path, name: str, text: str) -> None:
    """A data set's card as `huggingface_hub` keeps it."""
    own = folder / f"datasets--{name.replace('/', '--')}"
    (own / "refs").mkdir(parents=True)
    (own / "refs" / "main").write_text("a" * 40)
    (own / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (own / "snapshots" / ("a" * 40) / "README.md").write_text(text)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("where", ["a folder", "a file", "the Hub"])
@pytest.mark.parametrize(("head", "fields", "sentence"), CARDS.values(), ids=CARDS)
def test_a_licence_is_what_the_sources_own_card_says(tmp_path, cache, where, head, fields, sentence):
    text = f"---\n{head}\n---\n# A data set\n" if head else "# A data set\n"
    dataset = "user/pairs" if where == "the Hub" else str(tmp_path / "my_pairs")
    if where == "the Hub":
        in_cache(cache, dataset, text)
    else:
        (tmp_path / "my_pairs").mkdir()
        (tmp_path / "my_pairs" / "README.md").write_text(text)
    if where == "a file":
        dataset += "/rows.parquet"
        Path(dataset).touch()
    name = {"a folder": "my\\_pairs", "a file": "rows.parquet"}.get(where, HUB.format("user/pairs"))
    assert source_name(dataset) == name
    assert licence_of(dataset) == (fields, sentence.format(name))


def test_a_card_out_of_reach_does_not_end_a_build(cache):
    fields, sentence = licence_of("openbmb/RLHF-V-Dataset")
    assert fields == {"license": "other"}
    assert sentence.startswith(f"The card of {HUB.format('openbmb/RLHF-V-Dataset')} could not be read (")
    assert sentence.endswith("It was `cc-by-nc-4.0` when this version of mfpo_trl was written.")


def test_no_card_at_all(tmp_path):
    assert licence_of(str(tmp_path)) == (
        {"license": "other"},
        f"{tmp_path.name.replace('_', chr(92) + '_')} brings no card that names a licence.",
    )


# The whole card


def whole(options: BuildOptions, source: str) -> str:
    """The card of a build that found nothing."""
    report = {
        "rows_in": 1,
        "rows_out": 1,
        "with_images": 1,
        "rejected": 0,
        "grounding_failure_rate": 0.0,
        "source": source,
    }
    report |= {
        "mask_area_quantiles": {},
        "keywords_per_row": 1.0,
        "options": {name: without_folder(own) for name, own in options.remembered(1).items()},
    }
    return card(options, report)


def options(**changes) -> BuildOptions:
    keywords = KeywordOptions(variant=changes.pop("variant", "mfpo"))
    return BuildOptions(**{"dataset": "user/pairs", "output": Path("set"), "keywords": keywords} | changes)


def test_a_card_of_a_data_set_on_the_hub(cache):
    in_cache(cache, "openbmb/RLHF-V-Dataset", "---\nlicense: cc-by-nc-4.0\n---\n")
    own = options(
        dataset="openbmb/RLHF-V-Dataset",
        grounder_model="/home/me/dino",
        model="user/vlm",
        difficulty="semantic-entropy",
    )
    found = DatasetCard(whole(own, "rlhf-v"))
    assert found.data.license == "cc-by-nc-4.0" and found.data.tags == ["mfpo", "preference", "vision-language"]
    assert f"# Image-preference data, built from {HUB.format('openbmb/RLHF-V-Dataset')}\n" in found.text
    html = MarkdownIt("commonmark").enable("table").render(found.text.split("## Citation")[1])
    cells = [row.split("<td>")[1:] for row in html.split("<tr>")[2:]]
    names = {row[0].split("<")[0]: row[2].count("<a href") for row in cells}
    assert names == {
        "method": 1,
        "preference pairs": 1,
        "key words": 2,
        "regions": 2,
        "dispreferred images": 1,
        "difficulty": 1,
    }
    assert "<code>grounding-dino-sam</code>, dino</td>" in html and "/home/me" not in found.text
    for key in ("mfpo", "rlhf-v", "pagerank", "grounding-dino", "sam", "semantic-entropy"):
        assert found.text.count(citations.PAPERS[key].bibtex) == 1


@pytest.mark.parametrize(
    ("changes", "source", "papers"),
    [
        ({"grounder": "column"}, "trl", {"mfpo", "pagerank"}),
        ({"grounder": "random", "dataset": "sqrti/SPA-VL"}, "spa-vl", {"mfpo", "pagerank", "spa-vl"}),
        ({"grounder": "none", "variant": "multipartite"}, "ms-swift", {"mfpo", "pagerank", "multipartite"}),
        ({"grounder": "own.module:function", "dataset": "./rows.jsonl"}, "povid", {"mfpo", "pagerank", "povid"}),
        ({"grounder": "owlv2-sam", "dataset": "fwnlp/mDPO-preference-data"}, "mdpo", {"mfpo", "pagerank", "mdpo", "owlv2", "sam"}),
        ({"grounder": "clipseg", "corruption": "crop"}, "rlhf-v", {"mfpo", "pagerank", "mdpo", "clipseg"}),
        ({"grounder": "sam3", "corruption": "blur", "dataset": "trl-lib/rlaif-v"}, "trl", {"mfpo", "pagerank", "sam3", "rlaif-v"}),
    ],
)  # fmt: skip
def test_what_was_used_is_cited(cache, changes, source, papers):
    own = options(**changes)
    found = cited(own, source)
    assert {key for _, keys in found.values() for key in keys} == papers
    text = whole(own, source)
    assert {key for key, paper in citations.PAPERS.items() if paper.bibtex in text} == papers
    assert ("cite its paper if the rows are from there" in text) == (changes.get("dataset") == "./rows.jsonl")


def test_everything_that_can_be_used_is_in_the_tables():
    models = set(grounding.GROUNDERS) - {"random", "none"}
    assert set(citations.GROUNDERS) == models and set(citations.KEYWORDS) == set(WEIGHTS)
    assert set(SOURCES) - {"trl", "ms-swift", "llama-factory"} == set(citations.CONVENTIONS)
    assert set(citations.CONVENTIONS.values()) <= set(citations.PUBLISHED)
    tables = (citations.GROUNDERS, citations.KEYWORDS, citations.CORRUPTIONS, citations.DIFFICULTIES)
    named = {key for table in tables for keys in table.values() for key in keys}
    assert named | {own.paper for own in citations.PUBLISHED.values()} == set(citations.PAPERS)


def test_bibtex_is_whole():
    """Braces in pairs, a key of its own each, and the number under which the code that it is of cites it."""
    keys = set()
    for paper in citations.PAPERS.values():
        assert (
            paper.bibtex.count("{") == paper.bibtex.count("}")
            and paper.bibtex.startswith("@")
            and paper.bibtex[-1] == "}"
        )
        keys.add(paper.bibtex.split("{")[1].split(",")[0])
        assert paper.address.startswith(("https://arxiv.org/abs/", "http://ilpubs.stanford.edu"))
    assert len(keys) == len(citations.PAPERS)
