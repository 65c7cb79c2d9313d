"""Size and scale of imported patches: as the other tool's files say, or one for all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pathgen.errors import DataError
from pathgen.exchange.foreign import ForeignSize
from pathgen.tiling.grid import ReadPlan
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.task import TileConfig

if TYPE_CHECKING:
    from pathgen.exchange.importing import ImportConfig, ImportReport

#: Scales this close, relative, are one: scanners said to have 0.5 um have 0.4915 to 0.5034.
SAME_SCALE = 0.03
#: Slides that a note names.
NAMED = 3


class Region(NamedTuple):
    """One patch of a slide: `size` pixels a side at `mpp`, `side` level-0 pixels."""

    size: int
    overlap: int
    side: float
    mpp: float


def own_size(said: ForeignSize, slide: SlideReader) -> Region:
    """What a file says, of this slide. Raises DataError (PG-F04) for a level it does not have."""
    if said.level is not None and said.level >= len(slide.downsamples):
        raise DataError(
            "the slide has no such level", code="PG-F04", where=slide.name,
            why=f"patch_level is {said.level} and it has {len(slide.downsamples)} levels",
            hint="give the slides that the coordinates were made from",
        )  # fmt: skip
    if said.level is not None:
        side = said.size * slide.downsamples[said.level]
    else:
        side = said.side or float(said.size)
    return Region(said.size, said.overlap, side, slide.mpp * side / said.size)


def asked_size(own: Region, slide: SlideReader, config: ImportConfig) -> Region:
    """The same region in the pixels asked for: its field of view stays exactly as it was.

    Of a scale alone, its size is the nearest whole number of pixels. With both, regions of
    another field of view are refused.

    Raises:
        DataError: PG-F03, the region is not `patch_size` x `mpp` microns.
    """
    microns = slide.mpp * own.side
    if config.patch_size is None and config.mpp is None:
        return own
    size = config.patch_size or max(1, round(microns / (config.mpp or 1)))
    asked = size * (config.mpp or microns / size)
    if abs(microns / asked - 1) > SAME_SCALE and config.patch_size is not None:
        raise DataError(
            "regions of another field of view", code="PG-F03", where=slide.name,
            why=f"they are {microns:.4g} um wide, and {size} pixels at {config.mpp:g} um would be "
            f"{asked:.4g}", hint="import such slides on their own, or leave out --mpp: each region "
            "is averaged to --patch-size, whatever its scale",
        )  # fmt: skip
    if size == own.size:
        return own
    return Region(size, round(own.overlap * size / own.size), own.side, microns / size)


def exact_plan(plan: ReadPlan, slide: SlideReader, config: TileConfig, side: float) -> ReadPlan:
    """How a region of `side` level-0 pixels is read: all of it, averaged where need be."""
    if plan.native and abs(plan.side[0] - side) <= 1e-3:
        return plan
    exact = ReadPlan.for_spec(slide, config.spec, allow_upsample=True, tolerance=0)
    # Other tools read squares of level-0 pixels, also where these are not square themselves.
    return replace(exact, native=False, side=(side, side))


def note_sizes(report: ImportReport) -> None:
    """What training should know: patches enlarged, or of several sizes or scales, with slides."""
    if report.enlarged:
        report.note(
            f"regions of {_named(report.enlarged)} are enlarged: they have fewer pixels than "
            "--patch-size"
        )
    groups: list[tuple[int, list[float], list[str]]] = []
    for slide, (size, mpp) in report.sizes.items():
        for own, scales, slides in groups:
            if own == size and abs(mpp / scales[0] - 1) <= SAME_SCALE:
                scales.append(mpp)
                slides.append(slide)
                break
        else:
            groups.append((size, [mpp], [slide]))
    if len(groups) > 1:
        parts = [f"{size} px at {scales[0]:.4g} um ({_named(slides)})" for size, scales, slides
                 in groups]  # fmt: skip
        what = "sizes" if len({size for size, _, _ in groups}) > 1 else "scales"
        usual = max(groups, key=lambda group: len(group[2]))[0]
        report.note(
            f"patches of different {what}: {'; '.join(parts)}. They are taken together as they "
            f"are; --patch-size {usual} averages every region to one size, and slides of another "
            "scale are better imported into a folder of their own"
        )


def _named(slides: list[str]) -> str:
    more = f" and {len(slides) - NAMED} more" if len(slides) > NAMED else ""
    return ", ".join(slides[:NAMED]) + more
