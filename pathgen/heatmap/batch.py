"""`pathgen heatmap`: one slide after the other, each with a row in the ledger."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.errors import (
    DataError,
    NoInputError,
    PathgenError,
    SlideError,
    StorageError,
    StoreError,
)
from pathgen.evaluate.predictionfile import armored
from pathgen.heatmap.files import write_folder
from pathgen.heatmap.model import SlideModel
from pathgen.heatmap.result import Heatmap
from pathgen.heatmap.subjects import Subject
from pathgen.progress import Progress, Silent
from pathgen.tiling.inputs import safe_name

LEDGER = "heatmaps.csv"


@dataclass(frozen=True)
class Row:
    """What became of one slide."""

    slide: str
    state: str
    """done, empty or failed"""
    reason: str = "ok"
    """or the code of what went wrong"""
    message: str = ""
    patches: int = 0
    predicted: str = ""
    heads: str = ""
    folder: str = ""


@dataclass(frozen=True)
class HeatmapReport:
    """All rows, in the order of the slides."""

    out: Path
    rows: tuple[Row, ...]

    @property
    def counts(self) -> dict[str, int]:
        """slides, done, empty, failed; the last three add up to the first."""
        states = Counter(row.state for row in self.rows)
        return {
            "slides": len(self.rows), **{s: states[s] for s in ("done", "empty", "failed")}
        }  # fmt: skip

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.state != "done"]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain rows."""
        return [asdict(row) for row in self.rows]


def draw_heatmaps(
    model: SlideModel,
    subjects: Sequence[Subject],
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> HeatmapReport:
    """``out/<slide>/`` for each slide, and ``out/heatmaps.csv``. One bad slide does not end it.

    Raises:
        StorageError, BusyError: nothing can be written there.
    """
    out, progress = commit.writable_folder(Path(out)), progress or Silent()
    rows = []
    with commit.lock(out):
        commit.sweep(out)
        with progress.task("heatmaps", len(subjects)) as task:
            for subject in subjects:
                rows.append(_draw(model, subject, out, overwrite, progress))
                task.advance(note=subject.name)
        commit.write_text(out / LEDGER, ledger_text(rows))
    return HeatmapReport(out, tuple(rows))


def _draw(
    model: SlideModel, subject: Subject, out: Path, overwrite: bool, progress: Progress
) -> Row:
    name = safe_name(subject.name)
    try:
        heatmap = model.heatmap(subject, progress=progress)
        write_folder(heatmap, out / name, overwrite=overwrite)
    except (SlideError, StoreError, DataError, NoInputError) as error:
        return _bad(subject, error)
    except StorageError as error:
        if error.code != "PG-H07":  # a full disk is no matter of one slide
            raise
        return _bad(subject, error)
    return _good(subject, heatmap, name)


def _good(subject: Subject, heatmap: Heatmap, folder: str) -> Row:
    answer, voices = heatmap.answer, heatmap.voices
    return Row(
        subject.name, "done", "ok", "; ".join(heatmap.notes), len(heatmap), answer.predicted,
        f"{voices.seen}: {' '.join(voices.names)}", folder,
    )  # fmt: skip


def _bad(subject: Subject, error: PathgenError) -> Row:
    empty = error.code == "PG-H06"
    return Row(subject.name, "empty" if empty else "failed", error.code, str(error))


def ledger_text(rows: Sequence[Row]) -> str:
    """The rows as CSV; none of its cells is a formula."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = asdict(row)
        writer.writerow(cells | {k: armored(v) for k, v in cells.items() if isinstance(v, str)})
    return text.getvalue()
