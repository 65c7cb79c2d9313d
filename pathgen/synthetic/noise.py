"""Smooth fields over a slide, textures that tile without a seam, and upsampling of blocks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]


def smooth(rng: np.random.Generator, shape: tuple[int, int], length: float) -> Field:
    """A random field (rows, columns) with features of about `length` pixels, mean 0, sd about 1."""
    length = max(length, 1.0)
    rows, columns = (math.ceil(side / length) + 4 for side in shape)
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    box = (1.5, 1.5, 1.5 + shape[1] / length, 1.5 + shape[0] / length)
    image = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(image, np.float32) * np.float32(1.4)  # interpolation lowers the variance


def texture(rng: np.random.Generator, side: int, down: float, across: float) -> Field:
    """A periodic (side, side) texture, correlated over `down` rows and `across` columns."""
    white = np.fft.rfft2(rng.standard_normal((side, side)).astype(np.float32))
    v = np.fft.fftfreq(side)[:, None]
    u = np.fft.rfftfreq(side)[None, :]
    white *= np.exp(-2 * math.pi**2 * ((v * down) ** 2 + (u * across) ** 2))
    white[0, 0] = 0
    values = np.fft.irfft2(white, s=(side, side))
    return np.asarray(values / values.std(), np.float32)


def periodic(bank: Field, x: int, y: int, width: int, height: int) -> Field:
    """The (height, width) part of an endless plane paved with `bank`."""
    side = bank.shape[0]
    if y % side + height <= side and x % side + width <= side:
        return bank[y % side : y % side + height, x % side : x % side + width]
    rows = np.arange(y, y + height) % side
    columns = np.arange(x, x + width) % side
    return np.asarray(bank[rows[:, None], columns[None, :]])


def upsample(field: Field, scale: int, x: int, y: int, width: int, height: int) -> Field:
    """Bilinear values of `field`, `scale` times enlarged, in one block of the enlarged plane.

    Blocks computed apart join without a seam. Positions outside the field take its edge.
    """

    def cut(start: int, length: int, size: int) -> tuple[NDArray[np.intp], float]:
        first, last = start // scale - 2, -(-(start + length) // scale) + 2
        return np.clip(np.arange(first, last), 0, size - 1), start / scale - first

    rows, top = cut(y, height, field.shape[0])
    columns, left = cut(x, width, field.shape[1])
    part = np.ascontiguousarray(field[rows[:, None], columns[None, :]], dtype=np.float32)
    box = (left, top, left + width / scale, top + height / scale)
    image = Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)


def ramp(values: Field, half_width: float) -> Field:
    """0 below -half_width, 1 above +half_width, straight between."""
    scaled = values * np.float32(0.5 / half_width)
    scaled += np.float32(0.5)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def box_mean(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Mean of each factor x factor square of an (h, w, 3) image; what is left over is cut off."""
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    cut = image[: rows * factor, : columns * factor].astype(np.uint16)
    by_row = cut.reshape(rows, factor, columns * factor, 3).sum(1, dtype=np.uint32)
    total = by_row.reshape(rows, columns, factor, 3).sum(2, dtype=np.uint32)
    area = factor * factor
    return np.asarray((total + area // 2) // area, np.uint8)
