"""Where the tissue is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pathgen.config import Config
from pathgen.tiling.overview import Overview, check_brightfield, read_overview
from pathgen.tiling.segment import glass, segment
from pathgen.tiling.shapes import closed, filled, large_pieces
from pathgen.tiling.slide import SlideReader


class TissueConfig(Config):
    """How tissue is told from glass. Lengths are physical, so pyramids and scanners are alike."""

    method: Literal["otsu", "saturation", "density", "entropy"] = "otsu"
    """see `pathgen.tiling.segment`: color and density, color as CLAM, density, texture"""
    mpp: float = Field(default=8.0, gt=0, le=64)
    """microns per pixel of the mask"""
    min_area_mm2: float = Field(default=0.02, ge=0)
    """smaller pieces are dropped; a needle core is 10 mm by 0.5 mm"""
    close_um: float = Field(default=24.0, ge=0)
    """gaps up to this are bridged; holes stay"""
    fill_holes_mm2: float = Field(default=0.0, ge=0)
    """holes up to this area are filled; none by default"""
    density: tuple[float, float] = (0.03, 0.07)
    """the Otsu threshold on optical density stays within these, so bare glass holds nothing and a
    slide full of tissue keeps its pale parts"""
    chroma: tuple[float, float] = (0.025, 0.05)
    """the same for the distance from gray, 0..1"""
    least_density: float = Field(default=0.05, gt=0, le=1)
    """of `density`: mean optical density of red, green and blue above which there is tissue"""
    entropy: tuple[float, float] = (1.2, 2.0)
    """of `entropy`: limits of the Otsu threshold, in bits"""
    drop_ink: bool = True
    """leave out black, blue and green felt pen; red pen has the colors of blood and stays"""


@dataclass(frozen=True)
class TissueMask:
    """True where there is tissue, over the scanned bounds of a slide."""

    pixels: NDArray[np.bool_]  # (height, width)
    mpp: float
    origin: tuple[int, int] = (0, 0)
    """level-0 position of its first pixel"""
    scale: tuple[float, float] = (1.0, 1.0)
    """level-0 pixels per mask pixel, x and y"""
    ink: float = 0.0
    """share of what looked like tissue that was left out as pen"""

    @cached_property
    def _sums(self) -> NDArray[np.unsignedinteger]:
        """Summed-area table (height + 1, width + 1), in no more bytes than the largest sum needs"""
        height, width = self.pixels.shape
        sums = np.zeros((height + 1, width + 1), np.min_scalar_type(max(height * width, 2**16)))
        for above, row, pixels in zip(sums, sums[1:], self.pixels, strict=False):
            np.cumsum(pixels, out=row[1:])
            row += above
        return sums

    def fraction(
        self, coords: NDArray[np.integer] | NDArray[np.floating], side: float | tuple[float, float]
    ) -> NDArray[np.float32]:
        """Share of tissue in squares at level-0 `coords` (n, 2), `side` level-0 pixels: (n,) 0..1.

        Exact for squares that cut mask pixels; what lies outside of the mask is not tissue.
        """
        sides = side if isinstance(side, tuple) else (side, side)
        start = (np.asarray(coords, np.float64) - self.origin) / self.scale
        x0, y0 = start.T
        x1, y1 = (start + np.asarray(sides) / self.scale).T
        inside = self._at(x1, y1) - self._at(x0, y1) - self._at(x1, y0) + self._at(x0, y0)
        return np.asarray(np.clip(inside / ((x1 - x0) * (y1 - y0)), 0, 1), np.float32)

    def _at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue area left of x and above y: the summed-area table is linear between its knots."""
        height, width = self.pixels.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        j, i = (np.minimum(v.astype(np.int64), n - 1) for v, n in ((x, width), (y, height)))
        u, v = x - j, y - i
        t = self._sums
        return np.asarray(
            t[i, j] * (1 - u) * (1 - v) + t[i, j + 1] * u * (1 - v)
            + t[i + 1, j] * (1 - u) * v + t[i + 1, j + 1] * u * v
        )  # fmt: skip

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        return float(self.pixels.sum()) * (self.mpp / 1000) ** 2


def find_tissue(slide: SlideReader, config: TissueConfig = TissueConfig()) -> TissueMask:
    """Tell tissue from glass inside the scanned bounds, at `config.mpp`.

    Raises:
        SlideError: PG-S07 or PG-S08 without a usable pixel size, PG-S04 when pixels cannot be
            decoded, PG-S14 when the slide is not brightfield.
    """
    overview = mask_overview(slide, config)
    check_brightfield(overview.pixels, slide.name)
    return mask_of(overview, slide.mpp_xy, config)


def mask_overview(slide: SlideReader, config: TissueConfig) -> Overview:
    """The pixels the mask is made from; never finer than the slide."""
    mpp = max(config.mpp, slide.mpp)
    return read_overview(slide, (mpp / slide.mpp_xy[0], mpp / slide.mpp_xy[1]))


def mask_of(overview: Overview, mpp_xy: tuple[float, float], config: TissueConfig) -> TissueMask:
    """The mask of an overview whose slide has `mpp_xy` microns per level-0 pixel."""
    mpp = overview.scale[0] * mpp_xy[0]
    found, ink = segment(overview.pixels, mpp, config)
    share = float((found & ink).sum() / max(found.sum(), 1))
    pixels = _cleaned(found & ~ink, mpp, config)
    return TissueMask(pixels, mpp, overview.origin, overview.scale, share)


def background(overview: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Color of the empty glass, RGB; white where none is in sight."""
    red, green, blue = (round(float(v)) for v in glass(overview))
    if green < 0.97 * min(red, blue):  # tissue to the edges: stains absorb green most, glass not
        return 255, 255, 255
    return red, green, blue


def _cleaned(mask: NDArray[np.bool_], mpp: float, config: TissueConfig) -> NDArray[np.bool_]:
    mask = closed(mask, round(config.close_um / mpp / 2))
    return filled(large_pieces(mask, mpp, config.min_area_mm2), mpp, config.fill_holes_mm2)
