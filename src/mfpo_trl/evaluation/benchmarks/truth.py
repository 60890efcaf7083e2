"""Which objects a picture of COCO shows: a file that says it, or the annotations of COCO as CHAIR reads them."""

import argparse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ..figures import id_of, read_json, shown
from .coco import Objects, read_synonyms

SOURCE = (
    "annotations_trainval2014.zip at http://images.cocodataset.org/annotations/ (CC BY 4.0) has instances_train2014.json, "
    "instances_val2014.json, captions_train2014.json and captions_val2014.json"
)


def add_truth_options(parser: argparse.ArgumentParser) -> None:
    """Where the objects of the pictures come from, and the names of objects."""
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument(
        "--ground-truth", type=Path, metavar="FILE", help='objects of each picture: {"<image_id>": ["dog", …]}'
    )
    truth.add_argument(
        "--coco-annotations",
        type=Path,
        metavar="DIR",
        help="folder of instances_*.json and captions_*.json: both say what a picture shows",
    )
    parser.add_argument(
        "--synonyms",
        type=Path,
        metavar="FILE",
        help="a line an object: its name, and a comma before each synonym; the list of CHAIR by default",
    )


class Truth:
    """The objects of each picture, by the names of a synonym list.

    Args:
        args: the options of `add_truth_options`.

    Raises:
        ValueError: what of the files cannot be read.
    """

    def __init__(self, args: argparse.Namespace):
        self.objects = Objects(read_synonyms(args.synonyms) if args.synonyms else None)
        self.settings = {
            "ground truth": args.ground_truth.name if args.ground_truth else "instances and captions of COCO",
            "synonyms": args.synonyms.name if args.synonyms else "of CHAIR",
        }
        self._given = read_ground_truth(args.ground_truth, self.objects) if args.ground_truth else None
        self._folder: Path = args.coco_annotations
        self.what = f"the images of {args.ground_truth or args.coco_annotations}"

    def of(self, images: Collection[str]) -> Mapping[str, frozenset[str]]:
        """Those of a file, or those of these images; an image that nobody knows is not in it.

        Raises:
            ValueError: which annotations are missing, or what of them cannot be read.
        """
        return read_annotations(self._folder, self.objects, set(images)) if self._given is None else self._given

    def missing(self, images: Collection[str]) -> int:
        """How many of a file's images are not among these; of COCO, nobody answers all."""
        return 0 if self._given is None else len(self._given.keys() - set(images))


def image_id(own: str) -> str:
    """The id without the zeros of a file's name in front of it."""
    return str(int(own)) if own.isdecimal() else own


def read_ground_truth(path: Path, objects: Objects) -> dict[str, frozenset[str]]:
    """Of a file `{"<image_id>": ["dog", …]}`.

    Raises:
        ValueError: what is not as it must be, and where.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f'{path} holds no images; expected {{"<image_id>": ["dog", …]}}')
    found: dict[str, frozenset[str]] = {}
    for image, names in content.items():
        if not isinstance(names, list):
            raise ValueError(f"{path} image {image}: {shown(names)}; expected a list of names")
        unknown = [name for name in names if not isinstance(name, str) or name not in objects.name_of]
        if unknown:
            raise ValueError(f"{path} image {image}: {shown(unknown[0])} is not among the objects of the synonym list")
        if image_id(image) in found:
            raise ValueError(f"{path} image {image} comes twice")
        found[image_id(image)] = frozenset(objects.name_of[name] for name in names)
    return found


def read_annotations(folder: Path, objects: Objects, images: set[str]) -> dict[str, frozenset[str]]:
    """Of these images: the categories of their instances, and the objects that their captions name.

    Raises:
        ValueError: which files are missing, or what in them is not as it must be.
    """
    found: dict[str, set[str]] = {}
    for kind in ("instances", "captions"):
        paths = sorted(folder.glob(f"{kind}_*.json"))
        if not paths:
            raise ValueError(f"{folder} has no {kind}_*.json; {SOURCE}")
        for path in paths:
            content = read_json(path)
            if not isinstance(content, dict) or not all(
                _is_rows(content.get(own)) for own in ("images", "annotations")
            ):
                raise ValueError(f"{path} is no annotation file of COCO: it needs 'images' and 'annotations'")
            for image in content["images"]:
                own = id_of(image, "id", f"{path} images")
                if own in images:
                    found.setdefault(own, set())
            named = _of_instances(content, path, objects) if kind == "instances" else _of_caption(objects)
            for number, annotation in enumerate(content["annotations"], 1):
                own = str(annotation.get("image_id"))
                if own in found:
                    try:
                        found[own].update(named(annotation))
                    except ValueError as error:
                        raise ValueError(f"{path} annotation {number}: {error}") from None
    return {own: frozenset(names) for own, names in found.items()}


def _is_rows(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(row, Mapping) for row in content)


def _of_instances(
    content: Mapping[str, Any], path: Path, objects: Objects
) -> Callable[[Mapping[str, Any]], list[str]]:
    names = _categories(content, path, objects)

    def named(annotation: Mapping[str, Any]) -> list[str]:
        own = annotation.get("category_id")
        if own not in names:
            raise ValueError(f"'category_id' is {shown(own)}, which is none of the categories of the file")
        return [names[own]]

    return named


def _of_caption(objects: Objects) -> Callable[[Mapping[str, Any]], list[str]]:
    def named(annotation: Mapping[str, Any]) -> list[str]:
        own = annotation.get("caption")
        if not isinstance(own, str):
            raise ValueError(f"'caption' is {shown(own)}; expected a text")
        return objects.find(own)

    return named


def _categories(content: Mapping[str, Any], path: Path, objects: Objects) -> dict[int, str]:
    """Id of each category -> the name of its object."""
    rows = content.get("categories")
    names = {own.get("id"): own.get("name") for own in (rows if rows is not None and _is_rows(rows) else ())}
    unknown = [name for name in names.values() if name not in objects.name_of]
    if unknown or not names:
        raise ValueError(
            f"{path}: category {shown(unknown[0] if unknown else None)} is not among the objects of the synonym list"
        )
    return {own: objects.name_of[name] for own, name in names.items()}
