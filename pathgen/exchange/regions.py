"""Another tool's coordinates as patch stores: exactly those regions, cut from the slides again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import LabelTable
from pathgen.errors import DataError, NoInputError, PathgenError, StorageError, StoreError
from pathgen.exchange.entries import labels_of
from pathgen.exchange.foreign import patch_size, read_coords
from pathgen.exchange.imported import add_to_ledger, spare_ledger
from pathgen.exchange.importing import ImportConfig, ImportReport, digest_of, is_done
from pathgen.exchange.resizing import (
    SAME_SCALE,
    Region,
    asked_size,
    exact_plan,
    note_sizes,
    own_size,
)
from pathgen.progress import Progress
from pathgen.provenance import Provenance
from pathgen.stores.patches import PatchStore
from pathgen.tiling.cutting import Cutter, check_damage
from pathgen.tiling.grid import TileGrid, spread
from pathgen.tiling.inputs import SlideInput, find_slides
from pathgen.tiling.layout import Layout
from pathgen.tiling.ledger import REASONS, LedgerRow
from pathgen.tiling.maskattr import mask_attribute
from pathgen.tiling.readers.check import slide_identity, without_suffix
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.task import TileConfig, TileTask
from pathgen.tiling.tiler import slide_facts, stored

#: Rows of a file that are cut together and put back into its order.
ROWS = 512


def import_patches(
    found: Mapping[str, Path], slides: Path, out: Path, config: ImportConfig,
    labels: LabelTable | None, overwrite: bool, progress: Progress,
) -> ImportReport:  # fmt: skip
    """One patch store a coordinate file, rows in the file's order; and a ledger of all."""
    report, rows = ImportReport(out, "patches"), []
    inputs = slides_by_name(slides)
    known = labels_of(list(found), labels) if labels else {}
    spare_ledger(out)
    with progress.task("import", len(found)) as task:
        for name, path in found.items():
            row = known.get(name)
            told = {"label": row.label, "patient": row.patient} if row else {}
            try:
                slide = replace(slide_of(name, inputs), name=name)
                if slide.problem:
                    raise slide.problem
                if row:
                    slide = replace(slide, label=row.label, patient=row.patient or slide.patient)
                rows.append(_import_one(path, slide, out, config, overwrite, report))
            except (StorageError, StoreError):
                raise
            except PathgenError as error:
                report.failed[name] = str(error)
                rows.append(LedgerRow.failure(name, path.name, error, **told))
            task.advance(1, note=name)
    note_sizes(report)
    add_to_ledger(out, rows)
    return report


def _import_one(
    path: Path, slide: SlideInput, out: Path, config: ImportConfig, overwrite: bool,
    report: ImportReport,
) -> LedgerRow:  # fmt: skip
    coords, said = read_coords(path), patch_size(path)
    identity = slide_identity(slide.path)
    task = TileTask(slide, out, TileConfig(min_tissue=0, slide_mpp=config.slide_mpp))
    with task.open() as reader:
        own = own_size(said, reader)
        size = asked_size(own, reader, config)
        task = replace(task, config=_settings(size, config))
        given = {"patch_size": own.size, "side": own.side, "overlap": own.overlap}
        provenance = Provenance(
            stage="import", config={**task.settings_for(reader.mpp_source), "given": given},
            inputs={"slide": identity, "coords": digest_of(path)},
        )  # fmt: skip
        row = LedgerRow(
            slide.name, "done" if len(coords) else "empty", "ok" if len(coords) else "no_coords",
            "" if len(coords) else REASONS["no_coords"], slide.path.name, candidates=len(coords),
            patches=len(coords), mpp=reader.mpp, mpp_source=reader.mpp_source,
            reader=reader.reader, store=task.paths[0], **task.known,
        )  # fmt: skip
        if not is_done(task.store, provenance, overwrite):
            _cut(task, reader, coords, own, size, provenance, row)
    report.rows += len(coords)
    report.stores.append(task.store)
    report.sizes[slide.name] = (size.size, size.mpp)
    if size.size > own.size and size.mpp < reader.mpp * (1 - SAME_SCALE):
        report.enlarged.append(slide.name)
    return row


def _settings(size: Region, config: ImportConfig) -> TileConfig:
    """The scale that gives patches of exactly this size; no patch is filtered out."""
    return TileConfig(
        patch_size=size.size, mpp=size.mpp, overlap=size.overlap, min_tissue=0, min_hematoxylin=0,
        max_damaged=0, allow_upsample=True, slide_mpp=config.slide_mpp,
    )  # fmt: skip


