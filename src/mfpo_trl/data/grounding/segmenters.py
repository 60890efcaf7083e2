"""Models that turn pictures and phrases into masks: boxes, then SAM on them; CLIPSeg; SAM 3.

What is said of pictures, phrases and precision in `detectors` holds here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from .detectors import Boxes, Detector, batches, check_length, inference, load

if TYPE_CHECKING:
    import torch

PROMPTS_AT_ONCE = 32
"""Boxes that SAM decodes at once; bounds the memory of masks at the picture's full size."""

Found = tuple[np.ndarray, float]
"""A phrase's mask (H, W) bool of the picture's size, empty where it was not found, and its score in [0, 1]."""


class Masker(Protocol):
    """Finds the masks of phrases in pictures."""

    @property
    def words(self) -> tuple[Any, Any]:
        """As of a `Detector`."""
        ...

    def masks(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Found]]:
        """One `(mask, score)` a phrase."""
        ...


class Sam:
    """Masks from boxes by SAM: of its three masks a box, the one with the best predicted overlap.

    Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643).
    """

    def __init__(self, model: str, device: str | None, batch_size: int):
        from transformers import SamModel, SamProcessor

        self.processor, self.model = load(SamProcessor, SamModel, model, device)
        self.batch_size = batch_size

    def unions(
        self, images: Sequence[Image.Image], boxes: Sequence[Sequence[np.ndarray]]
    ) -> Iterator[list[np.ndarray]]:
        """For each picture, the union of the masks of each group of boxes.

        Args:
            boxes: for each picture, groups (K, 4) in pixels; an empty group gives an empty mask, and a picture with
                empty groups only costs nothing.

        Returns:
            for each picture one mask (H, W) bool a group.
        """
        import torch

        for batch in batches(range(len(images)), self.batch_size):
            busy = [n for n in batch if any(len(group) for group in boxes[n])]
            inputs = {n: self.processor(images=images[n], return_tensors="pt") for n in busy}
            embeddings: dict[int, Any] = {}
            if busy:
                pixels = torch.cat([inputs[n]["pixel_values"] for n in busy]).to(self.model.device)
                with inference(self.model.device):
                    embeddings = dict(zip(busy, self.model.get_image_embeddings(pixels).split(1), strict=True))
            for n in batch:
                masks = [np.zeros(images[n].size[::-1], dtype=bool) for _ in boxes[n]]
                for mask, group in zip(masks, boxes[n], strict=True):
                    for part in batches(group, PROMPTS_AT_ONCE):
                        mask |= self._union(embeddings[n], inputs[n], np.asarray(part))
                yield masks

    def _union(self, embedding: torch.Tensor, inputs: Any, boxes: np.ndarray) -> np.ndarray:
        """Boxes of one picture -> the union of their masks, (H, W) bool."""
        import torch

        height, width = inputs["original_sizes"][0].tolist()
        resized = inputs["reshaped_input_sizes"][0].tolist()
        scale = np.array([resized[1] / width, resized[0] / height] * 2)
        # bfloat16 knows whole numbers up to 256 only: box coordinates and the light decoder stay in float32.
        prompts = torch.tensor(boxes * scale, dtype=torch.float32, device=embedding.device)[None]
        with torch.inference_mode():
            output = self.model(image_embeddings=embedding.float(), input_boxes=prompts, multimask_output=True)
        best = output.iou_scores[0].argmax(dim=-1)
        masks = output.pred_masks[0, torch.arange(len(best), device=best.device), best]
        full = self.processor.post_process_masks([masks[:, None]], [[height, width]], [resized])[0]
        return full.any(dim=0)[0].cpu().numpy()


class Rectangles:
    """Masks from boxes without a model: what the boxes cover, every pixel that they touch included."""

    def unions(
        self, images: Sequence[Image.Image], boxes: Sequence[Sequence[np.ndarray]]
    ) -> Iterator[list[np.ndarray]]:
        """As of `Sam`."""
        for image, groups in zip(images, boxes, strict=True):
            masks = [np.zeros(image.size[::-1], dtype=bool) for _ in groups]
            for mask, group in zip(masks, groups, strict=True):
                for x0, y0, x1, y1 in np.asarray(group).reshape(-1, 4):
                    rows, columns = (slice(max(0, int(a)), max(0, int(np.ceil(b)))) for a, b in ((y0, y1), (x0, x1)))
                    mask[rows, columns] = True
            yield masks


class BoxesThenMasks:
    """A detector's boxes turned into masks: a phrase's mask is the union over its boxes, its score that of the best."""

    def __init__(self, detector: Detector, segmenter: Sam | Rectangles):
        self.detector, self.segmenter = detector, segmenter

    @property
    def words(self) -> tuple[Any, Any]:
        """The detector's."""
        return self.detector.words

    def masks(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Found]]:
        """One `(mask, score)` a phrase; a box that lies outside of the picture does not count."""
        clipped = [
            [_clipped(*own, *image.size) for own in groups]
            for image, groups in zip(images, self.detector.boxes(images, phrases), strict=True)
        ]
        unions = self.segmenter.unions(images, [[boxes for boxes, _ in groups] for groups in clipped])
        return [
            [(mask, float(scores.max(initial=0.0))) for mask, (_, scores) in zip(masks, groups, strict=True)]
            for masks, groups in zip(unions, clipped, strict=True)
        ]


