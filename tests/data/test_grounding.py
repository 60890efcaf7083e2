"""Every grounder end to end on tiny random models, saved and loaded like real ones."""

import subprocess
import sys
from functools import cache
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import picture
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    PreTrainedTokenizerFast,
    SamConfig,
    SamModel,
    SamProcessor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from mfpo_trl.data.grounding import detectors, segmenters
from mfpo_trl.data.grounding import grounders as grounding
from mfpo_trl.data.grounding.grounders import Grounded, build_grounder
from mfpo_trl.data.keywords.extraction import embedding_vectors

WORDS = ["a", "the", "photo", "of", "red", "blue", "dog", "cat", "horse", "bird", "tree", "grass", "two"]
SIZES = [(40, 32), (33, 57), (64, 64), (1, 1), (3, 2), (200, 3), (2, 90)]
"""Width and height; the last ones are under the smallest side or longer than 16 to 1."""
PHRASES = [
    ["a dog", "the red horse"],
    ["bird"],
    [],
    ["a dog", "tree", "two birds"],
    ["grass"],
    ["dog", "cat"],
    ["a cat"],
]
IMAGES = [picture(n, *size) for n, size in enumerate(SIZES)]


def save_dino(path, seed: int = 0) -> str:
    """The ids of [CLS], [SEP], "." and "?" are those of BERT's vocabulary, which the model has hard-coded."""
    torch.manual_seed(seed)
    vocab = {f"[unused{n}]": n for n in range(1100)}
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    fixed |= {word: 1030 + n for n, word in enumerate([*WORDS, "##s"])}
    taken = set(fixed.values())
    vocab = {token: n for token, n in vocab.items() if n not in taken} | fixed
    tokenizer = BertTokenizer(vocab=dict(sorted(vocab.items(), key=lambda item: item[1])), do_lower_case=True)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4, out_indices=[2, 3]
        ),
        text_config=BertConfig(
            vocab_size=1100,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        ),
        num_feature_levels=3,
        d_model=32,
        encoder_layers=2,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        num_queries=12,
        max_text_len=24,
    )
    model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "bbox" not in name:
                weight.mul_(3.0)
    model.save_pretrained(path)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(path)
    return str(path)


def save_sam(path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    config = SamConfig(
        vision_config={
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
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": 64,
            "patch_size": 8,
            "image_embedding_size": 8,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    model = SamModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(8.0 if "mask_decoder" in name else 3.0)
    model.save_pretrained(path)
    images = SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 32},
        mask_pad_size={"height": 32, "width": 32},
    )
    SamProcessor(images).save_pretrained(path)
    return str(path)


def clip_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """In the manner of CLIP's: begin, words, end; no id is 0 at the beginning, which OWLv2 reads as padding."""
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer(token_models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<unk>", "<start>", "<end>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    backend.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=length,
    )


CLIP_TEXT = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CLIP_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}


