"""`docs/results.md`: its tables and plots are those of the results, its words are written by hand."""

import re
from pathlib import Path

from .plan import Plan
from .plots import draw_headline, draw_questions, draw_world
from .tables import QUESTIONS, Results, content_of, markdown

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "results.md"
BLOCK = re.compile(r"(<!-- table (\d) -->\n)(.*?)(<!-- end -->)", re.S)


def with_tables(page: str, results: Results, plan: Plan) -> str:
    """The page with the tables of the results in their places.

    Raises:
        ValueError: a table that no question has.
    """

    def filled(match: re.Match[str]) -> str:
        question = int(match[2])
        if question not in QUESTIONS:
            raise ValueError(
                f"docs/results.md has a place for table {question}; there are {', '.join(map(str, QUESTIONS))}"
            )
        content = content_of(results, plan, question)
        return f"{match[1]}\n{markdown(content) if content else 'Not run yet.'}\n\n{match[4]}"

    return BLOCK.sub(filled, page)


def write_page(results: Results, plan: Plan) -> None:
    """Tables and plots, anew."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), results, plan), encoding="utf-8")
    draw_world(DOCS / "images" / "laboratory-world.png")
    if "base" not in results.kept:
        return
    draw_headline(DOCS / "images" / "laboratory.png", results, plan)
    draw_questions(DOCS / "images" / "laboratory-questions.png", results, plan)
