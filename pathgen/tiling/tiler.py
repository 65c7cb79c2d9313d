"""One slide in, one store out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pathgen import commit
from pathgen.config import Config
from pathgen.errors import SlideError
from pathgen.provenance import Provenance
from pathgen.stores import FORMAT_VERSION
from pathgen.stores.codec import encode_patch
from pathgen.stores.patches import PatchSpec, PatchStore, SlideFacts
from pathgen.tiling.grid import ReadPlan, TileGrid, spread
from pathgen.tiling.inputs import SlideInput
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.overview import NATIVE_TOLERANCE, check_brightfield, draw_thumbnail
from pathgen.tiling.readers import open_with
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.readers.check import parts, slide_identity
from pathgen.tiling.slide import Scale, SlideReader
from pathgen.tiling.stain import Color, score_factor, stain_scores
from pathgen.tiling.tissue import TissueConfig, TissueMask, background, mask_of, mask_overview

#: A larger share of ink among the tissue may be a stain instead.
MUCH_INK = 0.2


class TileConfig(Config):
    """What is cut from each slide, and what of it is kept."""

    patch_size: int = Field(default=256, ge=16, le=4096)
    """pixels a side"""
    mpp: float | None = Field(default=0.5, gt=0)
    """microns per pixel of the patches; None = level 0 as it is"""
    overlap: int = Field(default=0, ge=0)
    """pixels that neighbors share"""
    min_tissue: float = Field(default=0.5, ge=0, le=1)
    """least share of a patch that the tissue mask covers"""
    min_hematoxylin: float = Field(default=0.01, ge=0, le=1)
    """least share of a patch's pixels with hematoxylin; see `pathgen.tiling.stain`"""
    tissue: TissueConfig = TissueConfig()
    store: Literal["h5", "zarr"] = "h5"
    codec: Literal["jpeg", "png"] = "jpeg"
    quality: int = Field(default=92, ge=1, le=100)
    """of JPEG, always 4:4:4"""
    allow_upsample: bool = False
    """tile slides coarser than `mpp` by more than 3 % too, by enlarging"""
    mpp_tolerance: float = Field(default=NATIVE_TOLERANCE, ge=0, le=0.05)
    """a level this close to `mpp`, relative, is taken as it is; the rest is stored as mpp_error"""
    reader: str = "auto"
    slide_mpp: float | None = Field(default=None, ge=0.05, le=10)
    """microns per level-0 pixel of slides that do not say it, or say what cannot be"""
    thumbnail_px: int = Field(default=1024, ge=64, le=8192)
    """longer side of the thumbnails"""

    @model_validator(mode="after")
    def _some_step(self) -> Self:
        if self.overlap >= self.patch_size:
            raise ValueError(
                f"overlap {self.overlap} leaves no step for patches of {self.patch_size}"
            )
        return self

    @property
    def spec(self) -> PatchSpec:
        return PatchSpec(size=self.patch_size, mpp=self.mpp, overlap=self.overlap)


#: Settings that leave the content of a store alone.
COSMETIC = frozenset({"thumbnail_px"})


@dataclass(frozen=True)
class TileTask:
    """All a worker needs to tile one slide into `out`."""

    slide: SlideInput
    out: Path
    config: TileConfig
    plan: bool = False
    overwrite: bool = False
    stale: tuple[Path, ...] = ()
    """patch stores to remove when this one is made; with `overwrite`, also when it cannot be"""
    paths: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        name = self.slide.name
        paths = f"{name}.{self.config.store}", f"thumbnails/{name}.jpg"
        object.__setattr__(self, "paths", paths)

    @property
    def store(self) -> Path:
        return self.out / self.paths[0]

    @property
    def thumbnail(self) -> Path:
        return self.out / self.paths[1]

    def open(self) -> BaseReader:
        """The slide; a CSV's pixel size wins over its own, the setting's stands in for one."""
        listed, given = self.slide.mpp, self.config.slide_mpp
        return open_with(
            self.slide.path, self.config.reader,
            None if listed is None else Scale(listed, listed, "csv"),
            fallback=None if given is None else Scale(given, given, "option"),
        )  # fmt: skip

    @property
    def known(self) -> dict[str, Any]:
        return {"label": self.slide.label, "patient": self.slide.patient}

    @property
    def settings(self) -> dict[str, Any]:
        """All that the content of the store depends on, besides the slide file."""
        settings = self.config.model_dump(mode="json", exclude=set(COSMETIC))
        facts = {"name": self.slide.name, "format": FORMAT_VERSION, **self.known}
        if self.slide.mpp is not None:
            settings["slide_mpp"] = None  # not asked
            facts["mpp"] = self.slide.mpp
        return {**settings, "slide": facts}

    def provenance(self) -> Provenance:
        """Its id says whether a store on disk is what this task would make.

        Raises:
            NoInputError, SlideError: as `slide_identity`.
        """
        return Provenance(
            stage="tile", config=self.settings, inputs={"slide": slide_identity(self.slide.path)}
        )


