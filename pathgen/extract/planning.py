"""What an extraction would do: patches to encode, and the bytes of their vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathgen.extract.bench import Bench
from pathgen.extract.config import ExtractConfig
from pathgen.extract.encoding import encodings
from pathgen.extract.flow import origins_of
from pathgen.extract.inputs import Given
from pathgen.extract.origins import Slide
from pathgen.progress import Progress, Silent
from pathgen.tiling.layout import Layout
from pathgen.tiling.task import TileConfig


@dataclass(frozen=True)
class ExtractPlan:
    """Of one encoder. Patches of slides are those with enough tissue; filters may drop some."""

    encoder: str
    dim: int
    sources: int
    there: int
    """sources that an earlier run finished"""
    failed: int
    """sources that cannot be read"""
    left: int
    """patches to encode"""
    megabytes: float
    """of their vectors"""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_extraction(
    encoders: Sequence[Any],
    patches: Given,
    out: Path,
    config: ExtractConfig,
    *,
    tile: TileConfig | None = None,
    masks: str | Path | None = None,
    weights: Path | None = None,
    progress: Progress | None = None,
) -> list[ExtractPlan]:
    """A plan for each encoder; nothing is written. Raises as `extract`."""
    origins = origins_of(patches, out, tile, config, masks)
    bench = Bench(encodings(encoders, config, weights), out)
    pieces = [bench.piece(origin) for origin in origins]
    counts = []
    say = (progress or Silent()).say
    with (progress or Silent()).task("plan", len(pieces)) as bar:
        for piece in pieces:
            piece.look(overwrite=False)
            for error in piece.errors:
                say(str(error))
            counts.append(0 if piece.is_settled else _patches(piece.origin, say))
            bar.advance(note=piece.origin.name)
    plans = []
    for i, (name, dim, _) in enumerate(bench.heads):
        rows = [piece.rows.get(i) for piece in pieces]
        left = sum(max(n, 0) for n, row in zip(counts, rows, strict=True) if row is None)
        plans.append(
            ExtractPlan(
                name, dim, len(pieces),
                there=sum(row is not None and row.store is not None for row in rows),
                failed=sum(row is not None and row.state == "failed" for row in rows)
                + sum(n < 0 for n in counts),
                left=left,
                megabytes=round(left * dim * np.dtype(config.dtype).itemsize / 2**20, 1),
            )
        )  # fmt: skip
    return plans


def _patches(origin: Any, say: Callable[[str], None]) -> int:
    """How many; -1 of a slide that cannot be read, which is said with its reason."""
    from pathgen.errors import PathgenError

    if not isinstance(origin, Slide):
        return int(origin.weight)
    task = origin.task
    if task.slide.problem is not None:
        say(str(task.slide.problem))
        return -1
    if task.slide.same_as or (task.slide.unmasked and task.config.masks.missing == "skip"):
        return 0
    try:
        with task.open() as slide:
            return len(Layout.of(slide, task).grid)
    except PathgenError as error:
        say(str(error))
        return -1
