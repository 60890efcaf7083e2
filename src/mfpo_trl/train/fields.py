"""The fields of a training: which there are, and of which kind the value must be that a recipe or a command line gives."""

import difflib
import enum
import json
import os
import types
from argparse import Action, ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers.hf_argparser import string_to_bool
from trl import TrlParser

from .options import own_fields, page

ALSO = {"resume_from_checkpoint": (bool,)}
"""What a field takes beside what its annotation says."""

FILES = ("accelerator_config", "deepspeed", "fsdp_config")
"""Mappings whose text may be the path of a file instead of JSON."""

TEXTS = {"pad_to_multiple_of": ("auto", "none", "null")}
"""The only texts that a field takes beside a number."""

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


class _Field(NamedTuple):
    name: str
    members: list[Any]
    default: Any = None
    choices: Any = None

    @property
    def is_mapping(self) -> bool:
        return any(_origin(member) is dict for member in self.members)


@cache
def _known(kinds: tuple[type, ...]) -> dict[str, _Field]:
    """The fields of these dataclasses by name, and the `env` that TRL's scripts read."""
    found = {"env": _Field("env", [dict])}
    for kind in kinds:
        hints = get_type_hints(kind)
        for own in fields(kind):
            hint = hints[own.name]
            members = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
            if any(map(_is_enum, members)):
                members = [member for member in members if member is not str]
            # Any text is a text; whether it is a number is asked first.
            members = sorted((*members, *ALSO.get(own.name, ())), key=lambda member: member is str)
            found[own.name] = _Field(own.name, members, own.default, own.metadata.get("choices"))
    return found


class Parser(TrlParser):
    """TRL's parser of these dataclasses, whose errors are one sentence that names the field, without a usage of 200 options.

    Args:
        kinds: the dataclasses.
        everything: `--help` shows every field.
        options: of argparse.
    """

    def __init__(self, kinds: tuple[type, ...], everything: bool = False, **options: Any):
        self.known, self.everything = _known(kinds), everything
        self.by_field: dict[str, Action] = {}
        self.spelt: list[str] = []
        super().__init__(kinds, **options)
        self.add_argument("--help-all", action="help")

    def add_argument(self, *names: str, **options: Any) -> Any:
        """argparse's, where the annotation of a field would have it take any text, which is read as something else later."""
        field = self.known.get(names[0].removeprefix("--"))
        if field is not None:
            options["metavar"] = _placeholder(field, options.get("choices"))
        if field is not None and (field.name in TEXTS or field.is_mapping):
            options["type"] = partial(_argument, field.name, options["type"] is str)
        elif field is not None and "choices" in options:
            # argparse's own sentence has no nearest choice.
            options["type"] = partial(_chosen, options["type"], tuple(options.pop("choices")))
        action = super().add_argument(*names, **options)
        self.spelt += names
        if field is not None:
            self.by_field[field.name] = action
        return action

    def format_help(self) -> str:
        """What `--help` prints."""
        return page(self.by_field, own_fields(self.dataclass_types), self.everything)

    def parse(self, argv: Sequence[str], recipe: Mapping[str, Any]) -> tuple[Any, ...]:
        """The dataclasses, from what `read_recipe` has found and from the command line, which wins.

        Raises:
            ValueError: an unknown field, or a value that it cannot have.
        """
        recipe = dict(recipe)
        os.environ.update({name: str(value) for name, value in (recipe.pop("env", None) or {}).items()})
        self.set_defaults_with_config(**recipe)
        try:
            *found, rest = self.parse_args_into_dataclasses(args=list(argv), return_remaining_strings=True)
        except TypeError as error:
            # A mapping whose keys are not those of the class that is made of it.
            name = "accelerator_config" if "AcceleratorConfig" in str(error) else "a field"
            raise ValueError(f"{name} cannot be used: {error}") from error
        if rest:
            raise ValueError(f"{rest[0]!r} belongs to no option")
        return tuple(found)

    def error(self, message: str) -> NoReturn:
        """What argparse calls on a mistake, to end the program.

        Raises:
            ValueError: always.
        """
        raise ValueError(message)


def read_recipe(path: Path, kinds: tuple[type, ...]) -> dict[str, Any]:
    """The fields that a recipe gives, with texts that stand for a number or a truth value turned into one.

    Args:
        path: a YAML file.
        kinds: the dataclasses whose fields they are.

    Raises:
        ValueError: no mapping, an unknown key (the nearest one is told), or a value of another kind than its field's.
        OSError, yaml.YAMLError: it cannot be read.
    """
    content, known = yaml.safe_load(path.read_text(encoding="utf-8")), _known(kinds)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a YAML mapping of fields to values")
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            nearest = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{path} has an unknown key {key!r}{nearest}")
    found = {}
    for key, value in content.items():
        try:
            found[key] = _value(known[key], value)
        except ValueError as error:
            raise ValueError(f"{path}: {key} {error}") from None
    return found


