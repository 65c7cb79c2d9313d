"""What tiling would cost, from blocks that were cut for the purpose on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.progress import counted
from pathgen.tiling.cutting import Cutter
from pathgen.tiling.layout import Layout
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.preparation import Preparation, prepare
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.task import TileConfig, TileTask
from pathgen.tiling.tiler import row_unopened

#: Slides of which blocks are cut,
SLIDES = 24
#: so many of each,
BLOCKS = 4
#: with so many patches at most.
BLOCK = 64
#: A machine is not always equally fast, and the store is still to be written: never less than
#: this, relative, is said to be uncertain.
LEAST_SPREAD = 0.25


@dataclass(frozen=True)
class Forecast:
    """What the planned work would take. Seconds are of the whole run with its workers."""

    bytes: int
    """of the stores, about"""
    seconds: float
    low: float
    high: float
    """between these in most cases: the fast and the slow tenth of the blocks cut"""
    slides: int
    """of which blocks were cut"""
    blocks: int
    workers: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "bytes": self.bytes, "seconds": round(self.seconds, 1), "low": round(self.low, 1),
            "high": round(self.high, 1), "sampled_slides": self.slides,
            "sampled_blocks": self.blocks, "workers": self.workers,
        }  # fmt: skip

    def sentence(self) -> str:
        """``2 to 3 minutes with 2 workers, ...``."""
        low, high = minutes(self.low), minutes(self.high)
        if low.split()[1].rstrip("s") == high.split()[1].rstrip("s"):
            low = low.split()[0]
        span = high if low in high.split() else f"{low} to {high}"
        with_ = f" with {self.workers} workers" if self.workers > 1 else ""
        slides = "a slide" if self.slides == 1 else f"{self.slides} slides"
        blocks = counted(self.blocks, "block")
        were = "was" if self.blocks == 1 else "were"
        return (
            f"It takes {span}{with_}, going by {blocks} of {slides} that {were} cut now; "
            "a busier machine or disk takes longer."
        )


def minutes(seconds: float) -> str:
    """``40 seconds``, ``3 minutes``, ``1.5 hours``; rounded up, as no more is known."""
    if seconds < 90:
        return counted(max(math.ceil(seconds), 1), "second")
    if seconds < 5400:
        return counted(math.ceil(seconds / 60), "minute")
    return f"{seconds / 3600:.1f} hours"


def plan_slide(task: TileTask, sample: bool) -> tuple[LedgerRow, dict[str, Any] | None]:
    """The row a slide would have without the stain filter, and what cutting some of it took.

    Returns:
        The row, and ``{"overhead": seconds to open it and find tissue, "blocks": [[patches,
        kept, bytes, seconds], ...]}``; None for a slide that is not opened.

    Raises:
        NoInputError, SlideError: as `tile_slide`, so far as they show before all is read.
    """
    row = row_unopened(task)
    if row is not None:
        return row, None
    start = time.perf_counter()
    with task.open() as slide:
        task.provenance(slide.mpp_source)
        layout = Layout.of(slide, task)
        preparation = prepare(slide, layout, task.config)
        row = layout.row(task, slide, None, preparation.messages)
        steps = preparation if preparation.steps else None
        overhead = time.perf_counter() - start
        blocks = [
            _cut(slide, layout, task.config, steps, rows) for rows in _some(layout, sample)
        ]  # fmt: skip
    return row, {"overhead": overhead, "blocks": blocks}


def _some(layout: Layout, sample: bool) -> list[NDArray[np.int64]]:
    """Rows of a few blocks, evenly over those that the tiler reads at once."""
    if not sample or not len(layout.grid):
        return []
    pieces = [piece for strip in layout.grid.strips(layout.plan) for piece in strip]
    chosen = np.unique(np.linspace(0, len(pieces) - 1, BLOCKS + 2).round().astype(int)[1:-1])
    return [pieces[at][:BLOCK] for at in chosen]


def _cut(
    slide: SlideReader, layout: Layout, config: TileConfig, preparation: Preparation | None,
    rows: NDArray[np.int64],
) -> list[float]:  # fmt: skip
    part = layout.only(rows)
    start = time.perf_counter()
    cutter = Cutter(slide, part, config, preparation)
    images = [image for batch in cutter.batches() for image in batch["image"]]
    return [len(rows), len(images), sum(map(len, images)), time.perf_counter() - start]


def sampled(count: int) -> frozenset[int]:
    """Which of `count` slides are cut from: some, evenly over the list."""
    return frozenset(np.unique(np.linspace(0, count - 1, min(count, SLIDES)).round()).astype(int))


def forecast(
    rows: Sequence[LedgerRow], samples: Sequence[Mapping[str, Any]], workers: int
) -> Forecast | None:
    """What tiling `rows` would take; None where no block could be cut.

    The time of a patch is that of the sampled blocks, and so are the share that passes the stain
    filter and its bytes. What slides cost before the first patch was measured on each.
    """
    cut = np.array([block for sample in samples for block in sample["blocks"]], float)
    cut = cut.reshape(-1, 4)
    if not len(cut):
        return None
    patches = sum(row.patches for row in rows)
    overhead = sum(sample["overhead"] for sample in samples)
    tried, _, size, seconds = cut.sum(axis=0)
    rate = seconds / tried
    low, high = np.quantile(cut[:, 3] / cut[:, 0], [0.1, 0.9])
    processes = max(min(workers, len(rows)), 1)

    def whole(each: float) -> float:
        return float(overhead + patches * each) / processes

    return Forecast(
        bytes=int(patches * size / tried) + len(rows) * 20_000,
        seconds=whole(rate), low=whole(min(low, rate / (1 + LEAST_SPREAD))),
        high=whole(max(high, rate * (1 + LEAST_SPREAD))),
        slides=sum(bool(sample["blocks"]) for sample in samples), blocks=len(cut),
        workers=processes,
    )  # fmt: skip