def _clipped(boxes: np.ndarray, scores: np.ndarray, width: int, height: int) -> Boxes:
    """Boxes cut at the picture's border, without those of which nothing is left."""
    boxes = boxes.clip(0, [width, height, width, height])
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return boxes[inside], scores[inside]


class PairMasker:
    """A model that reads pairs of a picture and a phrase, whatever phrases stand beside it.

    Args:
        parts: processor and model.
        longest: tokens of a phrase.
    """

    def __init__(self, parts: tuple[Any, Any], batch_size: int, threshold: float, longest: int):
        self.processor, self.model = parts
        self.batch_size, self.threshold, self.longest = batch_size, threshold, longest

    def masks(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Found]]:
        """One `(mask, score)` a phrase.

        Raises:
            ValueError: a phrase of more than `longest` tokens.
        """
        check_length(self.processor.tokenizer, phrases, self.longest)
        pairs = [(image, phrase) for image, own in zip(images, phrases, strict=True) for phrase in own]
        answers: list[Found] = []
        for batch in batches(pairs, self.batch_size):
            answers += self.forward([image for image, _ in batch], [phrase for _, phrase in batch])
        left = iter(answers)
        return [list(islice(left, len(own))) for own in phrases]

    def forward(self, images: list[Image.Image], texts: list[str]) -> Iterator[Found]:
        """One `(mask, score)` a pair of a batch."""
        raise NotImplementedError


class ClipSeg(PairMasker):
    """Masks by CLIPSeg: its heat map for a picture and a phrase, resized to the picture and cut at `threshold`; the score
    is the map's highest value.

    Source: Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts" (arXiv 2112.10003).
    """

    def __init__(self, model: str, device: str | None, batch_size: int, threshold: float):
        from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

        parts = load(CLIPSegProcessor, CLIPSegForImageSegmentation, model, device)
        super().__init__(parts, batch_size, threshold, parts[1].config.text_config.max_position_embeddings)
        self.words = self.model.clip.text_model.embeddings.token_embedding, self.processor.tokenizer

    def forward(self, images: list[Image.Image], texts: list[str]) -> Iterator[Found]:
        """See `PairMasker`."""
        import torch

        # Padding to the full length keeps a phrase's numbers the same whatever phrases stand beside it.
        inputs = self.processor(
            text=texts, images=images, padding="max_length", max_length=self.longest, return_tensors="pt"
        ).to(self.model.device)
        with inference(self.model.device):
            logits = self.model(**inputs).logits
        for image, logit in zip(images, logits.float().reshape(len(images), 1, *logits.shape[-2:]), strict=True):
            heat = torch.nn.functional.interpolate(
                logit.sigmoid()[None], size=image.size[::-1], mode="bilinear", align_corners=False
            )[0, 0]
            yield (heat > self.threshold).cpu().numpy(), float(heat.max())


class Sam3(PairMasker):
    """Masks by SAM 3, which takes a picture and a phrase and returns every instance: a phrase's mask is their union.

    Written against the interface of `transformers` and not run by this package's tests, which have no torchvision.

    Raises:
        ImportError: torchvision is missing.
    """

    def __init__(self, model: str, device: str | None, batch_size: int, threshold: float):
        if not find_spec("torchvision"):
            raise ImportError(
                "the grounder 'sam3' needs torchvision, which SAM 3's image processor is written in: pip install "
                "torchvision, or choose 'grounding-dino-sam'"
            )
        from transformers import Sam3Model, Sam3Processor

        # SAM 3's processor pads every phrase to 32 tokens.
        super().__init__(load(Sam3Processor, Sam3Model, model, device), batch_size, threshold, longest=32)
        self.words = self.model.text_encoder.get_input_embeddings(), self.processor.tokenizer

    def forward(self, images: list[Image.Image], texts: list[str]) -> Iterator[Found]:
        """See `PairMasker`."""
        inputs = self.processor(images=images, text=texts, return_tensors="pt").to(self.model.device)
        sizes = [image.size[::-1] for image in images]
        with inference(self.model.device):
            output = self.model(**inputs)
        results = self.processor.post_process_instance_segmentation(
            output, threshold=self.threshold, mask_threshold=0.5, target_sizes=sizes
        )
        for size, result in zip(sizes, results, strict=True):
            masks, scores = result["masks"].cpu().numpy().astype(bool), result["scores"].float().cpu().numpy()
            union = masks.any(axis=0) if len(masks) else np.zeros(size, dtype=bool)
            yield union, float(scores.max(initial=0.0))
