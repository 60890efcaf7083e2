"""Corruptions: exact outside, deterministic, and as strong behind the processor as they say."""

import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mfpo_trl.batch.resolution import model_resolution
from mfpo_trl.images.corruptions import CORRUPTIONS, SCHEDULES, check_corruption, corrupt, needs_outside, noise_level

DONOR = np.asarray(tiny.picture(99, 50, 20))


MADE = sorted(set(CORRUPTIONS) - {"generate"})


def kwargs_of(name):
    given = {"donor": DONOR, "donor_region": np.arange(DONOR[..., 0].size).reshape(DONOR.shape[:2]) % 3 == 0}
    return {"swap": {"donor": DONOR}, "transplant": given}.get(name, {})


@given(
    name=st.sampled_from(MADE),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_outside_is_bit_identical_and_seeds_decide(name, height, width, seed, data):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    region = np.zeros((height, width), dtype=bool)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    region[top : data.draw(st.integers(top + 1, height)), left : data.draw(st.integers(left + 1, width))] = True
    if region.all() and needs_outside(name):
        with pytest.raises(ValueError, match="covers the whole image"):
            corrupt(image, region, np.random.default_rng(seed), name, **kwargs_of(name))
        return
    before = image.copy()
    found = corrupt(image, region, np.random.default_rng(seed), name, **kwargs_of(name))
    assert found.dtype == np.uint8 and found.shape == image.shape
    assert (image == before).all()
    assert (found[~region] == image[~region]).all()
    again = corrupt(image, region, np.random.default_rng(seed), name, **kwargs_of(name))
    assert (found == again).all()


OPTIONS = {
    "inpaint": [{"method": "telea"}, {"resolution": 7}, {"radius": 100}, {"method": "telea", "resolution": 5}],
    "transplant": [{"blend": "poisson"}, {"border": 0}, {"border": 0.5}],
    "mask": [{"share": share} for share in (0.01, 0.37, 0.5)],
    "diffusion": [{"resolution": 9, "step": 999}],
}


@given(
    case=st.sampled_from([(name, own) for name, options in OPTIONS.items() for own in options]),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    seed=st.integers(0, 2**32),
    shape=st.sampled_from(["pixel", "scattered", "first line", "last column", "boxes", "nothing"]),
)
@settings(max_examples=150, deadline=None)
def test_any_region_and_option(case, height, width, seed, shape):
    """Outside of a region of any shape nothing changes, and what cannot be made is refused in words, not by OpenCV."""
    (name, own), rng = case, np.random.default_rng(seed)
    image, region = rng.integers(0, 256, (height, width, 3), dtype=np.uint8), np.zeros((height, width), dtype=bool)
    if shape == "pixel":
        region[rng.integers(height), rng.integers(width)] = True
    elif shape == "scattered":
        region = rng.random((height, width)) < 0.5
    elif shape == "boxes":
        for _ in range(3):
            top, left = rng.integers(height), rng.integers(width)
            region[top : rng.integers(top, height) + 1, left : rng.integers(left, width) + 1] = True
    elif shape != "nothing":
        region[(0, slice(None)) if shape == "first line" else (slice(None), -1)] = True
    made = []
    for _ in range(2):
        try:
            made.append(corrupt(image, region, np.random.default_rng(seed), name, **kwargs_of(name), **own))
        except ValueError as error:
            said = ("covers the whole image", "leaves nothing of the image", "nowhere wider than the edge")
            assert any(words in str(error) for words in said)
            return
    assert (made[0] == made[1]).all() and (made[0][~region] == image[~region]).all()


@pytest.mark.parametrize("name", ["diffusion", "crop"])
def test_another_seed_differs(name):
    image, region = np.asarray(tiny.picture(0)), np.ones((32, 40), dtype=bool)
    first, second = (corrupt(image, region, np.random.default_rng(seed), name) for seed in (0, 1))
    assert (first != second).any(axis=2).mean() > 0.5


@pytest.mark.parametrize("name", MADE)
def test_every_corruption_changes_the_region(name):
    image, region = np.asarray(tiny.picture(0)), np.ones((32, 40), dtype=bool)
    region[:, 35:] = False
    found = corrupt(image, region, np.random.default_rng(0), name, **kwargs_of(name))
    assert (found != image)[region].any(axis=1).mean() > 0.5


def test_plain_corruptions_by_hand():
    image = np.array([[[0, 10, 20], [100, 30, 40]]], dtype=np.uint8)
    region = np.ones((1, 2), dtype=bool)
    rng = np.random.default_rng(0)
    assert corrupt(image, region, rng, "mean").tolist() == [[[50, 20, 30]] * 2]
    assert corrupt(image, region, rng, "black").tolist() == [[[0, 0, 0]] * 2]
    red = np.full((3, 3, 3), [200, 0, 0], dtype=np.uint8)
    assert corrupt(image, region, rng, "swap", donor=red).tolist() == [[[200, 0, 0]] * 2]


def test_crop_shows_a_part_of_the_stated_size():
    """A picture that says where its pixels are: column index in red, row index in green. The crop's area is the product of
    the ranges that are left, between 1 % and 20 % of the whole (a pixel of blur at each border allowed)."""
    columns, rows = np.meshgrid(np.arange(200), np.arange(200))
    image = np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = corrupt(image, np.ones((200, 200), dtype=bool), rng, "crop", scale=(0.01, 0.2)).astype(int)
        width, height = np.ptp(found[..., 0]) + 1, np.ptp(found[..., 1]) + 1
        assert 0.008 < width * height / 200**2 < 0.21
        assert 0.7 < height / width < 1.45


def test_vcd_sigmoid_equals_diffusers_to_the_bit():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="sigmoid", beta_start=1e-5, beta_end=5e-3, num_train_timesteps=1000)
    assert torch.equal(SCHEDULES["vcd_sigmoid"](), theirs.betas)
    kept = theirs.alphas_cumprod[500]
    assert noise_level(500, "vcd_sigmoid") == (kept.sqrt().item(), (1 - kept).sqrt().item())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
        ("scaled_linear", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        ("linear", {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
    ],
)
def test_other_schedules_equal_diffusers(name, settings):
    from diffusers import DDPMScheduler

    torch.testing.assert_close(SCHEDULES[name](), DDPMScheduler(**settings).betas, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "signal", "noise"),
    [
        ("vcd_sigmoid", 0.863, 0.505),
        ("cosine", 0.702, 0.713),
        ("scaled_linear", 0.526, 0.851),
        ("linear", 0.279, 0.960),
    ],
)
def test_step_500_of_each_schedule(schedule, signal, noise):
    """The published values of sqrt(abar) and sigma."""
    assert noise_level(500, schedule) == (pytest.approx(signal, abs=6e-4), pytest.approx(noise, abs=6e-4))