def save_owl(path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    config = Owlv2Config(
        text_config={**CLIP_TEXT, "max_position_embeddings": 24}, vision_config=CLIP_VISION, projection_dim=16
    )
    Owlv2ForObjectDetection(config).save_pretrained(path)
    images = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    Owlv2Processor(images, clip_tokenizer(24)).save_pretrained(path)
    return str(path)


def save_clipseg(path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    config = CLIPSegConfig(
        text_config={**CLIP_TEXT, "max_position_embeddings": 20},
        vision_config=CLIP_VISION,
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        conditional_layer=0,
    )
    model = CLIPSegForImageSegmentation(config)
    with torch.no_grad():
        for weight in model.decoder.parameters():
            if weight.dim() > 1:
                weight.mul_(8.0)
    model.save_pretrained(path)
    CLIPSegProcessor(ViTImageProcessorPil(size={"height": 64, "width": 64}), clip_tokenizer(20)).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict:
    """The arguments of `build_grounder` for every grounder with a model, and a low threshold that lets boxes through."""
    root = tmp_path_factory.mktemp("checkpoints")
    sam = save_sam(root / "sam")
    return {
        "grounding-dino-sam": {"model": save_dino(root / "dino"), "segmenter": sam},
        "owlv2-sam": {"model": save_owl(root / "owl"), "segmenter": sam},
        "clipseg": {"model": save_clipseg(root / "clipseg")},
    }


MODELS = ["grounding-dino-sam", "owlv2-sam", "clipseg"]


@pytest.fixture(params=MODELS, scope="module")
def made(request, checkpoints):
    """A function that builds one grounder after the other on the tiny checkpoint of its kind."""
    if request.param == "owlv2-sam":
        pytest.importorskip("scipy", reason="OWLv2's image processor needs scipy or torchvision")

    @cache
    def build(threshold: float = 0.3, **options):
        return build_grounder(
            request.param,
            **checkpoints[request.param],
            device="cpu",
            box_threshold=threshold,
            text_threshold=threshold,
            **options,
        )

    return build


def test_masks_have_the_images_size_and_phrases_their_order(made):
    found = made().ground(IMAGES, PHRASES)
    assert len(found) == len(IMAGES) and found[2] == []
    assert sum(len(own) for own in found) >= 5
    for image, asked, own in zip(IMAGES, PHRASES, found, strict=True):
        for region in own:
            assert region.mask.shape == (image.height, image.width) and region.mask.dtype == bool
            assert region.mask.any() and 0 <= region.score <= 1
        phrases = [region.phrase for region in own]
        assert phrases == [phrase for phrase in asked if phrase in phrases]


def test_masks_differ_between_images(made):
    """The tiny models do look: two pictures of one size do not get the same mask."""
    one, other = made().ground([picture(1, 64, 48), picture(2, 64, 48)], [["a dog"], ["a dog"]])
    assert (one[0].mask != other[0].mask).any()


def test_thresholds_that_let_nothing_through(made):
    assert made(1.0).ground(IMAGES, PHRASES) == [[] for _ in IMAGES]


def test_batches_equal_one_at_a_time(made):
    """Pictures of one size share a batch with texts of different lengths; the others do not."""
    images = [picture(n, 48, 40) for n in range(5)] + IMAGES
    phrases = [["a dog", "the red horse", "tree"], ["bird"], ["two birds", "grass"], [], ["cat"], *PHRASES]
    batched, single = made(batch_size=4), made(batch_size=1)
    together = batched.ground(images, phrases)
    alone = [single.ground([image], [own])[0] for image, own in zip(images, phrases, strict=True)]
    assert [[r.phrase for r in own] for own in together] == [[r.phrase for r in own] for own in alone]
    assert sum(len(own) for own in together) >= 8
    for one, other in zip(chain(*together), chain(*alone), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert (one.mask != other.mask).mean() <= 0.002


def test_bfloat16_on_a_cpu(made):
    """What a GPU does, as far as a CPU can: the forward passes run under autocast, and the scores stay close."""
    images, phrases = [picture(n, 64, 48) for n in range(3)], [["a dog", "tree"], ["bird"], ["cat"]]
    exact = made(0.05).ground(images, phrases)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = made(0.05).ground(images, phrases)
    for one, other in zip(chain(*exact), chain(*rounded), strict=True):
        assert one.phrase == other.phrase and one.score == pytest.approx(other.score, abs=0.15)


def test_no_phrases_reach_no_model():
    grounder = grounding.ModelGrounder(None)
    assert grounder.ground(IMAGES[:2], [[], [" ", ". ?"]]) == [[], []]
    assert grounder.ground([], []) == []


def test_one_list_of_phrases_an_image(made):
    with pytest.raises(ValueError, match="found 2 images and 1 lists of phrases"):
        made().ground(IMAGES[:2], [["a dog"]])
    with pytest.raises(ValueError, match="phrases of image 0 are 'a dog'"):
        made().ground(IMAGES[:1], ["a dog"])
    with pytest.raises(ValueError, match=r"has \d+ tokens, the model reads \d+ at most"):
        made().ground(IMAGES[:1], [["a dog " * 30]])


@pytest.fixture(scope="module")
def dino(checkpoints) -> detectors.GroundingDino:
    return detectors.GroundingDino(checkpoints["grounding-dino-sam"]["model"], "cpu", 4, 0.3, 0.3)


@pytest.fixture(scope="module")
def sam(checkpoints) -> segmenters.Sam:
    return segmenters.Sam(checkpoints["grounding-dino-sam"]["segmenter"], "cpu", 2)


@pytest.mark.parametrize("text_threshold", [0.3, 0.6, 0.9])
def test_boxes_of_a_phrase_are_those_that_the_processor_labels_with_it(dino, text_threshold, monkeypatch):
    """Phrases without a common word: the decoded labels then tell them apart, and the number of boxes is the same."""
    detector = dino
    monkeypatch.setattr(detector, "text_threshold", text_threshold)
    phrases, image = ["red dog", "blue cat", "grass"], picture(0, 64, 48)
    inputs = detector.processor(images=[image], text=[phrases], return_tensors="pt")
    with torch.inference_mode():
        output = detector.model(**inputs)
    result = detector.processor.post_process_grounded_object_detection(
        output, inputs.input_ids, threshold=0.3, text_threshold=text_threshold, target_sizes=[(48, 64)]
    )[0]
    labels = [set(label.replace(".", " ").split()) for label in result["text_labels"]]
    counts = []
    for phrase, (boxes, scores) in zip(phrases, detector.boxes([image], [phrases])[0], strict=True):
        kept = [n for n, label in enumerate(labels) if label & set(phrase.split())]
        assert boxes == pytest.approx(result["boxes"][kept].numpy(), abs=1e-4)
        assert (scores > text_threshold).all()
        counts.append(len(kept))
    assert 0 < sum(counts) < 36


def test_phrases_beyond_the_models_text_are_asked_in_a_second_call(dino):
    """The text holds 24 tokens, 22 without begin and end; ten phrases of three tokens (two words, a stop) are cut after
    the seventh."""
    detector = dino
    phrases = ["red dog", "blue cat", "two birds", "a. horse?", *["red tree"] * 6]
    assert detector._parts(["red dog"] * 10) == [["red dog"] * 7, ["red dog"] * 3]
    found = detector.boxes([picture(0)], [phrases])[0]
    assert len(found) == 10
    cut = detector._parts(phrases)
    assert list(chain(*cut)) == ["red dog", "blue cat", "two birds", "a horse", *["red tree"] * 6]
    second = detector.boxes([picture(0)], [cut[1]])[0]
    assert second[-1][1] == pytest.approx(found[-1][1], abs=1e-5)


def test_owl_boxes_are_the_processors(checkpoints):
    """A phrase asked alone gets the boxes that the processor gives; asked beside others it keeps them."""
    pytest.importorskip("scipy")
    detector = detectors.Owlv2(checkpoints["owlv2-sam"]["model"], "cpu", 4, 0.3)
    image, phrases = picture(0, 64, 40), ["red dog", "tree", "a cat"]
    together = detector.boxes([image], [phrases])[0]
    for phrase, (boxes, scores) in zip(phrases, together, strict=True):
        inputs = detector.processor(images=[image], text=[[f"a photo of {phrase}"]], return_tensors="pt")
        with torch.inference_mode():
            output = detector.model(**inputs)
        result = detector.processor.post_process_grounded_object_detection(
            output, threshold=0.3, target_sizes=[(40, 64)]
        )[0]
        assert len(boxes) > 0
        assert boxes == pytest.approx(result["boxes"].numpy(), abs=1e-3)
        assert scores == pytest.approx(result["scores"].numpy(), abs=1e-5)


def test_sam_masks_are_those_of_its_processor(sam, monkeypatch):
    """The union over boxes, in chunks, against the model called on pixels and boxes as its documentation does."""
    monkeypatch.setattr(segmenters, "PROMPTS_AT_ONCE", 2)
    image = picture(3, 57, 33)
    boxes = np.array([[2, 3, 20, 30], [30, 1, 50, 12], [5.5, 20, 57, 33]])
    inputs = sam.processor(images=image, input_boxes=[boxes.tolist()], return_tensors="pt")
    inputs["input_boxes"] = inputs["input_boxes"].float()
    with torch.inference_mode():
        output = sam.model(**inputs)
    masks = sam.processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0].numpy()
    best = [masks[n, output.iou_scores[0, n].argmax()] for n in range(3)]
    none = np.zeros((0, 4))
    first, other = sam.unions([image, picture(4)], [[boxes, boxes[:1], none], [none]])
    assert (first[0] == best[0] | best[1] | best[2]).all() and (first[1] == best[0]).all()
    assert 0 < first[1].mean() < 1 and not first[2].any()
    assert other[0].shape == (32, 40) and not other[0].any()


class FixedBoxes:
    """A detector that found two boxes, one of them outside of the picture."""

    def boxes(self, images, phrases):
        boxes = np.array([[-5.0, 2, 10, 12], [50, 2, 60, 12]])
        return [[(boxes, np.array([0.4, 0.9]))] for _ in images]


def test_boxes_are_clipped_and_those_outside_do_not_count(sam):
    image = picture(0, 40, 32)
    ((mask, score),) = segmenters.BoxesThenMasks(FixedBoxes(), sam).masks([image], [["a dog"]])[0]
    assert score == pytest.approx(0.4)
    assert (mask == next(sam.unions([image], [[np.array([[0.0, 2, 10, 12]])]]))[0]).all()


def test_clipseg_heat_is_the_models_own(checkpoints):
    model = segmenters.ClipSeg(checkpoints["clipseg"]["model"], "cpu", 3, 0.5)
    image = picture(5, 64, 64)
    inputs = model.processor(text=["a dog"], images=[image], return_tensors="pt")
    with torch.inference_mode():
        logits = model.model(**inputs).logits.reshape(64, 64)
    mask, score = model.masks([image], [["a dog"]])[0][0]
    assert (mask != (logits > 0).numpy()).mean() < 0.002 and 0 < mask.mean() < 1
    assert score == pytest.approx(logits.sigmoid().max().item(), abs=1e-5)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_pictures_are_enlarged_and_masks_come_back(width, height, seed):
    image = picture(seed, width, height)
    shown, down, across = grounding._readable(image)
    assert min(shown.size) >= 4 and max(shown.size) <= 16 * min(shown.size)
    assert (np.asarray(shown)[::down, ::across] == np.asarray(image)).all()
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    copies = np.zeros((height * down, width * across), dtype=bool)
    copies[::down, ::across] = mask
    assert (grounding._shrunk(copies, down, across) == mask).all()


def test_random_covers_a_fifth_and_depends_on_the_picture_alone():
    images = [picture(n, 100 + n, 80) for n in range(4)]
    regions = build_grounder("random", seed=3).ground(images, [["a dog"], [], ["a cat", "tree"], []])
    assert [(len(own), own[0].phrase, own[0].score) for own in regions] == [(1, None, None)] * 4
    assert all(own[0].mask.mean() == pytest.approx(0.2, abs=0.01) for own in regions)
    turned = build_grounder("random", seed=3).ground(images[::-1], [[]] * 4)[::-1]
    assert all((one[0].mask == other[0].mask).all() for one, other in zip(regions, turned, strict=True))
    other = build_grounder("random", seed=4).ground(images, [[]] * 4)
    assert any((one[0].mask != two[0].mask).any() for one, two in zip(regions, other, strict=True))


def test_random_is_the_same_in_another_process():
    code = (
        "import numpy as np; from PIL import Image; from mfpo_trl.data.grounding.grounders import build_grounder\n"
        "image = Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3))\n"
        "mask = build_grounder('random', seed=7).ground([image], [[]])[0][0].mask\n"
        "print(mask.nonzero()[0].tolist(), mask.nonzero()[1].tolist())"
    )
    here = (
        build_grounder("random", seed=7)
        .ground([Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3))], [[]])[0][0]
        .mask.nonzero()
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{here[0].tolist()} {here[1].tolist()}"


def test_none_grounds_nothing():
    assert build_grounder("none").ground(IMAGES[:2], [["a dog"], []]) == [[], []]


def upper_half(images, phrases):
    """A function that a user plugs in: `Grounded` for the first phrase, a tuple for the second, the third not found."""
    found = []
    for image, own in zip(images, phrases, strict=True):
        mask = np.zeros((image.height, image.width), dtype=np.uint8)
        mask[: image.height // 2 + 1] = 255
        found.append([Grounded(mask > 0, own[0], 0.5), (mask, own[-1], None), (mask * 0, None, 0.1)])
    return found


RETURNED = None


def returns(images, phrases):
    return RETURNED


NOT_CALLABLE = 3


def test_a_function_of_the_users():
    found = build_grounder("test_grounding:upper_half").ground(IMAGES, PHRASES)
    for image, asked, own in zip(IMAGES, PHRASES, found, strict=True):
        assert [(r.phrase, r.score) for r in own] == ([(asked[0], 0.5), (asked[-1], None)] if asked else [])
        for region in own:
            assert region.mask.dtype == bool and region.mask.shape == (image.height, image.width)
            assert region.mask.sum() == (image.height // 2 + 1) * image.width
    assert build_grounder("test_grounding:returns").ground(IMAGES[:1], [[]]) == [[]]


MASK = np.ones((32, 40), dtype=bool)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned a NoneType for 1 image"),
        ([[], []], "returned a list of 2 for 1 image"),
        ([MASK], "image 0 a ndarray; expected a list"),
        ([None], "image 0 a NoneType; expected a list"),
        ([[MASK]], "image 0 a ndarray; expected Grounded or"),
        ([[(MASK, "a dog")]], "image 0 a tuple; expected Grounded or"),
        ([[(MASK.T, "a dog", 1.0)]], r"mask of shape \(40, 32\); the image is \(H, W\) = \(32, 40\)"),
        ([[Grounded(MASK[None], "a dog", 1.0)]], r"mask of shape \(1, 32, 40\)"),
        ([[(MASK * 0.3, "a dog", 1.0)]], "mask of float64; expected bools"),
        ([[(MASK, 3, 1.0)]], "phrase of type int"),
        ([[(MASK, "a dog", "high")]], "score 'high'"),
        ([[(MASK, "a dog", float("nan"))]], "score nan"),
    ],
)
def test_what_a_users_function_may_not_return(returned, message, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "RETURNED", returned)
    with pytest.raises(ValueError, match=message):
        build_grounder("test_grounding:returns").ground(IMAGES[:1], [["a dog"]])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grounding-dino-san", {}, "did you mean 'grounding-dino-sam'"),
        ("clip-seg", {}, "did you mean 'clipseg'"),
        ("no_such_module:ground", {}, "cannot be imported"),
        ("test_grounding:no_such_function", {}, "cannot be imported"),
        ("test_grounding:", {}, "cannot be imported"),
        ("test_grounding:NOT_CALLABLE", {}, "is a int; expected something to call"),
        ("random", {"batch_size": 0}, "batch_size is 0"),
        ("clipseg", {"box_threshold": 35}, "box_threshold is 35"),
    ],
)
def test_settings_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_grounder(name, **options)


