"""Functions from outside of this package, named as `package.module:function`."""

import importlib
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any


def plugged(name: str, what: str, expected: str) -> Callable[..., Any]:
    """The function of this name; modules of the working folder are found too, behind all that is installed.

    The folder stays where modules are looked for, because a function may import its neighbours when it is called.

    Args:
        name: `package.module:function`.
        what: it should be, in words.
        expected: what could be named in its place.

    Raises:
        ValueError: there is no such function.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    module, _, attribute = name.partition(":")
    try:
        found = attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the {what} {name!r} cannot be imported ({error}); expected {expected}") from error
    if not callable(found):
        raise ValueError(f"the {what} {name!r} is a {type(found).__name__}; expected something to call")
    function: Callable[..., Any] = found
    return function
