"""How good a patch is to learn from: sharpness, felt pen, black, glass, folds.

Everything is measured on a small image of the patch at about 1 um per pixel (`QUALITY_MPP`), by
integer differences and one table of colors, so that it costs little beside decoding.

Sources: energy of the Laplacian as a measure of focus, Subbarao M, Choi TS, Nikzad A, Focusing
techniques, Optical Engineering 1993;32:2824-36, here relative to the patch's own contrast; tissue
folds by saturation against intensity, Bautista PA, Yagi Y, Detection of tissue folds in whole
slide images, IEEE EMBC 2009:3669-72. The limits were set on synthetic slides with known artifacts
and on public slides of nine scanners.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling.stain import WHITE, Color, shrunk

#: What `quality_scores` measures, in the order of the columns.
QUALITIES = ("focus", "pen", "black", "white", "fold")
#: Images are scored at about this many microns per pixel.
QUALITY_MPP = 1.0
#: Colors are judged at up to about twice this many.
COLOR_MPP = 1.5
#: Contrast is taken over this distance in um: about a nucleus.
CONTRAST_UM = 4.0
#: Side in um of the squares whose mean color is judged for folds: wider than a nucleus, so that
#: crowded dark nuclei are no fold.
FOLD_UM = 8.0
#: Saturation minus least transmittance of folded tissue; 0.2 to 0.35 is the darkest of flat tissue.
FOLDED = 0.4

#: Rounding to whole gray levels has a variance of 1/12; a Laplacian's is 20 times that.
_ROUNDING = 20 / 12
#: Contrast below this, squared gray levels, is noise of the camera rather than tissue.
_NOISE = 64.0
#: Sharp tissue has this much more detail a pixel where pixels are larger, as a power: measured from
#: 0.7 to 1.4 um, where focus so stays within 10 %.
_FINER = 0.75
#: Patches that are worked on together: their planes stay in the processor's cache.
_BATCH = 64
_BITS = 6
_PEN, _BLACK, _WHITE = 1, 2, 4


def quality_scores(
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    mpp: float = QUALITY_MPP,
    background: Color = WHITE,
) -> dict[str, NDArray[np.float32]]:
    """Quality of RGB images, uint8 (n, height, width, 3).

    Args:
        images: patches averaged to about 1 um per pixel.
        mpp: microns per pixel of `images`. Where it is coarser than 1.5, `focus` says less: blur
            below a pixel cannot be seen.
        background: color of the slide's empty glass; colors are judged relative to it.

    Returns:
        All (n,) float32.

        ``focus``, 0 to about 1: how much of the contrast over 4 um lies in detail of one pixel,
        ``sqrt(mean(Laplacian ** 2) / (5 * D))`` of the green light, D the mean squared difference
        at 4 um, right plus down, times ``mpp ** -0.75``. White noise has 1. Sharp tissue has 0.2
        to 0.5, tissue out of focus by a Gaussian of 1 um 0.1 to 0.17, of 2 um 0.05 to 0.1. A pale
        stain has the same focus as a strong one; without any contrast it is 0.

        ``pen``: share of pixels with colors of felt pen. Blue and green ink absorb red more than
        green light, which no stain does; black is gray and dark; red is counted where it is purer
        than eosin and blood, of which dense ones may give a few per cent.

        ``black``: share that lets less than 15 % of the light through in every color (black pen
        is both). ``white``: share as bright as glass, over 87 % in every color. ``fold``: share
        of 8 um squares that are dark and saturated as two layers of tissue. All 0 to 1.

    Raises:
        ValueError: another type or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are uint8 (n, h, w, 3); got {images.dtype} {images.shape}")
    if len(images) and min(images.shape[1:3]) < 4:  # too small to differ from a neighbor
        images = np.pad(images, ((0, 0), (0, 4), (0, 4), (0, 0)), mode="edge")
    scores = {name: np.empty(len(images), np.float32) for name in QUALITIES}
    table = _colors(background)
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        scores["focus"][part] = _focus(images[part, :, :, 1], mpp)
        # Colors at half the scale: what they tell of is larger than a nucleus.
        half = 2 if min(images.shape[1:3]) >= 16 and mpp < COLOR_MPP else 1
        planes = np.ascontiguousarray(np.moveaxis(shrunk(images[part], half), 3, 0))
        kinds = _kinds(planes, table)
        for name, bit in (("pen", _PEN), ("black", _BLACK), ("white", _WHITE)):
            scores[name][part] = _share(kinds, bit)
        scores["fold"][part] = _fold(planes, mpp * half, background)
    return scores


