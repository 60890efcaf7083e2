"""One model and one set of pairs on disk, the pairs in the format of each tool."""

import json
from pathlib import Path
from typing import Any

import torch
from llava import Geometry, build_model, build_processor, pairs

TURNS = ("<s> USER: <image> ", " ASSISTANT:")
"""What all tools put around a question for LLaVA-1.5; the tokenizer of `llava.py` splits at spaces, so that all get the
same tokens. Behind an answer they write the end-of-sequence token."""


def save_model(geometry: Geometry, dtype: torch.dtype, folder: Path) -> Path:
    """Random weights and their processor, as every version of transformers reads them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    build_model(geometry, device, dtype).save_pretrained(folder)
    processor = build_processor(geometry)
    # With `</s>` for padding nothing but the tools' own masks would tell the end of an answer from padding.
    processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    # A file of its own, and a class that has a name in older versions too.
    config = processor.image_processor.to_dict() | {"image_processor_type": "CLIPImageProcessor"}
    config = {
        name: value for name, value in config.items() if isinstance(value, str | int | float | list | dict | bool)
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    both = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    both.pop("image_processor", None)
    (folder / "processor_config.json").write_text(json.dumps(both), encoding="utf-8")
    return folder


def save_pairs(geometry: Geometry, count: int, folder: Path) -> dict[str, str]:
    """The same pairs as a file for TRL and for us, for ms-swift and for LLaMA-Factory."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"trl": [], "ms-swift": [], "llamafactory": []}
    side = geometry.image_size
    for number, pair in enumerate(pairs(geometry, count)):
        paths = {name: str(folder / f"{number}-{name}.png") for name in ("images", "rejected_images")}
        for name, path in paths.items():
            pair[name][0].save(path)
        question = pair["prompt"].removeprefix("<image> ")
        chosen, rejected = (pair[name].removesuffix(" </s>").strip() for name in ("chosen", "rejected"))
        rows["trl"].append(
            {
                "images": [paths["images"]],
                "rejected_images": [paths["rejected_images"]],
                "key_regions": [[[side // 4, side // 4, side // 2, side // 2]]],
                "prompt": question.join(TURNS),
                "chosen": f" {chosen} </s>",
                "rejected": f" {rejected} </s>",
            }
        )
        rows["ms-swift"].append(
            {
                "messages": [
                    {"role": "user", "content": f"<image>{question}"},
                    {"role": "assistant", "content": chosen},
                ],
                "rejected_response": rejected,
                "images": [paths["images"]],
            }
        )
        rows["llamafactory"].append(
            {
                "conversations": [{"from": "human", "value": f"<image>{question}"}],
                "chosen": {"from": "gpt", "value": chosen},
                "rejected": {"from": "gpt", "value": rejected},
                "images": [paths["images"]],
            }
        )
    files = {name: str(folder / f"{name}.json") for name in ("trl", "llamafactory")}
    files["ms-swift"] = str(folder / "ms-swift.jsonl")
    for name in ("trl", "ms-swift"):
        Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
    Path(files["llamafactory"]).write_text(json.dumps(rows["llamafactory"]), encoding="utf-8")
    columns = {"messages": "conversations", **{name: name for name in ("chosen", "rejected", "images")}}
    known = {
        "llamafactory": {
            "file_name": "llamafactory.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": columns,
        }
    }
    (folder / "dataset_info.json").write_text(json.dumps(known), encoding="utf-8")
    return files
