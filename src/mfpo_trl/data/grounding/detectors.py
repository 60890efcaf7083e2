"""Models that find the boxes of phrases in pictures (Grounding DINO, OWLv2), and how every grounding model is loaded and run.

Pictures are RGB with sides of a sane ratio, phrases are not empty: `grounding` sees to that. Weights stay in float32; on a
GPU the forward passes run under bfloat16 autocast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ...weights import safetensors_only

if TYPE_CHECKING:
    import torch

Boxes = tuple[np.ndarray, np.ndarray]
"""Boxes (K, 4) as [x0, y0, x1, y1] in pixels, and their scores (K,), in [0, 1]."""


INSTEAD = (
    "--grounder-model and --segmenter-model name others, as an id or a folder; --grounder clipseg needs one small model, "
    "--grounder column takes the regions that the rows have, and --grounder random needs nothing"
)
"""What `mfpo build` can do without weights that cannot be loaded."""


class Detector(Protocol):
    """Finds the boxes of phrases in pictures."""

    @property
    def words(self) -> tuple[Any, Any]:
        """The embedding of its text encoder, and its tokenizer."""
        ...

    def boxes(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Boxes]]:
        """For each picture, the boxes of each of its phrases; none for a phrase that is not in it."""
        ...


class GroundingDino:
    """Boxes by Grounding DINO: all phrases of a picture share one text, "a dog. a horse.".

    A box counts for a phrase when the best score of the box over all tokens is above `box_threshold` and its best score
    over the phrase's own tokens is above `text_threshold`: the rule by which the processor labels boxes, with the phrase
    told by its place in the text instead of by its decoded words, so that shared words do not mix phrases up.

    Source: Liu et al., "Grounding DINO" (arXiv 2303.05499); thresholds as in its released code.
    """

    def __init__(self, model: str, device: str | None, batch_size: int, box_threshold: float, text_threshold: float):
        from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

        self.processor, self.model = load(GroundingDinoProcessor, GroundingDinoForObjectDetection, model, device)
        self.batch_size, self.box_threshold, self.text_threshold = batch_size, box_threshold, text_threshold
        self.longest = self.model.config.max_text_len
        self.words = self.model.model.text_backbone.get_input_embeddings(), self.processor.tokenizer

    def boxes(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Boxes]]:
        """See `Detector`.

        Raises:
            ValueError: a single phrase that is longer than the model's text.
        """
        calls = [(n, part) for n, own in enumerate(phrases) for part in self._parts(own)]
        # Swin's windows see the padding of a smaller picture: only pictures of one size share a batch.
        sizes: dict[tuple[int, int], list[int]] = {}
        for k, (n, _) in enumerate(calls):
            sizes.setdefault(images[n].size, []).append(k)
        done: dict[int, list[Boxes]] = {}
        for members in sizes.values():
            for batch in batches(members, self.batch_size):
                results = self._forward([images[calls[k][0]] for k in batch], [calls[k][1] for k in batch])
                done.update(zip(batch, results, strict=True))
        found: list[list[Boxes]] = [[] for _ in images]
        for k, (n, _) in enumerate(calls):
            found[n] += done[k]
        return found

    def _parts(self, phrases: Sequence[str]) -> list[list[str]]:
        """The phrases cut into runs that fit the model's text, which it would otherwise cut off without a word."""
        parts: list[list[str]] = []
        room = 0
        for phrase in phrases:
            # A full stop and a question mark end a phrase in the model's eyes.
            phrase = " ".join(phrase.replace(".", " ").replace("?", " ").split())
            length = len(self.processor.tokenizer(phrase, add_special_tokens=False).input_ids) + 1
            if length > self.longest - 2:
                raise _too_long(phrase, length, self.longest - 2)
            if length > room:
                parts.append([])
                room = self.longest - 2
            parts[-1].append(phrase)
            room -= length
        return parts

    def _forward(self, images: list[Image.Image], texts: list[list[str]]) -> Iterator[list[Boxes]]:
        inputs = self.processor(images=images, text=texts, padding=True, return_tensors="pt").to(self.model.device)
        output = _detected(self.model, inputs)
        results = self.processor.post_process_grounded_object_detection(
            output,
            inputs.input_ids,
            threshold=self.box_threshold,
            text_threshold=self.text_threshold,
            target_sizes=[image.size[::-1] for image in images],
        )
        stop = self.processor.tokenizer.convert_tokens_to_ids(".")
        for ids, logits, result in zip(inputs.input_ids, output.logits, results, strict=True):
            scores = logits.sigmoid()
            scores = scores[scores.max(dim=-1).values > self.box_threshold].cpu().numpy()
            ends = (ids == stop).nonzero().flatten().tolist()
            spans = zip([1, *(end + 1 for end in ends[:-1])], ends, strict=True)
            boxes = result["boxes"].cpu().numpy()
            yield [_above(boxes, scores[:, start:end].max(axis=1), self.text_threshold) for start, end in spans]


