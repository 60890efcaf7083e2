"""Verifiers that ask: "judge", another model behind a server, and "confidence", the policy itself."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...data import Row
from ...endpoint import Endpoint, Judge, Key, Question, Verdicts, digest, readable
from ...evaluation.generation import Drawing, Prompt, first_sentence, one_turn
from ..claims import ABSENT, PRESENT, UNCERTAIN, Claim
from ..policies import Asked, Policy
from .detector import distinct, named_things

JUDGED = """\
Look at the image. Someone wrote this about it:

"{sentence}"

Judge only what this says of "{phrase}". Is it there, as it is described?
Answer with one word: yes, no, or unsure if the image does not settle it."""
"""The prompt of the judge, for each thing in each sentence."""

CONFIDED = "{there} in the image? Answer with one word, Yes or No."
"""What the policy is asked about its own words: "Is there a dog", "Are there dogs"."""

FIRST_WORD = re.compile(r"[^\W\d_]+")


def verdict_of(text: str) -> str:
    """yes -> present, no -> absent, by the first word; anything else is uncertain."""
    match = FIRST_WORD.search(text)
    return {"yes": PRESENT, "no": ABSENT}.get(match[0].lower() if match else "", UNCERTAIN)


class Judged:
    """Each thing that an answer names is asked about in the sentence that names it first.

    Args:
        model: the judge, as its server names it.
        endpoint: where it is.
        tagger: as `keywords.candidates` takes it.
    """

    def __init__(self, model: str, endpoint: Endpoint, tagger: Any = None):
        self.model, self.endpoint, self.tagger = model, endpoint, tagger

    def verify(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], kept: Path) -> list[list[list[Claim]]]:
        """See `Verifier`; raises as `Judge.judge` does."""
        judge = Judge(self.model, Verdicts(kept), self.endpoint, max_tokens=16)
        asked: list[tuple[str, str, Question]] = []
        shape: list[list[int]] = []
        for row, texts in zip(rows, answers, strict=True):
            shown = _shown(row)
            shape.append([])
            for text, named in zip(texts, named_things(texts, self.tagger), strict=True):
                sentences = sentences_of(text)
                for phrase, name in named:
                    prompt = JUDGED.format(sentence=_with(phrase, sentences), phrase=phrase)
                    asked.append((phrase, name, Question(f"row {row['number']}", prompt, phrase, shown)))
                shape[-1].append(len(named))
        verdicts = iter(judge.judge([question for _, _, question in asked]))
        claims = (Claim(phrase, verdict_of(next(verdicts)), name) for phrase, name, _ in asked)
        return [[[next(claims) for _ in range(count)] for count in own] for own in shape]


def sentences_of(text: str) -> list[str]:
    """A text cut into its sentences."""
    found = []
    while text.strip():
        own, text = first_sentence(text)
        found.append(own.strip())
    return found


def _with(phrase: str, sentences: Sequence[str]) -> str:
    """The first sentence that holds the phrase; all of them where a phrase stands across two."""
    return next((own for own in sentences if phrase in " ".join(own.lower().split())), " ".join(sentences))


def _shown(row: Row) -> list[bytes]:
    """The files of a row's images, as servers read them."""
    return [readable(own["bytes"], picture) for own, picture in zip(row["images"], row["pictures"], strict=True)]


def is_there(phrase: str, singular: str) -> str:
    """The beginning of the question, its article and number as the phrase asks for."""
    if phrase.split()[-1] != singular.split()[-1]:
        return f"Are there {phrase}"
    return f"Is there {'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


class Confided:
    """The policy is asked whether the picture shows each thing that its answers name (RLAIF-V, divide and conquer).

    Args:
        policy: called when it is needed.
        who: what tells it from other policies.
        tagger: as `keywords.candidates` takes it.
    """

    def __init__(self, policy: Callable[[], Policy], who: str, tagger: Any = None):
        self.policy, self.who, self.tagger = policy, who, tagger

    def verify(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], kept: Path) -> list[list[list[Claim]]]:
        """See `Verifier`; raises as `Policy.answer` does."""
        verdicts, keys, missing = Verdicts(kept), {}, []
        named = [named_things(texts, self.tagger) for texts in answers]
        for number, (row, own) in enumerate(zip(rows, named, strict=True)):
            shown = [image["bytes"] for image in row["images"]]
            for name, phrase in distinct(own).items():
                text = CONFIDED.format(there=is_there(phrase, name))
                keys[number, name] = key = Key(self.who, digest(text, shown), phrase)
                if key not in verdicts.known:
                    prompt = Prompt(
                        {"row": row["number"], "thing": phrase}, one_turn(text, len(shown)), partial(list, shown)
                    )
                    missing.append((key, Asked(prompt, [0], [0])))
        if missing:
            drawing = Drawing(temperature=0, max_new_tokens=8)
            for place, found in self.policy().answer([own for _, own in missing], drawing):
                verdicts.keep(missing[place][0], found[0][1])
        return [
            [
                [Claim(phrase, verdict_of(verdicts.known[keys[number, name]]), name) for phrase, name in some]
                for some in own
            ]
            for number, own in enumerate(named)
        ]
