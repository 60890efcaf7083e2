"""Whether what is quicker computes the same on this device: losses and gradients of one batch, beside those of flat rows."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comparing.worker import start_adapter
from llava import GEOMETRIES, pairs

from device.training import WAYS, Job, trainer_of

FLAT, PACKED = WAYS["MFPO flat"], WAYS["MFPO packed"]
TEXT = {"image_loss_weight": 0.0, "anchor_loss_weight": 0.0}
OFF = {"gradient_checkpointing": False}


def comparisons(geometry: str, device: str, compiler: str) -> dict[str, list[tuple[str, Job]]]:
    """Jobs by the first of each list, with which the others are compared."""
    single = Job(geometry, FLAT, device, torch.float32, pairs=2, rank=16)
    half, small = replace(single, dtype=torch.bfloat16), replace(single, dtype=torch.bfloat16, bits=4)
    compiled = {"torch_compile": True, "torch_compile_backend": compiler}
    return {
        "float32": [
            ("flat", single),
            ("packed", replace(single, way=PACKED)),
            (
                "packed, activation_offloading",
                replace(single, way=PACKED, options=OFF | {"activation_offloading": True}),
            ),
            ("packed, no gradient checkpointing", replace(single, way=PACKED, options=OFF)),
            ("packed, flex_attention", replace(single, way=PACKED, kernel="flex_attention")),
            ("packed, eager", replace(single, way=PACKED, kernel="eager")),
            ("flat, torch_compile", replace(single, options=compiled)),
        ],
        "text term alone": [
            ("DPOTrainer", replace(single, way=WAYS["DPOTrainer"])),
            ("packed", replace(single, way=PACKED | TEXT)),
        ],
        "bfloat16": [
            ("flat", half),
            ("packed", replace(half, way=PACKED)),
            ("packed, flex_attention", replace(half, way=PACKED, kernel="flex_attention")),
        ],
        "4 bits": [("flat", small), ("packed", replace(small, way=PACKED))],
    }


def compared(geometry: str, device: str, compiler: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each comparison as soon as it is made: the loss, its difference and the gradients' relative one."""
    rows = pairs(GEOMETRIES[geometry], 2)
    for group, jobs in comparisons(geometry, device, compiler).items():
        base: tuple[float, torch.Tensor] | None = None
        for name, job in jobs:
            try:
                loss, gradient = one_step(job, rows)
            except Exception as error:
                # What this device or build of PyTorch cannot do is a result.
                yield f"{group}: {name}", {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
                continue
            found: dict[str, Any] = {"loss": loss, "gradient norm": float(gradient.norm())}
            if base is not None:
                found["loss apart"] = abs(loss - base[0])
                found["gradient apart"] = float((gradient - base[1]).norm() / base[1].norm())
            base = base or (loss, gradient)
            yield f"{group}: {name}", found


def one_step(job: Job, rows: list[dict[str, Any]]) -> tuple[float, torch.Tensor]:
    """Loss of the rows and the gradients of the adapter, one behind the other in the order of their names."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(job, Path(folder), rows)
        model = trainer.model
        start_adapter(model)
        trainer.current_gradient_accumulation_steps = 1
        if trainer.args.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(rows))])
        loss = trainer.training_step(trainer.accelerator.prepare(model), batch)
        named = sorted((n, p.grad) for n, p in model.named_parameters() if p.requires_grad and p.grad is not None)
        return float(loss), torch.cat([gradient.float().flatten().cpu() for _, gradient in named])
