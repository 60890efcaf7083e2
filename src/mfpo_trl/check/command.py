"""`mfpo check`: what would go wrong in a training, found without training."""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..hub import without_tokens
from ..train import check_options, check_processes, config_file, split
from .formulas import Engine
from .table import PROBLEM, Finding, as_json, table, worst

DESCRIPTION = """Look at a training before it runs: the rows, their tokens and images, what the adapter wraps, the layout, and
the memory of each device. Exit code 0: nothing would go wrong; 1: something would; 2: fields that cannot be used."""

EPILOG = """Every field of mfpo train is taken too, from --config RECIPE and from the command line, which wins:
--config RECIPE, --model_name_or_path, --dataset_name, ... (mfpo train --help lists them)."""


class Parser(argparse.ArgumentParser):
    """argparse's, whose mistakes are the command's own."""

    def error(self, message: str) -> NoReturn:
        """What argparse calls on a mistake, to end the program.

        Raises:
            ValueError: always.
        """
        raise ValueError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the training of these arguments; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    stdout = sys.stdout
    try:
        # Libraries print what they like; the table and the JSON stand alone.
        with contextlib.redirect_stdout(stdout if {"-h", "--help", "--help-all"} & set(argv) else sys.stderr):
            options, fields = parse_options(argv)
            engine = engine_of(
                options.accelerate_config, options.deepspeed or _deepspeed_of(fields), options.processes
            )
            found = run(options, fields, engine)
    except (ValueError, OSError, ImportError, yaml.YAMLError) as error:
        print(f"mfpo check: error: {without_tokens(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    status = 1 if worst(found) == PROBLEM else 0
    print(as_json(found, status) if options.json else table(found, shutil.get_terminal_size((120, 24)).columns))
    return status


def parse_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the fields of `mfpo train`.

    Raises:
        ValueError: an option that is none, that has no value, or one that it cannot have.
    """
    parser = Parser(prog="mfpo check", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument(
        "--rows", type=int, default=256, help="rows to look at, spread over the data set (default: 256)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--try-forward",
        choices=("auto", "yes", "no"),
        default="auto",
        help="train one step on the longest row, weights and all; auto: where there is a CUDA device (default)",
    )
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="of the devices to train on; that of this machine's by default"
    )
    parser.add_argument("--deepspeed", metavar="FILE", help="a configuration of DeepSpeed, as mfpo train takes it")
    parser.add_argument(
        "--accelerate-config", metavar="NAME", help="as mfpo train takes it: its engine is reckoned with"
    )
    parser.add_argument("--num-processes", type=int, metavar="N", help="devices, where not those of the configuration")
    parser.add_argument(
        "--benchmark-images",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of benchmarks' pictures, which are looked for among the images of all rows",
    )
    parser.add_argument(
        "--negatives",
        nargs="?",
        const="probe",
        choices=("probe", "sweep"),
        help="load the model and tell whether the dispreferred images of the rows can teach anything: how well they are told from "
        "real ones, and what the image is worth to the policy; sweep: for other steps and schedules too",
    )
    launcher, rest = split(argv)
    options, fields = parser.parse_known_args(rest)
    # Whose fields are those of TRL, which takes seconds to import.
    from ..train import parser_of_fields

    own = [f"--{name.replace('_', '-')}" for name in vars(options)]
    check_options(fields, [*own, "--help", *parser_of_fields().spelt])
    if options.rows < 1:
        raise ValueError(f"--rows is {options.rows}; expected a number from 1 up")
    if options.gpu_memory is not None and options.gpu_memory <= 0:
        raise ValueError(f"--gpu-memory is {options.gpu_memory}; expected the GiB of a device, a number above 0")
    processes = launcher.get("processes")
    if processes is not None and not (processes.isdigit() and int(processes)):
        raise ValueError(f"--num-processes is {processes!r}; expected a number from 1 up")
    options.accelerate_config, options.processes = launcher.get("config"), processes and int(processes)
    return options, fields


def _deepspeed_of(fields: Sequence[str]) -> Any:
    """The `deepspeed` of the recipe: a path, or the configuration itself as a mapping or a text."""
    from ..train import with_recipe

    return with_recipe(fields)[1].get("deepspeed")


def engine_of(accelerate: str | None, deepspeed: str | Mapping[str, Any] | None, processes: int | None) -> Engine:
    """How many devices there are, and what they share out.

    Args:
        accelerate: a configuration of accelerate, by name or path.
        deepspeed: a configuration of DeepSpeed, a path or the mapping itself, perhaps as a text.
        processes: devices, where given.

    Raises:
        ValueError: an unknown configuration, or one that is no mapping.
        OSError: it cannot be read.
    """
    settings = _mapping(config_file(accelerate)) if accelerate else {}
    if accelerate and processes:
        check_processes(config_file(accelerate), processes)
    count, machines = processes or settings.get("num_processes") or 1, settings.get("num_machines") or 1
    kind = settings.get("distributed_type")
    own = settings.get("deepspeed_config") or {}
    deepspeed = deepspeed or own.get("deepspeed_config_file")
    if deepspeed:
        if isinstance(deepspeed, str):
            deepspeed = json.loads(deepspeed) if deepspeed.startswith("{") else _mapping(Path(deepspeed))
        zero = deepspeed.get("zero_optimization") or {}
        away = [(zero.get(f"offload_{what}") or {}).get("device", "none") for what in ("optimizer", "param")]
        return _zero(count, machines, zero.get("stage", 0), away)
    if kind == "DEEPSPEED":
        away = [own.get(f"offload_{what}_device") or "none" for what in ("optimizer", "param")]
        return _zero(count, machines, own.get("zero_stage", 2), away)
    if kind == "FSDP":
        own = settings.get("fsdp_config") or {}
        offloaded = bool(own.get("fsdp_offload_params"))
        whole = own.get("fsdp_reshard_after_forward") in (False, "SHARD_GRAD_OP")
        return Engine(count, machines, 2 if whole else 3, False, offloaded, offloaded)
    return Engine(count, machines)


def _zero(count: int, machines: int, stage: Any, away: Sequence[str]) -> Engine:
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"the stage of ZeRO is {stage!r}; expected 0, 1, 2 or 3")
    optimizer, weights = (device != "none" for device in away)
    return Engine(count, machines, stage, True, optimizer, weights and stage == 3)


def _mapping(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a mapping of fields to values")
    return found


def run(options: argparse.Namespace, fields: Sequence[str], engine: Engine) -> list[Finding]:
    """All checks of a training.

    Args:
        options: of the command.
        fields: those of `mfpo train`.
        engine: on which devices it would run.

    Raises:
        ValueError: fields that cannot be used.
    """
    import torch

    devices = torch.cuda.device_count()
    # As one process of a training sees them.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    from .preflight import Preflight

    if options.accelerate_config or engine.processes > 1:
        # The backend of processes that talk to each other, of which there is one here.
        fields = _without("--ddp_backend", fields)
    # With it DeepSpeed would look for its other processes; `engine` has what it says.
    fields = [*fields, "--deepspeed", ""]
    if not torch.accelerator.is_available():
        # A login node without a device checks for one that has some.
        fields += ["--use_cpu", "true"]
    preflight = Preflight(fields, engine, options.rows, options.gpu_memory, devices, options.benchmark_images)
    return list(preflight.findings(options.try_forward, options.negatives))


def _without(option: str, fields: Sequence[str]) -> list[str]:
    """The command line without an option and its value."""
    kept, parts = [], iter(fields)
    for part in parts:
        name, equals, _ = part.partition("=")
        if name.replace("-", "_") != option.replace("-", "_"):
            kept.append(part)
        elif not equals:
            next(parts, None)
    return kept


if __name__ == "__main__":
    sys.exit(main())
