"""A heatmap as a pyramidal OME-TIFF, for viewers that open slides.

Pixel (0, 0) is the corner of the scanned part, which is what QuPath shows of the slide. Written
are no names but the channels', and no times: equal maps give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pathgen import commit
from pathgen.heatmap.raster import rasterize
from pathgen.heatmap.result import ATTENTION, Heatmap

TILE = 256
#: The coarsest level has no longer side than this.
COARSEST = 512
#: Pixels that are drawn at most: 300 MB of RGB,
MOST = 100_000_000
#: and numbers, over all channels: 100 MB of float32. A patch has one for all of it anyway.
MOST_VALUES = 25_000_000
QUALITY = 90


def map_scale(heatmap: Heatmap, most: int = MOST) -> float:
    """Level-0 pixels per pixel of what is made for viewers: `config.mpp`, coarser where that would
    be more than `most` pixels; of a slide without a pixel size, as `config.longest`."""
    place = heatmap.place
    width, height = place.frame[2:]
    if place.pixel_um is None:
        return max(1.0, max(width, height) / heatmap.config.longest)
    wanted = max(1.0, heatmap.config.mpp / place.pixel_um)
    return max(wanted, math.sqrt(width * height / most))


def write_overlay(heatmap: Heatmap, path: Path) -> Path:
    """RGB: attention in color over the tissue in gray, JPEG tiles."""
    scale = map_scale(heatmap)
    levels = [heatmap.overlay(ATTENTION, scale)]
    while max(levels[-1].shape[:2]) > COARSEST:
        levels.append(halved(levels[-1]))
    options = {
        "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": QUALITY},
    }  # fmt: skip
    return _write(path, levels, heatmap, scale, options, ())


def write_values(heatmap: Heatmap, path: Path) -> Path:
    """float32, a channel a measurement; nan where no patch is."""
    measures = heatmap.measurements()
    scale = map_scale(heatmap, MOST_VALUES // len(measures))
    stacked = np.stack(list(measures.values()), axis=1)
    place = heatmap.place
    levels = [rasterize(stacked, place.coords, place.side, place.frame, scale).values]
    while max(levels[-1].shape[1:]) > COARSEST:
        factor = 2 ** len(levels)
        levels.append(
            rasterize(stacked, place.coords, place.side, place.frame, scale * factor).values
        )
    options = {"photometric": "minisblack", "compression": "zlib"}
    return _write(path, levels, heatmap, scale, options, tuple(measures))


def halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half as wide and high, rounded up; each pixel the mean of four."""
    height, width = pixels.shape[:2]
    even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.asarray(Image.fromarray(even).reduce(2))


def _write(
    path: Path,
    levels: Sequence[NDArray[Any]],
    heatmap: Heatmap,
    scale: float,
    options: dict[str, Any],
    channels: tuple[str, ...],
) -> Path:
    um = None if heatmap.place.mpp is None else [scale * side for side in heatmap.place.mpp]
    per_cm = None if um is None else (10_000 / um[0], 10_000 / um[1])
    shape = levels[0].shape
    height, width = shape[1:] if channels else shape[:2]
    with (
        commit.draft(path) as draft,
        tifffile.TiffWriter(draft, bigtiff=sum(level.nbytes for level in levels) > 2**31) as tiff,
    ):
        for number, level in enumerate(levels):
            first = number == 0
            tiff.write(
                level, tile=(TILE, TILE), metadata=None, software=False,
                description=_xml(width, height, um, channels).encode() if first else None,
                subifds=len(levels) - 1 if first else None, subfiletype=0 if first else 1,
                resolution=None if per_cm is None else tuple(v / 2**number for v in per_cm),
                resolutionunit=None if per_cm is None else "CENTIMETER", **options,
            )  # fmt: skip
    return path


def _xml(width: int, height: int, um: Sequence[float] | None, channels: tuple[str, ...]) -> str:
    """The OME description: sizes, microns per pixel, names of channels."""
    size = f'SizeX="{width}" SizeY="{height}" SizeZ="1" SizeT="1"'
    if um is not None:
        size += "".join(
            f' PhysicalSize{axis}="{value:.6g}" PhysicalSize{axis}Unit="µm"'
            for axis, value in zip("XY", um, strict=True)
        )
    if channels:
        kind = f'Type="float" SizeC="{len(channels)}" DimensionOrder="XYCZT"'
        inner = "".join(
            f'<Channel ID="Channel:0:{i}" Name={quoteattr(name)} SamplesPerPixel="1"/>'
            for i, name in enumerate(channels)
        )
        inner += "".join(
            f'<TiffData IFD="{i}" FirstC="{i}" PlaneCount="1"/>' for i in range(len(channels))
        )
    else:
        kind = 'Type="uint8" SizeC="3" DimensionOrder="XYCZT" Interleaved="true"'
        inner = '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0" Name="heatmap"><Pixels ID="Pixels:0" {kind} {size}>{inner}</Pixels>'
        "</Image></OME>"
    )
