"""The picture for people: tissue and map side by side, with legend, scale bar and what it means."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pathgen.heatmap import colors

INK, GRAY, WARN = (28, 30, 34), (96, 100, 108), (150, 60, 0)
MARGIN, GAP = 24, 16
#: Wider than this, relative, and the two panels stand one above the other.
WIDE = 1.35
#: Least width of a picture, so that its texts have room.
LEAST = 760


@dataclass(frozen=True)
class Legend:
    """How colors are to be read."""

    kind: colors.Kind
    ticks: Sequence[tuple[float, str]]
    """place on the bar, 0..1, and what stands there"""
    title: str
    notes: Sequence[str]
    """short sentences below"""
    caveat: str


@dataclass(frozen=True)
class Panel:
    """Where the map is in a picture: its top left corner, and level-0 pixels per pixel."""

    left: int
    top: int
    width: int
    height: int
    origin: tuple[float, float]
    """level-0 x, y of the corner"""
    scale: float

    def facts(self) -> dict[str, Any]:
        return {
            "left": self.left, "top": self.top, "width": self.width, "height": self.height,
            "origin_level0": list(self.origin), "level0_per_pixel": self.scale,
        }  # fmt: skip


def compose(
    tissue: NDArray[np.uint8],
    overlay: NDArray[np.uint8],
    titles: tuple[str, str],
    heading: Sequence[str],
    legend: Legend,
    origin: tuple[float, float],
    scale: float,
    pixel_um: float | None,
) -> tuple[Image.Image, Panel]:
    """The picture, and where in it the map is.

    Args:
        tissue, overlay: RGB of one size.
        titles: over the two panels.
        heading: the slide, then lines about what was predicted.
        pixel_um: microns per level-0 pixel, along x; without it there is no scale bar.
    """
    height, width = tissue.shape[:2]
    beside = width <= WIDE * height
    across = 2 * width + GAP if beside else width
    full = max(across, LEAST) + 2 * MARGIN
    page = _Page(full)
    above = [line for one in heading[1:] for line in page.wrapped(one)]
    below = [line for note in legend.notes for line in page.wrapped(note)]
    caveat = page.wrapped(legend.caveat)
    top = MARGIN + page.px(34) + page.px(20) * len(above) + page.px(28)
    lower = height + page.px(28) + GAP
    panels = height if beside else lower + height
    foot = page.px(126) + page.px(19) * (len(below) + len(caveat)) + MARGIN
    picture = page.open(top + panels + foot)
    page.text(MARGIN, MARGIN - page.px(4), heading[0], INK, 20)
    for i, line in enumerate(above):
        page.text(MARGIN, MARGIN + page.px(30 + 20 * i), line, INK, 14)
    left = (full - across) // 2
    second = (left + width + GAP, top) if beside else (left, top + lower)
    for pixels, (x, y), name in ((tissue, (left, top), titles[0]), (overlay, second, titles[1])):
        page.text(x, y - page.px(22), name, GRAY, 14)
        picture.paste(Image.fromarray(pixels), (x, y))
        page.pen.rectangle((x - 1, y - 1, x + width, y + height), outline=(210, 212, 216))
    low = top + panels + page.px(14)
    if pixel_um is not None:
        _scale_bar(page, second[0], low, width, scale * pixel_um)
    _bar(page, legend, low + page.px(26))
    y = low + page.px(94)
    for line in below:
        page.text(MARGIN, y, line, GRAY, 13)
        y += page.px(19)
    for line in caveat:
        page.text(MARGIN, y + page.px(4), line, WARN, 13)
        y += page.px(19)
    return picture, Panel(second[0], second[1], width, height, origin, scale)


class _Page:
    """What is drawn on; texts grow with its width, so that they can be read when all is shown."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.zoom = max(1.0, width / 1400)

    def open(self, height: int) -> Image.Image:
        self.picture = Image.new("RGB", (self.width, height), "white")
        self.pen = ImageDraw.Draw(self.picture)
        return self.picture

    def px(self, length: float) -> int:
        return round(length * self.zoom)

    def face(self, size: int) -> ImageFont.FreeTypeFont:
        return font(self.px(size))

    def text(self, x: float, y: float, words: str, color: tuple[int, int, int], size: int) -> None:
        self.pen.text((x, y), words, color, self.face(size))

    def wrapped(self, words: str) -> list[str]:
        letters = int((self.width - 2 * MARGIN) / self.face(14).getlength("n"))
        return textwrap.wrap(words, letters)


def _scale_bar(page: _Page, x: int, y: int, width: int, um: float) -> None:
    """A length that people count in, at most a third of the panel."""
    length = nice(width * um / 3)
    pixels = max(1, round(length / um))
    page.pen.rectangle((x, y, x + pixels - 1, y + page.px(4)), fill=INK)
    page.text(x + pixels + page.px(8), y - page.px(6), um_text(length), INK, 13)


def nice(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is no larger than `most`."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(k * power for k in (1, 2, 5) if k * power <= most * (1 + 1e-9)))


def um_text(length: float) -> str:
    """``200 µm``; from a millimeter on also in these."""
    text = f"{length:,.10g} µm"
    return f"{text} ({length / 1000:g} mm)" if length >= 1000 else text


def _bar(page: _Page, legend: Legend, y: int) -> None:
    length, px = min(page.px(420), page.width - 2 * MARGIN), page.px
    page.text(MARGIN, y, legend.title, INK, 14)
    ramp = colors.colored(np.linspace(0, 1, length), legend.kind)
    strip = Image.fromarray(np.repeat(ramp[None], px(13), axis=0))
    page.picture.paste(strip, (MARGIN, y + px(23)))
    for place, label in legend.ticks:
        x = MARGIN + round(place * (length - 1))
        page.pen.line((x, y + px(36), x, y + px(41)), INK, px(1))
        wide = page.face(13).getlength(label)
        page.text(x - wide * place, y + px(42), label, INK, 13)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Latin, Greek, Cyrillic and more."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size)
