"""LLaVAs of any size with random weights, their processor, and preference pairs of given lengths, without a download."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PATCH = 14


@dataclass(frozen=True)
class Geometry:
    """Sizes of a LLaVA, and the tokens of a preference pair; the image's are among the prompt's."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    image_size: int
    prompt: int
    chosen: int
    rejected: int

    @property
    def image_tokens(self) -> int:
        return (self.image_size // PATCH) ** 2


GEOMETRIES = {
    "tiny": Geometry(64, 172, 2, 4, 320, 32, 2, 56, 40, 12, 9),
    "rehearsal": Geometry(64, 128, 2, 4, 320, 64, 2, 56, 40, 12, 9),
    "wide": Geometry(512, 1376, 6, 8, 2000, 64, 2, 336, 636, 90, 80),
    "llava-1.5-7b": Geometry(4096, 11008, 32, 32, 32064, 1024, 24, 336, 636, 90, 80),
    "llava-1.5-13b": Geometry(5120, 13824, 40, 40, 32064, 1024, 24, 336, 636, 90, 80),
}

SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": 4}
LANGUAGE_PART = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def build_model(
    geometry: Geometry, device: str, dtype: torch.dtype, kernel: str | None = None
) -> LlavaForConditionalGeneration:
    """Random weights, drawn on the device in their own precision; on the meta device none.

    Args:
        kernel: `attn_implementation`; transformers' choice when None.
    """
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=geometry.image_size,
            patch_size=PATCH,
            hidden_size=geometry.vision_hidden,
            intermediate_size=4 * geometry.vision_hidden,
            num_hidden_layers=geometry.vision_layers,
            num_attention_heads=max(geometry.vision_hidden // 64, 1),
            projection_dim=geometry.vision_hidden,
        ),
        text_config=LlamaConfig(
            vocab_size=geometry.vocabulary,
            hidden_size=geometry.hidden,
            intermediate_size=geometry.intermediate,
            num_hidden_layers=geometry.layers,
            num_attention_heads=geometry.heads,
            max_position_embeddings=4096,
            pad_token_id=SPECIAL["<pad>"],
            bos_token_id=SPECIAL["<s>"],
            eos_token_id=SPECIAL["</s>"],
        ),
        image_token_id=SPECIAL["<image>"],
        image_seq_length=geometry.image_tokens,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    config.tie_word_embeddings = False
    config.dtype = dtype
    if kernel:
        config._attn_implementation = kernel
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(usual)


def build_processor(geometry: Geometry) -> LlavaProcessor:
    """A word is a token: `w10`, `w11`, and so on, and those that tell two images apart."""
    words = SPECIAL | {f"w{n}": n for n in range(len(SPECIAL), geometry.vocabulary - 2)}
    words |= {"first": geometry.vocabulary - 2, "second": geometry.vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = {"height": geometry.image_size, "width": geometry.image_size}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": geometry.image_size}, crop_size=size),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def pairs(geometry: Geometry, count: int) -> list[dict[str, Any]]:
    """Rows on images and prompts of their own, each with a dispreferred image; answers end with the end-of-sequence token."""
    random = np.random.default_rng(0)

    def picture() -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (geometry.image_size, geometry.image_size, 3), dtype=np.uint8))

    def words(length: int) -> str:
        return " ".join(f"w{n}" for n in random.integers(10, geometry.vocabulary - 2, length))

    return [
        {
            "images": [picture()],
            "rejected_images": [picture()],
            "prompt": f"<image> {words(geometry.prompt - geometry.image_tokens)}",
            "chosen": f" {words(geometry.chosen - 1)} </s>",
            "rejected": f" {words(geometry.rejected - 1)} </s>",
        }
        for _ in range(count)
    ]


def whole_pairs(geometry: Geometry, count: int) -> list[dict[str, Any]]:
    """The same with whatever an objective asks for: further dispreferred images, a second chosen answer and the one that is true of
    the dispreferred image, as long as the first, and numbers."""
    spare = iter(pairs(geometry, 5 * count)[count:])
    found = []
    for row in pairs(geometry, count):
        others = [next(spare) for _ in range(4)]
        images = {f"rejected_images_{number}": others[number - 2]["images"] for number in (2, 3, 4)}
        scores = {"chosen_score": 3.0, "rejected_score": 1.0}
        answers = {"chosen_2": others[2]["chosen"], "rejected_image_chosen": others[3]["chosen"]}
        found.append({**row, **images, **answers, "weight": 1.0, "beta_scale": 1.0, **scores})
    return found


def six_pairs(geometry: Geometry, own_images: bool) -> list[dict[str, Any]]:
    """Four responses to one image and prompt, ranked into six pairs; each chosen one with a dispreferred image of its own,
    or all with the same."""
    several = pairs(geometry, 4)
    first = {name: several[0][name] for name in ("images", "prompt")}
    answers = [" ".join(row["chosen"].split()[3 * n :]) for n, row in enumerate(several)]
    images = [several[n if own_images else 0]["rejected_images"] for n in range(4)]
    return [
        first | {"chosen": f" {answers[i]}", "rejected": f" {answers[j]}", "rejected_images": images[i]}
        for i in range(4)
        for j in range(i + 1, 4)
    ]
