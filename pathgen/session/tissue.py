"""The tissue of a slide, as areas, polygons, a picture, a file for QuPath."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen import commit
from pathgen.progress import counted
from pathgen.session.shown import Shown, html_table, joined
from pathgen.session.tables import frame
from pathgen.tiling.contours import tissue_geojson
from pathgen.tiling.outlines import Polygon
from pathgen.tiling.tissue import TissueMask
from pathgen.tiling.tracing import pieces

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pathgen.session.slide import Slide

COLUMNS = ("piece", "area_mm2", "x", "y", "width", "height", "holes")
TINT = (0.0, 0.35, 0.78)


class Tissue(Shown):
    """A tissue mask of a slide. Positions are level-0 pixels (x, y)."""

    def __init__(self, slide: Slide, mask: TissueMask) -> None:
        self.slide, self.mask = slide, mask

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        return self.mask.area_mm2

    @property
    def pixels(self) -> NDArray[np.bool_]:
        """True where there is tissue, (height, width), over the scanned part."""
        return self.mask.pixels

    @cached_property
    def polygons(self) -> tuple[Polygon, ...]:
        """A polygon a piece, exactly the edges of the mask's pixels, the largest first."""
        found = [
            Polygon(np.array(piece.exterior), tuple(np.array(hole) for hole in piece.holes))
            for piece in pieces(self.mask)
        ]
        return tuple(sorted(found, key=lambda polygon: -_area(polygon)))

    @property
    def line(self) -> str:
        """``83.2 mm2 of tissue in 3 pieces · 41 % of what was scanned · mask of 8 um/px``."""
        ink = f"{self.mask.ink:.0%} taken for pen" if self.mask.ink >= 0.005 else ""
        return joined([
            f"{self.area_mm2:,.2f} mm2 of tissue in {counted(len(self.polygons), 'piece')}",
            f"{self.pixels.mean():.0%} of what was scanned", ink,
            f"mask of {self.mask.mpp:.3g} um/px",
        ])  # fmt: skip

    def html(self) -> str:
        return html_table(COLUMNS, [tuple(row.values()) for row in self._rows()])

    def table(self) -> pandas.DataFrame:
        """One row a piece: its area in mm2, its box in level-0 pixels, its holes."""
        return frame(self._rows(), COLUMNS, index="piece")

    def to_geojson(self, path: str | Path) -> Path:
        """Write one annotation a piece, as QuPath opens it; returns where it is.

        Positions are counted from the corner of the scanned part, as QuPath counts. Given back
        to `tile` as a mask, or opened by `pathgen.annotations`, it lies where it lay.
        """
        from pathgen.tiling.readers.check import slide_identity

        path = Path(path)
        identity = slide_identity(self.slide.path)
        commit.write_text(path, tissue_geojson(self.mask, self.slide.bounds, identity))
        return path

    def plot(self, ax: Axes | None = None, longest: int = 1024) -> Figure:
        """The thumbnail with the tissue tinted, axes in mm."""
        from pathgen.session.canvas import axes_of

        axes, figure = axes_of(ax)
        self.slide.plot(axes, longest)
        x, y, _, _ = self.slide.bounds
        height, width = self.pixels.shape
        (sx, sy), unit = self.mask.scale, (self.slide.mpp or 1000.0) / 1000
        shade = np.zeros((height, width, 4), np.float32)
        shade[self.pixels] = (*TINT, 0.35)
        extent = x * unit, (x + width * sx) * unit, (y + height * sy) * unit, y * unit
        limits = axes.get_xlim(), axes.get_ylim()
        axes.imshow(shade, extent=extent, interpolation="nearest")
        axes.set(xlim=limits[0], ylim=limits[1], title=f"{self.slide.name}: {self.line}")
        axes.title.set_fontsize(8)
        return figure

    def image(self) -> Image.Image:
        """The mask, white where there is tissue."""
        return Image.fromarray(self.pixels)

    def _rows(self) -> list[dict[str, float]]:
        mm2 = self.mask.mpp**2 / (self.mask.scale[0] * self.mask.scale[1]) / 1e6
        rows: list[dict[str, float]] = []
        for number, polygon in enumerate(self.polygons, 1):
            (x, y), (right, lower) = polygon.exterior.min(axis=0), polygon.exterior.max(axis=0)
            rows.append({
                "piece": number, "area_mm2": round(_area(polygon) * mm2, 4), "x": float(x),
                "y": float(y), "width": float(right - x), "height": float(lower - y),
                "holes": len(polygon.holes),
            })  # fmt: skip
        return rows


def _area(polygon: Polygon) -> float:
    """In square level-0 pixels, without the holes."""
    outer, *holes = (abs(_signed(ring)) for ring in (polygon.exterior, *polygon.holes))
    return outer - sum(holes)


def _signed(ring: NDArray[np.float64]) -> float:
    x, y = (ring - ring[0]).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
