"""One opened whole-slide image, whoever reads it. Positions are level-0 pixels, (x, y)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import ConfigError, PathgenError, SlideError

if TYPE_CHECKING:
    from pathgen.tiling.readers.remote import SlidePath
    from pathgen.tiling.readers.tiles import TiledLevel

PLAUSIBLE_MPP = (0.05, 10.0)
#: x and y may differ by this much, relative; more is refused.
MAX_ANISOTROPY = 0.02


@dataclass(frozen=True)
class Scale:
    """Microns per level-0 pixel, and where that was found.

    `source` is one of ``vendor``, ``dicom``, ``ome``, ``tiff`` (resolution tags), ``option``,
    ``csv``.
    """

    x: float
    y: float
    source: str

    @property
    def mean(self) -> float:
        return (self.x + self.y) / 2


@dataclass(frozen=True)
class Header:
    """What a slide says of itself: an allow-list, without names, dates or descriptions."""

    vendor: str
    size: tuple[int, int]
    level_sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    bounds: tuple[int, int, int, int]
    """x, y, width, height of what was scanned"""
    scale: Scale | None = None
    """as the file gives it, unchecked"""
    objective: float | None = None
    associated: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


class SlideReader(Protocol):
    """An open slide. Picklable: the file is opened on first use in each process.

    `mpp`, `mpp_xy` and `mpp_source` raise SlideError PG-S07 where no pixel size is known and
    PG-S08 where the one found cannot be.
    """

    @property
    def reader(self) -> str: ...
    @property
    def path(self) -> SlidePath: ...
    @property
    def name(self) -> str: ...
    @property
    def vendor(self) -> str: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def downsamples(self) -> tuple[float, ...]: ...
    @property
    def bounds(self) -> tuple[int, int, int, int]: ...
    @property
    def mpp(self) -> float: ...
    @property
    def mpp_xy(self) -> tuple[float, float]: ...
    @property
    def mpp_source(self) -> str: ...
    @property
    def objective(self) -> float | None: ...
    @property
    def associated(self) -> tuple[str, ...]: ...

    def read(
        self, position: tuple[float, float], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """RGB (height, width, 3) of `size` = (width, height) pixels of `level`.

        The first pixel is the one of `level` nearest to the level-0 `position`. Transparent
        pixels and those outside the slide are white.

        Raises:
            SlideError: PG-S04 when the pixels cannot be decoded.
        """
        ...

    def shrinks(self, level: int) -> tuple[int, ...]:
        """By what `level` can be read smaller than it is; 1 is always among them."""
        ...

    def read_level(
        self, level: int, box: tuple[int, int, int, int], shrink: int = 1
    ) -> NDArray[np.uint8]:
        """RGB of the pixels x0, y0, x1, y1 of `level`, all counted at 1 / `shrink` of its size.

        Raises:
            SlideError: PG-S04 when the pixels cannot be decoded.
        """
        ...

    def look(
        self, level: int, box: tuple[int, int, int, int], shrink: int = 1
    ) -> NDArray[np.uint8]:
        """As `read_level`, but damaged tiles may be white; `damage` says how many."""
        ...

    def damage(self, level: int) -> float: ...
    def tiles(self, level: int) -> TiledLevel | None: ...
    def tile_bytes(self, level: int, indices: Sequence[int]) -> list[bytes]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...


def open_slide(path: str | Path, reader: str = "auto", *, mpp: float | None = None) -> SlideReader:
    """Open a slide.

    Args:
        path: a slide file, a folder with the DICOM files of one slide, an OME-Zarr folder, or
            the URL of a TIFF-based slide.
        reader: ``auto``, or a name in `pathgen.tiling.readers.READERS`.
        mpp: microns per level-0 pixel; wins over what the file says, and is needed where it
            says nothing.

    Raises:
        NoInputError: PG-N01 nothing there.
        SlideError: PG-S01 to PG-S11, saying what the file is and what is wrong with it.
        ConfigError: no such reader, or an impossible `mpp`.
    """
    from pathgen.tiling.readers import open_with
    from pathgen.tiling.readers.remote import slide_path

    override = None if mpp is None else Scale(mpp, mpp, "option")
    return open_with(slide_path(path), reader, override)


def checked_scale(found: Scale | None, override: Scale | None, name: str) -> Scale:
    """The scale to use. Raises SlideError PG-S07 (none) or PG-S08 (impossible)."""
    scale = override or found
    if scale is None:
        raise SlideError(
            "no pixel size in the file", code="PG-S07", where=name,
            why="patches at an exact scale need microns per pixel",
            hint="give it with --slide-mpp 0.25, or in a column `mpp` of a CSV of slides",
        )  # fmt: skip
    problem = scale_problem(scale)
    if problem:
        error = ConfigError if override and override.source == "option" else SlideError
        raise error(
            "pixel size cannot be right", code="PG-S08", where=name, why=problem,
            hint="give the true one with --slide-mpp, or in a column `mpp` of a CSV of slides",
        )  # fmt: skip
    return scale


def scale_problem(scale: Scale) -> str | None:
    """Why a scale cannot be right; None when it can."""
    low, high = PLAUSIBLE_MPP
    text = f"{scale.x:g} x {scale.y:g} um per pixel (from {scale.source})"
    if not all(math.isfinite(v) and low <= v <= high for v in (scale.x, scale.y)):
        return f"{text}; plausible is {low:g} to {high:g}"
    if abs(scale.x / scale.y - 1) > MAX_ANISOTROPY:
        return f"{text}; x and y differ by more than {MAX_ANISOTROPY:.0%}"
    return None


def slide_info(
    path: str | Path, reader: str = "auto", *, mpp: float | None = None
) -> dict[str, Any]:
    """What a slide is, JSON-ready, for ``pathgen info``.

    A slide without a usable pixel size is described too; what would stop `tile` stands in
    `problems`. Names of associated images are listed, never their pixels.

    Raises:
        NoInputError, SlideError: as `open_slide`, when the file cannot be opened at all.
    """
    from pathgen.tiling.readers import open_with
    from pathgen.tiling.readers.check import total_bytes
    from pathgen.tiling.readers.remote import slide_path

    place = slide_path(path)
    override = None if mpp is None else Scale(mpp, mpp, "option")
    slide = open_with(place, reader, override)
    with slide:
        header = slide.header
        scale = override or header.scale
        return {
            "slide": slide.name,
            "vendor": header.vendor,
            "reader": slide.reader,
            "width": header.size[0],
            "height": header.size[1],
            "levels": [
                {"width": w, "height": h, "downsample": round(d, 4)}
                for (w, h), d in zip(header.level_sizes, header.downsamples, strict=True)
            ],
            "mpp_x": scale.x if scale else None,
            "mpp_y": scale.y if scale else None,
            "mpp_source": scale.source if scale else None,
            "objective": header.objective,
            "bounds": dict(zip(("x", "y", "width", "height"), header.bounds, strict=True)),
            "associated": list(header.associated),
            "bytes": total_bytes(place),
            "problems": list(slide_problems(slide)),
        }


def slide_problems(slide: Any) -> Iterator[str]:
    """`slide_faults` as sentences."""
    yield from map(str, slide_faults(slide))


def slide_faults(slide: Any) -> Iterator[PathgenError | str]:
    """What would stop `tile`, as errors; what a person should know besides, as sentences."""
    from pathgen.tiling.overview import (
        BAND_PIXELS,
        best_level,
        check_brightfield,
        read_overview,
    )

    yield from slide.header.notes
    try:
        scale = checked_scale(slide.header.scale, slide.override, slide.name)
    except PathgenError as error:
        yield error
        scale = None
    objective = slide.header.objective
    if scale and objective and abs(scale.mean * objective / 10 - 1) > 0.25:
        yield (
            f"pixel size {scale.mean:g} um and objective {objective:g}x disagree "
            f"(expected about {10 / objective:g} um)"
        )
    step = max(slide.size) / 512
    width, height = slide.level_sizes[best_level(slide, (step, step))]
    if width * height > BAND_PIXELS:
        return  # no small level: looking would mean to decode it all
    try:
        check_brightfield(read_overview(slide, step).pixels, slide.name)
    except SlideError as error:
        yield error
