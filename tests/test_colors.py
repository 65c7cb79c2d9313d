"""Each color operation is torchvision's, scikit-image's for stains, and depends on one image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, hed_from_rgb, rgb2hed, rgb_from_hed
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pathgen.data import colors as ops


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Float (6, 3, 20, 24) in [0, 1], with black, white and gray pixels among them."""
    generator = torch.Generator().manual_seed(0)
    made = torch.rand((6, 3, 20, 24), generator=generator)
    made[0, :, 0] = 0
    made[0, :, 1] = 1
    made[1, :, 2] = 0.5
    return made


@pytest.mark.parametrize(
    ("operation", "reference", "parameters"),
    [
        (ops.brightness, tv.adjust_brightness, [0.6, 0.8, 1.0, 1.2, 1.4, 0.0]),
        (ops.contrast, tv.adjust_contrast, [0.6, 0.8, 1.0, 1.2, 1.4, 0.0]),
        (ops.saturation, tv.adjust_saturation, [0.8, 0.9, 1.0, 1.1, 1.2, 0.0]),
        (ops.hue, tv.adjust_hue, [-0.5, -0.1, 0.0, 0.03, 0.1, 0.5]),
    ],
)
def test_colors_change_as_in_torchvision(
    images: Tensor,
    operation: Callable[[Tensor, Tensor], Tensor],
    reference: Callable[[Tensor, float], Tensor],
    parameters: list[float],
) -> None:
    expected = torch.stack([reference(x, p) for x, p in zip(images, parameters, strict=True)])
    found = operation(images.clone(), torch.tensor(parameters))
    assert torch.allclose(found, expected, atol=2e-6)


def test_gray_and_solarize_are_torchvisions(images: Tensor) -> None:
    assert torch.allclose(ops.gray(images), tv.rgb_to_grayscale(images, 3), atol=1e-6)
    assert torch.equal(ops.solarize(images), tv.solarize(images, 0.5))


def test_blur_is_torchvisions(images: Tensor) -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 1.9, 2.0])
    expected = [
        tv.gaussian_blur(x, [13, 13], [float(s)]) for x, s in zip(images, sigma, strict=True)
    ]
    assert torch.allclose(ops.blur(images, sigma, 6), torch.stack(expected), atol=1e-5)


def test_blur_does_not_depend_on_the_rest_of_the_batch(images: Tensor) -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 1.9, 2.0])
    alone = ops.blur(images[:1], sigma[:1], 6)
    assert torch.equal(ops.blur(images, sigma, 6)[:1], alone)


def test_stain_jitter_is_in_the_space_of_skimage(images: Tensor) -> None:
    """Scaling one stain scales that stain's density in scikit-image's separation."""
    scale = torch.ones(6, 3)
    scale[:, 0] = torch.tensor([0.8, 0.9, 1.0, 1.05, 1.1, 1.2])
    pale = 0.3 + 0.5 * images  # nothing is clipped
    changed = ops.stain(pale.clone(), scale, torch.zeros(6, 3))
    unit = rgb_from_hed / np.linalg.norm(rgb_from_hed, axis=1, keepdims=True)
    for before, after, factors in zip(pale, changed, scale, strict=True):
        old, new = (-np.log10(x.permute(1, 2, 0).double().numpy()) for x in (before, after))
        expected = (old @ np.linalg.inv(unit) * factors.numpy()) @ unit
        assert np.allclose(np.clip(expected, 0, None), new, atol=1e-5)
    assert np.allclose(np.linalg.inv(rgb_from_hed), hed_from_rgb)


def test_scaled_stains_are_those_of_rgb2hed_and_hed2rgb() -> None:
    """The whole way there and back in scikit-image, whose stains differ in length only."""
    rng = np.random.default_rng(0)
    stains = rng.uniform(0.005, 0.06, (6, 20, 24, 3))
    rgb = hed2rgb(stains)
    assert rgb.min() > 1 / 255
    factors = rng.uniform(0.8, 1.2, (6, 3))
    expected = hed2rgb(rgb2hed(rgb) * factors[:, None, None])
    images = torch.from_numpy(rgb).permute(0, 3, 1, 2).float()
    found = ops.stain(images, torch.from_numpy(factors).float(), torch.zeros(6, 3))
    assert np.allclose(found.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert np.abs(expected - rgb).max() > 0.05


def test_stain_shift_adds_density(images: Tensor) -> None:
    pale = 0.3 + 0.5 * images
    shift = torch.tensor([[0.05, 0.0, 0.0]]).expand(6, 3)
    changed = ops.stain(pale.clone(), torch.ones(6, 3), shift)
    unit = rgb_from_hed[0] / np.linalg.norm(rgb_from_hed[0])
    added = -(changed / pale).log10().permute(0, 2, 3, 1)
    assert np.allclose(added.numpy(), 0.05 * unit, atol=1e-5)


def test_neutral_parameters_change_nothing(images: Tensor) -> None:
    visible = images.clamp(1 / 255, 1)
    one, zero = torch.ones(6), torch.zeros(6)
    for found in (
        ops.brightness(visible.clone(), one),
        ops.contrast(visible.clone(), one),
        ops.saturation(visible.clone(), one),
        ops.hue(visible.clone(), zero),
        ops.stain(visible.clone(), torch.ones(6, 3), torch.zeros(6, 3)),
    ):
        assert torch.allclose(found, visible, atol=3e-6)


def test_jitter_goes_in_the_drawn_order(images: Tensor) -> None:
    order = torch.stack(
        [torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    )
    factors = torch.tensor([[0.7, 1.3, 0.8, 0.1]]).expand(6, 4)
    no, yes = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    draw = ops.ColorDraw(
        jitter=yes, factors=factors, order=order, stain=no, stain_scale=torch.ones(6, 3),
        stain_shift=torch.zeros(6, 3), gray=no, blur=no, sigma=torch.ones(6), solarize=no,
    )  # fmt: skip
    found = ops.change_colors(images.clone(), draw, 6)
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for image, one, result in zip(images, order, found, strict=True):
        expected = image
        for number in one.tolist():
            expected = adjust[number](expected, float(factors[0, number]))
        assert torch.allclose(result, expected, atol=1e-5)
