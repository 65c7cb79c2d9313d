"""Values of patches as an image: each pixel the mean of the patches that cover it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Level-0 rectangle: x, y, width, height.
Frame = tuple[float, float, float, float]
#: Of a pixel's area, what a patch must cover to count.
LEAST = 1e-6


class Raster(NamedTuple):
    """`values` (channels, H, W) float32, nan where no patch is; `share` (H, W) float32 in 0..1,
    the part of each pixel that patches cover."""

    values: NDArray[np.float32]
    share: NDArray[np.float32]


def raster_size(frame: Frame, scale: float) -> tuple[int, int]:
    """Width and height of a frame at `scale` level-0 pixels per pixel."""
    return max(1, int(np.ceil(frame[2] / scale - 1e-9))), max(
        1, int(np.ceil(frame[3] / scale - 1e-9))
    )


def rasterize(
    values: NDArray[np.floating],
    coords: NDArray[np.integer],
    side: tuple[float, float],
    frame: Frame,
    scale: float,
) -> Raster:
    """Pixel (i, j) covers the level-0 square at ``frame corner + (j, i) * scale``.

    Exact for sides and positions that are no whole pixels: a pixel takes every patch by the part of
    its area that the patch covers. Work grows with patches plus pixels, not with their product: the
    corners of all patches are written into an array of second differences, which is then summed.

    Args:
        values: (n,) or (n, channels), one row a patch; finite.
        coords: (n, 2) level-0 top left corners.
        side: level-0 pixels a patch is wide and high.
        scale: level-0 pixels per pixel.
    """
    columns = np.asarray(values, np.float64).reshape(len(coords), -1)
    width, height = raster_size(frame, scale)
    place = (np.asarray(coords, np.float64) - frame[:2]) / scale
    across = _edges(place[:, 0], side[0] / scale, width)
    down = _edges(place[:, 1], side[1] / scale, height)
    weight = _summed(across, down, None, (height, width))
    there = weight > LEAST
    out = np.full((columns.shape[1], height, width), np.nan, np.float32)
    for channel, column in zip(out, columns.T, strict=True):
        total = _summed(across, down, column, (height, width))
        np.divide(total, weight, out=channel, where=there, casting="same_kind")
    return Raster(out, np.clip(np.where(there, weight, 0), 0, 1).astype(np.float32))


class _Ends(NamedTuple):
    """(n, 4) pixels at which the coverage of an interval changes, and by how much."""

    pixels: NDArray[np.int64]
    steps: NDArray[np.float64]


def _edges(start: NDArray[np.float64], length: float, size: int) -> _Ends:
    """Coverage of pixel i by [a, b) is a ramp at either end: its differences are four numbers."""
    ends = np.clip(np.stack([start, start + length], 1), 0, size)  # (n, 2)
    whole = np.floor(ends)
    rest = ends - whole
    first = whole.astype(np.int64)
    pixels = np.concatenate([first, first + 1], 1)  # start, end, after start, after end
    sign = np.array([1.0, -1.0])
    return _Ends(pixels, np.concatenate([(1 - rest) * sign, rest * sign], 1))


def _summed(
    across: _Ends, down: _Ends, values: NDArray[np.float64] | None, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Sum over patches of value times covered area, (H, W)."""
    height, width = shape
    # Ends may lie on the far border and one pixel beyond it.
    stride = width + 2
    places = down.pixels[:, :, None] * stride + across.pixels[:, None, :]  # (n, 4, 4)
    steps = down.steps[:, :, None] * across.steps[:, None, :]
    if values is not None:
        steps = steps * values[:, None, None]
    total = np.bincount(places.reshape(-1), steps.reshape(-1), (height + 2) * stride)
    return total.reshape(height + 2, stride).cumsum(0).cumsum(1)[:height, :width]
