"""The reference of the site: every public name is in it, and whatever it lists is there and has a docstring. That its pages and
links hold, `make docs` says."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import yaml

import mfpo_trl

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "recipes" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LISTED = [
    name for page in yaml.safe_load((ROOT / "docs" / "reference.yml").read_text()).values() for name in page["names"]
]


def found(name: str) -> tuple[object, object]:
    """What a dotted name is of, and what it is."""
    module, _, attribute = name.rpartition(".")
    home = importlib.import_module(module)
    return home, getattr(home, attribute)


def imported(source: str) -> set[str]:
    """The names of this package that a script imports, as in `from module import name`."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return {
        f"{node.module}.{own.name}" for node in nodes if node.module.split(".")[0] == "mfpo_trl" for own in node.names
    }


def used() -> set[str]:
    """What the examples and the pages import; of a module that is imported whole, what is called."""
    blocks = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    blocks += [
        block for path in PAGES for block in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M)
    ]
    names = set()
    for block in blocks:
        for name in imported(block):
            last = name.rpartition(".")[2]
            whole = (ROOT / "src" / Path(*name.split("."))).with_suffix(".py").is_file()
            names |= {f"{name}.{own}" for own in re.findall(rf"\b{last}\.(\w+)", block)} if whole else {name}
    return names


def test_what_is_broken_ends_the_build():
    """A quiet mkdocs counts no warnings, so that its strict mode lets every broken link pass."""
    command = re.search(r"^\t.*(mkdocs build.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert command.split() == ["mkdocs", "build", "--strict"]


def test_the_public_names_are_listed():
    public = {f"mfpo_trl.{name}" for name in mfpo_trl.__all__} - {"mfpo_trl.__version__"}
    assert public <= set(LISTED) and len(set(LISTED)) == len(LISTED)


def test_what_examples_and_pages_use_is_listed():
    assert used()
    objects = {id(found(name)[1]) for name in LISTED}
    assert {name for name in used() if id(found(name)[1]) not in objects} == set()


@pytest.mark.parametrize("name", LISTED)
def test_what_is_listed_is_documented(name):
    home, own = found(name)
    if isinstance(own, type) or callable(own):
        assert own.__doc__ and not own.__doc__.startswith(f"{own.__name__}("), (
            "a dataclass without a docstring shows its fields"
        )
        return
    # A constant: the text behind it in the module that has it.
    last = name.rpartition(".")[2]
    for path in Path(home.__file__).parent.glob("*.py"):
        for node, behind in zip(body := ast.parse(path.read_text()).body, body[1:], strict=False):
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if any(getattr(target, "id", None) == last for target in targets):
                assert isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant), f"{path.name}: {last}"
                return
    raise AssertionError(f"{name} is nowhere assigned")