def _value(field: _Field, value: Any) -> Any:
    """The value of a field as its dataclass takes it; a `ValueError` goes on where the field's name ends."""
    if value is None and (type(None) in field.members or field.default is None):
        return None
    if isinstance(value, str) and (field.name in TEXTS or field.is_mapping):
        return _text(field.name, value)
    for member in field.members:
        fits, found = _fit(member, value)
        if fits and (field.choices is None or found in field.choices):
            return found
    choices = field.choices or [own.value for member in field.members if _is_enum(member) for own in member]
    expected = f"one of {', '.join(field.choices)}" if field.choices else " or ".join(map(_words, field.members))
    expected += _nearest(value, choices)
    shown = "is of another kind" if field.name.endswith("_token") else f"is {_shown(value)}"
    raise ValueError(f"{shown}; expected {expected}{_advice(value, field.members)}")


def _fit(member: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value is of a kind, and what it is as such."""
    origin = _origin(member)
    if origin is Literal:
        return any(value is own for own in get_args(member)), value
    if origin is list:
        return _fit_list(get_args(member)[0], value)
    if _is_enum(origin):
        return value in [own.value for own in origin], value
    if origin in (bool, int, float) and isinstance(value, str):
        return _read(string_to_bool if origin is bool else origin, value)
    if origin is bool and isinstance(value, int) and value in (0, 1):
        return True, bool(value)
    if isinstance(value, bool):
        return False, value
    return isinstance(value, (int, float) if origin is float else origin), value


def _fit_list(member: Any, value: Any) -> tuple[bool, Any]:
    if isinstance(value, list):
        pairs = [_fit(member, item) for item in value]
        return all(fits for fits, _ in pairs), [found for _, found in pairs]
    # A single number is a list of one; a text stays one, because `all-linear` is no list of modules.
    fits, found = _fit(member, value)
    return fits, found if isinstance(found, str) else [found]


def _read(convert: Callable[[str], Any], text: str) -> tuple[bool, Any]:
    try:
        return True, convert(text)
    except (ValueError, ArgumentTypeError):
        return False, text


def _text(name: str, text: str) -> str:
    """A text for a number or a mapping, which the dataclass reads."""
    if name in TEXTS:
        if not text.isdigit() and text.lower() not in TEXTS[name]:
            raise ValueError(f"is {text!r}; expected a whole number or {' or '.join(TEXTS[name])}")
        return text
    if name in FILES and not text.startswith("{"):
        return text
    with suppress(ValueError):
        if isinstance(json.loads(text), dict):
            return text
    or_path = ", or the path of a file" if name in FILES else ""
    raise ValueError(f"is {text!r}; expected a mapping, which is a JSON object in a text{or_path}")


def _chosen(convert: Callable[[str], Any], choices: Sequence[Any], text: str) -> Any:
    """A choice of the command line."""
    found = convert(text)
    if found not in choices:
        raise ArgumentTypeError(
            f"is {text!r}; expected one of {', '.join(map(str, choices))}{_nearest(text, choices)}"
        )
    return found


def _argument(name: str, stays: bool, text: str) -> Any:
    """A value of the command line; `stays` where the dataclass reads the text."""
    try:
        return _text(name, text) if stays else json.loads(_text(name, text))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


# In words


def _words(member: Any) -> str:
    origin = _origin(member)
    if origin is list:
        return f"a list of {_words(get_args(member)[0]).removeprefix('a ')}s"
    if origin is Literal:
        return " or ".join(map(_shown, get_args(member)))
    return f"one of {', '.join(own.value for own in origin)}" if _is_enum(origin) else WORDS.get(origin, "a mapping")


def _nearest(value: Any, choices: Sequence[Any]) -> str:
    """`; did you mean ...?` with the choice that a text is nearest to, if it is near to one."""
    close = difflib.get_close_matches(value, map(str, choices), 1) if isinstance(value, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def _placeholder(field: _Field, choices: Sequence[Any] | None) -> str:
    """What stands for a value of the field in a help page."""
    if choices:
        return f"{{{','.join(map(str, choices))}}}"
    if field.is_mapping:
        return "JSON"
    kinds = {bool: "true|false", int: "N", float: "X", str: "TEXT", list: "A"}
    return next((kinds[own] for own in map(_origin, field.members) if own in kinds), "TEXT")


def _shown(value: Any) -> str:
    """As it stands in a recipe."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _advice(value: Any, members: Sequence[Any]) -> str:
    if not any(member is str or _is_enum(member) for member in members):
        return ""
    if isinstance(value, bool):
        return "; YAML reads yes, no, on and off as true and false: put the word in quotes"
    return "" if isinstance(value, str | list | dict | None) else "; put it in quotes"


def _origin(member: Any) -> Any:
    return get_origin(member) or member


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)
