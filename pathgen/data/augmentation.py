"""Hand-made augmentation, the shapes: random boxes, crops, mirrors and quarter turns.

DINO's recipe (Caron et al. 2021; facebookresearch/dino) with 90-degree turns for pathology.
Chance comes from outside, one row of numbers an image. Colors are in `colors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: Attempts at a crop of the drawn shape that fits, before the largest one is taken.
ATTEMPTS = 10


class Boxes(NamedTuple):
    """Crops in pixels, each (B,) int64."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]


def draw_boxes(
    uniform: NDArray[np.float64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    scale: tuple[float | NDArray[np.float64], float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Boxes:
    """Random resized crops: area share in `scale`, log-uniform aspect in `ratio`.

    The first of `ATTEMPTS` shapes that fits is taken; if none does, the largest centered box
    whose aspect is allowed.

    Args:
        uniform: (B, 2 ATTEMPTS + 2) in [0, 1): areas, aspects, and the place.
        heights, widths: (B,) sizes of the images in pixels.
        scale: smallest and largest share; the smallest may be (B, 1), one for each image.
    """
    area = (heights * widths)[:, None] * _between(uniform[:, :ATTEMPTS], *scale)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(_between(uniform[:, ATTEMPTS : 2 * ATTEMPTS], low, high))
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= widths[:, None]) & (h <= heights[:, None])
    first = fits.argmax(1)[:, None]
    found: NDArray[np.bool_] = np.asarray(fits.any(axis=1))
    shape = np.clip(widths / heights, *ratio)
    width = np.where(
        found,
        np.take_along_axis(w, first, 1)[:, 0],
        np.minimum(widths, np.rint(heights * shape).astype(np.int64)),
    )
    height = np.where(
        found,
        np.take_along_axis(h, first, 1)[:, 0],
        np.minimum(heights, np.rint(widths / shape).astype(np.int64)),
    )
    place = np.where(found[:, None], uniform[:, 2 * ATTEMPTS : 2 * ATTEMPTS + 2], 0.5)
    top = np.floor(place[:, 0] * (heights - height + 1)).astype(np.int64)
    left = np.floor(place[:, 1] * (widths - width + 1)).astype(np.int64)
    top = np.where(found, top, (heights - height) // 2)
    left = np.where(found, left, (widths - width) // 2)
    return Boxes(top, left, height, width)


def crop(image: Tensor, top: int, left: int, height: int, width: int, size: int) -> Tensor:
    """Cut a box and resize it, bicubic with antialiasing: uint8 (3, H, W) -> (3, size, size)."""
    box = image[None, :, top : top + height, left : left + width]
    return F.interpolate(box, (size, size), mode="bicubic", antialias=True)[0]


def turn(images: Tensor, horizontal: Tensor, vertical: Tensor, quarters: Tensor) -> Tensor:
    """Mirror left-right, mirror up-down, then turn by quarters: flags and counts (B,), on the CPU.

    `images` (B, C, S, S) may be elsewhere, and are changed in place.
    """
    _where(images, horizontal, partial(torch.flip, dims=(-1,)))
    _where(images, vertical, partial(torch.flip, dims=(-2,)))
    for count in (1, 2, 3):
        _where(images, quarters == count, partial(torch.rot90, k=count, dims=(-2, -1)))
    return images


def _where(images: Tensor, chosen: Tensor, operation: Callable[[Tensor], Tensor]) -> None:
    """`operation` on the chosen images alone; the others stay."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        there = rows.to(images.device, non_blocking=True)
        images.index_copy_(0, there, operation(images.index_select(0, there)))


def _between(
    uniform: NDArray[np.float64], low: float | NDArray[np.float64], high: float
) -> NDArray[np.float64]:
    return low + (high - low) * uniform
