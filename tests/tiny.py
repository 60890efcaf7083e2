"""A tiny LLaVA with its tokenizer and processor, and rows for it, built in memory."""

import copy
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|end|>"]
CORPUS = [
    "USER: what is in the image? ASSISTANT: a red dog and a blue cat on the green grass.",
    "two birds sit by a tree",
]

# In the manner of the published LLaVA-1.5 template: a blank behind every text, no end-of-sequence token.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ENDING_TEMPLATE = LLAVA_TEMPLATE.replace(
    "{{ part['text'] + ' ' }}{% endfor %}",
    "{{ part['text'] + ' ' }}{% endfor %}{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}",
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that every text can be written; special tokens first."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS * 4,
        trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<|end|>"],
    )


def processor(template: str = ENDING_TEMPLATE, image_size: int = 28) -> LlavaProcessor:
    """Resizes the shorter side and crops the centre, as CLIP's does."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def allow_four_bits() -> None:
    """Make bitsandbytes take its common kernels: those for a CPU with AVX512-BF16 pack a layer's inputs in blocks of 64, and
    fail on layers as narrow as these."""
    from bitsandbytes.nn import modules

    modules.has_avx512bf16 = lambda: False


def model(seed: int = 0, image_size: int = 28) -> LlavaForConditionalGeneration:
    """About 60,000 parameters; weights large enough that log-probabilities differ between answers and images. Random numbers go on
    where those of the weights end."""
    built, random_state = _built(seed, image_size)
    torch.set_rng_state(random_state)
    return copy.deepcopy(built)


@lru_cache(maxsize=16)
def _built(seed: int, image_size: int) -> tuple[LlavaForConditionalGeneration, torch.Tensor]:
    """A copy takes a third of the time."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=image_size,
            patch_size=14,
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=1024,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_id=4,
        image_seq_length=(image_size // 14) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    config.tie_word_embeddings = False
    tiny = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in tiny.named_parameters():
            if weight.dim() > 1:
                weight.mul_(4.0 if "lm_head" in name or "embed" in name else 2.0)
    return tiny, torch.get_rng_state()


def save_pretrained(path, seed: int = 0, template: str = ENDING_TEMPLATE) -> str:
    """Write model and processor into a folder, which is then a model id that needs no network."""
    model(seed).save_pretrained(path)
    processor(template).save_pretrained(path)
    return str(path)


def picture(seed: int, width: int = 40, height: int = 32) -> PILImage.Image:
    """A picture with structure at every scale."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    fine = rng.integers(-20, 20, (height, width, 3))
    base = np.asarray(PILImage.fromarray(coarse).resize((width, height), PILImage.Resampling.BICUBIC)).astype(int)
    return PILImage.fromarray(np.clip(base + fine, 0, 255).astype(np.uint8))


ANSWERS = [
    ("a red dog on the green grass.", "a blue cat and two birds by a tree."),
    ("two birds sit by a tree", "a tree"),
    ("a cat", "a red dog and a blue cat on the green grass, with a bird."),
    ("the grass is green.", "the grass is blue."),
]


def rows(count: int = 8, **columns) -> list[dict]:
    """Conversational preference rows with one image each; `columns` maps a name to a function of the row's number."""
    return [
        {
            "images": [picture(n, 40 + n, 32)],
            "prompt": [{"role": "user", "content": f"what is in image {n}?"}],
            "chosen": [{"role": "assistant", "content": ANSWERS[n % 4][0]}],
            "rejected": [{"role": "assistant", "content": ANSWERS[n % 4][1]}],
            **{name: make(n) for name, make in columns.items()},
        }
        for n in range(count)
    ]


MESSAGES = List({"role": Value("string"), "content": Value("string")})
FEATURES = {"images": List(Image()), "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}


def dataset(count: int = 8, features: dict | None = None, **columns: Callable) -> Dataset:
    """The same rows as a data set; `features` are those of the extra columns."""
    key = count, repr(features), tuple(columns.items())
    if key not in _encoded:
        _encoded[key] = Dataset.from_list(rows(count, **columns), features=Features({**FEATURES, **(features or {})}))
    return copy.copy(_encoded[key])


# Of the functions given so far; pictures take longer to encode than a small model to train on them.
_encoded: dict[tuple, Dataset] = {}


BOXES = {"key_regions": List(List(Value("float32")))}


def boxes(n: int) -> list[list[float]]:
    """A key region for row `n`."""
    return [[4 + n, 4, 20 + n, 20]]
