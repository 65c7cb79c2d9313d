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
from pathgen.tiling.slide import SlideReader


class TissueConfig(Config):
    """How tissue is told from glass. Lengths are physical, so pyramids and scanners are alike."""

    method: Literal["otsu"] = "otsu"
    mpp: float = Field(default=8.0, gt=0, le=64)
    """microns per pixel of the mask"""
    min_area_mm2: float = Field(default=0.02, ge=0)
    """smaller pieces are dropped; a needle core is 10 mm by 0.5 mm"""
    close_um: float = Field(default=24.0, ge=0)
    """gaps up to this are bridged; holes stay"""
    density: tuple[float, float] = (0.03, 0.07)
    """the Otsu threshold on optical density stays within these, so bare glass holds nothing and a
    slide full of tissue keeps its pale parts"""
    chroma: tuple[float, float] = (0.025, 0.05)
    """the same for the distance from gray, 0..1"""
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
    def _sums(self) -> NDArray[np.float64]:
        sums = self.pixels.cumsum(0, dtype=np.float64).cumsum(1)
        return np.pad(sums, ((1, 0), (1, 0)))

    def fraction(
        self, coords: NDArray[np.integer], side: float | tuple[float, float]
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
    found, ink = _METHODS[config.method](overview.pixels, mpp, config)
    share = float((found & ink).sum() / max(found.sum(), 1))
    pixels = _cleaned(found & ~ink, mpp, config)
    return TissueMask(pixels, mpp, overview.origin, overview.scale, share)


def _otsu(
    pixels: NDArray[np.uint8], mpp: float, config: TissueConfig
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Absorbs light and has color, or absorbs much; and what of it is pen."""
    from scipy.ndimage import uniform_filter

    light = pixels.astype(np.float32)
    black = light.max(axis=2) < 20  # fill of scanners: no light, no tissue
    through = np.clip(uniform_filter(light, (3, 3, 0)) / _glass(light), 1 / 255, 1)
    densities = -np.log10(through)
    density = densities.max(axis=2)
    chroma = 1 - through.min(axis=2) / through.max(axis=2)
    dense = density > _threshold(density[~black], config.density)
    colored = chroma > _threshold(chroma[~black], config.chroma)
    tissue = dense & (colored | (density > 0.4)) & ~black
    ink = _ink(densities, mpp) if config.drop_ink else np.zeros_like(tissue)
    return np.asarray(tissue, np.bool_), ink


def _ink(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Felt pen, by its optical density (height, width, 3): gray and dark, or bluer than any stain.

    No stain absorbs red much more than green, and none in use absorbs all colors alike.
    """
    from scipy.ndimage import binary_dilation

    red, green, _ = np.moveaxis(density, 2, 0)
    least, most = density.min(axis=2), density.max(axis=2)
    gray = (least > 0.35) & (least > 0.85 * most)
    blue = (red > 0.25) & (red > 1.25 * green)
    strokes = _large(gray | blue, mpp, 0.05)  # pigment and dark nuclei are small
    reach = round(48 / mpp)  # the pale rim of a stroke
    if not reach or not strokes.any():
        return strokes
    return np.asarray(binary_dilation(strokes, _disk(reach)), np.bool_)


def background(overview: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Color of the empty glass, RGB; white where none is in sight."""
    red, green, blue = (round(float(v)) for v in _glass(overview.astype(np.float32)))
    if green < 0.97 * min(red, blue):  # tissue to the edges: stains absorb green most, glass not
        return 255, 255, 255
    return red, green, blue


def _glass(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Color of the empty glass (3,): the brightest common one, at least light gray."""
    brightness = light.min(axis=2)
    bright = light[brightness >= np.percentile(brightness, 95)]
    return np.asarray(np.clip(np.median(bright, axis=0), 200, 255), np.float32)


def _threshold(values: NDArray[np.float32], limits: tuple[float, float]) -> float:
    from skimage.filters import threshold_otsu

    values = np.clip(values, 0, 0.5)  # dark ink must not pull the threshold up
    if values.size == 0 or values.min() == values.max():
        return limits[1]
    found = threshold_otsu(values, nbins=256)  # type: ignore[no-untyped-call]
    return float(np.clip(found, *limits))


def _cleaned(mask: NDArray[np.bool_], mpp: float, config: TissueConfig) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_closing

    reach = round(config.close_um / mpp / 2)
    if reach:
        padded = np.pad(mask, reach)
        mask = binary_closing(padded, _disk(reach))[reach:-reach, reach:-reach]
    return _large(mask, mpp, config.min_area_mm2)


def _large(mask: NDArray[np.bool_], mpp: float, least_mm2: float) -> NDArray[np.bool_]:
    """The connected pieces of at least that area."""
    from scipy.ndimage import label

    pieces, _ = label(mask, np.ones((3, 3)))
    big = np.bincount(pieces.ravel()) * (mpp / 1000) ** 2 >= least_mm2
    big[0] = False
    return np.asarray(big[pieces], np.bool_)


def _disk(reach: int) -> NDArray[np.bool_]:
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(np.hypot(down, across) <= reach + 0.5)


_METHODS = {"otsu": _otsu}