def test_diffusion_has_the_stated_mean_and_spread():
    """On mid-grey, 127.5 is kept by any factor and the noise has a spread of 127.5 * sqrt(1 - abar) grey levels, less what
    is clipped at 0 and 255; step 100 clips nothing worth the name."""
    image = np.full((200, 200, 3), 128, dtype=np.uint8)
    _, noise = noise_level(100, "vcd_sigmoid")
    found = corrupt(image, np.ones((200, 200), dtype=bool), np.random.default_rng(0), "diffusion", step=100)
    assert found.std() == pytest.approx(127.5 * noise, rel=0.02)
    assert found.mean() == pytest.approx(128, abs=0.3)


def signal_to_noise(side: int, on_grid: bool) -> float:
    """Spread of the picture over spread of the noise, behind CLIP's processor at 336 px, from eight draws."""
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    processor = tiny.processor(image_size=336)
    resolution = model_resolution(processor)(side, side) if on_grid else None
    region = np.ones((side, side), dtype=bool)
    seen = [
        processor.image_processor(
            Image.fromarray(corrupt(image, region, np.random.default_rng(n), "diffusion", resolution=resolution)),
            return_tensors="pt",
        )["pixel_values"][0]
        for n in range(8)
    ]
    stack = torch.stack(seen)
    return (stack.mean(dim=0).std() / stack.std(dim=0).mean()).item()


def test_noise_survives_the_processor_at_any_size():
    """Noise on the model's grid keeps its strength within a factor of 1.5; a draw for each source pixel does not."""
    on_grid = [signal_to_noise(side, on_grid=True) for side in (336, 672, 1344)]
    assert max(on_grid) / min(on_grid) < 1.5, on_grid
    per_pixel = [signal_to_noise(side, on_grid=False) for side in (336, 1344)]
    assert per_pixel[1] / per_pixel[0] > 3, per_pixel


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("difusion", {}, "did you mean 'diffusion'"),
        ("noise", {}, "expected one of"),
        ("diffusion", {"schedule": "vcd_sigmod"}, "did you mean 'vcd_sigmoid'"),
        ("diffusion", {"steps": 500}, "did you mean 'step'"),
        ("diffusion", {"step": 1000}, "from 0 to 999"),
        ("diffusion", {"step": 1.5}, "whole number"),
        ("black", {"step": 5}, "it has none"),
        ("diffusion", {"resolution": -3}, "above 0"),
        ("crop", {"scale": [0.5, 0.1]}, "0 < smallest <= largest <= 1"),
        ("crop", {"scale": 0.2}, "cannot use"),
        ("blur", {"sigma": 3}, "share of the shorter side"),
    ],
)
def test_unknown_names(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        check_corruption(name, kwargs)


def test_cosine_is_bounded():
    assert SCHEDULES["cosine"]().max() == pytest.approx(0.999) and math.isfinite(SCHEDULES["cosine"]().sum())
