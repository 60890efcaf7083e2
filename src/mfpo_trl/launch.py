"""`mfpo train --accelerate-config NAME`: the same training, started by `accelerate launch`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

OPTIONS = {"--accelerate-config": "config", "--num-processes": "processes"}
FOLDER = Path("recipes") / "accelerate"
CHECKOUT = Path(__file__).parents[2]


def command(argv: Sequence[str]) -> list[str] | None:
    """The command that starts the training of `argv` with `accelerate launch`; None where `argv` does not ask for it.

    `--accelerate-config` takes a path, or a name in `recipes/accelerate`; `--num-processes` beside it wins over the
    number in that file. Both are written with hyphens or underscores, and every other argument is passed on.

    Raises:
        ValueError: an option without a value, or an unknown configuration.
    """
    given, rest = split(argv)
    if "config" not in given:
        if "processes" in given:
            raise ValueError("--num-processes needs --accelerate-config; without, there is one process")
        return None
    path = config_file(given["config"])
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    if "processes" in given:
        check_processes(path, given["processes"])
        launcher += ["--num_processes", given["processes"]]
    return [*launcher, "-m", "mfpo_trl.train", *rest]


def split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The launcher's options of `argv` and their values, and what is left.

    Raises:
        ValueError: an option without a value.
    """
    given, rest = {}, []
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        name = OPTIONS.get(option.replace("_", "-"))
        if name is None:
            rest.append(argument)
            continue
        given[name] = value if equals else next(arguments, "")
        if not given[name] or given[name].startswith("--"):
            raise ValueError(f"{option} needs a value")
    return given, rest


def config_file(name: str) -> Path:
    """The configuration of accelerate with this path or name; names are looked up in `recipes/accelerate` of the working
    directory, then of the checkout that the package is installed from.

    Raises:
        ValueError: there is none.
    """
    if Path(name).is_file():
        return Path(name)
    folders = [root / FOLDER for root in (Path.cwd(), CHECKOUT)]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    hint = (
        f"expected a path, or one of {', '.join(known)}"
        if known
        else f"there is no folder {FOLDER} here, which comes with the repository and not with the installed package; "
        "give the path of a file"
    )
    raise ValueError(f"--accelerate-config {name!r} is not known: {hint}")


def check_processes(path: Path, processes: str | int) -> None:
    """Refuse several processes for a configuration of one, which accelerate would start alone.

    Raises:
        ValueError: says which configuration is for several.
    """
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    kind = settings.get("distributed_type", "NO") if isinstance(settings, dict) else "NO"
    if str(processes) != "1" and str(kind).upper() == "NO":
        raise ValueError(
            f"--num-processes {processes}: {path} is for one process; take --accelerate-config ddp for several"
        )


def launch(command: Sequence[str]) -> NoReturn:
    """Become this command, so that its exit status and every signal are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], list(command))
