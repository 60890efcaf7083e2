"""Who may import whom (docs/architecture.md), and what importing costs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mfpo_trl

SOURCE = Path(__file__).parents[1] / "src" / "mfpo_trl"
FLOORS = (
    "objective rows weights leaving recipes endpoint",
    "images _trl checkpoints terminal",
    "config",
    "batch requirements",
    "reference",
    "order",
    "card",
    "hub",
    "arguments data",
    "evaluation",
    "trainer pairs",
    "__init__",
    "train demo",
    "check loop",
    "cli",
)
"""Rooms, and the files beside them, from the ground up; each may import what lies below it."""

FLOORS_INSIDE = {
    "data": (
        "plugin",
        "reading keywords grounding editing difficulty",
        "stages",
        "mirror",
        "writing",
        "preview pipeline",
        "build",
        "command",
    ),
    "evaluation": ("figures models", "benchmarks", "generation", "during likelihood", "reliance merge"),
}
"""The same for rooms that hold rooms."""

PURE = (
    "objective.losses objective.names objective.ratios objective.branches objective.terms.term objective.terms.table "
    "objective.terms.text objective.terms.image objective.terms.anchor objective.terms.symmetric objective.terms.tokens "
    "objective.terms.focal objective.terms.in_context objective.step objective.presets rows.schema images.regions images.corruptions.pixels images.corruptions.noise images.corruptions.alone images.corruptions.others images.corruptions.filled images.corruptions.table images.donors images.recipe images.dispreferred batch.packing "
    "batch.layouts order.curriculum"
).split()
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "numpy", "PIL")
MODULES = sorted(SOURCE.rglob("*.py"))


def handed_on(folder: Path) -> dict[str, str]:
    """The names that others may import from a room, each with the file that it comes from."""
    nodes = ast.walk(ast.parse((folder / "__init__.pyi").read_text()))
    return {alias.name: node.module for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def imports(path: Path, through_doors: bool = True) -> set[str]:
    """Modules that a file imports, those of this package as `mfpo_trl.<module>`; type-checking imports left out.

    Args:
        through_doors: of a name that a room hands on, tell the module that has it, and not the room.
    """
    found = set()
    tree = ast.parse(path.read_text())
    checked = {id(node) for block in ast.walk(tree) if is_type_checking(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["mfpo_trl", *path.relative_to(SOURCE).parts[:-1]]
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                found.add(resolved(module, alias.name) if through_doors else named(module, alias.name))
    return found


def named(module: str, name: str) -> str:
    """What `from module import name` imports: a module of that name, or the module itself."""
    if not module.startswith("mfpo_trl"):
        return module
    folder = SOURCE.joinpath(*module.split(".")[1:])
    inside = (folder / name).is_dir() or (folder / f"{name}.py").is_file()
    return f"{module}.{name}" if inside else module


def resolved(module: str, name: str) -> str:
    own = named(module, name)
    folder = SOURCE.joinpath(*own.split(".")[1:])
    if own == "mfpo_trl":
        home = mfpo_trl._HOME_OF.get(name)
        return "mfpo_trl.__init__" if home is None else f"mfpo_trl.{home}"
    if own.startswith("mfpo_trl") and folder.is_dir() and own == module:
        return f"{module}.{handed_on(folder)[name]}"
    return own


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room_of(module: str) -> str:
    """`mfpo_trl.rows.schema` -> `rows`"""
    return module.split(".")[1]


@pytest.mark.parametrize("name", PURE)
def test_pure_files_know_torch_numpy_and_pillow_only(name):
    allowed = {"torch", "numpy", "PIL", "cv2", *sys.stdlib_module_names}
    for module in imports(SOURCE / f"{name.replace('.', '/')}.py"):
        own = module.removeprefix("mfpo_trl.")
        assert own in PURE if module.startswith("mfpo_trl") else module.split(".")[0] in allowed, module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_private_names_of_trl_are_in_one_place(path):
    for module in imports(path):
        if module == "trl" or module.startswith("trl."):
            assert module == "trl" or path.parent.name == "_trl", f"{path.name} reaches into {module}"


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by it, and the benchmarks as well."""
    own = Path(__file__).parent
    names = [path.name for path in (*own.rglob("*.py"), *(own.parent / "benchmarks").glob("*.py"))]
    assert len(set(names)) == len(names)


