"""Tiny vision-language models of the common families with their processors, built in memory."""

from unittest.mock import patch

import tiny
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.video_processing_utils import VideoProcessorMixin

Family = tuple[PreTrainedModel, ProcessorMixin]

HIDDEN = {"hidden_size": 32, "intermediate_size": 37}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
TILE = 28
GRIDS = [[28, 28], [28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]

PARTS = (
    "{% set content = message['content'] %}"
    "{% set parts = [{'type': 'text', 'text': content}] if content is string else content %}"
    "{% for part in parts %}{% if part['type'] == 'image' %}{{ 'IMAGE' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    + PARTS
    + "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INSTRUCT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' }}"
    + PARTS
    + "{{ '</s>' }}{% else %}{{ '[INST] ' }}"
    + PARTS
    + "{{ ' [/INST]' }}{% endif %}{% endfor %}"
)
UTTERANCE = (
    "{{ 'START' }}{% for message in messages %}{{ message['role'] | capitalize + ':' }}"
    "{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    + PARTS
    + "{{ '<end_of_utterance>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}"
    + PARTS
    + "{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
# The published checkpoints have none: they are prompted with the bare images and question.
BARE = (
    "{% for message in messages %}" + PARTS + "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
)


def tokenizer(*tokens: str, eos: str = "</s>", **named: str) -> PreTrainedTokenizerFast:
    """That of `tiny` with more special tokens; each of `named` is an attribute too, which the processors read."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=eos,
        unk_token="<unk>",
        extra_special_tokens=["<image>", "<|end|>", *tokens],
        model_specific_special_tokens=named,
    )


def text(words: PreTrainedTokenizerFast) -> dict:
    """What every language model's configuration holds; its two heads share their keys and values."""
    return {
        **HIDDEN,
        **LAYERS,
        "vocab_size": len(words),
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }


def built(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Weights large enough that log-probabilities differ between answers and images, as in `tiny.model`."""
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                # Gemma 3 starts the way from its vision tower to its language model at zero: it would see no image.
                weight.copy_(weight if weight.any() else 0.02 * torch.randn_like(weight))
                weight.mul_(8.0 if any(part in name for part in ("projector", "connector", "merger")) else 4.0)
    return model


def with_videos(kind: type[ProcessorMixin], *parts, frames: dict | None = None, **settings) -> ProcessorMixin:
    """A processor that wants a video processor behind its image processor and tokenizer."""
    # The family's own needs torchvision, as does the check that it is one; no test has a video.
    with patch.object(ProcessorMixin, "check_argument_for_proper_class"):
        return kind(*parts, VideoProcessorMixin(**frames or {}), **settings)


def llava() -> Family:
    """One crop an image."""
    return tiny.model(), tiny.processor()


def llava_next() -> Family:
    """Tiles that depend on the picture's shape, and newlines between their rows."""
    words = tokenizer()
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRIDS
    )
    processor = LlavaNextProcessor(
        images,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=INSTRUCT.replace("IMAGE", "<image>\\n"),
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**HIDDEN, **LAYERS, image_size=TILE, patch_size=14, projection_dim=32),
        text_config=LlamaConfig(**text(words)),
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=GRIDS,
        image_seq_length=4,
    )
    return built(LlavaNextForConditionalGeneration, config), processor


def llava_onevision() -> Family:
    """Tiles for a lone picture, none where a row holds several."""
    words = tokenizer("<|im_start|>", "<|im_end|>", "<video>", eos="<|im_end|>")
    images = LlavaOnevisionImageProcessorPil(size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRIDS)
    processor = with_videos(
        LlavaOnevisionProcessor,
        images,
        words,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>\\n"),
    )
    vision = SiglipVisionConfig(**HIDDEN, **LAYERS, image_size=TILE, patch_size=14, vision_use_head=False)
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text(words)),
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=GRIDS,
    )
    return built(LlavaOnevisionForConditionalGeneration, config), processor


QWEN_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def qwen(kind: type[ProcessorMixin]) -> tuple[ProcessorMixin, dict]:
    """The processor, and the token ids that the configuration holds."""
    words = tokenizer(*QWEN_TOKENS, eos="<|im_end|>")
    images = Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 4 * 16**2, "longest_edge": 40 * 16**2})
    placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    processor = with_videos(kind, images, words, chat_template=CHATML.replace("IMAGE", placeholder))
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return processor, {name: words.convert_tokens_to_ids(token) for name, token in ids.items()}


def mrope(section: list[int], **settings) -> dict:
    """Rotary sections for time, height and width; together half of a head's 16 numbers."""
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": section, **settings}


def qwen2_vl() -> Family:
    """Pictures at their own size, and three-dimensional positions."""
    processor, ids = qwen(Qwen2VLProcessor)
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": 8,
        },
        text_config={**text(processor.tokenizer), "rope_parameters": mrope([2, 3, 3])},
        **ids,
    )
    return built(Qwen2VLForConditionalGeneration, config), processor


