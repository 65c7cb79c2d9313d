"""The patches of a slide as pixels, none of them stored.

They are those that `tile` keeps with the same settings: same places, same scores, same filters,
same preparation. A tile that `tile` would copy is decoded here, as who reads the store does.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.provenance import Provenance
from pathgen.stores.codec import decode_patch
from pathgen.stores.patches import COPIED
from pathgen.tiling.cutting import Cutter, check_damage
from pathgen.tiling.grid import spread
from pathgen.tiling.layout import Layout
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.pieces import Piece
from pathgen.tiling.preparation import prepare
from pathgen.tiling.readers.check import stamp
from pathgen.tiling.task import TileTask
from pathgen.tiling.tiler import row_unopened, slide_facts

#: Settings of files that are not written.
OF_FILES = ("store", "quality")


@dataclass(frozen=True)
class Begun:
    """A slide that is open: what its patches are made from, and what a store says of it."""

    provenance: Provenance
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Cut:
    """Some kept patches: RGB uint8 (n, size, size, 3), level-0 coords (n, 2), grid (n, 2)."""

    images: NDArray[np.uint8]
    coords: NDArray[np.int64]
    grid: NDArray[np.int32]


def plan_of(task: TileTask, mpp_source: str | None) -> Provenance:
    """What the pixels of a slide depend on: the file, its mask, and how it is tiled.

    Raises:
        NoInputError, SlideError: the file cannot be read.
    """
    tiled = task.provenance(mpp_source)
    settings = {name: value for name, value in tiled.config.items() if name not in OF_FILES}
    return Provenance(stage="tile", config=settings, inputs=tiled.inputs)


def cut_slide(task: TileTask, batch_size: int) -> Generator[Begun | Cut, None, LedgerRow]:
    """The kept patches in the order in which `tile` stores them, `batch_size` at a time.

    First comes what is known of the slide, and a row without patches for one that is not opened.
    The row that it returns has no store.

    Raises:
        NoInputError, SlideError: as `tile_slide`, at any time; then no patch of it counts.
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
        provenance = plan_of(task, slide.mpp_source)
        layout = Layout.of(slide, task)
        preparation = prepare(slide, layout, task.config)
        facts = slide_facts(task.slide, slide, provenance.inputs["slide"])
        spec = task.config.spec
        known: dict[str, Any] = {
            **task.known, "patch_size": spec.size, "patch_size_level0": spread(layout.plan),
            "target_mpp": spec.mpp if spec.mpp is not None else slide.mpp,
            "level0_mpp": slide.mpp, "overlap": spec.overlap,
            "slide": facts.model_dump(mode="json"), **preparation.attrs,
        }  # fmt: skip
        yield Begun(provenance, {name: v for name, v in known.items() if v is not None})
        cutter = PixelCutter(
            slide, layout, task.config, preparation if preparation.steps else None, task.threads
        )
        yield from _regrouped(cutter, batch_size)
        if stamp(path) != before:
            raise SlideError(
                "slide changed while it was read", code="PG-S12", where=slide.name,
                hint="run the same command again when it is no longer written to",
            )  # fmt: skip
        check_damage(slide, layout, cutter.tally, task.config)
        return layout.row(task, slide, cutter.tally, preparation.messages)


class PixelCutter(Cutter):
    """Gives pixels where `Cutter` gives files."""

    def _encoded(self, piece: Piece, good: NDArray[np.bool_]) -> list[Any]:
        images = [piece.stored[i] for i in np.flatnonzero(good).tolist()]
        if piece.made == COPIED:
            return [decode_patch(file) for file in images]
        if self.preparation is not None:
            images = list(self.preparation.apply(np.stack(images)))
        return images


def _regrouped(cutter: Cutter, count: int) -> Generator[Cut, None, None]:
    """All that the cutter keeps, `count` patches at a time; fewer at the end."""
    images: list[NDArray[np.uint8]] = []
    places: list[NDArray[np.int64]] = []
    for batch in cutter.batches():
        images += batch["image"]
        places += list(np.concatenate([batch["coords"], batch["grid"]], axis=1))
        while len(images) >= count:
            yield _cut(images[:count], places[:count])
            del images[:count], places[:count]
    if images:
        yield _cut(images, places)


def _cut(images: list[NDArray[np.uint8]], places: list[NDArray[np.int64]]) -> Cut:
    both = np.stack(places)
    return Cut(np.stack(images), both[:, :2].astype(np.int64), both[:, 2:].astype(np.int32))
