"""The options of `mfpo train` as a whole: the page that `--help` prints, and the option that a misspelt one is nearest to."""

import difflib
import enum
import inspect
import shutil
import textwrap
from argparse import Action
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BESIDE = {
    "--config NAME": "a recipe: the path of a YAML file of fields, or a name that `mfpo recipes` lists; what is given here wins",
    "--accelerate-config NAME": "start the training with accelerate launch and this configuration, a path or a name that "
    "`mfpo recipes` lists",
    "--num-processes N": "with it: how many processes, where not as many as the configuration says",
    "--help-all": "every field, those of TRL and transformers too",
}
"""What is no field."""

COMMON = (
    "model_name_or_path",
    "dataset_name",
    "dataset_train_split",
    "output_dir",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "dtype",
    "bf16",
    "use_cpu",
    "use_peft",
    "lora_r",
    "lora_alpha",
    "load_in_4bit",
    "beta",
    "max_length",
    "eval_strategy",
    "logging_steps",
    "save_steps",
    "report_to",
    "push_to_hub",
    "resume_from_checkpoint",
    "seed",
)
"""The fields of TRL and transformers that people use, in the order in which they are shown."""

COLUMN = 34
"""Where what is said of an option begins."""


def check_options(argv: Sequence[str], known: Iterable[str]) -> None:
    """Refuse an option that is none; its value is not told, which may be a token.

    Args:
        argv: the command line.
        known: every option, with its dashes.

    Raises:
        ValueError: names it, and the nearest one.
    """
    known = [*known, *(own.split()[0] for own in BESIDE)]
    for part in argv:
        option = part.partition("=")[0]
        if option.startswith("--") and option not in known:
            close = nearest(option, known)
            meant = f"; did you mean {close}?" if close else ""
            raise ValueError(f"unknown option {option}{meant}")


def nearest(option: str, known: Sequence[str]) -> str | None:
    """The option that a misspelt one is likely to stand for: one that is almost the same, else the first one that people use
    and that has it as a part, else one that is similar."""
    names = {own.removeprefix("--").replace("-", "_"): own for own in reversed(known)}
    given = option.removeprefix("--").replace("-", "_")
    parts = [own for own in COMMON if given in own and own in names] if given else []
    close = difflib.get_close_matches(given, names, 1, 0.8) or parts or difflib.get_close_matches(given, names, 1)
    return names[close[0]] if close else None


def own_fields(kinds: Iterable[type]) -> list[str]:
    """The fields of these dataclasses that this package adds to those of TRL and transformers."""
    package = __package__.partition(".")[0]
    classes = [own for kind in kinds for own in kind.__mro__]
    theirs = {
        name for own in classes if own.__module__.partition(".")[0] != package for name in inspect.get_annotations(own)
    }
    ours = (own for own in classes if own.__module__.partition(".")[0] == package)
    return [name for own in ours for name in inspect.get_annotations(own) if name not in theirs]


def page(actions: Mapping[str, Action], own: Sequence[str], everything: bool) -> str:
    """The page of `--help`.

    Args:
        actions: of every field by its name.
        own: the fields that this package adds.
        everything: show the other fields too.
    """
    others = [name for name in actions if name not in own and name not in COMMON]
    sections = {
        "fields of MFPO": own,
        "fields that people use": COMMON,
        "all other fields, of TRL and transformers": others if everything else (),
    }
    parts = [
        "usage: mfpo train [--config NAME] [--accelerate-config NAME [--num-processes N]] [--field value ...]",
        "Train a vision-language model on preference rows with MFPO. A token is best given as HF_TOKEN.",
        "\n".join(_entry(option, told) for option, told in BESIDE.items() if not everything or option != "--help-all"),
    ]
    for title, names in sections.items():
        if shown := [actions[name] for name in names if name in actions]:
            parts.append("\n".join([f"{title}:", *(_entry(_option(own), _told(own)) for own in shown)]))
    if not everything:
        parts.append(f"{len(others)} other fields of TRL and transformers are taken too: mfpo train --help-all")
    return "\n\n".join(parts) + "\n"


def _entry(option: str, told: str) -> str:
    width = max(shutil.get_terminal_size().columns, COLUMN + 30) - 2
    lines = textwrap.wrap(told, width - COLUMN, break_on_hyphens=False) or [""]
    start = f"  {option}"
    if len(start) > COLUMN - 2:
        lines = ["", *lines]
    return "\n".join(f"{start if n == 0 else '':{COLUMN}}{line}".rstrip() for n, line in enumerate(lines))


def _option(action: Action) -> str:
    several = " ..." if action.nargs == "+" else ""
    value = str(action.metavar) + several
    return f"{action.option_strings[0]} {f'[{value}]' if action.nargs == '?' else value}"


def _told(action: Action) -> str:
    default = action.default.value if isinstance(action.default, enum.Enum) else action.default
    unset: tuple[Any, ...] = (None, "", [], {})
    if isinstance(default, bool):
        default = str(default).lower()
    said = (action.help or "") % {**vars(action), "default": default}
    return " ".join(said.split()) + ("" if default in unset else f" (default: {default})")
