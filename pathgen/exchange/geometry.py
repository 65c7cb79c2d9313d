"""What the two dialects of patch size make of a patch. All arithmetic of the exports is here.

CLAM's ``patch_size`` is counted at ``patch_level``, TRIDENT's at its target magnification. A file
is written in one dialect and never in a mixture of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError
from pathgen.stores.patches import SlideFacts

#: Largest difference, level-0 pixels a side, between the patch that was cut and the one that a
#: format of whole pixels can name.
MAX_ROUNDING = 1.0
#: Nominal magnification -> microns per pixel, the convention of scanners.
MAGNIFICATIONS: Mapping[float, float] = {
    80: 0.125, 60: 0.1667, 40: 0.25, 20: 0.5, 10: 1.0, 5: 2.0, 2.5: 4.0, 1.25: 8.0
}  # fmt: skip
#: TRIDENT's way from microns per pixel to the magnification of level 0: the first that is finer.
_LEVEL0: tuple[tuple[float, int], ...] = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10))


class ClamSize(NamedTuple):
    """A patch as CLAM reads it: `size` pixels of `level`."""

    level: int
    size: int
    downsample: tuple[float, float]
    level_size: tuple[int, int]
    """width and height of `level`"""
    rounded: float
    """level-0 pixels by which the side differs from the patch that was cut"""


class TridentSize(NamedTuple):
    """A patch as TRIDENT reads it: `size` pixels at `target` of a slide scanned at `level0`."""

    size: int
    size_level0: int
    level0: int
    target: float
    nominal: float
    """magnification that names the folder"""
    rounded: float


@dataclass(frozen=True)
class Geometry:
    """How large a patch is, in its own pixels and in those of level 0."""

    size: int
    """pixels a side, as stored"""
    side: tuple[float, float]
    """level-0 pixels, x and y"""
    overlap: int
    """pixels that neighbors share, as stored"""
    target_mpp: float | None
    mpp: tuple[float, float] | None
    """microns per level-0 pixel, x and y"""
    slide: SlideFacts | None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self | None:
        """From the attributes of a patch store or the source of a feature store, if they say it."""
        if facts.get("patch_size") is None or facts.get("patch_size_level0") is None:
            return None
        raw = facts.get("slide")
        known = {k: v for k, v in (raw or {}).items() if k in SlideFacts.model_fields}
        slide = SlideFacts.model_validate(known) if raw else None
        size, mean, target = int(facts["patch_size"]), float(facts["patch_size_level0"]), None
        target = facts.get("target_mpp")
        mpp = _mpp(slide, facts.get("level0_mpp"))
        side = (mean, mean)
        if mpp and target and mpp[0] != mpp[1]:  # resampled patches of a slide with oblong pixels
            own = (size * target / mpp[0], size * target / mpp[1])
            side = own if abs(sum(own) / 2 / mean - 1) < 1e-6 else side
        return cls(size, side, int(facts.get("overlap") or 0), target, mpp, slide)

    @property
    def stride(self) -> tuple[float, float]:
        """Level-0 pixels from one patch to the next."""
        share = (self.size - self.overlap) / self.size
        return self.side[0] * share, self.side[1] * share

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """Of the slide, as far as they are known."""
        slide = self.slide
        if slide is None:
            return ()
        return slide.level_sizes or ((slide.width, slide.height),)

    @property
    def downsamples(self) -> tuple[float, ...]:
        return (self.slide and self.slide.downsamples) or (1.0,)

    @property
    def native_level(self) -> int | None:
        """The pyramid level whose pixels are the patch's pixels, or None."""
        for level, step in enumerate(self.downsamples):
            if all(abs(self.size * step - side) <= 1e-3 for side in self.side):
                return level
        return None

    def clam(self, name: str) -> ClamSize:
        """A native level as it is; else level 0 with the side there, rounded to whole pixels.

        Raises:
            DataError: PG-F03 when rounding would move an edge by more than a pixel.
        """
        level = self.native_level
        size, step = self.size, 1.0
        if level is None:
            level, size = 0, round(sum(self.side) / 2)
        else:
            step = self.downsamples[level]
        rounded = self._rounded(size * step, name)
        full = self.level_sizes[level] if level < len(self.level_sizes) else (0, 0)
        return ClamSize(level, size, (step, step), full, rounded)

    def trident(self, name: str) -> TridentSize:
        """The target magnification by which TRIDENT computes exactly this side.

        That is the nominal one (20 for 0.5 um) where it gives the same whole number of pixels;
        else level-0 magnification times size / side, which need not be whole.

        Raises:
            DataError: PG-F02 without a pixel size or objective; PG-F03 as `clam`.
        """
        level0 = self._level0_magnification(name)
        side = round(sum(self.side) / 2)
        rounded = self._rounded(side, name)
        exact = level0 * self.size / side
        nominal = nominal_magnification(self.target_mpp) if self.target_mpp else exact
        same = round(self.size * level0 / nominal) == side
        target = nominal if same else exact
        return TridentSize(self.size, side, level0, target, nominal, rounded)

    def _level0_magnification(self, name: str) -> int:
        if self.mpp is not None:
            return level0_magnification(sum(self.mpp) / 2)
        objective = self.slide.objective if self.slide else None
        if not objective:
            raise DataError(
                "magnification of the slide is not known", code="PG-F02", where=name,
                why="the store has neither a pixel size nor an objective",
                hint=without_scale(self),
            )  # fmt: skip
        return round(objective)

    def _rounded(self, side: float, name: str) -> float:
        off = max(abs(side - own) for own in self.side)
        if off > MAX_ROUNDING:
            raise DataError(
                "patches cannot be told in whole pixels", code="PG-F03", where=name,
                why=f"they are {self.side[0]:.2f} x {self.side[1]:.2f} level-0 pixels and the "
                f"format takes one whole number; {side:g} would be {off:.2f} off",
                hint="export as folder or webdataset, or tile at the resolution of a level",
            )  # fmt: skip
        return off