def _cut(
    task: TileTask, slide: SlideReader, coords: NDArray[np.int64], own: Region, size: Region,
    provenance: Provenance, row: LedgerRow,
) -> None:  # fmt: skip
    beyond = (coords < 0).any(axis=1) | (coords >= slide.size).any(axis=1)
    if beyond.any():
        raise DataError(
            "positions outside of the slide", code="PG-F04", where=slide.name,
            why=f"{int(beyond.sum())} of {len(coords)}; it has {slide.size[0]} x {slide.size[1]} "
            "pixels", hint="give the slides that the coordinates were made from",
        )  # fmt: skip
    whole = Layout.of(slide, task)
    whole = replace(whole, plan=exact_plan(whole.plan, slide, task.config, size.side))
    plan = whole.plan
    geometry = {
        "patch_size_level0": spread(plan), "read_level": plan.level, "mpp_error": plan.mpp_error,
        "level0_mpp": slide.mpp,
    }  # fmt: skip
    cells = _cells(coords, plan.side, task.config)
    task.store.parent.mkdir(parents=True, exist_ok=True)
    with PatchStore.create(
        task.store, task.config.spec, provenance, codec=task.config.codec,
        slide=slide_facts(task.slide, slide, provenance.inputs["slide"]), geometry=geometry,
        **task.known,
    ) as writer:  # fmt: skip
        for start in range(0, len(coords), ROWS):
            rows = slice(start, start + ROWS)
            grid = TileGrid(coords[rows], cells[rows])
            part = replace(whole, grid=grid, tissue=grid.tissue(whole.mask, plan))
            writer.append(**_in_order(part, slide, task.config))
        writer.set_attr("ledger", stored(row))
        writer.set_attr("background", whole.background)
        writer.set_attr("tissue_mask", mask_attribute(whole.mask))
        if size != own:
            writer.set_attr("resampled_from", {"patch_size": own.size, "mpp": own.mpp})


def _in_order(layout: Layout, slide: SlideReader, config: TileConfig) -> dict[str, Any]:
    """All columns of a part of the file, in its order."""
    cutter = Cutter(slide, layout, config)
    columns: dict[str, list[Any]] = {}
    for batch in cutter.batches():
        for name, values in batch.items():
            columns.setdefault(name, []).extend(values)
    check_damage(slide, layout, cutter.tally, config)
    # Patches at one place have the same pixels, so any of them will do.
    at = {tuple(xy): i for i, xy in enumerate(np.asarray(columns["coords"]).tolist())}
    order = [at[tuple(xy)] for xy in layout.grid.coords.tolist()]
    found: dict[str, Any] = {name: [values[i] for i in order] for name, values in columns.items()}
    arrays = {name: np.stack(values) for name, values in found.items() if name != "image"}
    return {**arrays, "image": found["image"], "grid": layout.grid.cells}


def _cells(
    coords: NDArray[np.int64], side: tuple[float, float], config: TileConfig
) -> NDArray[np.int32]:
    """Row and column of the grid cell each patch is nearest to; CLAM has a grid a contour."""
    if not len(coords):
        return np.empty((0, 2), np.int32)
    share = (config.patch_size - config.overlap) / config.patch_size
    place = (coords - coords.min(axis=0)) / (np.asarray(side) * share)
    return np.asarray(np.rint(place[:, ::-1]), np.int32)


def slides_by_name(slides: Path) -> dict[str, list[SlideInput]]:
    """The slides of a folder by the last part of their name, and by that of their file."""
    found: dict[str, list[SlideInput]] = {}
    for slide in find_slides(slides)[0]:
        if not slide.same_as:
            for name in {slide.name.rpartition("/")[2], without_suffix(slide.path.name)}:
                found.setdefault(name, []).append(slide)
    return found


def slide_of(name: str, slides: Mapping[str, list[SlideInput]]) -> SlideInput:
    """The slide of a coordinate file. Raises NoInputError (PG-N02) unless there is exactly one."""
    fits = slides.get(name, [])
    if len(fits) == 1:
        return fits[0]
    raise NoInputError(
        "several slides of this name" if fits else "no slide of this name", code="PG-N02",
        where=name, why=", ".join(str(slide.path) for slide in fits) or None,
        hint="give the folder of the slides that the coordinates were made from",
    )  # fmt: skip