def test_a_checkpoint_of_another_kind(checkpoints):
    sam = checkpoints["grounding-dino-sam"]["segmenter"]
    with pytest.raises(ValueError, match="is a model of type 'sam'; this grounder needs one of type 'clipseg'"):
        build_grounder("clipseg", model=sam)


@pytest.mark.skipif(segmenters.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_sam3_says_that_it_needs_torchvision():
    with pytest.raises(ImportError, match="needs torchvision"):
        build_grounder("sam3")


def test_owl_says_that_it_needs_scipy(monkeypatch):
    monkeypatch.setattr(detectors, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="scipy or torchvision"):
        build_grounder("owlv2-sam")


def test_import_is_light():
    code = "import mfpo_trl.data.grounding.grounders, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_reads_the_phrases_gives_word_vectors(made):
    """The mean of the rows of its embedding table, one vector a phrase."""
    grounder = made()
    embedding, tokenizer = grounder.words
    found = embedding_vectors(embedding, tokenizer)(["red dog", "dog"])
    model = getattr(grounder.model, "detector", grounder.model).model
    names = ("word_embeddings.weight", "token_embedding.weight")
    table = next(value for name, value in model.named_parameters() if name.endswith(names))
    assert table.shape[1] == found.shape[1]
    for vector, phrase in zip(found, ("red dog", "dog"), strict=True):
        ids = tokenizer(phrase, add_special_tokens=False)["input_ids"]
        np.testing.assert_allclose(vector, table[ids].detach().mean(dim=0), atol=1e-6)
