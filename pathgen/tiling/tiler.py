"""One slide in, one store out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.errors import SlideError
from pathgen.provenance import Provenance
from pathgen.stores.codec import encode_patch
from pathgen.stores.patches import PatchStore, SlideFacts
from pathgen.tiling.grid import spread
from pathgen.tiling.layout import Layout
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.overview import draw_thumbnail
from pathgen.tiling.readers.check import parts
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.stain import score_factor, stain_scores
from pathgen.tiling.task import TileConfig, TileTask


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
        layout = Layout.of(slide, task)
        if task.plan:
            return layout.row(task, slide, planned=True)
        return _store(task, slide, layout, provenance, before)


def _store(
    task: TileTask, slide: SlideReader, layout: Layout, provenance: Provenance, before: object
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


def _batches(slide: SlideReader, layout: Layout, config: TileConfig) -> Iterator[dict[str, Any]]:
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
    task: TileTask, slide: SlideReader, layout: Layout, coords: NDArray[np.int64]
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
