"""Crops, mirrors and turns: torchvision's on bytes, with boxes of the drawn area and shape."""

from __future__ import annotations

import numpy as np
import torch
from helpers_data import noise
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from pathgen.data.augmentation import ATTEMPTS, crop, draw_boxes, turn


def test_crop_is_torchvisions_on_bytes() -> None:
    image = torch.from_numpy(noise(np.random.default_rng(0), 1, 60)[0]).permute(2, 0, 1)
    for box in [(0, 0, 60, 60), (5, 9, 33, 40), (50, 2, 7, 9)]:
        expected = tv.resized_crop(
            image, *box, [16, 16], tv.InterpolationMode.BICUBIC, antialias=True
        )
        difference = crop(image, *box, 16).int() - expected.int()
        assert difference.abs().max() <= 1


def test_turns_are_the_eight_of_the_square() -> None:
    square = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)[:1].expand(8, -1, -1, -1).clone()
    flip = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    quarters = torch.tensor([0, 1, 2, 3] * 2)
    turned = turn(square, flip, torch.zeros(8, dtype=torch.bool), quarters)
    assert len({tuple(x.flatten().tolist()) for x in turned}) == 8
    both = torch.ones(8, dtype=torch.bool)
    assert torch.equal(turn(square, both, both, torch.full((8,), 2)), square)


@given(
    st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=8),
    st.integers(0, 2**31),
    st.sampled_from([(0.05, 0.4), (0.4, 1.0), (1.0, 1.0)]),
)
def test_boxes_lie_within_the_image(
    sizes: list[tuple[int, int]], seed: int, scale: tuple[float, float]
) -> None:
    heights, widths = np.array(sizes, np.int64).T
    uniform = np.random.default_rng(seed).random((len(sizes), 2 * ATTEMPTS + 2))
    box = draw_boxes(uniform, heights, widths, scale)
    assert (box.top >= 0).all()
    assert (box.left >= 0).all()
    assert (box.height >= 1).all()
    assert (box.width >= 1).all()
    assert (box.top + box.height <= heights).all()
    assert (box.left + box.width <= widths).all()


def test_boxes_have_the_drawn_area_and_aspect() -> None:
    n = 20_000
    uniform = np.random.default_rng(0).random((n, 2 * ATTEMPTS + 2))
    side = np.full(n, 1000, np.int64)
    box = draw_boxes(uniform, side, side, (0.05, 0.4))
    share = box.height * box.width / 1e6
    aspect = np.log(box.width / box.height)
    assert share.min() > 0.049
    assert share.max() < 0.401
    assert abs(share.mean() - 0.225) < 0.003  # uniform on the range
    assert np.abs(aspect).max() < np.log(4 / 3) + 0.01
    assert abs(aspect.mean()) < 0.005
    middle = box.left / (1000 - box.width)
    assert abs(middle.mean() - 0.5) < 0.01
    assert abs(middle.std() - 12**-0.5) < 0.01
