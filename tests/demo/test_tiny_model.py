import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mfpo_trl.demo.captioner import PROMPT, answer, write_captions
from mfpo_trl.demo.scenes import GRID, make_scenes
from mfpo_trl.demo.tiny_model import IMAGE, build_model, build_processor


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_every_caption_survives_the_tokenizer(processor):
    tokenizer = processor.tokenizer
    for scene in make_scenes(50, seed=0, company=0.0):
        ids = tokenizer(scene.caption)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == scene.caption


def test_the_template_opens_with_the_prompt_and_closes_the_answer_with_the_end_token(processor):
    question = processor.apply_chat_template(PROMPT, add_generation_prompt=True)
    whole = processor.apply_chat_template([*PROMPT, *answer("a red circle .")])
    assert whole == question + " a red circle . </s>"
    ids = processor.tokenizer(whole)["input_ids"]
    assert ids[0] == processor.tokenizer.bos_token_id and ids[-1] == processor.tokenizer.eos_token_id
    assert processor.tokenizer.unk_token_id not in ids


def test_processor_gives_one_image_token_a_cell_and_survives_saving(processor, tmp_path):
    scene = make_scenes(1, seed=0, company=0.0)[0]
    encoded = processor(images=[scene.image], text=[f"<s> {IMAGE} describe :"], return_tensors="pt")
    assert (encoded["input_ids"] == processor.image_token_id).sum() == GRID**2
    assert encoded["pixel_values"].shape == (1, 3, 48, 48)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)(
        images=[scene.image], text=[f"<s> {IMAGE} describe :"], return_tensors="pt"
    )
    assert torch.equal(again["input_ids"], encoded["input_ids"])
    assert torch.equal(again["pixel_values"], encoded["pixel_values"])


def test_model_has_about_a_million_parameters_and_survives_saving(processor, tmp_path):
    model = build_model(processor)
    assert 0.9e6 < sum(weight.numel() for weight in model.parameters()) < 1.1e6
    model.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    images = [scene.image for scene in make_scenes(5, seed=0, company=0.0)]
    captions = write_captions(model, processor, images, batch_size=2)
    assert len(captions) == 5
    assert write_captions(again, processor, images) == captions
