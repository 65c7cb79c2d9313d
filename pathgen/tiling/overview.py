"""A whole slide at a coarse scale, for masks and thumbnails; and reading areas at any scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pathgen.errors import SlideError
from pathgen.tiling.slide import SlideReader

if TYPE_CHECKING:
    from pathgen.tiling.tissue import TissueMask

#: Pixels of a level held at once while an overview is made: 48 MB of RGB.
BAND_PIXELS = 2**24
#: A scale this close to a level's, relative, is the level's.
NATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Overview:
    """The scanned bounds of a slide; pixel (i, j) covers the level-0 rectangle that starts at
    ``origin + (j, i) * scale`` and is `scale` wide and high."""

    pixels: NDArray[np.uint8]  # (height, width, 3)
    origin: tuple[int, int]
    scale: tuple[float, float]


def true_downsample(slide: SlideReader, level: int) -> tuple[float, float]:
    """Level-0 pixels per pixel of `level`, x and y.

    Pyramids are made by whole factors, and what does not fill the last pixel is cut or padded.
    The ratio of the level sizes is then a little off, by up to a pixel at the far edge; the whole
    factor is right.
    """
    (w0, h0), (w, h) = slide.size, slide.level_sizes[level]
    factor = round(w0 / w)
    whole = all(small in (full // factor, -(-full // factor)) for full, small in ((w0, w), (h0, h)))
    return (float(factor), float(factor)) if whole else (w0 / w, h0 / h)


def best_level(slide: SlideReader, scale: tuple[float, float]) -> int:
    """The coarsest level that is not coarser than `scale` level-0 pixels; 0 if all are."""
    limit = min(scale) * (1 + NATIVE_TOLERANCE)
    fits = [i for i, d in enumerate(slide.downsamples) if d <= limit]
    return max(fits, key=lambda i: slide.downsamples[i], default=0)


def best_shrink(slide: SlideReader, level: int, scale: float) -> int:
    """The most that `level` can be shrunk and still be no coarser than `scale` of its pixels."""
    limit = scale * (1 + NATIVE_TOLERANCE)
    return max((s for s in slide.shrinks(level) if s <= limit), default=1)


def read_overview(slide: SlideReader, scale: float | tuple[float, float]) -> Overview:
    """The scanned bounds, `scale` level-0 pixels per pixel, by area averaging."""
    sx, sy = scale if isinstance(scale, tuple) else (scale, scale)
    x0, y0, width, height = slide.bounds
    across, down = math.ceil(width / sx), math.ceil(height / sy)
    level = best_level(slide, (sx, sy))
    kx, ky = true_downsample(slide, level)
    shrink = best_shrink(slide, level, min(sx / kx, sy / ky))
    kx, ky = kx * shrink, ky * shrink
    rows = max(1, int(BAND_PIXELS / (across * sx / kx) / (sy / ky)))
    pixels = np.empty((down, across, 3), np.uint8)
    for row in range(0, down, rows):
        stop = min(row + rows, down)
        box = (x0, y0 + row * sy, x0 + across * sx, y0 + stop * sy)
        area, inner = read_area(slide, level, box, shrink=shrink, read=slide.look)
        pixels[row:stop] = resized(area, inner, (across, stop - row), Image.Resampling.BOX)
    return Overview(pixels, (x0, y0), (sx, sy))


Box = tuple[float, float, float, float]
Read = Callable[[int, tuple[int, int, int, int], int], NDArray[np.uint8]]


def read_area(
    slide: SlideReader, level: int, box: Box, margin: int = 0, shrink: int = 1,
    read: Read | None = None,
) -> tuple[NDArray[np.uint8], Box]:  # fmt: skip
    """The pixels of `level` at 1 / `shrink` under the level-0 `box` (x0, y0, x1, y1), and the box
    within them.

    `margin` more pixels are read on each side for a filter's reach; past the edge of the slide
    the last pixel repeats. `read` is `slide.read_level` or `slide.look`.
    """
    kx, ky = (k * shrink for k in true_downsample(slide, level))
    # A pixel that lies in part beyond the edge is not of the slide alone.
    width, height = (side // shrink for side in slide.level_sizes[level])
    left, top, right, bottom = box[0] / kx, box[1] / ky, box[2] / kx, box[3] / ky
    x0, y0 = math.floor(left + 1e-6) - margin, math.floor(top + 1e-6) - margin
    x1, y1 = math.ceil(right - 1e-6) + margin, math.ceil(bottom - 1e-6) + margin
    inside = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    pixels = (read or slide.read_level)(level, inside, shrink)
    outside = ((inside[1] - y0, y1 - inside[3]), (inside[0] - x0, x1 - inside[2]), (0, 0))
    if any(any(pair) for pair in outside):
        pixels = np.pad(pixels, outside, mode="edge")
    return pixels, (left - x0, top - y0, right - x0, bottom - y0)


def resized(
    pixels: NDArray[np.uint8], box: Box, size: tuple[int, int], method: Image.Resampling
) -> NDArray[np.uint8]:
    """The part `box` of an RGB array at `size` = (width, height); `box` need not be whole."""
    height, width = pixels.shape[:2]
    inside = max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)
    return np.asarray(Image.fromarray(pixels).resize(size, method, box=inside))


def most(pixels: NDArray[Any]) -> NDArray[Any]:
    """The largest of each pixel's three values; many times as fast as ``max(axis=2)``."""
    return np.asarray(np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]))


