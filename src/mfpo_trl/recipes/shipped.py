"""Which files come with the package, and under which names they are found.

In the repository they live in its folder `recipes`; a wheel has them beside this file, where `setup.py` puts them.
"""

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path

INSTALLED = Path(__file__).parent / "files"
CHECKOUT = Path(__file__).parents[3] / "recipes"
ACCELERATE = "accelerate/"
DEEPSPEED = "deepspeed/"
KINDS = (".yaml", ".json", ".slurm")


def shipped_files() -> dict[str, Path]:
    """Every file by its name, which is its path below the folder of recipes, without `.yaml`."""
    return files_of(INSTALLED if INSTALLED.is_dir() else CHECKOUT)


def files_of(root: Path, below: str = "") -> dict[str, Path]:
    """The files of a folder of recipes by their names.

    Args:
        root: the folder.
        below: of which folder inside of it, all of them where empty.
    """
    paths = sorted(path for path in root.glob(f"{below or '*/'}*") if path.suffix in KINDS and path.is_file())
    return {path.relative_to(root).as_posix().removesuffix(".yaml"): path for path in paths}


def is_training(name: str) -> bool:
    """Whether a file of this name holds fields of `mfpo train`."""
    return not name.startswith((ACCELERATE, DEEPSPEED))


def recipe_file(given: str) -> Path:
    """The recipe of a training with this path or name.

    Raises:
        ValueError: there is none; the nearest name is told.
    """
    if Path(given).is_file():
        return Path(given)
    known = {name: path for name, path in shipped_files().items() if is_training(name)}
    if (name := _name(given)) in known:
        return known[name]
    raise ValueError(f"--config {given!r} is no file, and no recipe that `mfpo recipes` lists{nearest(name, known)}")


def accelerate_file(given: str) -> Path:
    """The configuration of accelerate with this path or name; one of `recipes/accelerate` in the working directory comes
    before the one of that name that comes with the package.

    Raises:
        ValueError: there is none; the nearest name is told.
    """
    if Path(given).is_file():
        return Path(given)
    found = {name: path for name, path in shipped_files().items() if name.startswith(ACCELERATE)}
    found |= files_of(Path("recipes").absolute(), ACCELERATE)
    known = {name.removeprefix(ACCELERATE): path for name, path in found.items() if path.suffix == ".yaml"}
    if (name := _name(given).removeprefix(ACCELERATE)) in known:
        return known[name]
    raise ValueError(
        f"--accelerate-config {given!r} is not known: expected a path, or one of {', '.join(sorted(known))}"
        f"{nearest(name, known)}"
    )


def any_file(given: str) -> tuple[str, Path]:
    """The file that comes with the package under this name, and that name.

    Raises:
        ValueError: there is none; the nearest name is told.
    """
    known = shipped_files()
    if (name := _name(given)) in known:
        return name, known[name]
    raise ValueError(f"there is no {given!r} among what `mfpo recipes` lists{nearest(name, known)}")


def what_it_is(path: Path) -> str:
    """The first sentence of a file's head; of a JSON file, which has none, what it sets."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        zero = json.loads(text)["zero_optimization"]
        away = ", weights and optimizer states in the main memory" if "offload_param" in zero else ""
        return f"DeepSpeed's own configuration of ZeRO-{zero['stage']}{away}: --deepspeed PATH"
    head = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    return re.split(r"[.;] ", head, maxsplit=1)[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known name that is most like this one as a whole or in its last part, if any is."""
    by_end: dict[str, str] = {}
    for own in known:
        by_end.setdefault(own.rpartition("/")[2], own)
    close = difflib.get_close_matches(name, [*known, *by_end], n=1)
    return f"; did you mean {by_end.get(close[0], close[0])!r}?" if close else ""


def _name(given: str) -> str:
    return given.removeprefix("recipes/").removesuffix(".yaml")
