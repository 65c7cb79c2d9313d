"""One slide in, one store out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.errors import SlideError
from pathgen.provenance import Provenance
from pathgen.stores.patches import PatchStore, SlideFacts
from pathgen.tiling.contours import tissue_path, write_tissue
from pathgen.tiling.cutting import Cutter, check_damage
from pathgen.tiling.grid import spread
from pathgen.tiling.inputs import SlideInput
from pathgen.tiling.layout import Layout
from pathgen.tiling.ledger import DROPPED, LedgerRow
from pathgen.tiling.maskattr import mask_attribute
from pathgen.tiling.overview import draw_thumbnail
from pathgen.tiling.preparation import prepare
from pathgen.tiling.readers.check import stamp, without_suffix
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.task import TileTask


def tile_slide(task: TileTask) -> LedgerRow:
    """Find tissue, lay the grid, read, score, keep, store.

    Raises:
        NoInputError, SlideError: the slide cannot be tiled.
        StorageError: the output cannot be written.
    """
    row = row_unopened(task)
    if row is not None:
        return row
    path = task.slide.path
    if task.slide.unmasked and task.config.masks.missing == "skip":
        message = "left out, as masks were given and none for it"
        return LedgerRow(task.slide.name, "empty", "no_mask", message, path.name, **task.known)
    before = stamp(path)
    with task.open() as slide:
        provenance = task.provenance(slide.mpp_source)
        layout = Layout.of(slide, task)
        return _store(task, slide, layout, provenance, before)


def row_unopened(task: TileTask) -> LedgerRow | None:
    """The row of a file that has no patches of its own; its problem, if it has one, is raised."""
    if task.slide.problem:
        raise task.slide.problem
    if not task.slide.same_as:
        return None
    message = f"another file of the DICOM series {task.slide.same_as}"
    name = task.slide.path.name
    return LedgerRow(task.slide.name, "empty", "same_slide", message, name, **task.known)


def _store(
    task: TileTask, slide: SlideReader, layout: Layout, provenance: Provenance, before: object
) -> LedgerRow:
    plan, config = layout.plan, task.config
    geometry = {
        "patch_size_level0": spread(plan), "read_level": plan.level, "mpp_error": plan.mpp_error,
        "level0_mpp": slide.mpp,
    }  # fmt: skip
    facts = slide_facts(task.slide, slide, provenance.inputs["slide"])
    task.store.parent.mkdir(parents=True, exist_ok=True)
    kept: list[NDArray[np.int64]] = []
    preparation = prepare(slide, layout, config)
    cutter = Cutter(
        slide, layout, config, preparation if preparation.steps else None, task.threads
    )  # fmt: skip
    with PatchStore.create(
        task.store, config.spec, provenance, codec=config.codec, slide=facts, geometry=geometry,
        class_names=layout.class_names, **task.known,
    ) as writer:  # fmt: skip
        for batch in cutter.batches():
            kept.append(batch["coords"])
            writer.append(**batch)
        if stamp(task.slide.path) != before:
            raise SlideError(
                "slide changed while it was read", code="PG-S12", where=slide.name,
                hint="run the same command again when it is no longer written to",
            )  # fmt: skip
        check_damage(slide, layout, cutter.tally, config)
        row = layout.row(task, slide, cutter.tally, preparation.messages)
        writer.set_attr("ledger", stored(row))
        writer.set_attr("background", layout.background)
        writer.set_attr("reader", slide.reader)
        writer.set_attr("read_shrink", plan.shrink)
        for name, value in preparation.attrs.items():
            writer.set_attr(name, value)
        writer.set_attr("tissue_mask", mask_attribute(layout.mask))
        coords = np.concatenate([np.empty((0, 2), np.int64), *kept])
        _write_thumbnail(task, slide, layout, coords)
    if config.write_tissue:
        write_tissue(tissue_path(task.out, task.slide.name), layout.mask, facts)
    return row


def slide_facts(found: SlideInput, slide: SlideReader, identity: str) -> SlideFacts:
    """What a store keeps of an open slide."""
    return SlideFacts(
        name=found.name, identity=identity, width=slide.size[0], height=slide.size[1],
        bounds=slide.bounds, vendor=slide.vendor, objective=slide.objective,
        mpp_x=slide.mpp_xy[0], mpp_y=slide.mpp_xy[1], mpp_source=slide.mpp_source,
        suffix=found.path.name.removeprefix(without_suffix(found.path.name)),
        file=found.path.name,
        level_sizes=slide.level_sizes, downsamples=slide.downsamples,
    )  # fmt: skip


def _write_thumbnail(
    task: TileTask, slide: SlideReader, layout: Layout, coords: NDArray[np.int64]
) -> None:
    task.thumbnail.parent.mkdir(parents=True, exist_ok=True)
    picture = draw_thumbnail(
        slide, layout.overview, layout.mask, coords, layout.plan.side, task.config.thumbnail_px,
        layout.drawn,
    )  # fmt: skip
    with commit.draft(task.thumbnail) as draft:
        picture.save(draft, "JPEG", quality=85)


#: What of a row a later run needs and could not know from the store's columns.
_STORED = ("state", "reason", "message", "candidates", *DROPPED, "ink", "patches", "mpp",
           "mpp_source", "reader")  # fmt: skip


def stored(row: LedgerRow) -> dict[str, Any]:
    """What a store keeps of its row."""
    return {name: getattr(row, name) for name in _STORED}


def row_of_store(task: TileTask, store: PatchStore) -> LedgerRow:
    """The row of a slide that an earlier run tiled: the same as that run's."""
    row = LedgerRow(
        task.slide.name, "done", "ok", "", task.slide.path.name, store=task.paths[0],
        thumbnail=task.paths[1], **task.known,
    )  # fmt: skip
    known = store.attrs["ledger"]
    return replace(row, **{name: known[name] for name in _STORED if name in known})
