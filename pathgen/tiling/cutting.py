"""The kept patches of one slide: decoded no more than needed, scored small, encoded or copied.

Scores are measured on a small copy of each patch. Where the patches are tiles of the slide as they
stand, that copy is decoded at a fraction of the size and nothing else is: what is stored are the
bytes of the slide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.stores.codec import encode_patch
from pathgen.stores.patches import COPIED, NATIVE, RESAMPLED
from pathgen.tiling.layout import Layout, Tally
from pathgen.tiling.quality import QUALITIES, quality_scores
from pathgen.tiling.readers.tilejpeg import DamagedTile
from pathgen.tiling.readers.tiles import SHRINKS, JpegCodec, TiledLevel
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.stain import SCORE_MPP, halvings, shrunk, stain_scores
from pathgen.tiling.task import LIMITS, TileConfig

#: Scores of a patch are measured on a copy of about this many microns per pixel.
LOOK_MPP = 1.0
#: Bytes of decoded patches held at once.
PIECE_BYTES = 48 * 2**20
#: and at most this many patches.
PIECE = 256

Images = NDArray[np.uint8]


class Preparation(Protocol):
    """What is done to the pixels of patches before they are stored, after they were scored."""

    def apply(self, images: Images) -> Images:
        """RGB uint8 (n, size, size, 3) to the same."""
        ...


@dataclass(frozen=True)
class _Piece:
    """Some patches that were looked at: which, their small copies, and how to store them."""

    rows: NDArray[np.int64]
    small: Images
    made: int
    stored: Any
    """pixels (n, size, size, 3), or the bytes of each"""

    def encoded(self, good: NDArray[np.bool_], cutter: Cutter) -> list[bytes]:
        if self.made == COPIED:
            return [self.stored[i] for i in np.flatnonzero(good)]
        images = self.stored[good]
        if cutter.preparation is not None and len(images):
            images = cutter.preparation.apply(images)
        config = cutter.config
        return [encode_patch(image, config.codec, config.quality) for image in images]


@dataclass
class Cutter:
    """Goes through the patches of a layout once, in grid order within each batch."""

    slide: SlideReader
    layout: Layout
    config: TileConfig
    preparation: Preparation | None = None
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        mpp = self.layout.plan.mpp
        self.look = halvings(LOOK_MPP / mpp, max(SHRINKS))
        self.coarse = halvings(SCORE_MPP / mpp, 2 * max(SHRINKS)) // self.look

    def batches(self) -> Iterator[dict[str, Any]]:
        """The kept patches with their columns."""
        for pieces in self._strips():
            kept = [columns for piece in pieces if (columns := self._judged(piece)) is not None]
            if not kept:
                continue
            at = np.concatenate([columns["at"] for columns in kept])
            order = np.argsort(at)
            images = [image for columns in kept for image in columns["image"]]
            joined = {
                name: np.concatenate([columns[name] for columns in kept])[order]
                for name in kept[0] if name not in ("at", "image")
            }  # fmt: skip
            yield {"image": [images[i] for i in order], **joined}

    def _judged(self, piece: _Piece) -> dict[str, Any] | None:
        """The columns of those that pass the filters; None when none does."""
        glass = self.layout.background
        scores = stain_scores(piece.small, self.coarse, glass)
        scores |= quality_scores(piece.small, self.layout.plan.mpp * self.look, glass)
        stained = scores["hematoxylin"] >= self.config.min_hematoxylin
        good = stained & self._sound(scores)
        self.tally.stain += int((~stained).sum())
        self.tally.quality += int((stained & ~good).sum())
        self.tally.kept += int(good.sum())
        if not good.any():
            return None
        at, grid, classes = piece.rows[good], self.layout.grid, self.layout.classes
        return {
            "at": at, "image": piece.encoded(good, self), "coords": grid.coords[at],
            "grid": grid.cells[at], "tissue": self.layout.tissue[at],
            **({} if classes is None or not classes.shape[1] else {"classes": classes[at]}),
            "made": np.full(len(at), piece.made, np.uint8),
            **{name: values[good] for name, values in scores.items()},
        }  # fmt: skip

    def _sound(self, scores: Mapping[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
        """Which patches pass the limits of quality."""
        good = np.ones(len(next(iter(scores.values()))), np.bool_)
        for limit, name in LIMITS.items():
            if name in QUALITIES:
                value = getattr(self.config, limit)
                good &= scores[name] >= value if limit.startswith("min") else scores[name] <= value
        return good

    def _strips(self) -> Iterator[Iterator[_Piece]]:
        """Pieces in groups whose rows are put in order before they are stored."""
        plan, grid = self.layout.plan, self.layout.grid
        tiled = self.slide.tiles(plan.level)
        if tiled is None:
            for strip in grid.strips(plan):
                yield (self._decoded(rows) for rows in strip)
            return
        whole = plan.whole_tiles(self.slide, grid.coords) if self._may_copy(tiled) else None
        step = 3 * plan.size**2 if whole is None else 3 * (plan.size // self.look) ** 2
        count = int(np.clip(PIECE_BYTES // step, 1, PIECE))
        for start in range(0, len(grid), count):
            rows = np.arange(start, min(start + count, len(grid)))
            if whole is None:
                yield iter([self._decoded_singly(rows)])
            else:
                yield iter([self._copied(rows, whole[rows], tiled)])

    def _may_copy(self, tiled: TiledLevel) -> bool:
        asked = self.config.copy_tiles and self.config.codec == "jpeg" and self.preparation is None
        return asked and isinstance(tiled.codec, JpegCodec)

    def _decoded(self, rows: NDArray[np.int64]) -> _Piece:
        plan = self.layout.plan
        images = plan.read(self.slide, self.layout.grid.coords[rows])
        return _Piece(rows, shrunk(images, self.look), self._made, images)

    def _decoded_singly(self, rows: NDArray[np.int64]) -> _Piece:
        """Patch by patch, so that a damaged tile takes only its own patches along."""
        plan, coords = self.layout.plan, self.layout.grid.coords
        images = np.empty((len(rows), plan.size, plan.size, 3), np.uint8)
        whole = np.ones(len(rows), np.bool_)
        for i, row in enumerate(rows):
            try:
                images[i] = plan.read(self.slide, coords[row : row + 1])[0]
            except SlideError:
                whole[i] = False
        if not whole.all():
            self.tally.damaged += int((~whole).sum())
            rows, images = rows[whole], images[whole]
        return _Piece(rows, shrunk(images, self.look), self._made, images)

    @property
    def _made(self) -> int:
        return NATIVE if self.layout.plan.native else RESAMPLED

    def _copied(
        self, rows: NDArray[np.int64], indices: NDArray[np.int64], tiled: TiledLevel
    ) -> _Piece:
        """Tiles as the slide has them; only their small copies are decoded."""
        codec = tiled.codec
        assert isinstance(codec, JpegCodec)
        side = self.layout.plan.size // self.look
        small = np.empty((len(rows), side, side, 3), np.uint8)
        files: list[bytes] = []
        whole = np.ones(len(rows), np.bool_)
        data = self.slide.tile_bytes(self.layout.plan.level, indices.tolist())
        for i, one in enumerate(data):
            try:
                file = codec.jpeg.whole(one)
                small[len(files)] = codec.pixels(file, self.look)
            except DamagedTile:
                whole[i] = False
            else:
                files.append(file)
        self.tally.damaged += len(rows) - len(files)
        return _Piece(rows[whole], small[: len(files)], COPIED, files)


def check_damage(slide: SlideReader, layout: Layout, tally: Tally, config: TileConfig) -> None:
    """Raises SlideError PG-S04 when damaged tiles took more patches along than allowed."""
    share = tally.damaged / max(1, len(layout.grid))
    if share > config.max_damaged:
        raise SlideError(
            "slide cannot be decoded", code="PG-S04", where=slide.name,
            why=f"{tally.damaged:,} of {len(layout.grid):,} patches with tissue lie on damaged "
            f"tiles; {config.max_damaged:.2%} are allowed",
            hint="get a fresh copy, or go without these: --set max_damaged=0.05",
        )  # fmt: skip
