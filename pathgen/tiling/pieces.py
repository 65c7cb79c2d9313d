"""Patches as they come from the slide, some at a time: decoded, or its own tiles as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.stores.patches import COPIED, NATIVE, RESAMPLED
from pathgen.tiling.layout import Layout, Tally
from pathgen.tiling.readers.tilejpeg import DamagedTile
from pathgen.tiling.readers.tiles import JpegCodec
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.stain import shrunk

#: Bytes of decoded patches held at once,
PIECE_BYTES = 48 * 2**20
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
    stored: Any
    """pixels (n, size, size, 3); of copied tiles the bytes of each"""


def strips(
    slide: SlideReader, layout: Layout, look: int, may_copy: bool, tally: Tally
) -> Iterator[list[Piece]]:
    """All patches once, in groups; rows of a later group come after those of an earlier one.

    Args:
        look: by what the small copies are smaller.
        may_copy: whether tiles of the slide may be stored as they stand.
        tally: gets the patches that lie on damaged tiles, which are in no piece.
    """
    plan, grid = layout.plan, layout.grid
    tiled = slide.tiles(plan.level)
    if tiled is None:
        for strip in grid.strips(plan):
            yield [_of_block(slide, layout, look, rows) for rows in strip]
        return
    tiles = np.full(len(grid), -1, np.int64)
    if may_copy and isinstance(tiled.codec, JpegCodec):
        tiles = plan.whole_tiles(slide, grid.coords)
    count = int(np.clip(PIECE_BYTES // (3 * plan.size**2), 1, PIECE))
    for start in range(0, len(grid), count):
        rows = np.arange(start, min(start + count, len(grid)))
        copied = tiles[rows] >= 0
        pieces = []
        if copied.any():
            pieces.append(_copied(slide, layout, look, rows[copied], tiles[rows[copied]], tally))
        if not copied.all():
            pieces.append(_one_by_one(slide, layout, look, rows[~copied], tally))
        yield pieces


def _of_block(slide: SlideReader, layout: Layout, look: int, rows: Rows) -> Piece:
    images = layout.plan.read(slide, layout.grid.coords[rows])
    return Piece(rows, shrunk(images, look), _made(layout), images)


def _one_by_one(slide: SlideReader, layout: Layout, look: int, rows: Rows, tally: Tally) -> Piece:
    """So that a damaged tile takes only its own patches along."""
    plan, coords = layout.plan, layout.grid.coords
    images = np.empty((len(rows), plan.size, plan.size, 3), np.uint8)
    whole = np.ones(len(rows), np.bool_)
    for i, row in enumerate(rows):
        try:
            images[i] = plan.read(slide, coords[row : row + 1])[0]
        except SlideError:
            whole[i] = False
    if not whole.all():
        tally.damaged += int((~whole).sum())
        rows, images = rows[whole], images[whole]
    return Piece(rows, shrunk(images, look), _made(layout), images)


def _copied(
    slide: SlideReader, layout: Layout, look: int, rows: Rows, tiles: Rows, tally: Tally
) -> Piece:
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
    tally.damaged += len(rows) - len(files)
    return Piece(rows[whole], small[: len(files)], COPIED, files)


def _made(layout: Layout) -> int:
    return NATIVE if layout.plan.native else RESAMPLED
