"""The kept patches of one slide: decoded no more than needed, scored small, encoded or copied.

Scores are measured on a small copy of each patch. Where the patches are tiles of the slide as they
stand, that copy is decoded at a fraction of the size and nothing else is: what is stored are the
bytes of the slide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.stores.codec import encode_patch
from pathgen.stores.patches import COPIED
from pathgen.tiling.layout import Layout, Tally
from pathgen.tiling.pieces import Images, Piece, Ready, strips
from pathgen.tiling.quality import QUALITIES, quality_scores
from pathgen.tiling.readers.tiles import SHRINKS
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.stain import SCORE_MPP, halvings, stain_scores
from pathgen.tiling.task import LIMITS, TileConfig

#: Scores of a patch are measured on a copy of about this many microns per pixel.
LOOK_MPP = 1.0

#: Columns of the kept patches of a piece, if any are, and what became of all of them.
Judged = tuple[dict[str, Any] | None, Tally]


class Preparation(Protocol):
    """What is done to the pixels of patches before they are stored, after they were scored."""

    def apply(self, images: Images) -> Images:
        """RGB uint8 (n, size, size, 3) to the same."""
        ...


@dataclass
class Cutter:
    """Goes through the patches of a layout once, in grid order within each batch."""

    slide: SlideReader
    layout: Layout
    config: TileConfig
    preparation: Preparation | None = None
    threads: int = 1
    """decoding, scoring and encoding; more of them change no byte"""
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        mpp = self.layout.plan.mpp
        self.look = halvings(LOOK_MPP / mpp, max(SHRINKS))
        self.coarse = halvings(SCORE_MPP / mpp, 2 * max(SHRINKS)) // self.look

    def batches(self) -> Iterator[dict[str, Any]]:
        """The kept patches with their columns."""
        for found in self._worked(strips(self.slide, self.layout, self.look, self._may_copy)):
            for _, counts in found:
                self.tally.add(counts)
            kept = [columns for columns, _ in found if columns is not None]
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

    def _worked(self, groups: Iterator[list[Ready]]) -> Iterator[list[Judged]]:
        """Each group judged, in order; a few groups ahead where there are threads for it."""
        if self.threads == 1:
            for group in groups:
                yield [self._judged(piece()) for piece in group]
            return
        waiting: deque[list[Future[Judged]]] = deque()
        pool = ThreadPoolExecutor(self.threads)
        try:
            for group in groups:
                waiting.append([pool.submit(self._of, piece) for piece in group])
                if len(waiting) > self.threads:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _of(self, piece: Ready) -> Judged:
        return self._judged(piece())

    def _judged(self, piece: Piece) -> Judged:
        """The columns of those that pass the filters, None when none does; and the counts."""
        glass = self.layout.background
        scores = stain_scores(piece.small, self.coarse, glass)
        scores |= quality_scores(piece.small, self.layout.plan.mpp * self.look, glass)
        stained = scores["hematoxylin"] >= self.config.min_hematoxylin
        good = stained & self._sound(scores)
        counts = Tally(
            stain=int((~stained).sum()), quality=int((stained & ~good).sum()),
            damaged=piece.damaged, kept=int(good.sum()),
        )  # fmt: skip
        if not good.any():
            return None, counts
        at, grid, classes = piece.rows[good], self.layout.grid, self.layout.classes
        columns = {
            "at": at, "image": self._encoded(piece, good), "coords": grid.coords[at],
            "grid": grid.cells[at], "tissue": self.layout.tissue[at],
            **({} if classes is None or not classes.shape[1] else {"classes": classes[at]}),
            "made": np.full(len(at), piece.made, np.uint8),
            **{name: values[good] for name, values in scores.items()},
        }  # fmt: skip
        return columns, counts

    @property
    def _may_copy(self) -> bool:
        config = self.config
        return config.copy_tiles and config.codec == "jpeg" and self.preparation is None

    def _encoded(self, piece: Piece, good: NDArray[np.bool_]) -> list[bytes]:
        if piece.made == COPIED:
            return [piece.stored[i] for i in np.flatnonzero(good).tolist()]
        images = [piece.stored[i] for i in np.flatnonzero(good).tolist()]
        if self.preparation is not None:
            images = list(self.preparation.apply(np.stack(images)))
        return [encode_patch(image, self.config.codec, self.config.quality) for image in images]

    def _sound(self, scores: Mapping[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
        """Which patches pass the limits of quality."""
        good = np.ones(len(next(iter(scores.values()))), np.bool_)
        for limit, name in LIMITS.items():
            if name in QUALITIES:
                value = getattr(self.config, limit)
                good &= scores[name] >= value if limit.startswith("min") else scores[name] <= value
        return good


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