def without_scale(geometry: Geometry) -> str:
    """What to do where the pixel size is not known: features alone may not say it."""
    return "tile with --slide-mpp" if geometry.slide else "give the patch store too"


def level0_magnification(mpp: float) -> int:
    """Nominal magnification of a slide with `mpp` microns per pixel, as TRIDENT sorts them."""
    return next((mag for limit, mag in _LEVEL0 if mpp < limit), 5)


def nominal_magnification(mpp: float) -> float:
    """The usual magnification within 15 % of `mpp`; else 10 / mpp to three digits."""
    for magnification, usual in MAGNIFICATIONS.items():
        if abs(mpp / usual - 1) <= 0.15:
            return magnification
    return float(f"{10 / mpp:.3g}")


def grid_of(coords: NDArray[np.int64], stride: tuple[float, float]) -> NDArray[np.int64] | None:
    """Column and row (n, 2) of patches on one grid, from 0; None when they are on none.

    `stride` may be rounded, as tools store it: the true one is taken from the positions.
    """
    if not len(coords):
        return np.empty((0, 2), np.int64)
    fitted = (_fitted(coords[:, 0], stride[0]), _fitted(coords[:, 1], stride[1]))
    for step in (np.asarray(stride), np.asarray(fitted)):
        place = (coords - coords.min(axis=0)) / step
        cells: NDArray[np.int64] = np.rint(place).astype(np.int64)
        # Corners are whole pixels: each may be half a pixel off, and so may the first.
        if bool((np.abs(place - cells) <= np.minimum(1.01 / step, 0.3)).all()):
            return cells
    return None


def _fitted(values: NDArray[np.int64], stride: float) -> float:
    """The stride near `stride` that the values really have."""
    distances = np.diff(np.unique(values))
    steps = np.rint(distances / stride)
    if not len(steps) or not steps.all():
        return stride
    return float(distances.sum() / steps.sum())


def _mpp(slide: SlideFacts | None, mean: float | None) -> tuple[float, float] | None:
    if slide and slide.mpp_x and slide.mpp_y:
        return slide.mpp_x, slide.mpp_y
    return (mean, mean) if mean else None
