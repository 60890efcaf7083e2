"""The files of a benchmark's pictures under its folder."""

import re
from pathlib import Path, PurePosixPath

from ..benchmarks import image_id
from ..figures import read_json

PICTURE_FOLDERS = ("", "image", "images", "val2014", "images/val2014", "data/image", "data/images", "train2014")
"""Where its pictures may lie."""

PICTURE = re.compile(r"(\d+)\.(?:jpe?g|png|webp)$", re.IGNORECASE)
"""The file of a picture that is named by a number, perhaps behind other words: COCO_val2014_000000000042.jpg."""


class Pictures:
    """The pictures under the folder of a benchmark, by the names that its questions have for them.

    Attributes:
        found, missing: names that were asked for.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.found: dict[str, Path] = {}
        self.missing: dict[str, None] = {}
        self._likely = [folder / own for own in PICTURE_FOLDERS if (folder / own).is_dir()]

    def of(self, picture: str | Path | bytes | None, where: str) -> list[Path | bytes]:
        """The one that is named, or that is given itself.

        Raises:
            ValueError: a name that leads out of the folder.
        """
        if picture is None:
            return []
        if not isinstance(picture, str):
            return [picture]
        if picture not in self.found and picture not in self.missing:
            name = PurePosixPath(picture)
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(f"{where}: the picture {picture!r} lies outside of {self.folder}")
            path = self._path(name)
            if path is None:
                self.missing[picture] = None
            else:
                self.found[picture] = path
        return [self.found[picture]] if picture in self.found else []

    def _path(self, name: PurePosixPath) -> Path | None:
        # Unpacked elsewhere, an archive's own folder may be gone.
        for own in filter(lambda path: path.parts, (name, PurePosixPath(*name.parts[1:]))):
            for number, folder in enumerate(self._likely):
                if (folder / own).is_file():
                    self._likely.insert(0, self._likely.pop(number))
                    return folder / own
        return None


TRUTH = "ground_truth.json"
"""The file that may say which pictures of COCO, or of one's own, are described."""


def coco_pictures(folder: Path, source: str) -> list[tuple[int, Path]]:
    """The pictures that are described, by their numbers: those that `TRUTH` names where it is there, else all.

    Args:
        source: where they come from, for messages.

    Raises:
        ValueError: which are missing.
    """
    there: dict[str, Path] = {}
    for own in PICTURE_FOLDERS:
        if (folder / own).is_dir():
            files = ((PICTURE.search(path.name), path) for path in sorted((folder / own).iterdir()))
            there |= {image_id(match[1]): path for match, path in files if match and image_id(match[1]) not in there}
    path = folder / TRUTH
    wanted = _numbers(path) if path.is_file() else sorted(there, key=int)
    missing = [own for own in wanted if own not in there]
    if missing:
        raise ValueError(
            f"{folder} has no picture of {len(missing):,} of the {len(wanted):,} images of {path.name}, the first of them image "
            f"{missing[0]}: its file is named by that number, perhaps behind zeros and words; pictures of COCO are in {source}"
        )
    if not wanted:
        raise ValueError(f"{folder} has no pictures that are named by a number; get them from {source}")
    return [(int(own), there[own]) for own in wanted]


def _numbers(path: Path) -> list[str]:
    content = read_json(path)
    numbers = [image_id(own) for own in content] if isinstance(content, dict) else []
    odd = [own for own in numbers if not own.isdecimal()]
    if odd or not numbers:
        raise ValueError(
            f'{path} is not {{"<image_id>": ["dog", …]}} with numbers of images{f": {odd[0]!r}" if odd else ""}'
        )
    return numbers
