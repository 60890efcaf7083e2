"""The checks of `mfpo check` in their order. Each stands by itself: one that fails is a finding and hides no other."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_deepspeed_available
from datasets import Dataset

from ..arguments import slow_adapter
from ..batch import FLAT, Layout
from ..checkpoints import resume_point
from ..config import check_deepspeed
from ..hub import PushError, check_login, check_strategy
from ..requirements import requirements
from ..rows import check_image_columns
from ..train import Splits, check_output, evaluates, hub_id, parse, trains_adapter
from . import data, memory, model, rows
from .benchmarks import overlap
from .curriculum import order
from .formulas import GIB, Engine
from .rehearsal import rehearse
from .step import tried
from .table import OK, PROBLEM, WARNING, Finding

LONGEST = 800
"""Characters of an error that are shown."""


class Preflight:
    """The checks of one training, and what they hand on to each other: None, or nothing, where one failed.

    Args:
        fields: those of `mfpo train`.
        engine: on which devices it would run.
        rows: how many to look at.
        gpu_memory: GiB of a device; that of this machine's where None.
        devices: CUDA devices that `mfpo train` would see here.
        benchmark_images: folders of pictures that are looked for among the images of the rows.

    Raises:
        ValueError: fields that cannot be used.
    """

    def __init__(
        self,
        fields: Sequence[str],
        engine: Engine,
        rows: int = 256,
        gpu_memory: float | None = None,
        devices: int = 0,
        benchmark_images: Sequence[Path] = (),
    ):
        self.fields, self.engine, self.rows, self.gpu_memory = list(fields), engine, rows, gpu_memory
        self.devices, self.benchmark_images = devices, benchmark_images
        self.script, self.training, self.settings = parse(self.fields)
        self.cuda = torch.cuda.is_available() and not self.training.use_cpu
        self.processor: Any = None
        self.splits: Any = None
        self.dataset: Any = None
        self.checkpoint: str | None = None
        self.model: model.Model | None = None
        self.adapted = False
        self.layout: Layout | None = None
        self.longest: list[tuple[int, Mapping[str, Any]]] = []
        self.sound: list[Mapping[str, Any]] | None = None

    def findings(self, try_forward: str = "no", negatives: str | None = None) -> Iterator[Finding]:
        """Everything that is found.

        Args:
            try_forward: `yes`, `no`, or `auto`: where there is a CUDA device.
            negatives: `probe` looks at the dispreferred images with the model, `sweep` at others too.
        """
        self.sound = [] if negatives else None
        # Before the rows, because the layout says which of them is the largest; shown behind them.
        name = self.settings.model_name_or_path
        advice = "check model_name_or_path, model_revision and attn_implementation, and the network or the cache"
        of_model = list(_tried("model", self._build, advice, name))
        if self.model is not None:
            of_model += _tried("adapter", self._adapt, "check use_peft, the lora_ fields and the freeze_ fields")
            of_model += _tried("layout", self._lay_out, "set prefix_sharing: auto")
        found = [
            *_tried("processor", self._process, "its files belong beside those of the model", name),
            *_tried("data set", self._load, "check dataset_name, dataset_config and dataset_train_split"),
        ]
        found += _tried("resuming", self._resume, "training would stop here; mend this first")
        if self.dataset is not None:
            found += _tried("image columns", self._images, "rename the column, or remove it")
            found += _tried("corruption", self._recipes, "mend the column or name a corruption for all rows")
            found += _tried("rows", self._look, "mend the data set or the fields of the corruption")
            found += _tried("curriculum", self._order, "mend the difficulties, or set curriculum: none")
            found += _tried("benchmark images", self._compare, "name folders that hold pictures")
        held_out = self.script.eval_split_ratio and self.dataset is None
        if self.splits is not None and evaluates(self.training) and not held_out:
            found += _tried("evaluation rows", self._look_at_evaluation, "check dataset_test_split and eval_strategy")
        found += of_model
        for what, ask in self._surroundings():
            found += _tried(what, ask, "training would stop here; mend this first")
        if self.dataset is not None:
            problems = [own.check for own in found if own.status == PROBLEM]
            rehearsal = partial(self._rehearse, problems)
            found += _unless_known(found, _tried("trainer", rehearsal, "training would stop here; mend this first"))
        yield from found
        if self.adapted:
            yield from _tried("memory", self._reckon, "the other findings may say why")
        if try_forward == "yes" or (try_forward == "auto" and self.cuda):
            yield self._try()
        if negatives:
            yield from _tried(
                "negatives", partial(self._examine, negatives == "sweep"), "the other findings may say why"
            )

    def _surroundings(self) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
        """What is asked for itself: its name, and a call that fails where training would."""
        training = self.training
        asked = dict(requirements(training))
        if self.engine.deepspeed:
            asked["engine"] = check_deepspeed
        asked["devices"] = partial(check_devices, self.engine, 0 if training.use_cpu else self.devices)
        asked["output folder"] = partial(check_output, training.output_dir)
        if training.push_to_hub:
            asked["pushes"] = partial(check_strategy, training)
            asked["hub"] = partial(check_login, hub_id(training), training.hub_token)
        for what, ask in asked.items():
            yield what, partial(_nothing, ask)

    def _rehearse(self, problems: Sequence[str]) -> list[Finding]:
        rehearse(self.fields, self.engine, problems)
        left = " but for the problems above" if problems else ""
        return [Finding("trainer", OK, f"can be built with these fields and data{left}")]

    def _process(self) -> list[Finding]:
        self.processor = model.processor_of(self.settings, self.training)
        return []

    def _load(self) -> list[Finding]:
        self.splits = Splits(self.script, self.training)
        self.dataset = self.splits.train
        return [data.columns(self.dataset)]

    def _images(self) -> list[Finding]:
        check_image_columns(self.dataset, "the data set")
        return []

    def _build(self) -> list[Finding]:
        built = model.skeleton(self.settings, self.training)
        self.model = model.Model(built, False, [])
        return [model.available(self.settings, built)]

    def _adapt(self) -> list[Finding]:
        assert self.model is not None
        self.model = model.adapted(self.model.model, self.settings)
        self.adapted = True
        found = [*filter(None, [model.targets(self.model)]), model.trainable(self.model)]
        if self.model.adapter and (slow := slow_adapter(self.training)):
            details = {"learning_rate": self.training.learning_rate}
            found.append(Finding("learning rate", WARNING, slow, "set learning_rate", details))
        return found

    def _lay_out(self) -> list[Finding]:
        assert self.model is not None
        self.layout, finding = model.laid_out(self.model, self.training)
        return [finding]

    def _recipes(self) -> list[Finding]:
        return data.recipes(self.dataset, self.training)

    def _look(self) -> list[Finding]:
        looker = rows.Looker(self.training, self.processor, self.dataset)
        looks: list[rows.Look] = []
        longest: list[tuple[int, int, Any]] = []
        for number, row in rows.read(self.dataset, self.rows):
            looks.append(look := looker(number, row))
            if self.sound is not None and look.error is None and not isinstance(row, Exception):
                self.sound.append(row)
            if look.error is None and look.has_room(self.training.max_length):
                # A micro-batch of the longest, and not of the longest one again and again, which is scored once.
                longest = sorted([*longest, (self._size(look), number, row)], key=lambda one: -one[0])
                longest = longest[: self.training.per_device_train_batch_size]
        self.longest = [(number, row) for _, number, row in longest]
        total = len(self.dataset) if isinstance(self.dataset, Dataset) else None
        context = None if self.model is None else model.positions(self.model)
        return data.findings(looks, total, self.training, self.processor is not None, context)

    def _examine(self, sweeps: bool) -> list[Finding]:
        from .negatives import examined

        if self.processor is None or not self.sound:
            return [Finding("negatives", WARNING, "not looked at: no processor or no row", "mend the problems above")]
        return examined(self.settings, self.training, self.processor, self.dataset, self.sound, sweeps)

    def _compare(self) -> list[Finding]:
        return [overlap(self.dataset, self.benchmark_images, self.rows)] if self.benchmark_images else []

    def _resume(self) -> list[Finding]:
        training = self.training
        self.checkpoint = resume_point(training.resume_from_checkpoint, training.output_dir, training.save_only_model)
        return [Finding("resuming", OK, f"goes on from {self.checkpoint}")] if self.checkpoint else []

    def _order(self) -> list[Finding]:
        return order(
            self.training, self.dataset, self.engine.processes, self.checkpoint, trains_adapter(self.settings)
        )

    def _look_at_evaluation(self) -> list[Finding]:
        dataset = self.splits.evaluation
        looker = rows.Looker(self.training, self.processor, self.dataset)
        looks = [looker(number, row) for number, row in rows.read(dataset, self.rows)]
        total = len(dataset) if isinstance(dataset, Dataset) else None
        return [data.evaluation(looks, total, self.training.max_length)]

    def _size(self, look: rows.Look) -> int:
        return look.length if self.layout is None or self.layout.name == FLAT else look.size

    def _reckon(self) -> list[Finding]:
        assert self.model is not None
        batch = None
        if self.longest and self.layout is not None and self.processor is not None:
            row = self.longest[0][1]
            batch = memory.micro_batch(row, self.training, self.processor, self.dataset, self.layout.name)
        limit = None
        if self.gpu_memory is not None:
            limit = self.gpu_memory * GIB
        elif self.cuda:
            limit = float(torch.cuda.get_device_properties(0).total_memory)
        return memory.memory(self.model, self.settings, self.training, self.engine, batch, limit)

    def _try(self) -> Finding:
        if not self.longest or self.layout is None or not self.adapted:
            return Finding("trial step", WARNING, "not tried: no row or no model to try", "mend the problems above")
        if self.engine.stage and self.engine.processes > 1:
            why = f"not tried: {self.engine.processes} devices share the model out, and this is one process"
            return Finding("trial step", WARNING, why, "the first steps of the training itself show it: --max_steps 2")
        return tried(self.fields, self.dataset, self.longest, self.training.per_device_train_batch_size, self.cuda)


def _tried(name: str, check: Callable[[], list[Finding]], advice: str, about: str = "") -> Iterator[Finding]:
    """What a check finds; where it fails, that is what it finds, with what it was `about`."""
    try:
        yield from check()
    except Exception as error:
        said = " ".join(str(error).split())
        if not isinstance(error, ValueError | OSError | ImportError | PushError):
            # Whose message alone may say little.
            said = f"{type(error).__name__}: {said}"
        if about not in said:
            said = f"{about}: {said}"
        said = said[:LONGEST] + ("…" if len(said) > LONGEST else "")
        yield Finding(name, PROBLEM, said, advice, {"error": type(error).__name__})


def check_devices(engine: Engine, devices: int) -> None:
    """What the engine needs here.

    Args:
        devices: CUDA devices that a process sees before a launcher gives it one.

    Raises:
        ImportError: DeepSpeed is not installed.
        ValueError: one process would get several devices.
    """
    if engine.deepspeed and not is_deepspeed_available():
        raise ImportError("DeepSpeed is not installed; run `pip install deepspeed`")
    if engine.processes == 1 and devices > 1:
        raise ValueError(
            f"one process sees {devices} CUDA devices, and a trainer takes one; add --accelerate-config ddp "
            f"--num-processes {devices}, or set CUDA_VISIBLE_DEVICES to one of them"
        )


def _nothing(ask: Callable[[], Any]) -> list[Finding]:
    """No finding where nothing is refused."""
    ask()
    return []


def _unless_known(known: Sequence[Finding], found: Iterable[Finding]) -> list[Finding]:
    """What is found, but for errors that are known: as another finding, or as that of one row."""
    said = " ".join(" ".join(f"{own.value} {json.dumps(own.details)}".split()) for own in known)
    return [own for own in found if own.status == OK or re.sub(r"^\w+_dataset(\[.*?\])?, ", "", own.value) not in said]
