"""A large slide for benchmarks: one synthetic H&E region, mirrored over and over.

    python benchmarks/bigslide.py OUT.svs --side 24576

Laid out as Aperio lays out an SVS at 0.25 um per pixel: JPEG tiles of 256 px, quality 80, 4:2:2,
levels 1:1, 1:4 and 1:16. All of it is tissue but for a frame of glass, one tile wide at level 0.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

TILE = 256
REGION = 4096


def build(path: Path, side: int = 24576, seed: int = 0) -> Path:
    """Write the slide to `path`; `side` is a multiple of 4,096."""
    region = region_of(seed)
    count = side // REGION
    text = f"Aperio Image Library v12.0.15\r\n{side}x{side} [0,0 {side}x{side}] ({TILE}x{TILE}) "
    text += "JPEG/RGB Q=80|AppMag = 40|MPP = 0.25"
    with tifffile.TiffWriter(path, bigtiff=side > 40000) as tiff:
        for step in (1, 4, 16):
            small = region if step == 1 else np.asarray(Image.fromarray(region).reduce(step))
            width = side // step
            tiff.write(
                _tiles(small, count, frame=TILE // step), shape=(width, width, 3), dtype=np.uint8,
                tile=(TILE, TILE), photometric="ycbcr", subsampling=(2, 1), compression="jpeg",
                description=text, metadata=None, subfiletype=0,
            )  # fmt: skip
            if step == 1:  # the second directory of an SVS is its thumbnail
                thumbnail = np.asarray(Image.fromarray(region).resize((512, 512)))
                tiff.write(thumbnail, photometric="rgb", rowsperstrip=16, description=text,
                           metadata=None, compression="jpeg")  # fmt: skip
    return path


def region_of(seed: int) -> NDArray[np.uint8]:
    """4,096 x 4,096 pixels of tissue, from the middle of a drawn slide."""
    from pathgen.synthetic import CohortConfig, make_slides

    with tempfile.TemporaryDirectory() as folder:
        config = CohortConfig(width=2 * REGION, height=2 * REGION, mpp=0.25, objective=40.0)
        make_slides(Path(folder), 1, seed, config, workers=0)
        with openslide.OpenSlide(next(Path(folder).glob("*.svs"))) as slide:
            start = (REGION // 2, REGION // 2)
            return np.asarray(slide.read_region(start, 0, (REGION, REGION)).convert("RGB"))


def tiles_of(region: NDArray[np.uint8]) -> list[bytes]:
    """The JPEG tiles of a region, as the slide has them."""
    return list(_tiles(region, 1, 0))


def _tiles(region: NDArray[np.uint8], count: int, frame: int) -> Iterator[bytes]:
    """The JPEG tiles of a level, row by row; `frame` pixels at its edges are glass."""
    side = len(region)
    width = side * count
    for y in range(0, width, TILE):
        for x in range(0, width, TILE):
            rows, columns = (_mirrored(v, side, width) for v in (y, x))
            tile = region[rows][:, columns].copy()
            down, across = (np.arange(v, v + TILE) for v in (y, x))
            tile[(down < frame) | (down >= width - frame)] = 242
            tile[:, (across < frame) | (across >= width - frame)] = 242
            yield simplejpeg.encode_jpeg(tile, quality=80, colorsubsampling="422")


def _mirrored(start: int, side: int, width: int) -> NDArray[np.int64]:
    """Where each of the next 256 pixels comes from; past the end the last one repeats."""
    at = np.minimum(np.arange(start, start + TILE), width - 1)
    block, inside = np.divmod(at, side)
    return np.where(block % 2, side - 1 - inside, inside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--side", type=int, default=24576)
    arguments = parser.parse_args()
    build(arguments.path, arguments.side)


if __name__ == "__main__":
    main()