def least(pixels: NDArray[Any]) -> NDArray[Any]:
    """The least of each pixel's three values."""
    return np.asarray(np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]))


def check_brightfield(pixels: NDArray[np.uint8], name: str) -> None:
    """Refuse fluorescence and dark-field (PG-S14): nearly all black, with no glass in sight."""
    dark = float((most(pixels) < 60).mean())
    bright = float((least(pixels) > 150).mean())
    if dark > 0.5 and bright < 0.01:
        raise SlideError(
            "not a brightfield slide", code="PG-S14", where=name,
            why=f"{dark:.0%} of it is dark and {bright:.0%} bright, as in fluorescence",
            hint="tissue and stain are found by absorbed light; leave this slide out",
        )  # fmt: skip


def draw_thumbnail(
    slide: SlideReader,
    overview: NDArray[np.uint8],
    mask: TissueMask,
    coords: NDArray[np.int64],
    side: tuple[float, float],
    longest: int,
    drawn: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """The scanned bounds with the tissue's outline and the kept patches, made from the pyramid.

    Associated images are never used: a label or macro shows who the patient is.

    Args:
        overview: RGB pixels the mask was made from.
        coords: level-0 corners (n, 2) of the kept patches, `side` level-0 pixels wide and high.
        longest: pixels of the longer side of the result.
        drawn: where classes of a mask from outside lie, on the pixels of `mask`; outlined too.
    """
    x0, y0, width, height = slide.bounds
    step = max(width, height) / longest
    if max(overview.shape[:2]) < longest and step >= 1:
        pixels = read_overview(slide, step).pixels
    else:
        pixels = overview
        step = mask.scale[0]
    picture = Image.fromarray(pixels)
    picture.thumbnail((longest, longest), Image.Resampling.BOX)
    grow = picture.width / (pixels.shape[1] * step)
    pen = max(1, round(max(picture.size) / 340))  # still seen when it is shown at a third
    for inside, color in ((mask.pixels, (0, 90, 200)), (drawn, (230, 110, 0))):
        if inside is not None:
            outline = Image.fromarray(_outline(inside, picture.size))
            picture.paste(color, mask=outline.filter(ImageFilter.MaxFilter(pen | 1)))
    grid = ImageDraw.Draw(picture, "RGBA")
    thin = max(1, min(pen, round(min(side) * grow / 12)))  # small squares stay open
    for x, y in (coords - (x0, y0)) * grow:
        corner = (x + side[0] * grow, y + side[1] * grow)
        grid.rectangle((x, y, *corner), outline=(0, 130, 50, 190), width=thin)
    return picture


def _outline(inside: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """255 on the inner edge of what is true, at `size` = (width, height)."""
    large = np.asarray(Image.fromarray(inside).resize(size, Image.Resampling.NEAREST))
    padded = np.pad(large, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(large & ~inner, np.uint8) * 255
