"""A heatmap for QuPath: every patch a tile with its measurements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pathgen import commit
from pathgen.exchange.files import spans
from pathgen.exchange.qupath import GZIP_ABOVE, number, square, tile_feature, write_collection
from pathgen.heatmap.result import Heatmap

#: One for all: colors are the viewer's, by measurement.
CLASS = "Attention tile"


def write_tiles(
    heatmap: Heatmap, path: Path, top: int | None = None, *, bounds_shift: bool = True
) -> Path:
    """The file; ``.gz`` is added to its name above `GZIP_ABOVE` tiles.

    Args:
        top: only the patches that weigh most.
        bounds_shift: count from the corner of the scanned part.

    Raises:
        DataError: PG-H03, the bounds are not known.
    """
    rows = np.arange(len(heatmap)) if top is None else np.sort(heatmap.top(top))
    if len(rows) > GZIP_ABOVE and path.suffix != ".gz":
        path = path.with_name(f"{path.name}.gz")
    shift = heatmap.place.shift(heatmap.slide) if bounds_shift else (0, 0)
    with commit.draft(path) as draft:
        # The draft's name ends as the file's does, by which it is compressed or not.
        write_collection(draft, _features(heatmap, rows, shift))
    return path


def _features(heatmap: Heatmap, rows: Any, shift: tuple[int, int]) -> Iterator[dict[str, Any]]:
    measures, place = heatmap.measurements(), heatmap.place
    for span in spans(len(rows)):
        part = rows[span]
        columns = {name: values[part].tolist() for name, values in measures.items()}
        corners = (place.coords[part] - np.asarray(shift)).tolist()
        for i, (row, (x, y)) in enumerate(zip(part.tolist(), corners, strict=True)):
            yield tile_feature(
                f"{heatmap.source}/{row}", square(x, y, *place.side), CLASS,
                {name: number(column[i]) for name, column in columns.items()},
            )  # fmt: skip
