"""Pictures filled by a generative model, and rows built with negatives that could be real."""

import json

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset, load_dataset
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mfpo_trl.cli import main
from mfpo_trl.data.build import BuildOptions, run
from mfpo_trl.data.editing import Inpainter
from mfpo_trl.images.regions import region_mask
from mfpo_trl.rows.schema import to_rgb


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> str:
    """A random Stable Diffusion that inpaints 32 pixels, with a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "words").mkdir()
    (folder / "words" / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "words" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words", model_max_length=16)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    StableDiffusionInpaintPipeline(
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, **blocks
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=16, eos_token_id=1, bos_token_id=0, pad_token_id=1,
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16, in_channels=9, out_channels=4, cross_attention_dim=16, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **blocks,
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "model")  # fmt: skip
    return str(folder / "model")


@pytest.fixture(scope="module")
def fill(pipeline) -> Inpainter:
    return Inpainter(pipeline, "cpu")


@pytest.mark.parametrize("size", [(40, 32), (33, 47), (9, 200), (700, 60)])
def test_only_the_region_is_filled_and_the_row_decides(fill, size):
    image = tiny.picture(3, *size)
    region = region_mask([[2, 2, size[0] // 2 + 2, size[1] // 2 + 2]], size[1], size[0])
    made = [
        np.asarray(fill(image, region, np.random.default_rng(seed), prompt=prompt, num_inference_steps=2))
        for seed, prompt in ((1, "a dog"), (1, "a dog"), (2, "a dog"), (1, "a cat"))
    ]
    assert (made[0][~region] == np.asarray(image)[~region]).all()
    assert (made[0][region] != np.asarray(image)[region]).any()
    assert (made[0] == made[1]).all() and (made[0] != made[2]).any() and (made[0] != made[3]).any()


def test_a_whole_image_is_not_generated(fill):
    with pytest.raises(ValueError, match="covers the whole image"):
        fill(tiny.picture(0), np.ones((32, 40), dtype=bool), np.random.default_rng(0), prompt="a dog")


def test_a_pipeline_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="name another one, an id or a folder"):
        Inpainter(str(tmp_path))


def source(folder, count=5, bare=(), texts=(), phrases=()) -> str:
    rows = []
    for n, row in enumerate(tiny.rows(count)):
        phrase = phrases[n] if n < len(phrases) else "red dog"
        row |= {"id": f"pair {n}", "key_regions": [] if n in bare else [{"box": [4, 4, 20, 20], "phrase": phrase}]}
        if n < len(texts):
            row["chosen"] = [{**row["chosen"][0], "content": texts[n]}]
        rows.append(row)
    Dataset.from_list(rows).save_to_disk(folder / "source")
    return str(folder / "source")


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, str]]:
    """Prompt and negative prompt of every call of a pipeline, which goes through."""
    found, call = [], StableDiffusionInpaintPipeline.__call__

    def noted(self, **given):
        found.append((given["prompt"], given["negative_prompt"]))
        return call(self, **given)

    monkeypatch.setattr(StableDiffusionInpaintPipeline, "__call__", noted)
    return found


def test_generated_images_are_stored_and_trained_on_as_they_are(pipeline, asked, tmp_path, capsys):
    """Twins whose object is generated, and rows without a twin whose object is generated away. The rest of an image is
    bit-identical, one process builds what two do, the recipe tells how it was made, and the pipeline is asked for what the page says."""
    data = source(
        tmp_path,
        bare=(2,),
        texts=["A red dog near a tree.", "An old cat near a wall.", *["Grass."] * 3],
        phrases=["red dog", "old cat"],
    )
    kwargs = json.dumps({"model": pipeline, "num_inference_steps": 2, "prompt": "the room without a {phrase}"})
    argv = [
        "build",
        "--dataset",
        data,
        "--grounder",
        "column",
        "--part-rows",
        "2",
        "--corruption",
        "generate",
        "--materialize",
    ]
    argv += ["--corruption-kwargs", kwargs, "--mirror", "--mirror-editor", "generate"]
    argv += ["--mirror-kwargs", json.dumps({"model": pipeline, "num_inference_steps": 2})]
    for n in (1, 2):
        assert main([*argv, "--output", str(tmp_path / f"built {n}"), "--num-proc", str(n)]) == 0, (
            capsys.readouterr().err
        )
    # The second build asked in processes of its own.
    without = ("the room without a red dog", "red dog")
    assert asked == [("an old cat", "red dog"), ("a red dog", "old cat"), without, without]
    built = [load_dataset(str(tmp_path / f"built {n}"), split="train") for n in (1, 2)]
    assert built[0]["id"] == ["pair 0", "pair 0~mirror", "pair 1", "pair 1~mirror", "pair 3", "pair 4"]
    reject = json.loads((tmp_path / "built 1" / "rejects.jsonl").read_text())
    assert reject == {
        "row": 2,
        "reason": "no region was found, and corruption 'generate' needs something around a region",
    }
    for row, other in zip(*built, strict=True):
        images = [
            np.asarray(to_rgb(own)) for own in (*row["images"], *row["rejected_images"], *other["rejected_images"])
        ]
        differs = (images[0] != images[1]).any(axis=2)
        assert differs[4:20, 4:20].any() and not differs[20:].any() and not differs[:, 20:].any()
        assert not differs[:4].any() and not differs[:, :4].any()
        assert (images[1] == images[2]).all()
        recipe = json.loads(row["corruption"])
        assert recipe == {"corruption": "none"} or recipe["kwargs"]["prompt"] == "the room without a {phrase}"
    card = (tmp_path / "built 1" / "README.md").read_text()
    assert "| of them twins, with an edited image | 2 |" in card and "(`generate`)" in card and "(by rule)" in card
    told = [json.dumps(list(built[0]["corruption"])), card, (tmp_path / "built 1" / "report.json").read_text()]
    assert all(str(tmp_path.parent) not in own and '"model": "model"' in own.replace("\\", "") for own in told)
    sheet = tmp_path / "sheet.html"
    assert main(["preview", str(tmp_path / "built 1"), "--n", "6", "--output", str(sheet)]) == 0
    assert "6 of 6 rows" in sheet.read_text() and sheet.read_text().count("the room without a {phrase}") == 2


def test_what_a_pipeline_is_asked_for_without_a_prompt_and_with_templates(pipeline, asked, tmp_path):
    """By default an empty background in place of the object; for twins, both phrases in any words."""
    data = source(
        tmp_path, 2, texts=["A red dog near a tree.", "An old cat near a wall."], phrases=["red dog", "old cat"]
    )
    options = {"grounder": "column", "progress": False, "corruption": "generate", "materialize": True}
    own = {"model": pipeline, "num_inference_steps": 1}
    run(BuildOptions(data, tmp_path / "plain", corruption_kwargs=own, **options))
    assert asked == [("empty background", "red dog"), ("empty background", "old cat")]
    asked.clear()
    own = {**own, "prompt": "a photo of {phrase}, no {old}", "negative_prompt": "blurred {old}"}
    run(
        BuildOptions(
            data,
            tmp_path / "twins",
            mirror=True,
            mirror_editor="generate",
            mirror_kwargs=own,
            grounder="column",
            progress=False,
        )
    )
    assert asked == [
        ("a photo of an old cat, no red dog", "blurred red dog"),
        ("a photo of a red dog, no old cat", "blurred old cat"),
    ]


def test_a_ladder_is_stored_in_columns_of_its_own(tmp_path):
    share = [0.25, 1.0]
    options = {"corruption": "mask", "corruption_kwargs": json.dumps({"share": share}), "materialize": True}
    folder = run(BuildOptions(source(tmp_path), tmp_path / "built", grounder="column", progress=False, **options))
    row = load_dataset(str(folder), split="train")[0]
    clean, *made = (np.asarray(to_rgb(row[name][0])) for name in ("images", "rejected_images", "rejected_images_2"))
    changed = [(own != clean).any(axis=2).sum() / 256 for own in made]
    assert changed == pytest.approx(share, abs=0.05)
    assert main(["preview", str(folder), "--n", "1", "--output", str(tmp_path / "sheet.html")]) == 0
    assert "dispreferred image 2 of 2" in (tmp_path / "sheet.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--corruption", "generate"], "add --materialize"),
        (["--corruption", "transplant", "--materialize"], "leave --materialize out"),
        (["--corruption", "inpaint", "--corruption-region", "global"], "has none"),
        (["--corruption", "inpant"], "did you mean 'inpaint'"),
        (["--corruption", "inpaint", "--corruption-kwargs", "{radius: 3}"], "is not JSON"),
        (["--corruption", "inpaint", "--corruption-kwargs", "[3]"], "expected options by their names"),
        (["--corruption", "inpaint", "--corruption-kwargs", '{"radios": 3}'], "did you mean 'radius'"),
        (["--corruption-region", "left"], "expected auto, global, random, key, partial"),
        (
            ["--corruption", "generate", "--materialize", "--corruption-kwargs", '{"promt": "a dog"}'],
            "did you mean 'prompt'",
        ),
    ],
)
def test_mistakes(arguments, said, tmp_path, capsys):
    assert main(["build", "--dataset", "rows.jsonl", "--output", str(tmp_path / "built"), *arguments]) == 1
    assert said in capsys.readouterr().err
