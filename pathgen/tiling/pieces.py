"""Patches as they come from the slide, some at a time: decoded, or its own tiles as they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.stores.patches import COPIED, NATIVE, RESAMPLED
from pathgen.tiling.layout import Layout
from pathgen.tiling.readers.tilejpeg import DamagedTile
from pathgen.tiling.readers.tiles import JpegCodec
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.stain import shrunk

#: Bytes of decoded patches that are worked on together: they stay in the processor's cache;
PIECE_BYTES = 4 * 2**20
#: and at most this many patches.
PIECE = 256

Images = NDArray[np.uint8]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Some patches of a layout: which, small copies to look at, and what is to be stored."""

    rows: Rows
    small: Images
    made: int
    stored: Sequence[Any]
    """the pixels (size, size, 3) of each; of copied tiles the bytes"""
    damaged: int = 0
    """patches that were to be in it and lie on tiles that cannot be decoded"""


#: A piece that is still to be made, by any thread.
Ready = Callable[[], Piece]


def strips(slide: SlideReader, layout: Layout, look: int, may_copy: bool) -> Iterator[list[Ready]]:
    """All patches once, in groups; rows of a later group come after those of an earlier one.

    Args:
        look: by what the small copies are smaller.
        may_copy: whether tiles of the slide may be stored as they stand.
    """
    plan, grid = layout.plan, layout.grid
    tiled = slide.tiles(plan.level)
    if tiled is None:
        one_at_a_time = Lock()  # OpenSlide's handle is closed after an error
        for strip in grid.strips(plan):
            yield [partial(_of_block, slide, layout, look, rows, one_at_a_time) for rows in strip]
        return
    tiles = np.full(len(grid), -1, np.int64)
    if may_copy and isinstance(tiled.codec, JpegCodec):
        tiles = plan.whole_tiles(slide, grid.coords)
    copied_side = plan.size // look if (tiles >= 0).all() else plan.size
    count = int(np.clip(PIECE_BYTES // (3 * copied_side**2), 1, PIECE))
    for start in range(0, len(grid), count):
        rows = np.arange(start, min(start + count, len(grid)))
        copied = tiles[rows] >= 0
        pieces: list[Ready] = []
        if copied.any():
            some = rows[copied]
            pieces.append(partial(_copied, slide, layout, look, some, tiles[some]))
        if not copied.all():
            pieces.append(partial(_one_by_one, slide, layout, look, rows[~copied]))
        yield pieces


def _of_block(slide: SlideReader, layout: Layout, look: int, rows: Rows, reading: Lock) -> Piece:
    with reading:
        images = layout.plan.read(slide, layout.grid.coords[rows])
    return Piece(rows, shrunk(images, look), _made(layout), list(images))


def _one_by_one(slide: SlideReader, layout: Layout, look: int, rows: Rows) -> Piece:
    """So that a damaged tile takes only its own patches along."""
    plan, coords = layout.plan, layout.grid.coords
    images: list[Images] = []
    kept = []
    for row in rows:
        try:
            images.append(plan.read(slide, coords[row : row + 1])[0])
        except SlideError as error:
            if not isinstance(error.__cause__, DamagedTile):
                raise  # the drive is away, say: that is no damage
            continue
        kept.append(row)
    side = plan.size // look
    small = [shrunk(image[None], look) for image in images]
    small.append(np.empty((0, side, side, 3), np.uint8))
    damaged = len(rows) - len(kept)
    return Piece(np.array(kept, np.int64), np.concatenate(small), _made(layout), images, damaged)


def _copied(slide: SlideReader, layout: Layout, look: int, rows: Rows, tiles: Rows) -> Piece:
    """Tiles as the slide has them; only their small copies are decoded."""
    level = layout.plan.level
    codec = slide.tiles(level).codec  # type: ignore[union-attr]
    assert isinstance(codec, JpegCodec)
    side = layout.plan.size // look
    small = np.empty((len(rows), side, side, 3), np.uint8)
    whole = np.ones(len(rows), np.bool_)
    files: list[bytes] = []
    for i, data in enumerate(slide.tile_bytes(level, tiles.tolist())):
        try:
            file = codec.jpeg.whole(data)
            small[len(files)] = codec.pixels(file, look)
        except DamagedTile:
            whole[i] = False
        else:
            files.append(file)
    damaged = len(rows) - len(files)
    return Piece(rows[whole], small[: len(files)], COPIED, files, damaged)


def _made(layout: Layout) -> int:
    return NATIVE if layout.plan.native and layout.plan.shrink == 1 else RESAMPLED
