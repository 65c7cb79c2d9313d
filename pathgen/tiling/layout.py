"""Which patches of a slide hold tissue: the mask, the grid, and what becomes of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.tiling.grid import ReadPlan, TileGrid
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.masks import MaskConfig
from pathgen.tiling.overview import Overview, check_brightfield
from pathgen.tiling.regions import Regions
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.stain import Color
from pathgen.tiling.task import TileTask
from pathgen.tiling.tissue import TissueMask, background, mask_of, mask_overview

#: A larger share of ink among the tissue may be a stain instead.
MUCH_INK = 0.2


@dataclass
class Tally:
    """What became of the patches with enough tissue."""

    stain: int = 0
    quality: int = 0
    damaged: int = 0
    kept: int = 0

    def add(self, other: Tally) -> None:
        for item in fields(self):
            name = item.name
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class Layout:
    plan: ReadPlan
    mask: TissueMask
    overview: NDArray[np.uint8]
    candidates: int
    grid: TileGrid
    tissue: NDArray[np.float32]
    background: Color
    class_names: tuple[str, ...] | None = None
    """None without a mask"""
    classes: NDArray[np.float32] | None = None  # (n, k): share of each patch in each class
    drawn: NDArray[np.bool_] | None = None
    """the classes on the pixels of `mask`, where they are not the tissue itself"""
    dropped_class: int = 0
    note: str = ""

    @classmethod
    def of(cls, slide: SlideReader, task: TileTask) -> Self:
        """The patches with enough tissue."""
        config = task.config
        plan = ReadPlan.for_spec(
            slide, config.spec, allow_upsample=config.allow_upsample,
            tolerance=config.mpp_tolerance,
        )  # fmt: skip
        overview = mask_overview(slide, config.tissue)
        _check_damage(slide, config.max_damaged)
        check_brightfield(overview.pixels, slide.name)
        regions = task.regions(slide)
        mask = _mask(overview, slide, task, regions)
        grid = TileGrid.over(slide, config.spec, plan, config.edge, config.align)
        tissue = grid.tissue(mask, plan)
        # A patch without any tissue is no candidate, even where no share is asked for.
        enough = (tissue >= config.min_tissue) & (tissue > 0)
        found = cls(
            plan, mask, overview.pixels, len(grid), grid.keep(enough), tissue[enough],
            background(overview.pixels),
        )  # fmt: skip
        return found if regions is None else found._classified(regions, config.masks)

    def only(self, rows: NDArray[np.int64]) -> Self:
        """Some of its patches."""
        classes = None if self.classes is None else self.classes[rows]
        return replace(
            self, grid=self.grid.keep(rows), tissue=self.tissue[rows], classes=classes
        )  # fmt: skip

    def _classified(self, regions: Regions, config: MaskConfig) -> Self:
        """With the share of each class, and without the patches that have too little of them."""
        shares = regions.shares(self.grid.coords, self.plan.side)
        enough = np.full(len(self.grid), not config.min_class)
        for name, least in config.min_class.items():
            enough |= shares[:, regions.names.index(name)] >= least
        drawn = None if config.use == "tissue" else regions.like(self.mask, config.within)
        return replace(
            self, grid=self.grid.keep(enough), tissue=self.tissue[enough], classes=shares[enough],
            drawn=drawn,
            class_names=regions.names, dropped_class=int((~enough).sum()), note=regions.note,
        )  # fmt: skip

    def row(
        self, task: TileTask, slide: SlideReader, tally: Tally | None = None,
        remarks: Sequence[str] = (),
    ) -> LedgerRow:  # fmt: skip
        """The slide's row; without a `tally`, that of a plan. `remarks` join its message."""
        planned, tally = tally is None, tally or Tally(kept=len(self.grid))
        patches = tally.kept
        reason, message = "ok", "would be tiled" if planned else ""
        if not self.candidates:
            reason, message = "too_small", f"its {slide.bounds[2]} x {slide.bounds[3]} pixels hold "
            message += f"no patch of {self.plan.side[0]:.0f} x {self.plan.side[1]:.0f}"
        elif not self.mask.pixels.any():
            reason, message = "no_tissue", "no tissue found"
        elif not patches:
            reason, message = "filtered", "tissue found, but no patch passed the filters"
        ink = round(self.mask.ink, 4)
        if ink > MUCH_INK:
            warning = f"{ink:.0%} of the tissue was taken for pen: for stains with blue or green"
            warning += " use --set tissue.drop_ink=false"
            message = f"{message}; {warning}" if message else warning
        message = "; ".join(part for part in (message, self.note, *remarks) if part)
        return LedgerRow(
            task.slide.name, "done" if patches else "empty", reason, message, task.slide.path.name,
            candidates=self.candidates, dropped_class=self.dropped_class,
            dropped_tissue=self.candidates - len(self.grid) - self.dropped_class,
            dropped_stain=tally.stain, dropped_quality=tally.quality,
            dropped_damaged=tally.damaged, ink=ink, patches=patches, mpp=slide.mpp,
            mpp_source=slide.mpp_source, reader=slide.reader, store=task.paths[0],
            thumbnail=task.paths[1], **task.known,
        )  # fmt: skip


def _check_damage(slide: SlideReader, allowed: float) -> None:
    """Tissue under a damaged tile is not seen. Raises SlideError PG-S04 when that is too much."""
    for level in range(len(slide.level_sizes)):
        share = slide.damage(level)
        if share > allowed:
            raise SlideError(
                "slide cannot be decoded", code="PG-S04", where=slide.name,
                why=f"{share:.2%} of the tiles of level {level}, where tissue is looked for, are "
                f"damaged tiles; {allowed:.2%} are allowed",
                hint="get a fresh copy, or go without these: --set max_damaged=0.05",
            )  # fmt: skip


def _mask(
    overview: Overview, slide: SlideReader, task: TileTask, regions: Regions | None
) -> TissueMask:
    """The tissue: found, drawn by hand, or found where it was drawn."""
    config = task.config
    if regions is None or config.masks.use == "classes":
        return mask_of(overview, slide.mpp_xy, config.tissue)
    if config.masks.use == "within":
        mask = mask_of(overview, slide.mpp_xy, config.tissue)
        return replace(mask, pixels=mask.pixels & regions.like(mask, config.masks.within))
    empty = np.zeros(overview.pixels.shape[:2], np.bool_)
    mpp = overview.scale[0] * slide.mpp_xy[0]
    mask = TissueMask(empty, mpp, overview.origin, overview.scale)
    return replace(mask, pixels=regions.like(mask, config.masks.within))
