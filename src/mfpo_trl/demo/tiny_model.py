"""A LLaVA of about one million parameters, with its tokenizer and processor, built in memory."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .scenes import BACKGROUND, CELL, COLOURS, QUESTION, SHAPES, SIZE

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"

# Llama's default, 0.02, suits rows of thousands of numbers; with rows of 128 the picture goes unnoticed for long.
INITIAL_SPREAD = 0.06

# Closes the assistant's turn with the end token: a trainer that scores the template's text scores the end as well.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ '<s> ' }}{%- else -%}{{ ' ' }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<image> ' }}{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}{{ ' :' }}{%- else -%}{{ ' </s>' }}{%- endif -%}
{%- endfor -%}"""


WORDS = (*COLOURS, *SHAPES, "a", ",", ".", ":", *QUESTION.split())
"""Of captions and of the chat template."""


def build_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = [PAD, BOS, EOS, UNKNOWN, IMAGE, *dict.fromkeys(words)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(words: Sequence[str] = WORDS, size: int = SIZE, patch: int = CELL) -> LlavaProcessor:
    """Tokenizer, chat template and an image processor that keeps the pictures' pixels as they are.

    Args:
        words: of the tokenizer.
        size: of the square pictures, in pixels.
        patch: side of what becomes one image token.
    """
    images = CLIPImageProcessorPil(
        do_resize=False,
        do_center_crop=False,
        do_convert_rgb=False,
        image_mean=[BACKGROUND / 255] * 3,
        image_std=[0.25, 0.25, 0.25],
        size={"height": size, "width": size},
        crop_size={"height": size, "width": size},
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(words),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """An untrained LLaVA: a CLIP tower that sees one patch a cell, two linear maps, a Llama of four layers."""
    tokenizer = processor.tokenizer
    size, patch = processor.image_processor.size["height"], processor.patch_size
    vision = CLIPVisionConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=INITIAL_SPREAD,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(size // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        initializer_range=INITIAL_SPREAD,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model
