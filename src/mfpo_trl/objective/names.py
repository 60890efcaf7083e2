"""What a branch is called: an image variant and an answer.

Image variants: `image` (the row's own), `rejected_image` (the dispreferred one), `rejected_image.2`, `rejected_image.3`, … (further
dispreferred ones, in their order), `no image` (the prompt as a text), and, with the row's own and the dispreferred image in one prompt,
`image of both` and `rejected_image of both`, which say which of the two is asked about. Answers: `chosen`, `rejected`, `rejected_image_chosen` (the one
that is true of the dispreferred image), and further ones by the names of their columns, such as `chosen_2`.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple


class BranchName(NamedTuple):
    """One (image variant, answer) that can be scored; equal to a plain tuple of the two."""

    image: str
    answer: str

    def __str__(self) -> str:
        return SHORT.get(self, f"{self.answer} under {self.image}")

    @property
    def variant(self) -> int:
        """The number of the dispreferred image that is shown, from 1; 0 where none is."""
        if self.image in OF_BOTH:
            return 1
        found = VARIANT.fullmatch(self.image)
        return int(found[1] or 1) if found else 0


VARIANT = re.compile(r"rejected_image(?:\.([2-9]|[1-9]\d))?")
NO_IMAGE = "no image"
OF_BOTH = {"image of both": "image", "rejected_image of both": "rejected_image"}
"""Two images in one prompt: which of them is asked about."""
POSITION = "{position}"
"""Where a sentence says `first` or `second`."""
IMAGE_INSTRUCTION = f"Answer based on the {POSITION} image."
"""What a prompt with two images says; of IC-VCO's released code."""
COUNTERPART = "rejected_image_chosen"
"""The answer, and the column, that is true of the dispreferred image."""

CHOSEN, REJECTED = BranchName("image", "chosen"), BranchName("image", "rejected")
CORRUPTED = BranchName("rejected_image", "chosen")
CORRUPTED_REJECTED = BranchName("rejected_image", "rejected")
CHOSEN_2 = BranchName("image", "chosen_2")
BRANCHES = (CHOSEN, REJECTED, CORRUPTED)
"""(m, y_w), (m, y_l) and (m', y_w): the first columns of every batch's `pairs`."""

SHORT = {CHOSEN: "chosen", REJECTED: "rejected", CORRUPTED: "corrupted"}
_LONG = {name: branch for branch, name in SHORT.items()}
_ANSWER = re.compile(r"[a-z]\w*")


def branch_of(name: str | tuple[str, str]) -> BranchName:
    """A branch by its image variant and answer, or by one of the short names `chosen`, `rejected` and `corrupted`.

    Raises:
        ValueError: there is no such branch.
    """
    if isinstance(name, str):
        if name not in _LONG:
            raise ValueError(f"branch {name!r} is unknown; expected {', '.join(_LONG)}, or (image variant, answer)")
        return _LONG[name]
    parts = [own for own in name if isinstance(own, str)]
    branch = BranchName(*parts) if len(parts) == len(name) == 2 else BranchName("", "")
    known = branch.image in ("image", NO_IMAGE, *OF_BOTH) or branch.variant
    if not known or not _ANSWER.fullmatch(branch.answer):
        raise ValueError(
            f"branch {name!r} is unknown; expected (image variant, answer) with an image variant out of 'image', 'rejected_image', "
            "'rejected_image.2', …, 'no image', 'image of both' and 'rejected_image of both', and an answer such as 'chosen', 'rejected' or 'rejected_image_chosen'"
        )
    return branch


def columns_of(branches: Iterable[str | tuple[str, str]]) -> tuple[BranchName, ...]:
    """The columns of `pairs`: the three of every batch, then the others in their order."""
    return tuple(dict.fromkeys([*BRANCHES, *map(branch_of, branches)]))