def tile_slide(task: TileTask) -> LedgerRow:
    """Find tissue, lay the grid, read, score, keep, store. Nothing is stored when `task.plan`.

    Raises:
        NoInputError, SlideError: the slide cannot be tiled.
        StorageError: the output cannot be written.
    """
    if task.slide.problem:
        raise task.slide.problem
    path = task.slide.path
    if task.slide.same_as:
        message = f"another file of the DICOM series {task.slide.same_as}"
        return LedgerRow(task.slide.name, "empty", "same_slide", message, path.name, **task.known)
    provenance = task.provenance()
    before = _stamp(path)
    with task.open() as slide:
        layout = _Layout.of(slide, task)
        if task.plan:
            return layout.row(task, slide, planned=True)
        return _store(task, slide, layout, provenance, before)


@dataclass(frozen=True)
class _Layout:
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


def _store(
    task: TileTask, slide: SlideReader, layout: _Layout, provenance: Provenance, before: object
) -> LedgerRow:
    plan, config = layout.plan, task.config
    geometry = {
        "patch_size_level0": spread(plan), "read_level": plan.level, "mpp_error": plan.mpp_error,
        "level0_mpp": slide.mpp,
    }  # fmt: skip
    facts = SlideFacts(
        name=task.slide.name, identity=provenance.inputs["slide"], width=slide.size[0],
        height=slide.size[1], bounds=slide.bounds, vendor=slide.vendor, objective=slide.objective,
        mpp_x=slide.mpp_xy[0], mpp_y=slide.mpp_xy[1], mpp_source=slide.mpp_source,
    )  # fmt: skip
    task.store.parent.mkdir(parents=True, exist_ok=True)
    kept: list[NDArray[np.int64]] = []
    with PatchStore.create(
        task.store, config.spec, provenance, codec=config.codec, slide=facts, geometry=geometry,
        **task.known,
    ) as writer:  # fmt: skip
        for batch in _batches(slide, layout, config):
            kept.append(batch["coords"])
            writer.append(**batch)
        if _stamp(task.slide.path) != before:
            raise SlideError(
                "slide changed while it was read", code="PG-S12", where=slide.name,
                hint="run the same command again when it is no longer written to",
            )  # fmt: skip
        row = layout.row(task, slide, sum(map(len, kept)))
        writer.set_attr("ledger", _stored(row))
        writer.set_attr("background", layout.background)
        coords = np.concatenate([np.empty((0, 2), np.int64), *kept])
        _write_thumbnail(task, slide, layout, coords)
    return row


def _batches(slide: SlideReader, layout: _Layout, config: TileConfig) -> Iterator[dict[str, Any]]:
    """The kept patches with their columns, in grid order."""
    plan, grid = layout.plan, layout.grid
    factor, glass = score_factor(plan.mpp), layout.background
    for pieces in grid.strips(plan):
        rows: list[NDArray[np.int64]] = []
        encoded: list[bytes] = []
        scores: dict[str, list[NDArray[np.float32]]] = {}
        for piece in pieces:
            images = plan.read(slide, grid.coords[piece])
            measured = stain_scores(images, factor, glass)
            good = measured["hematoxylin"] >= config.min_hematoxylin
            encoded += [encode_patch(im, config.codec, config.quality) for im in images[good]]
            rows.append(piece[good])
            for name, values in measured.items():
                scores.setdefault(name, []).append(values[good])
        at = np.concatenate(rows)
        order = np.argsort(at)
        if not len(at):
            continue
        at = at[order]
        yield {
            "image": [encoded[i] for i in order], "coords": grid.coords[at],
            "grid": grid.cells[at], "tissue": layout.tissue[at],
            **{name: np.concatenate(values)[order] for name, values in scores.items()},
        }  # fmt: skip


def _write_thumbnail(
    task: TileTask, slide: SlideReader, layout: _Layout, coords: NDArray[np.int64]
) -> None:
    task.thumbnail.parent.mkdir(parents=True, exist_ok=True)
    picture = draw_thumbnail(
        slide, layout.overview, layout.mask, coords, layout.plan.side, task.config.thumbnail_px
    )
    with commit.draft(task.thumbnail) as draft:
        picture.save(draft, "JPEG", quality=85)


def _stored(row: LedgerRow) -> dict[str, Any]:
    """What of a row a later run needs and could not know from the store's columns."""
    names = ("state", "reason", "message", "candidates", "dropped_tissue", "dropped_stain", "ink",
             "patches", "mpp", "mpp_source")  # fmt: skip
    return {name: getattr(row, name) for name in names}


def row_of_store(task: TileTask, store: PatchStore) -> LedgerRow:
    """The row of a slide that an earlier run tiled: the same as that run's."""
    row = LedgerRow(
        task.slide.name, "done", "ok", "", task.slide.path.name, store=task.paths[0],
        thumbnail=task.paths[1], **task.known,
    )  # fmt: skip
    return replace(row, **store.attrs["ledger"])


def _stamp(path: Path) -> list[tuple[int, int]]:
    return [(stat.st_size, stat.st_mtime_ns) for stat in (part.stat() for part in parts(path))]
