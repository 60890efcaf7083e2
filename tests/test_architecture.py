"""Who may import whom (docs/architecture.md), and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mfpo_trl"
PURE = {"losses", "branches", "packing", "batches", "regions", "corruptions", "rows", "dispreferred", "curriculum"}
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "numpy", "PIL")


def imports(path: Path) -> set[str]:
    """Modules that a file imports, those of this package as `mfpo_trl.<module>`; type-checking imports left out."""
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
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


MODULES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", [SOURCE / f"{name}.py" for name in sorted(PURE)], ids=lambda path: path.stem)
def test_pure_rooms_know_torch_numpy_and_pillow_only(path):
    allowed = {"torch", "numpy", "PIL", *sys.stdlib_module_names}
    for module in imports(path):
        own = module.removeprefix("mfpo_trl.")
        assert own in PURE if module.startswith("mfpo_trl") else module.split(".")[0] in allowed, module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_private_names_of_trl_are_in_one_place(path):
    for module in imports(path):
        if module == "trl" or module.startswith("trl."):
            assert module == "trl" or path.name == "_trl.py", f"{path.name} reaches into {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_data_walks_one_way(path):
    room = path.relative_to(SOURCE).parts[0]
    reached = {
        module.removeprefix("mfpo_trl.").split(".")[0] for module in imports(path) if module.startswith("mfpo_trl")
    }
    if room in ("data", "evaluation"):
        assert "trainer" not in reached
    if room not in ("cli.py", "__init__.py"):
        assert "cli" not in reached
    for side in {"data", "evaluation", "demo"} - {room}:
        assert side not in reached or room == "cli.py", f"{path.name} reaches into {side}"


@pytest.mark.parametrize("statement", ["import mfpo_trl", "import mfpo_trl.cli", "import mfpo_trl.demo"])
def test_import_is_light(statement):
    code = f"{statement}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_public_names_exist():
    import mfpo_trl

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
    "data/reading.py": {"_fingerprint"},
    "data/command.py": {"_actions"},
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_private_attributes_of_others_are_in_one_place(path):
    """A name with an underscore that a file reads is one that it defines or imports."""
    if path.name == "_trl.py":
        return
    tree = ast.parse(path.read_text())
    known = private_names(tree, ast.Store) | FOREIGN.get(str(path.relative_to(SOURCE)), set())
    known |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not private_names(tree, ast.Load) - known


def test_what_the_trainer_shares_with_trl_is_in_the_contract():
    """Every name that both classes have, and every private attribute that `_trl.py` reads of a trainer."""
    from trl import DPOTrainer

    from mfpo_trl import MFPOTrainer
    from mfpo_trl._trl import ATTRIBUTES, CLASS_ATTRIBUTES, CONTRACT

    shared = {name for name in vars(MFPOTrainer) if hasattr(DPOTrainer, name) and not name.startswith("__")}
    assert shared <= {*CONTRACT, *CLASS_ATTRIBUTES}
    tree = ast.parse((SOURCE / "_trl.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trainer"
    }
    assert {name for name in read if name.startswith("_")} == {*ATTRIBUTES, "_prepare_inputs"}
