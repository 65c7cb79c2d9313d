"""Many slides looked over, each beside the others."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pathgen.doctor.checkup import Checkup, Visit, examine, failed
from pathgen.errors import SlideError
from pathgen.progress import Progress, Silent
from pathgen.tiling.forecast import Forecast, forecast
from pathgen.tiling.inputs import find_slides
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.pool import Crashed, default_workers, run_all
from pathgen.tiling.readers.check import without_suffix
from pathgen.tiling.task import TileConfig, TileTask

#: Slides that have a picture whatever was found of them; others only where something was.
PICTURES = 48
_INNER = ("picture", "sample")


@dataclass(frozen=True)
class Diagnosis:
    """One `Checkup` an input, in the order of names."""

    slides: tuple[Checkup, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)
    """files passed over as no slides: suffix -> count"""
    forecast: Forecast | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Slides by state; ok + look + failed == slides."""
        states = Counter(slide.state for slide in self.slides)
        known = {state: states[state] for state in ("ok", "look", "failed")}
        return {
            "slides": len(self.slides), **known,
            "patches": sum(slide.patches for slide in self.slides),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without pictures."""
        return {
            "counts": self.counts, "ignored": dict(self.ignored),
            "forecast": self.forecast.to_dict() if self.forecast else None,
            "slides": [plain(slide) for slide in self.slides],
        }  # fmt: skip

    def to_csv(self) -> str:
        out = io.StringIO()
        names = [f.name for f in fields(Checkup) if f.name not in _INNER]
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain(slide) for slide in self.slides)
        return out.getvalue()


def plain(slide: Checkup) -> dict[str, Any]:
    values = asdict(replace(slide, picture=None, sample=None))
    return {name: value for name, value in values.items() if name not in _INNER}


def diagnose(
    slides: str | Path | Sequence[str | Path],
    config: TileConfig = TileConfig(),
    *,
    workers: int | None = None,
    limit: float | None = None,
    progress: Progress = Silent(),
) -> Diagnosis:
    """Look slides over before they are tiled. Nothing is written, and no label or macro is read.

    Of each level a few squares are decoded; tissue is found and some blocks are cut as `tile`
    would with `config`, for the counts, bytes and seconds. Slides are compared by the name of
    their files and by their content (`slide_identity`).

    Args:
        slides: folders, slide files, globs, CSV lists; see `find_slides`.
        workers: processes; None = one a core, 0 = in this process.
        limit: seconds after which a slide is given up (PG-S13); None = never.

    Raises:
        NoInputError: PG-N01, there are no slides. DataError: PG-N06, a list of them is wrong.
    """
    given, ignored = find_slides(slides)
    tasks = [TileTask(slide, Path(), config, plan=True) for slide in given]
    visits = [Visit(task, number < PICTURES) for number, task in enumerate(tasks)]
    count = default_workers() if workers is None else workers
    found: dict[int, Checkup] = {}
    with progress.task("doctor", len(visits)) as bar:
        for index, result in run_all(examine, visits, count, limit):
            if isinstance(result, Crashed):
                result = _crashed(tasks[index], result)
            found[index] = result
            bar.advance(note=result.slide + (": failed" if result.bad else ""))
    rows = _twins([found[i] for i in range(len(tasks))])
    sampled = [row.sample for row in rows if row.sample]
    counted = [LedgerRow(r.slide, "done", "", "", r.file, patches=r.patches) for r in rows]
    cost = forecast(counted, sampled, max(count, 1))
    return Diagnosis(tuple(map(_priced, rows)), ignored, cost)


def _crashed(task: TileTask, crash: Crashed) -> Checkup:
    error = SlideError(
        "reader crashed", code="PG-S13", where=task.slide.name, why=crash.why,
        hint="get a fresh copy",
    )  # fmt: skip
    return failed(Checkup(task.slide.name, task.slide.path.name, "ok"), error)


def _priced(row: Checkup) -> Checkup:
    """With bytes and seconds, by the blocks that were cut of the slide."""
    if row.sample is None:
        return row
    tried, _, size, seconds = np.reshape(row.sample["blocks"], (-1, 4)).sum(axis=0)
    share = row.patches / tried if tried else 0.0
    seconds = row.sample["overhead"] + seconds * share
    return replace(row, store_bytes=int(size * share), seconds=round(float(seconds), 2))


def _twins(rows: Sequence[Checkup]) -> list[Checkup]:
    """With the other slides of the same file name, and of the same content."""
    alone = [row for row in rows if row.reason != "same_slide"]
    names = _groups(alone, lambda row: without_suffix(row.file).casefold())
    contents = _groups((row for row in alone if row.identity), lambda row: row.identity)
    result = []
    for row in rows:
        same = ", ".join(other for other in names.get(row.slide, ()) if other != row.slide)
        twin = ", ".join(other for other in contents.get(row.slide, ()) if other != row.slide)
        told = [row.message] if row.message else []
        told += [f"Its content is that of {twin}."] if twin else []
        if twin and row.state == "ok":
            row = replace(row, state="look", reason="look")
        result.append(replace(row, same_name=same, same_content=twin, message=" ".join(told)))
    return result


def _groups(rows: Iterable[Checkup], key: Callable[[Checkup], str]) -> dict[str, list[str]]:
    """Slide -> the slides of its group, itself among them."""
    groups: dict[str, list[str]] = defaultdict(list)
    members = list(rows)
    for row in members:
        groups[key(row)].append(row.slide)
    return {row.slide: groups[key(row)] for row in members}
