"""One slide looked over: samples of all its levels read, its facts, what tiling would take."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pathgen.errors import NoInputError, PathgenError, SlideError, sentence
from pathgen.tiling.color import color_profile, describe_profile
from pathgen.tiling.forecast import plan_slide
from pathgen.tiling.layout import Layout
from pathgen.tiling.ledger import LedgerRow, printable
from pathgen.tiling.overview import draw_thumbnail, read_overview
from pathgen.tiling.probing import LARGE, READS, unreadable
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.readers.check import slide_identity, total_bytes
from pathgen.tiling.slide import slide_problems
from pathgen.tiling.task import TileTask

#: Longer side of a picture in pixels.
PICTURE = 360

State = Literal["ok", "look", "failed"]


@dataclass(frozen=True)
class Checkup:
    """What was found of one slide; one line of doctor.csv, without `picture` and `sample`."""

    slide: str
    file: str
    state: State
    """``look``: it can be tiled, but a person should know of `message`"""
    reason: str = "ok"
    """``ok``, ``look``, ``no_tissue``, ``too_small`` ..., or an error code"""
    message: str = ""
    vendor: str = ""
    reader: str = ""
    width: int | None = None
    height: int | None = None
    levels: str = ""
    """downsample of each, as ``1 4 16``"""
    scanned: float | None = None
    """share of the slide's area inside its bounds"""
    mpp: float | None = None
    mpp_source: str = ""
    objective: float | None = None
    profile: str = ""
    """name of the color profile (ICC); empty where there is none"""
    file_bytes: int | None = None
    reads: int = 0
    """samples asked for"""
    readable: int = 0
    """samples that could be decoded"""
    candidates: int = 0
    patches: int = 0
    """with enough tissue, before the stain filter"""
    store_bytes: int = 0
    seconds: float = 0.0
    """to tile it, of one worker"""
    same_name: str = ""
    """other slides whose files have this name"""
    same_content: str = ""
    """other slides that are the same file under another name"""
    identity: str = ""
    picture: bytes | None = field(default=None, repr=False)
    """JPEG, made from the pyramid: never a label or macro image"""
    sample: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def bad(self) -> bool:
        return self.state == "failed"


@dataclass(frozen=True)
class Visit:
    """What a worker gets."""

    task: TileTask
    picture: bool


def examine(visit: Visit) -> Checkup:
    """Look one slide over. What is wrong with it is in the result, not raised."""
    task = visit.task
    found = Checkup(task.slide.name, printable(task.slide.path.name), "ok")
    if task.slide.same_as:
        return replace(
            found, reason="same_slide",
            message=f"another file of the DICOM series {task.slide.same_as}",
        )  # fmt: skip
    try:
        if task.slide.problem:
            raise task.slide.problem
        found = replace(found, identity=slide_identity(task.slide.path))
        with task.open() as slide:
            return _examined(visit, slide, found)
    except (NoInputError, SlideError) as error:
        return failed(found, error)
    except Exception as error:  # a bug or a library's; the others go on
        return failed(found, unknown(task, error))


def _examined(visit: Visit, slide: BaseReader, found: Checkup) -> Checkup:
    task = visit.task
    found = _facts(task, slide, found)
    problems = list(slide_problems(slide))
    bad = list(unreadable(slide))
    asked = READS * len(slide.level_sizes)
    found = replace(found, reads=asked, readable=asked - len(bad))
    if bad:
        problems.append(f"{len(bad)} of {asked} samples cannot be decoded: {bad[0]}")
    if len(slide.level_sizes) == 1 and slide.size[0] * slide.size[1] > LARGE:
        problems.append("no smaller levels: finding tissue means to decode all of it")
    try:
        row, sample = plan_slide(task, sample=not bad)
    except SlideError as error:
        others = [problem for problem in problems if not problem.startswith(error.code)]
        found = failed(replace(found, message=" ".join(map(sentence, others))), error)
        return replace(found, picture=_plain(slide))
    state: State = "look" if problems or row.state != "done" else "ok"
    said = [] if row.message == "would be tiled" else [row.message.removeprefix("would be tiled; ")]
    reason = row.reason if row.state != "done" else ("look" if state == "look" else "ok")
    picture = None
    if bad:
        state, reason, picture = "failed", "PG-S04", _plain(slide)
    elif visit.picture or state != "ok":
        picture = _outlined(task, slide)
    return replace(
        found, state=state, reason=reason, message=" ".join(map(sentence, [*problems, *said])),
        candidates=row.candidates, patches=row.patches, sample=sample,
        picture=picture,
    )  # fmt: skip


def _facts(task: TileTask, slide: BaseReader, found: Checkup) -> Checkup:
    header, scale = slide.header, slide.override or slide.header.scale
    _, _, width, height = header.bounds
    profile = describe_profile(color_profile(slide))
    return replace(
        found, vendor=header.vendor, reader=slide.reader, width=header.size[0],
        height=header.size[1], levels=" ".join(f"{d:g}" for d in np.round(header.downsamples, 2)),
        scanned=round(width * height / (header.size[0] * header.size[1]), 4),
        mpp=scale.mean if scale else None, mpp_source=scale.source if scale else "",
        objective=header.objective, profile=(profile["name"] or "unnamed") if profile else "",
        file_bytes=total_bytes(task.slide.path),
    )  # fmt: skip


def _outlined(task: TileTask, slide: BaseReader) -> bytes:
    layout = Layout.of(slide, task)
    picture = draw_thumbnail(
        slide, layout.overview, layout.mask, layout.grid.coords, layout.plan.side, PICTURE
    )
    return _jpeg(picture)


def _plain(slide: BaseReader) -> bytes | None:
    """The slide without outlines, where no scale is known to find tissue by."""
    from PIL import Image

    try:
        return _jpeg(Image.fromarray(read_overview(slide, max(slide.bounds[2:]) / PICTURE).pixels))
    except PathgenError:
        return None


def _jpeg(picture: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    return data.getvalue()


def failed(found: Checkup, error: PathgenError) -> Checkup:
    """`found`, with why the slide cannot be tiled."""
    told = LedgerRow.failure(found.slide, found.file, error).message
    message = f"{found.message} {told}" if found.message else told
    return replace(found, state="failed", reason=error.code, message=message)


def unknown(task: TileTask, error: Exception) -> SlideError:
    return SlideError(
        "slide could not be examined", code="PG-S00", where=task.slide.name,
        why=f"{type(error).__name__}: {error}", hint="try `pathgen info` on it, with -v",
    )  # fmt: skip