def qwen2_5_vl() -> Family:
    """As Qwen2-VL, with window attention in the first of two vision layers."""
    processor, ids = qwen(Qwen2_5_VLProcessor)
    vision = {
        **HIDDEN,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**text(processor.tokenizer), "rope_parameters": mrope([2, 3, 3])},
        **ids,
    )
    return built(Qwen2_5_VLForConditionalGeneration, config), processor


def qwen3_vl() -> Family:
    """Features of the first vision layer go into the first language layer too."""
    processor, ids = qwen(Qwen3VLProcessor)
    vision = {
        **HIDDEN,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    language = {
        **text(processor.tokenizer),
        "head_dim": 16,
        "rope_parameters": mrope([4, 2, 2], mrope_interleaved=True),
    }
    config = Qwen3VLConfig(vision_config=vision, text_config=language, **ids)
    return built(Qwen3VLForConditionalGeneration, config), processor


IDEFICS_TOKENS = (
    "<|im_start|>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    "<video>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
SPLIT = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}


def idefics3() -> Family:
    """Tiles, each named by its row and column, and the whole picture behind them."""
    words = tokenizer(*IDEFICS_TOKENS)
    template = UTTERANCE.replace("IMAGE", "<image>").replace("START", "<s>")
    processor = Idefics3Processor(Idefics3ImageProcessorPil(**SPLIT), words, image_seq_len=4, chat_template=template)
    config = Idefics3Config(
        vision_config={**HIDDEN, **LAYERS, "image_size": 16, "patch_size": 4},
        text_config=LlamaConfig(**text(words)),
        image_token_id=processor.image_token_id,
        pad_token_id=words.pad_token_id,
    )
    return built(Idefics3ForConditionalGeneration, config), processor


def smolvlm() -> Family:
    """As Idefics3, with the end of an utterance for end of sequence."""
    # Of an optional package, and called for videos only; without it the processor cannot be made.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    words = tokenizer(*IDEFICS_TOKENS, eos="<end_of_utterance>")
    template = UTTERANCE.replace("IMAGE", "<image>").replace("START", "<|im_start|>")
    images = SmolVLMImageProcessorPil(**SPLIT)
    # Read for every chat, with or without a video.
    frames = {"num_frames": 2, "fps": 1}
    processor = with_videos(SmolVLMProcessor, images, words, frames=frames, image_seq_len=4, chat_template=template)
    config = SmolVLMConfig(
        vision_config={**HIDDEN, **LAYERS, "image_size": 16, "patch_size": 4},
        text_config=LlamaConfig(**text(words)),
        image_token_id=processor.image_token_id,
        pad_token_id=words.pad_token_id,
    )
    return built(SmolVLMForConditionalGeneration, config), processor


def internvl() -> Family:
    """Tiles of all pictures one behind the other, without a tensor that counts them."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", **named)
    images = GotOcr2ImageProcessorPil(size={"height": TILE, "width": TILE}, max_patches=6)
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\\n")
    processor = with_videos(InternVLProcessor, images, words, image_seq_length=4, chat_template=template)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**HIDDEN, **LAYERS, image_size=TILE, patch_size=7),
        text_config=Qwen2Config(**text(words)),
        image_token_id=processor.image_token_id,
        image_seq_length=4,
    )
    return built(InternVLForConditionalGeneration, config), processor


def gemma3() -> Family:
    """Image tokens see each other in both directions, and every other layer sees a window of the text."""
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    words = tokenizer("<start_of_turn>", "<end_of_turn>", **named)
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    template = TURNS.replace("IMAGE", "<start_of_image>")
    processor = Gemma3Processor(images, words, image_seq_length=4, chat_template=template)
    language = Gemma3TextConfig(
        **text(words),
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**HIDDEN, **LAYERS, image_size=32, patch_size=8, vision_use_head=False),
        text_config=language,
        mm_tokens_per_image=4,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
    )
    return built(Gemma3ForConditionalGeneration, config), processor


def paligemma() -> Family:
    """The prompt sees itself in both directions; its processor takes no row without an image."""
    words = tokenizer()
    images = SiglipImageProcessorPil(size={"height": TILE, "width": TILE})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, words, chat_template=BARE.replace("IMAGE", "<image>"))
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**HIDDEN, **LAYERS, image_size=TILE, patch_size=14, vision_use_head=False),
        text_config=GemmaConfig(**text(words), head_dim=16),
        image_token_index=processor.image_token_id,
        vocab_size=len(words),
        projection_dim=32,
        hidden_size=32,
    )
    return built(PaliGemmaForConditionalGeneration, config), processor


FAMILIES = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
    "gemma3": gemma3,
    "paligemma": paligemma,
}