class Owlv2:
    """Boxes by OWLv2, each phrase asked as "a photo of {phrase}"; a phrase's boxes do not depend on the other phrases.

    Raises:
        ImportError: neither scipy nor torchvision is installed.

    Source: Minderer et al., "Scaling Open-Vocabulary Object Detection" (arXiv 2306.09683).
    """

    def __init__(self, model: str, device: str | None, batch_size: int, box_threshold: float):
        if not (find_spec("torchvision") or find_spec("scipy")):
            raise ImportError('OWLv2 resizes pictures with scipy or torchvision: pip install "mfpo_trl[data]"')
        from transformers import Owlv2ForObjectDetection, Owlv2Processor

        self.processor, self.model = load(Owlv2Processor, Owlv2ForObjectDetection, model, device)
        self.batch_size, self.box_threshold = batch_size, box_threshold
        self.words = self.model.owlv2.text_model.embeddings.token_embedding, self.processor.tokenizer

    def boxes(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Boxes]]:
        """See `Detector`.

        Raises:
            ValueError: a phrase that is longer than the model's text.
        """
        texts = [[f"a photo of {phrase}" for phrase in own] for own in phrases]
        check_length(self.processor.tokenizer, texts, self.model.config.text_config.max_position_embeddings)
        found: list[list[Boxes]] = []
        for batch in batches(range(len(images)), self.batch_size):
            found += self._forward([images[n] for n in batch], [texts[n] for n in batch])
        return found

    def _forward(self, images: list[Image.Image], texts: list[list[str]]) -> Iterator[list[Boxes]]:
        inputs = self.processor(images=images, text=texts, return_tensors="pt").to(self.model.device)
        output = _detected(self.model, inputs)
        results = self.processor.post_process_grounded_object_detection(
            output, threshold=self.box_threshold, target_sizes=[image.size[::-1] for image in images]
        )
        for own, logits, result in zip(texts, output.logits, results, strict=True):
            kept = logits.max(dim=-1).values.sigmoid() > self.box_threshold
            scores = logits[kept].sigmoid().cpu().numpy()
            boxes = result["boxes"].cpu().numpy()
            yield [_above(boxes, scores[:, n], self.box_threshold) for n in range(len(own))]


def _detected(model: Any, inputs: Any) -> Any:
    """The model's output, its boxes and logits in float32."""
    with inference(model.device):
        output = model(**inputs)
    output.logits, output.pred_boxes = output.logits.float(), output.pred_boxes.float()
    return output


def _above(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> Boxes:
    return boxes[scores > threshold], scores[scores > threshold]


def load(processor: Any, model: Any, name: str, device: str | None) -> tuple[Any, Any]:
    """Processor and model of a checkpoint, in float32 and ready for inference.

    Raises:
        ValueError: the checkpoint cannot be loaded, or is of another kind, which transformers would fill with random weights.
    """
    import torch
    from transformers import AutoConfig

    try:
        kind, expected = AutoConfig.from_pretrained(name).model_type, model.config_class.model_type
        if kind != expected:
            raise ValueError(f"it is a model of type {kind!r}; this grounder needs one of type {expected!r}")
        with safetensors_only(name):
            loaded = model.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        read = processor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"the grounder's weights {name!r} cannot be loaded; {INSTEAD} ({error})") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return read, loaded.eval().to(device)


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """No gradients; bfloat16 on anything but a CPU."""
    import torch

    rounded = nullcontext() if device.type == "cpu" else torch.autocast(device.type, dtype=torch.bfloat16)
    with torch.inference_mode(), rounded:
        yield


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in their order, at most `size` at once."""
    return (items[start : start + size] for start in range(0, len(items), size))


def check_length(tokenizer: Any, texts: Sequence[Sequence[str]], longest: int) -> None:
    """Refuse texts that the model would cut off.

    Raises:
        ValueError: a text of more than `longest` tokens.
    """
    for text in (text for own in texts for text in own):
        if (length := len(tokenizer(text).input_ids)) > longest:
            raise _too_long(text, length, longest)


def _too_long(phrase: str, length: int, longest: int) -> ValueError:
    return ValueError(
        f"the phrase {phrase[:60]!r} has {length} tokens, the model reads {longest} at most; ground shorter phrases"
    )
