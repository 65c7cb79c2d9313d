"""Which patches of a slide hold tissue: the mask, the grid, and what becomes of each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling.grid import ReadPlan, TileGrid
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.overview import check_brightfield
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.stain import Color
from pathgen.tiling.task import TileTask
from pathgen.tiling.tissue import TissueMask, background, mask_of, mask_overview

#: A larger share of ink among the tissue may be a stain instead.
MUCH_INK = 0.2


@dataclass(frozen=True)
class Layout:
    plan: ReadPlan
    mask: TissueMask
    overview: NDArray[np.uint8]
    candidates: int
    grid: TileGrid
    tissue: NDArray[np.float32]
    background: Color

    @classmethod
    def of(cls, slide: SlideReader, task: TileTask) -> Self:
        """The patches with enough tissue."""
        config = task.config
        plan = ReadPlan.for_spec(
            slide, config.spec, allow_upsample=config.allow_upsample,
            tolerance=config.mpp_tolerance,
        )  # fmt: skip
        overview = mask_overview(slide, config.tissue)
        check_brightfield(overview.pixels, slide.name)
        mask = mask_of(overview, slide.mpp_xy, config.tissue)
        grid = TileGrid.over(slide, config.spec, plan)
        tissue = grid.tissue(mask, plan)
        # A patch without any tissue is no candidate, even where no share is asked for.
        enough = (tissue >= config.min_tissue) & (tissue > 0)
        return cls(
            plan, mask, overview.pixels, len(grid), grid.keep(enough), tissue[enough],
            background(overview.pixels),
        )  # fmt: skip

    def row(
        self, task: TileTask, slide: SlideReader, kept: int | None = None, planned: bool = False
    ) -> LedgerRow:
        patches = len(self.grid) if kept is None else kept
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
        return LedgerRow(
            task.slide.name, "done" if patches else "empty", reason, message, task.slide.path.name,
            candidates=self.candidates, dropped_tissue=self.candidates - len(self.grid),
            dropped_stain=len(self.grid) - patches, ink=ink, patches=patches,
            mpp=slide.mpp, mpp_source=slide.mpp_source, store=task.paths[0],
            thumbnail=task.paths[1], **task.known,
        )  # fmt: skip
