"""A pyramidal, JPEG-tiled TIFF laid out as Aperio lays out an SVS.

Pages: level 0 (tiled), a thumbnail (in strips), then the other levels (tiled). OpenSlide knows
the vendor by the description's first word and the pixel size by its MPP field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pathgen.synthetic.noise import box_mean
from pathgen.synthetic.optics import Renderer
from pathgen.synthetic.spec import SlideSpec

THUMBNAIL = 768  # pixels, the longest side
RUN = 4  # tiles rendered together
GLASS_KINDS = 4  # different tiles of bare glass
SUBSAMPLING, SUBSAMPLING_TAG = "422", (2, 1)


def write_svs(path: Path, renderer: Renderer) -> None:
    """Render the slide and write it to `path`, one row of tiles at a time.

    Level 0 is never whole in memory; the second level is.
    """
    spec = renderer.scene.spec
    levels = _Levels(spec)
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        _write_level(tiff, spec, 0, _render_tiles(renderer, levels))
        levels.finish()
        _write_thumbnail(tiff, spec, levels.thumbnail())
        for number in range(1, len(spec.levels)):
            _write_level(tiff, spec, number, _cut_tiles(levels.images[number], spec))


class _Levels:
    """The pyramid above level 0, filled while level 0 goes by."""

    def __init__(self, spec: SlideSpec) -> None:
        self.spec = spec
        self.factor = spec.levels[1] if len(spec.levels) > 1 else _whole_factor(spec.tile)
        rows, columns = spec.height // self.factor, spec.width // self.factor
        self.second = np.full((max(rows, 1), max(columns, 1), 3), 255, np.uint8)
        self.images: dict[int, NDArray[np.uint8]] = {}

    def put(self, x: int, y: int, small: NDArray[np.uint8]) -> None:
        """A block of level 0 at (x, y), already reduced by `factor`."""
        place = self.second[y // self.factor :, x // self.factor :]
        place[: small.shape[0], : small.shape[1]] = small[: place.shape[0], : place.shape[1]]

    def finish(self) -> None:
        self.images = {1: self.second}
        for number in range(2, len(self.spec.levels)):
            ratio = self.spec.levels[number] // self.spec.levels[number - 1]
            self.images[number] = box_mean(self.images[number - 1], ratio)

    def thumbnail(self) -> NDArray[np.uint8]:
        image = Image.fromarray(self.second)
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        return np.asarray(image)


def _whole_factor(tile: int) -> int:
    return next(factor for factor in (4, 2, 1) if tile % factor == 0)


def level_size(spec: SlideSpec, number: int) -> tuple[int, int]:
    """Width and height of a level; what is left over is cut off, as Aperio does."""
    return spec.width // spec.levels[number], spec.height // spec.levels[number]


def _render_tiles(renderer: Renderer, levels: _Levels) -> Iterator[bytes]:
    spec, side, factor = renderer.scene.spec, renderer.scene.spec.tile, levels.factor
    glass = [renderer.glass(side, side, kind) for kind in range(GLASS_KINDS)]
    encoded = [_encode(tile, spec) for tile in glass]
    small = [box_mean(tile, factor) for tile in glass]
    columns = math.ceil(spec.width / side)
    for row in range(math.ceil(spec.height / side)):
        y, column = row * side, 0
        while column < columns:
            if renderer.is_glass(column * side, y, side, side):
                kind = (3 * row + column * column) % GLASS_KINDS
                levels.put(column * side, y, small[kind])
                yield encoded[kind]
                column += 1
                continue
            run = 1
            while run < RUN and column + run < columns and not renderer.is_glass(
                (column + run) * side, y, side, side
            ):  # fmt: skip
                run += 1
            block = renderer.block(column * side, y, run * side, side)
            levels.put(column * side, y, box_mean(block, factor))
            for i in range(run):
                yield _encode(np.ascontiguousarray(block[:, i * side : (i + 1) * side]), spec)
            column += run


def _cut_tiles(image: NDArray[np.uint8], spec: SlideSpec) -> Iterator[bytes]:
    side = spec.tile
    rows, columns = (math.ceil(n / side) for n in image.shape[:2])
    over = (rows * side - image.shape[0], columns * side - image.shape[1])
    padded = np.pad(image, ((0, over[0]), (0, over[1]), (0, 0)), mode="edge")
    for y in range(0, rows * side, side):
        for x in range(0, columns * side, side):
            yield _encode(np.ascontiguousarray(padded[y : y + side, x : x + side]), spec)


def _encode(tile: NDArray[np.uint8], spec: SlideSpec) -> bytes:
    """A JPEG stream in YCbCr; the page's photometric tag says the same."""
    stream = simplejpeg.encode_jpeg(
        tile,
        quality=spec.jpeg_quality,
        colorspace="RGB",
        colorsubsampling=SUBSAMPLING,
        fastdct=False,
    )
    return bytes(stream)


def _write_level(
    tiff: tifffile.TiffWriter, spec: SlideSpec, number: int, tiles: Iterator[bytes]
) -> None:
    width, height = level_size(spec, number)
    tiff.write(
        tiles,
        shape=(height, width, 3),
        dtype=np.uint8,
        tile=(spec.tile, spec.tile),
        photometric="ycbcr",
        compression="jpeg",
        subsampling=SUBSAMPLING_TAG,
        description=describe(spec, number),
        metadata=None,
        software=False,
    )


def _write_thumbnail(tiff: tifffile.TiffWriter, spec: SlideSpec, image: NDArray[np.uint8]) -> None:
    height, width = image.shape[:2]
    tiff.write(
        iter([_encode(np.ascontiguousarray(image), spec)]),
        shape=image.shape,
        dtype=np.uint8,
        rowsperstrip=height,
        photometric="ycbcr",
        compression="jpeg",
        subsampling=SUBSAMPLING_TAG,
        description=f"{_HEAD}\r\n{spec.width}x{spec.height} -> {width}x{height} - |{_facts(spec)}",
        metadata=None,
        software=False,
    )


_HEAD = "Aperio Image Library v12.0.0"


def describe(spec: SlideSpec, number: int) -> str:
    """The ImageDescription of a level: sizes, objective, mpp; nothing about anybody."""
    tile = f"({spec.tile}x{spec.tile})"
    whole = f"{spec.width}x{spec.height} [0,0 {spec.width}x{spec.height}] {tile}"
    if number:
        width, height = level_size(spec, number)
        whole += f" -> {width}x{height}"
    return f"{_HEAD}\r\n{whole} JPEG/YCC Q={spec.jpeg_quality}|{_facts(spec)}"


def _facts(spec: SlideSpec) -> str:
    mpp = f"{spec.mpp:.4f}"
    exact = mpp if float(mpp) == spec.mpp else repr(spec.mpp)
    return f"AppMag = {spec.objective:g}|MPP = {exact}|Title = synthetic"