def test_every_room_has_a_floor():
    """And the root stays as small as it is said to be."""
    inside = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert sorted(" ".join(FLOORS).split()) == sorted(inside)
    assert len(list(SOURCE.glob("*.py"))) <= 12
    for room, floors in FLOORS_INSIDE.items():
        own = {path.stem for path in (SOURCE / room).iterdir() if path.suffix == ".py" or path.is_dir()}
        assert sorted(" ".join(floors).split()) == sorted(own - {"__init__", "__pycache__"})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_data_walks_one_way(path):
    """Every import goes down a floor, and through the door of the room that it goes to."""
    height = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
    own = path.relative_to(SOURCE).parts
    room = own[0].removesuffix(".py")
    for module in imports(path):
        if module.startswith("mfpo_trl.") and room_of(module) != room and module != "mfpo_trl.__init__":
            assert height[room_of(module)] < height[room], f"{room} imports {module}, which lies no lower"
    height = {inner: floor for floor, rooms in enumerate(FLOORS_INSIDE.get(room, ())) for inner in rooms.split()}
    if height and own[1] != "__init__.py":
        inner = own[1].removesuffix(".py")
        for module in imports(path, through_doors=False):
            parts = module.split(".")
            if parts[:2] == ["mfpo_trl", room] and len(parts) > 2 and parts[2] != inner:
                assert height[parts[2]] < height[inner], f"{inner} imports {module}, which lies no lower"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nobody_reaches_around_a_door(path):
    package = ["mfpo_trl", *path.relative_to(SOURCE).parts[:-1]]
    for module in imports(path, through_doors=False):
        parts = module.split(".")
        # A room inside of a room is part of it.
        inside = package[: len(parts) - 1] == parts[:-1]
        if parts[0] == "mfpo_trl" and not inside and len(parts) > 2:
            assert SOURCE.joinpath(*parts[1:]).is_dir(), (
                f"{path.name} reaches for {module}; its room should hand on what it needs"
            )


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in SOURCE.rglob("__init__.pyi")), ids=lambda folder: folder.name
)
def test_a_room_hands_on_what_is_there(folder):
    room = importlib.import_module(".".join(["mfpo_trl", *folder.relative_to(SOURCE).parts]))
    assert room.__doc__ and sorted(room.__all__) == sorted(handed_on(folder))
    for name, file in handed_on(folder).items():
        assert getattr(room, name) is getattr(importlib.import_module(f"{room.__name__}.{file}"), name)


@pytest.mark.parametrize(
    "statement", ["import mfpo_trl", "import mfpo_trl.cli", "import mfpo_trl.demo", "from mfpo_trl.train import main"]
)
def test_import_is_light(statement):
    code = f"{statement}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_public_names_exist():
    for name in mfpo_trl.__all__:
        assert getattr(mfpo_trl, name) is not None
        assert name in dir(mfpo_trl)
    with pytest.raises(AttributeError, match="has no attribute 'MFPO'"):
        getattr(mfpo_trl, "MFPO")  # noqa: B009


def private_names(tree: ast.AST, kind: type) -> set[str]:
    """What a file defines (`ast.Store`) or reads of others (`ast.Load`) under a name with one underscore."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and kind is ast.Store:
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, kind):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


# Names of `datasets` and argparse in rooms that do not load TRL.
FOREIGN = {
    "leaving.py": {"_shutdown", "_run_exitfuncs", "_exit"},
    "data/reading/files.py": {"_fingerprint"},
    "data/command.py": {"_actions"},
    "terminal.py": {"_option_string_actions", "_subparsers"},
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_private_attributes_of_others_are_in_one_place(path):
    """A name with an underscore that a file reads is one that it defines or imports."""
    if path.parent.name == "_trl":
        return
    tree = ast.parse(path.read_text())
    known = private_names(tree, ast.Store) | FOREIGN.get(str(path.relative_to(SOURCE)), set())
    known |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not private_names(tree, ast.Load) - known


def test_what_the_trainer_shares_with_trl_is_in_the_contract():
    """Every name that both classes have, and every private attribute that the room `_trl` reads of a trainer."""
    from trl import DPOTrainer

    from mfpo_trl import MFPOTrainer
    from mfpo_trl._trl import ATTRIBUTES, CLASS_ATTRIBUTES, CONTRACT

    shared = {name for name in vars(MFPOTrainer) if hasattr(DPOTrainer, name) and not name.startswith("__")}
    assert shared <= {*CONTRACT, *CLASS_ATTRIBUTES}
    read = {
        node.attr
        for path in (SOURCE / "_trl").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trainer"
    }
    assert {name for name in read if name.startswith("_")} == {*ATTRIBUTES, "_prepare_inputs"}
