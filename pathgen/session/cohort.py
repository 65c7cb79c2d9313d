"""Many slides: what is there, and what is wrong with it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathgen import commit
from pathgen.errors import NoInputError
from pathgen.progress import Progress, counted
from pathgen.session.look import Look, Problem, look
from pathgen.session.shown import Shown, html_table, joined
from pathgen.session.slide import Slide
from pathgen.session.tables import frame
from pathgen.tiling.inputs import SlideInput, find_slides
from pathgen.tiling.pool import Crashed, default_workers, run_all
from pathgen.tiling.task import TileConfig, TileTask

if TYPE_CHECKING:
    import pandas

#: Of a `Look`, what a table has; `problems` is the codes.
COLUMNS = (
    "slide", "file", "vendor", "reader", "width", "height", "levels", "mpp", "mpp_source",
    "objective", "tissue_mm2", "bytes", "label", "patient", "part_of",
    "problems",
)  # fmt: skip
#: What readers say where no scanner is known.
NO_VENDOR = frozenset(
    {"", "generic-tiff", "plain-tiff", "plain-png", "plain-jpeg", "dicom", "ome-tiff", "ome-zarr"}
)
PROBLEMS = ("slide", "code", "what", "what to do")


class Cohort(Shown):
    """Slides in the order of their names, each looked over once.

    A slide that cannot be used is in it too, with its problem.
    """

    def __init__(
        self, given: Sequence[str | Path], slides: Sequence[SlideInput], looks: Sequence[Look],
        ignored: Mapping[str, int], slide_mpp: float | None = None,
    ) -> None:  # fmt: skip
        self.given = tuple(given)
        """what it was opened from, for `tile`"""
        self.looks = tuple(looks)
        self.ignored = dict(ignored)
        """files passed over as no slides: suffix -> count"""
        self.slide_mpp = slide_mpp
        """microns per level-0 pixel of slides that say none that can be"""
        self._inputs = {slide.name: slide for slide in slides}

    @property
    def line(self) -> str:
        """``128 slides · 3 problems · 0.25-0.50 um/px · 4 scanner vendors``."""
        bad = sum(len(one.problems) for one in self.looks)
        vendors = {one.vendor for one in self.looks} - NO_VENDOR
        slides = [one for one in self.looks if not one.part_of]
        area = sum(one.tissue_mm2 or 0.0 for one in self.looks)
        return joined([
            counted(len(slides), "slide"), counted(bad, "problem"), _scales(self.looks),
            counted(len(vendors), "scanner vendor") if vendors else "",
            f"{area:,.0f} mm2 of tissue" if area >= 10 else f"{area:.1f} mm2 of tissue",
        ])  # fmt: skip

    def html(self) -> str:
        rows = [one for look_ in self.looks for one in look_.problems]
        return html_table(PROBLEMS, rows) if rows else ""

    @property
    def names(self) -> tuple[str, ...]:
        """Ids of the slides."""
        return tuple(one.slide for one in self.looks if not one.part_of)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Slide:
        """One slide by its id.

        Raises:
            NoInputError: PG-N01, there is none of that name. SlideError: it cannot be opened.
        """
        if name not in self._inputs:
            raise NoInputError(
                "no such slide in the cohort", where=name, why=f"it has {self.line}",
                hint="cohort.names lists them",
            )  # fmt: skip
        slide = self._inputs[name]
        if slide.problem:
            raise slide.problem
        return Slide(slide.path, mpp=slide.mpp, slide_mpp=self.slide_mpp, name=name)

    def __iter__(self) -> Iterator[Slide]:
        """The slides that can be opened."""
        return (self[one.slide] for one in self.looks if one.readable)

    def problems(self) -> pandas.DataFrame:
        """One row a problem: slide, code, what, what to do."""
        rows = [one for look_ in self.looks for one in look_.problems]
        return frame([dict(zip(PROBLEMS, row, strict=True)) for row in rows], PROBLEMS)

    def table(self) -> pandas.DataFrame:
        """One row a slide, indexed by its id; `problems` holds the codes, with spaces between."""
        whole = dict.fromkeys(("width", "height", "levels", "bytes"), "Int64")
        return frame(self._rows(), COLUMNS, index="slide").astype(whole)

    def to_csv(self, path: str | Path) -> Path:
        """Write `table` as CSV, whole or not at all; returns where it is."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._rows())
        path = Path(path)
        commit.write_text(path, text.getvalue())
        return path

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {**asdict(one), "problems": " ".join(problem.code for problem in one.problems)}
            for one in self.looks
        ]


def open_cohort(
    given: Sequence[str | Path], *, slide_mpp: float | None, workers: int | None,
    progress: Progress,
) -> Cohort:  # fmt: skip
    """Find slides and look each over, in processes that one bad file cannot take along.

    Raises:
        NoInputError: PG-N01, no slide is there. DataError: PG-N06, a list of slides is wrong.
    """
    slides, ignored = find_slides(given)
    tasks = [TileTask(slide, Path(), TileConfig(slide_mpp=slide_mpp)) for slide in slides]
    count = min(default_workers(), len(tasks)) if workers is None else workers
    looks: dict[int, Look] = {}
    with progress.task("look", len(tasks)) as bar:
        for index, result in run_all(look, tasks, count):
            if isinstance(result, Crashed):
                result = _crashed(tasks[index], result)
            looks[index] = result
            bar.advance(note=result.slide)
    return Cohort(given, slides, _twins([looks[i] for i in range(len(tasks))]), ignored, slide_mpp)


def _crashed(task: TileTask, crash: Crashed) -> Look:
    what = f"reader crashed: {crash.why}"
    problem = Problem(task.slide.name, "PG-S13", what, "get a fresh copy")
    return Look(task.slide.name, task.slide.path.name, problems=(problem,), **task.known)


def _twins(looks: Sequence[Look]) -> list[Look]:
    """With a problem where two slides are the same file under another name."""
    same: dict[str, list[str]] = defaultdict(list)
    for one in looks:
        if one.identity:
            same[one.identity].append(one.slide)
    result = []
    for one in looks:
        others = ", ".join(name for name in same.get(one.identity, ()) if name != one.slide)
        if others:
            told = Problem(one.slide, "same_content", f"its content is that of {others}",
                           "keep one of them")  # fmt: skip
            one = replace(one, problems=(*one.problems, told))
        result.append(one)
    return result


def _scales(looks: Sequence[Look]) -> str:
    known = np.array([one.mpp for one in looks if one.mpp is not None])
    if not len(known):
        return "unknown um/px"
    low, high = f"{known.min():.2f}", f"{known.max():.2f}"
    return f"{low} um/px" if low == high else f"{low}-{high} um/px"