def ink(pixels: NDArray[np.uint8], background: Color = WHITE) -> NDArray[np.bool_]:
    """Which RGB pixels (n, 3) have the color of felt pen, or none at all."""
    planes = np.ascontiguousarray(pixels.T)[:, :, None, None]
    return np.asarray(_kinds(planes, _colors(background))[:, 0] & (_PEN | _BLACK) > 0)


def _focus(green: NDArray[np.uint8], mpp: float) -> NDArray[np.float32]:
    light = green.astype(np.int16)
    detail = light[:, 1:-1, 1:-1] << 2
    detail -= light[:, :-2, 1:-1]
    detail -= light[:, 2:, 1:-1]
    detail -= light[:, 1:-1, :-2]
    detail -= light[:, 1:-1, 2:]
    lag = int(np.clip(round(CONTRAST_UM / mpp), 2, min(green.shape[1:]) // 2))
    contrast = _mean_square(light[:, lag:] - light[:, :-lag])
    contrast += _mean_square(light[:, :, lag:] - light[:, :, :-lag])
    fine = np.maximum(_mean_square(detail) - _ROUNDING, 0)
    focus = np.sqrt(fine / (5 * (contrast + _NOISE)))
    return np.asarray(focus * (QUALITY_MPP / mpp) ** _FINER, np.float32)


def _mean_square(values: NDArray[np.int16]) -> NDArray[np.float32]:
    flat = values.reshape(len(values), -1).astype(np.float32)
    return np.asarray(np.einsum("ij,ij->i", flat, flat) / flat.shape[1], np.float32)


@lru_cache(maxsize=4)
def _colors(background: Color) -> NDArray[np.uint8]:
    """Kinds of pixels as bits, by color: 6 bits a channel, red highest. (2**18,)"""
    steps = np.arange(1 << _BITS, dtype=np.float32) * (1 << 8 - _BITS) + (1 << 7 - _BITS)
    light = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    through = np.clip(light / np.array(background, np.float32), 1 / 255, 1)
    density = -np.log10(through)
    red, green, blue = density.T
    least, most = density.min(axis=1), density.max(axis=1)
    pen = (least > 0.35) & (least > 0.85 * most)  # black
    pen |= (least > 0.6) & (blue > 0.85 * green) & (blue < 1.1 * green)  # black over red
    pen |= (red > 0.25) & (red > 1.25 * green)  # blue, green
    pen |= (green > 0.6) & (blue > 0.75 * green) & (red < 0.25 * green)  # red
    pen |= (green > 0.4) & (blue > 0.85 * green) & (blue < 1.15 * green) & (red < 0.3 * green)
    kinds = pen * _PEN
    kinds |= (through.max(axis=1) < 0.15) * _BLACK
    kinds |= (through.min(axis=1) > 0.87) * _WHITE
    return np.asarray(kinds, np.uint8)


def _kinds(planes: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, pixels) kinds of planes (3, n, height, width)."""
    index = (planes[0] >> 8 - _BITS).astype(np.uint32)
    for plane in planes[1:]:
        index <<= _BITS
        index |= plane >> 8 - _BITS
    return np.asarray(table.take(index.reshape(len(index), -1), mode="clip"))


def _share(kinds: NDArray[np.uint8], bit: int) -> NDArray[np.float32]:
    count = np.add.reduce(kinds & bit, axis=1, dtype=np.uint32)
    return np.asarray(count / np.float32(bit * kinds.shape[1]), np.float32)


def _fold(planes: NDArray[np.uint8], mpp: float, background: Color) -> NDArray[np.float32]:
    _, count, height, width = planes.shape
    side = int(np.clip(round(FOLD_UM / mpp), 1, min(height, width, 16)))
    down, across = height // side, width // side
    whole = planes[..., : down * side, : across * side].reshape(3, count, down, side, across * side)
    # Sums by slices: 3 times faster than over an axis, and 16 x 16 bytes fit into 16 bits.
    rows = whole[:, :, :, 0].astype(np.uint16)
    for i in range(1, side):
        rows += whole[:, :, :, i]
    light = rows[..., ::side].copy()
    for i in range(1, side):
        light += rows[..., i::side]
    glass = side * side * np.array(background, np.float32).reshape(3, 1, 1, 1)
    red, green, blue = light / glass
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    saturation = (most - least) / np.maximum(most, 1 / 255)
    folded = (saturation - least > FOLDED) & (red >= green)  # the others are ink
    return np.asarray(folded.mean(axis=(1, 2)), np.float32)
