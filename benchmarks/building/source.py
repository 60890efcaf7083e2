"""A source of rows and grounding models with random weights, made here."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ADJECTIVES = "small large red wooden old bright empty round tall dark green broken striped narrow".split()
NOUNS = (
    "dog cat horse bird table window street car bicycle tree bench bottle lamp chair woman child bridge boat clock door "
    "plate kite umbrella train fence river mountain building flower basket"
).split()
VERBS = "stands beside|sits near|lies under|waits behind|leans against|hangs above|looks towards|moves past".split("|")


def photo(rng: np.random.Generator, width: int = 640, height: int = 480) -> bytes:
    """A JPEG of quality 90 with gradients, blobs and fine texture, about 100 kB at its default size."""
    picture = np.zeros((height, width, 3), dtype=np.float32)
    for cells, strength in ((2, 80.0), (6, 40.0), (20, 25.0), (60, 14.0), (200, 8.0)):
        grid = rng.integers(0, 256, (max(2, cells * height // width), cells, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        picture += (smooth - 128) / 128 * strength
    picture += rng.normal(0, 7, picture.shape).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def caption(rng: np.random.Generator, words: int = 80) -> str:
    """Sentences in the manner of a description, `words` words in all."""
    found: list[str] = []
    while len(found) < words:
        one, other = rng.choice(NOUNS, 2, replace=False)
        first, second = rng.choice(ADJECTIVES, 2)
        found += f"The {first} {one} {rng.choice(VERBS)} the {second} {other}.".split()
    return " ".join(found[:words])


def make_source(
    folder: Path, rows: int, pictures: int = 16, size: tuple[int, int] = (640, 480), words: int = 80
) -> str:
    """A JSON lines file of `rows` rows over a few pictures, as the path that `--dataset` takes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(pictures):
        (folder / f"{n}.jpg").write_bytes(photo(rng, *size))
    answers = [caption(rng, words) for _ in range(2 * min(rows, 512))]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for n in range(rows):
            chosen, rejected = answers[2 * n % len(answers)], answers[(2 * n + 1) % len(answers)]
            row = {"id": f"row-{n}", "prompt": f"Describe image {n}.", "images": [f"{n % pictures}.jpg"]}
            file.write(json.dumps({**row, "chosen": chosen, "rejected": rejected}) + "\n")
    return str(folder / "rows.jsonl")


TINY_DINO = {
    "backbone_config": {
        "model_type": "swin",
        "image_size": 64,
        "embed_dim": 8,
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 2],
        "window_size": 4,
        "out_indices": [2, 3],
    },
    "num_feature_levels": 3,
    "d_model": 32,
    **{
        f"{part}_{name}": n
        for part in ("encoder", "decoder")
        for name, n in (("layers", 2), ("ffn_dim", 16), ("attention_heads", 2))
    },
    "num_queries": 12,
}
TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_SAM = {
    "vision_config": {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 16,
    },
    "prompt_encoder_config": {
        "hidden_size": 16,
        "image_size": 64,
        "patch_size": 8,
        "image_embedding_size": 8,
        "mask_input_channels": 4,
    },
    "mask_decoder_config": {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    },
}
TINY_SAM_IMAGES = {
    "size": {"longest_edge": 64},
    "pad_size": {"height": 64, "width": 64},
    "mask_size": {"longest_edge": 32},
    "mask_pad_size": {"height": 32, "width": 32},
}


def save_models(folder: Path, geometry: str) -> dict[str, str]:
    """Grounding DINO and SAM with random weights, "tiny" or "full" (the defaults of transformers, which are Grounding DINO
    tiny and SAM ViT-B), as options of a build."""
    import torch
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoProcessor,
        SamConfig,
        SamModel,
        SamProcessor,
    )
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    tiny = geometry == "tiny"
    torch.manual_seed(0)
    # The ids of these tokens are those of BERT's vocabulary, which the model has hard-coded.
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    fixed |= {word: 1030 + n for n, word in enumerate([*ADJECTIVES, *NOUNS])}
    size = 1100 if tiny else 30522
    taken = set(fixed.values())
    vocabulary = {f"[unused{n}]": n for n in range(size) if n not in taken} | fixed
    tokenizer = BertTokenizer(vocab=dict(sorted(vocabulary.items(), key=lambda item: item[1])), do_lower_case=True)
    text = BertConfig(vocab_size=size, **(TINY_BERT if tiny else {}))
    detector = GroundingDinoForObjectDetection(GroundingDinoConfig(text_config=text, **(TINY_DINO if tiny else {})))
    segmenter = SamModel(SamConfig(**(TINY_SAM if tiny else {})))
    if tiny:
        _enlarge(detector, lambda name: 1.0 if "bbox" in name else 3.0)
        _enlarge(segmenter, lambda name: 8.0 if "mask_decoder" in name else 3.0)
    detector.save_pretrained(folder / "dino")
    segmenter.save_pretrained(folder / "sam")
    edges = {"size": {"shortest_edge": 48, "longest_edge": 96}} if tiny else {}
    GroundingDinoProcessor(GroundingDinoImageProcessorPil(**edges), tokenizer).save_pretrained(folder / "dino")
    SamProcessor(SamImageProcessorPil(**(TINY_SAM_IMAGES if tiny else {}))).save_pretrained(folder / "sam")
    return {
        "grounder": "grounding-dino-sam",
        "grounder_model": str(folder / "dino"),
        "segmenter_model": str(folder / "sam"),
    }


def _enlarge(model: Any, factor: Callable[[str], float]) -> None:
    """Weights large enough that outputs differ between places, as those of trained models do."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(factor(name))
