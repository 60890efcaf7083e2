"""What a public function raises, its docstring says: in `Raises:`, by the error's name or that of a class above it."""

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODULES = sorted(SOURCE.rglob("*.py"))
OF_A_CLASS = ("__init__", "__post_init__", "__new__")
"""What these raise, the class's docstring says."""
UNSAID = (AssertionError, NotImplementedError, KeyboardInterrupt, SystemExit)
"""An invariant, what a subclass brings, an end of the program."""
PROTOCOL = re.compile(r"__(?!call__)\w+__")
"""Whose errors Python's own rules say: AttributeError of `__getattr__`, IndexError of `__getitem__`."""
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def own_nodes(node: ast.AST, caught: tuple = ()) -> Iterator[tuple[ast.AST, tuple]]:
    """The nodes of a body without those of functions and classes inside of it, each with what is caught around it."""
    for name, value in ast.iter_fields(node):
        inside = caught
        if isinstance(node, ast.Try) and name == "body":
            inside += tuple(handler.type for handler in node.handlers)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, (*FUNCTION, ast.ClassDef, ast.Lambda)):
                yield child, inside
                yield from own_nodes(child, inside)


def raised(function: ast.AST, names: dict, private: dict[str, ast.AST], seen: frozenset = frozenset()) -> set[type]:
    """The classes of the errors that a body makes and raises, itself or in the private functions and methods that it calls;
    what is caught and raised again is another's.

    Args:
        function: the node.
        names: of its module.
        private: the module's private functions, and the private methods of the function's class, by name.
        seen: those that are being looked at.
    """
    found = set()
    for node, handlers in own_nodes(function):
        new = set()
        if isinstance(node, ast.Raise):
            new = made(node.exc, names, private)
        elif isinstance(node, ast.Call):
            called = node.func.attr if is_own_method(node.func) else getattr(node.func, "id", None)
            if called in private and called not in seen:
                new = raised(private[called], names, private, seen | {called})
        caught = tuple(kind for handler in handlers for kind in kinds(handler, names))
        found |= {own for own in new if not issubclass(own, caught)}
    return {own for own in found if not issubclass(own, UNSAID)}


def kinds(handler: ast.AST | None, names: dict) -> list[type]:
    """The classes that `except` names; without a name, all."""
    if handler is None:
        return [BaseException]
    named = [node.id for node in ast.walk(handler) if isinstance(node, ast.Name)]
    found = [names.get(name, getattr(builtins, name, None)) for name in named]
    return [own for own in found if isinstance(own, type) and issubclass(own, BaseException)]


def is_own_method(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def made(error: ast.AST | None, names: dict, private: dict[str, ast.AST]) -> set[type]:
    """The class of the error of a `raise`: `Error`, `Error(...)`, or a function that makes one and says which."""
    called = error.func if isinstance(error, ast.Call) else error
    name = called.attr if is_own_method(called) else getattr(called, "id", None)
    if name in private and isinstance(error, ast.Call):
        name = getattr(private[name].returns, "id", None)
    own = names.get(name, getattr(builtins, name, None)) if name else None
    if callable(own) and not isinstance(own, type):
        own = own.__annotations__.get("return")
    return {own} if isinstance(own, type) and issubclass(own, BaseException) else set()


def said(docstring: str | None) -> set[str]:
    """The names in `Raises:`."""
    section = re.search(r"^\s*Raises:\n((?:\s+.*\n?|\n)+?)(?=^\S|\Z|^\s*$)", docstring or "", re.M)
    return set(re.findall(r"^\s*(\w+):", section[1], re.M)) if section else set()


def functions(node: ast.AST) -> dict[str, ast.AST]:
    return {own.name: own for own in node.body if isinstance(own, FUNCTION)}


def public(tree: ast.Module) -> Iterator[tuple[str, ast.AST, ast.AST, dict[str, ast.AST]]]:
    """By name, each public function or method, the node whose docstring speaks for it, and the private ones that it may call."""
    hidden = {name: own for name, own in functions(tree).items() if name.startswith("_")}
    yield from ((name, own, own, hidden) for name, own in functions(tree).items() if name not in hidden)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = functions(node)
            inside = hidden | {name: own for name, own in methods.items() if name.startswith("_") and name[:2] != "__"}
            for name, own in methods.items():
                if name in OF_A_CLASS or not (name.startswith("_") or PROTOCOL.fullmatch(name)):
                    yield f"{node.name}.{name}", own, node if name in OF_A_CLASS else own, inside


@pytest.mark.parametrize("path", MODULES, ids=lambda path: module_name(path))
def test_what_is_raised_is_said(path):
    names = vars(importlib.import_module(module_name(path)))
    unsaid = {}
    for name, function, speaks, private in public(ast.parse(path.read_text())):
        told = said(ast.get_docstring(speaks))
        missing = {
            own.__name__
            for own in raised(function, names, private)
            if not {kind.__name__ for kind in own.__mro__} & told
        }
        if missing:
            unsaid[name] = missing
    assert not unsaid


def test_the_test_reads_code_and_docstrings():
    text = "A.\n\nArgs:\n    a: b.\n\nRaises:\n    ValueError: x\n        goes on.\n    OSError: y.\n\nSource: z"
    assert said(text) == {"ValueError", "OSError"} and said("Raises ValueError.") == set() == said(None)
    code = """
def f(a):
    def inner():
        raise KeyError
    _g(a)
    raise ValueError(a)
def _g(a):
    assert a
    raise _h(a)
def _h(a) -> OSError:
    return OSError(a)
class C:
    def __init__(self):
        self._m()
    def _m(self):
        raise TypeError
    def __getattr__(self, name):
        raise AttributeError
    def other(self):
        try:
            self._m()
            raise ValueError
        except (OSError, TypeError):
            raise
"""
    found = {name: raised(own, {}, private) for name, own, _, private in public(ast.parse(code))}
    assert found == {"f": {ValueError, OSError}, "C.__init__": {TypeError}, "C.other": {ValueError}}
