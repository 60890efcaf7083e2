"""A server that names replacements and writes answers: what it is asked, and what can be used of what it says."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...endpoint import Endpoint, Judge, Question, Verdicts, readable
from ..keywords import STOP
from .pool import bare
from .words import is_plural, words_of

REPLACEMENT = """\
Look at the image. An answer about it says:

"{answer}"

Imagine that something else were in the place of "{old}": of a similar kind and size, {number}, and neither in the image nor in the answer.
Name {count} such things, one a line, in one to three words each, without an article. Write nothing else."""
"""By which replacements of an object are asked for, with the image."""

ANSWER = """\
An answer about an image says:

"{answer}"

In the image, "{old}" was replaced by "{new}". Everything else is as it was. Write the answer that is true of the new image: \
name "{new}", in these words, wherever the answer names "{old}", and let articles and pronouns agree. Leave out what the answer says \
of it that need not be true of "{new}", such as its colour or what it does. Add nothing, and change nothing else.
Write the answer only."""
"""By which the answer that is true of an edited image is asked for, without the image."""

NUMBERED = re.compile(r"^\s*(?:\d+[.):]|[-*•])?\s*")
LONGEST = 4
"""Words of a phrase."""


class Asked:
    """A server, whose answers are kept beside the part that they are for.

    Args:
        endpoint: the server.
        kept: the file that keeps them, by the number of a row.
    """

    def __init__(self, endpoint: Endpoint, kept: Callable[[int], Path]):
        self.endpoint, self.kept = endpoint, kept

    def replacements(self, rows: Sequence[Any], count: int) -> list[list[str]]:
        """The phrases that the server names for the object of each row's `plan`; none where what it says names nothing.

        Raises:
            EndpointError: the server did not answer; what it said before is kept.
        """
        questions = []
        for row in rows:
            plan = row["plan"]
            number = "several of them" if is_plural(plan.old) else "a single one"
            prompt = REPLACEMENT.format(answer=plan.text, old=plan.old, number=number, count=count)
            image = readable(row["images"][plan.image]["bytes"], row["pictures"][plan.image])
            questions.append(Question(f"row {row['number']}", prompt, plan.old, [image]))
        return [named(reply) for reply in self._asked(rows, questions, 256)]

    def answers(self, rows: Sequence[Any]) -> list[str]:
        """What the server writes for each row's `plan`, whose replacement is chosen.

        Raises:
            EndpointError: the server did not answer; what it said before is kept.
        """
        questions = []
        for row in rows:
            plan = row["plan"]
            prompt = ANSWER.format(answer=plan.text, old=plan.old, new=plan.new)
            questions.append(Question(f"row {row['number']}", prompt, plan.new))
        return self._asked(rows, questions, 2048)

    def _asked(self, rows: Sequence[Any], questions: Sequence[Question], longest: int) -> list[str]:
        if not rows:
            return []
        # Rows of a batch are of one part.
        verdicts = Verdicts(self.kept(rows[0]["number"]))
        return Judge(self.endpoint.model, verdicts, self.endpoint, longest).judge(questions)


def named(reply: str) -> list[str]:
    """The phrases in what a server says, one a line or between commas; a line in which anything else stands names nothing."""
    found: list[str] = []
    for line in reply.splitlines():
        phrases = [_phrase(part) for part in re.split("[,;]", line) if part.strip()]
        found += phrases if all(phrases) else []
    return list(dict.fromkeys(found))


def _phrase(text: str) -> str:
    """A plain phrase without its bullet, quotes and article; empty where it is none."""
    phrase = bare(NUMBERED.sub("", text).strip(" \t\"'`[].*"))
    words = words_of(phrase)
    plain = " ".join(phrase[word.start : word.end] for word in words) == phrase
    return phrase if plain and len(words) <= LONGEST and not any(word.text in STOP for word in words) else ""
