"""What an OME-TIFF says of itself: levels in sub-directories, scale in its XML."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from pathgen.tiling.readers.check import unsupported
from pathgen.tiling.readers.levels import DAMAGE
from pathgen.tiling.slide import Header, Scale

#: Microns in one unit of PhysicalSizeX and PhysicalSizeY.
MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4}


def ome_header(path: Path) -> Header | None:
    """The header of the largest image of an OME-TIFF; None when the file is none.

    Raises:
        SlideError: PG-S10, that image is not 8-bit RGB with its channels together.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            return _header(path, tiff) if tiff.is_ome else None
    except DAMAGE:
        return None  # OpenSlide may know better


def _header(path: Path, tiff: Any) -> Header:
    series = max(tiff.series, key=lambda one: math.prod(one.shape))
    shape, axes = series.shape, series.axes
    if axes != "YXS" or shape[2] != 3 or str(series.dtype) != "uint8":
        raise unsupported(path, f"an OME-TIFF of {series.dtype} {axes} {shape}, not 8-bit RGB")
    sizes = tuple((int(level.shape[1]), int(level.shape[0])) for level in series.levels)
    width, height = sizes[0]
    index = list(tiff.series).index(series)
    return Header(
        vendor="ome-tiff", size=(width, height), level_sizes=sizes,
        downsamples=tuple((width / w + height / h) / 2 for w, h in sizes),
        bounds=(0, 0, width, height), scale=ome_scale(tiff.ome_metadata or "", index),
    )  # fmt: skip


def is_ome_tiff(path: Path) -> bool:
    """Whether a TIFF says of itself that it is one."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.is_ome)
    except DAMAGE:
        return False


def ome_scale(xml: str, index: int = 0) -> Scale | None:
    """The physical pixel size of the image `index`, in microns; None where `xml` has none."""
    pixels = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    if index >= len(pixels):
        return None
    values = []
    for axis in ("X", "Y"):
        size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', pixels[index])
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', pixels[index])
        microns = MICRONS.get(unit[1] if unit else "µm")
        try:
            values.append(float(size[1]) * microns if size and microns else None)
        except ValueError:
            values.append(math.nan)
    x, y = values[0] or values[1], values[1] or values[0]
    return None if x is None or y is None else Scale(x, y, "ome")
