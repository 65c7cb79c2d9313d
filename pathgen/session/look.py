"""One slide of a cohort, looked over without being tiled: what it is, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pathgen.errors import NoInputError, PathgenError, SlideError
from pathgen.tiling.ledger import printable
from pathgen.tiling.overview import best_level
from pathgen.tiling.probing import LARGE, READS, unreadable
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.readers.check import slide_identity, total_bytes
from pathgen.tiling.slide import scale_problem, slide_faults
from pathgen.tiling.task import TileTask
from pathgen.tiling.tissue import find_tissue

#: A mask is made for slides whose level for it has no more pixels: larger ones take too long.
READ_AT_MOST = 2**26


class Problem(NamedTuple):
    """One row of `Cohort.problems`."""

    slide: str
    code: str
    """of an error; ``note``, ``no_tissue`` or ``same_content`` of what only wants a look"""
    what: str
    to_do: str

    @classmethod
    def of(cls, slide: str, error: PathgenError) -> Problem:
        what = f"{error.what}: {error.why}" if error.why else error.what
        return cls(slide, error.code, printable(what), error.hint or "")


@dataclass(frozen=True)
class Look:
    """What was seen of one slide; what could not be known is None or empty."""

    slide: str
    file: str
    vendor: str = ""
    reader: str = ""
    width: int | None = None
    height: int | None = None
    levels: int | None = None
    mpp: float | None = None
    mpp_source: str = ""
    objective: float | None = None
    tissue_mm2: float | None = None
    bytes: int | None = None
    label: str | None = None
    patient: str | None = None
    part_of: str = ""
    """the slide that this file is a part of: another instance of its DICOM series"""
    problems: tuple[Problem, ...] = ()
    identity: str = field(default="", repr=False)
    readable: bool = False
    """it could be opened"""


def look(task: TileTask) -> Look:
    """Look one slide over: open it, read a little of each level, find its tissue.

    What is wrong with it is in the result, not raised.
    """
    name = task.slide.name
    found = Look(name, printable(task.slide.path.name), **task.known)
    try:
        if task.slide.problem:
            raise task.slide.problem
        if task.slide.same_as:
            return replace(found, part_of=task.slide.same_as)
        found = replace(found, identity=slide_identity(task.slide.path))
        with task.open() as slide:
            found = _facts(task, slide, found)
            return _looked(slide, found)
    except (NoInputError, SlideError) as error:
        return replace(found, problems=(*found.problems, Problem.of(name, error)))
    except Exception as error:  # a bug or a library's; the other slides go on
        what = f"slide could not be looked over: {type(error).__name__}: {error}"
        told = Problem(name, "PG-S00", printable(what), "try `pathgen info` on it, with -v")
        return replace(found, problems=(*found.problems, told))


def _facts(task: TileTask, slide: BaseReader, found: Look) -> Look:
    header, scale = slide.header, slide.override or slide.header.scale
    if scale is not None and scale_problem(scale):
        scale = None  # one of its problems says so
    return replace(
        found, vendor=header.vendor, reader=slide.reader, width=header.size[0],
        height=header.size[1], levels=len(header.level_sizes),
        mpp=scale.mean if scale else None, mpp_source=scale.source if scale else "",
        objective=header.objective, bytes=total_bytes(task.slide.path), readable=True,
    )  # fmt: skip


def _looked(slide: BaseReader, found: Look) -> Look:
    problems = list(_problems(slide, found.slide))
    area = None
    if not any(problem.code.startswith("PG-") for problem in problems):
        coarse = slide.level_sizes[best_level(slide, (8 / slide.mpp, 8 / slide.mpp))]
        if coarse[0] * coarse[1] <= READ_AT_MOST:
            try:
                area = find_tissue(slide).area_mm2
            except SlideError as error:
                problems.append(Problem.of(found.slide, error))
    if area == 0:
        what = "no tissue found"
        problems.append(Problem(found.slide, "no_tissue", what, "look at its thumbnail"))
    return replace(
        found, problems=tuple(problems), tissue_mm2=None if area is None else round(area, 3)
    )  # fmt: skip


def _problems(slide: BaseReader, name: str) -> Iterator[Problem]:
    damaged = False
    for fault in slide_faults(slide):
        damaged |= isinstance(fault, PathgenError) and fault.code == "PG-S04"
        if isinstance(fault, PathgenError):
            yield Problem.of(name, fault)
        else:
            yield Problem(name, "note", printable(fault), "check before tiling")
    bad = [] if damaged else list(unreadable(slide))
    if bad:
        asked = READS * len(slide.level_sizes)
        what = f"{len(bad)} of {asked} samples cannot be decoded: {bad[0]}"
        yield Problem(name, "PG-S04", what, "the file is damaged there; get a fresh copy")
    if len(slide.level_sizes) == 1 and slide.size[0] * slide.size[1] > LARGE:
        what = "no smaller levels: finding tissue means to decode all of it"
        yield Problem(name, "note", what, "convert it to a pyramid")
