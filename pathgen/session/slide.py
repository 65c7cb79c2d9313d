"""One slide to look at: its thumbnail, its tissue, a field of it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from pathgen.errors import ConfigError
from pathgen.progress import counted
from pathgen.session.lengths import pixels
from pathgen.session.shown import Shown, joined
from pathgen.stores.patches import PatchSpec
from pathgen.tiling.grid import ReadPlan
from pathgen.tiling.overview import read_overview
from pathgen.tiling.readers import open_with
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.readers.remote import slide_path
from pathgen.tiling.slide import Scale, scale_problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pathgen.session.tissue import Tissue

#: Pixels a side of a field that is read at once, at most.
LARGEST = 16384
#: Longer side in pixels of the picture in a notebook.
NOTEBOOK = 480


class Slide(Shown):
    """A slide, opened lazily and closed by ``with`` or when it is forgotten.

    Positions are level-0 pixels (x, y), as OpenSlide counts them.

    Args:
        path: a slide file, the folder of a DICOM or OME-Zarr slide, or a URL.
        mpp: microns per level-0 pixel; wins over what the file says.
        slide_mpp: the same, only where the file says none that can be.
        name: its id; default: the file's name without its ending.

    Raises:
        NoInputError, SlideError, ConfigError: as `pathgen.open_slide`.
    """

    def __init__(
        self, path: Any, *, mpp: float | None = None, slide_mpp: float | None = None,
        name: str | None = None,
    ) -> None:  # fmt: skip
        from pathgen.tiling.readers.check import without_suffix

        place = slide_path(path) if isinstance(path, str | Path) else path
        override, fallback = (
            None if v is None else Scale(v, v, "option") for v in (mpp, slide_mpp)
        )
        self.reader: BaseReader = open_with(place, "auto", override, fallback=fallback)
        self.path, self.slide_mpp = place, slide_mpp if mpp is None else mpp
        own = self.reader.header.scale
        self.rescaled = mpp is not None and own is not None and scale_problem(own) is None
        """the file says a scale, and `mpp` was given instead"""
        self.name = without_suffix(self.reader.name) if name is None else name

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in level-0 pixels."""
        return self.reader.size

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """x, y, width, height in level-0 pixels of what was scanned."""
        return self.reader.bounds

    @property
    def mpp(self) -> float | None:
        """Microns per level-0 pixel; None where the file says none that can be."""
        scale = self.reader.override or self.reader.header.scale
        return None if scale is None or scale_problem(scale) else scale.mean

    @property
    def line(self) -> str:
        """``B12 · 46,000 x 32,914 px · 0.499 um/px · 23.0 x 16.4 mm · aperio 20x · 3 levels``."""
        (width, height), mpp = self.size, self.mpp
        sides = "" if mpp is None else f"{width * mpp / 1000:.1f} x {height * mpp / 1000:.1f} mm"
        objective = self.reader.objective
        return joined([
            self.name, f"{width:,} x {height:,} px",
            "unknown um/px" if mpp is None else f"{mpp:.4g} um/px", sides,
            self.reader.vendor + (f" {objective:g}x" if objective else ""),
            counted(len(self.reader.level_sizes), "level"),
        ])  # fmt: skip

    def html(self) -> str:
        data = io.BytesIO()
        self.thumbnail(NOTEBOOK).save(data, "JPEG", quality=85)
        return f'<img src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'

    def thumbnail(self, longest: int = 1024) -> Image.Image:
        """The scanned part, `longest` pixels on its longer side or as many as there are.

        Made from the pyramid, never from an associated image: a label or macro shows who the
        patient is.

        Raises:
            SlideError: PG-S04, pixels cannot be decoded.
        """
        if longest < 1:
            raise ConfigError("a picture has at least one pixel", where=f"longest={longest}")
        step = max(max(self.bounds[2:]) / longest, 1.0)
        picture = Image.fromarray(read_overview(self.reader, step).pixels)
        picture.thumbnail((longest, longest))  # a side may be a pixel longer by rounding up
        return picture

    def tissue(self, **settings: Any) -> Tissue:
        """Where the tissue is.

        Args:
            settings: fields of `pathgen.tiling.TissueConfig`, as ``method="entropy"``.

        Raises:
            SlideError: PG-S07, PG-S08 without a usable pixel size; PG-S04; PG-S14.
            ConfigError: PG-C01, no such setting.
        """
        from pathgen.config import build
        from pathgen.session.tissue import Tissue
        from pathgen.tiling.tissue import TissueConfig, find_tissue

        mask = find_tissue(self.reader, build(TissueConfig, settings))
        return Tissue(self, mask)

    def read(
        self, x: float | str, y: float | str, size: float | str | tuple[float | str, float | str],
        mpp: float | None = None,
    ) -> Image.Image:  # fmt: skip
        """A field at an exact scale: the same pixels as `tile` would cut there.

        Args:
            x, y: top left corner in level-0 pixels, or as ``"3.2mm"`` from the slide's corner.
            size: ``"256um"`` or ``"1mm"``, or pixels of the result; one for both sides, or
                (width, height).
            mpp: microns per pixel of the result; None = level 0 as it is.

        Returns:
            RGB. Beyond the slide it is white.

        Raises:
            SlideError: PG-S04 cannot be decoded, PG-S07 no pixel size, PG-S08 the slide is coarser
                than `mpp` by more than 3 %.
            ConfigError: PG-C01, a length that is none, or a field outside of the slide.
        """
        slide = self.reader
        target = slide.mpp if mpp is None else mpp
        if not target > 0:
            raise ConfigError("a scale is above 0", where=f"mpp={mpp}")
        sides = size if isinstance(size, tuple) else (size, size)
        width, height = (round(pixels(side, target, "size")) for side in sides)
        if not (1 <= width <= LARGEST and 1 <= height <= LARGEST):
            raise ConfigError(
                "a field of that size cannot be read", where=f"size={size!r}",
                why=f"it has {width:,} x {height:,} pixels at {target:g} um/px; 1 to {LARGEST:,} "
                "a side can be read", hint="give another size, or a coarser mpp",
            )  # fmt: skip
        corner = [round(pixels(at, scale, name))
                  for at, scale, name in zip((x, y), slide.mpp_xy, "xy", strict=True)]  # fmt: skip
        plan = ReadPlan.for_spec(slide, PatchSpec(size=max(width, height), mpp=mpp))
        reach = [side * v / plan.size for side, v in zip((width, height), plan.side, strict=True)]
        for at, side, there in zip(corner, reach, self.size, strict=True):
            if at >= there or at + side <= 0:
                raise ConfigError(
                    "field outside of the slide", where=f"x={x}, y={y}",
                    why=f"{self.name} has {self.size[0]:,} x {self.size[1]:,} level-0 pixels",
                    hint="positions are level-0 pixels of the top left corner",
                )  # fmt: skip
        image = plan.read(slide, np.array([corner], np.int64))[0]
        return Image.fromarray(image[:height, :width])

    def plot(self, ax: Axes | None = None, longest: int = 1024) -> Figure:
        """The thumbnail with axes in mm, or in level-0 pixels where no pixel size is known."""
        from pathgen.session.canvas import axes_of

        axes, figure = axes_of(ax)
        x, y, width, height = self.bounds
        unit = 1.0 if self.mpp is None else self.mpp / 1000
        extent = x * unit, (x + width) * unit, (y + height) * unit, y * unit
        axes.imshow(np.asarray(self.thumbnail(longest)), extent=extent)
        axes.set_xlabel("x in level-0 pixels" if self.mpp is None else "x in mm")
        axes.set_ylabel("y in level-0 pixels" if self.mpp is None else "y in mm")
        axes.set_title(self.name)
        return figure

    def close(self) -> None:
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
