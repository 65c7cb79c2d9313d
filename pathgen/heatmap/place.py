"""Where the patches of a slide lie, and in what frame they are shown. All level-0 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError
from pathgen.exchange.geometry import Geometry
from pathgen.heatmap.raster import Frame
from pathgen.stores.patches import SlideFacts
from pathgen.tiling.slide import SlideReader


@dataclass(frozen=True)
class Place:
    """The patches of one slide."""

    coords: NDArray[np.int64]
    """(n, 2) top left corners, x and y, as OpenSlide counts"""
    side: tuple[float, float]
    """of a patch; need not be whole"""
    size: int
    """pixels a side, as the encoder sees a patch"""
    bounds: tuple[int, int, int, int] | None = None
    """the scanned part: x, y, width, height; None where nobody knows it"""
    mpp: tuple[float, float] | None = None
    """microns per level-0 pixel, x and y"""

    @classmethod
    def of(cls, facts: Mapping[str, Any], coords: NDArray[np.int64], name: str) -> Self:
        """From the facts that a patch store, or the source of a feature store, has of its slide.

        Raises:
            DataError: PG-H03, the patches have no place, or no size is known.
        """
        if len(coords) and (coords < 0).all(axis=1).any():
            raise DataError(
                "patches have no place on a slide", code="PG-H03", where=name,
                why="they are from a folder of images", hint="give features of a tiled slide",
            )  # fmt: skip
        geometry = Geometry.of(facts)
        if geometry is None:
            raise DataError(
                "size of the patches is not known", code="PG-H03", where=name,
                why="the features do not say it",
                hint="extract the features again from patch stores or slides",
            )  # fmt: skip
        slide = geometry.slide
        return cls(
            coords, geometry.side, geometry.size, _bounds(slide), geometry.mpp
        )  # fmt: skip

    def on(self, slide: SlideReader | None) -> Place:
        """With what the slide itself says, where the facts are silent."""
        if slide is None or self.bounds is not None:
            return self
        return Place(self.coords, self.side, self.size, slide.bounds, self.mpp)

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def frame(self) -> Frame:
        """What pictures show: the scanned part, or all patches where that is not known."""
        if self.bounds is not None:
            return tuple(map(float, self.bounds))  # type: ignore[return-value]
        low, high = self.coords.min(axis=0), self.coords.max(axis=0) + self.side
        return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])

    @property
    def pixel_um(self) -> float | None:
        """Microns per level-0 pixel, mean of x and y."""
        return None if self.mpp is None else sum(self.mpp) / 2

    def shift(self, name: str) -> tuple[int, int]:
        """The corner that QuPath counts from. Raises DataError (PG-H03) where it is not known."""
        if self.bounds is None:
            raise DataError(
                "bounds of the slide are not known", code="PG-H03", where=name,
                why="QuPath counts from their corner",
                hint="give the slide too, or --no-bounds-shift where it is scanned from corner to "
                "corner",
            )  # fmt: skip
        return self.bounds[0], self.bounds[1]


def _bounds(slide: SlideFacts | None) -> tuple[int, int, int, int] | None:
    if slide is None:
        return None
    return slide.bounds or (0, 0, slide.width, slide.height)
