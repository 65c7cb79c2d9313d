"""Stores made of others' rows: a stricter choice of patches, without the slides.

The encoded patches are copied, not decoded, so that they stay the same bytes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pathgen import commit
from pathgen.errors import ConfigError, NoInputError, StoreError
from pathgen.progress import Progress, Silent
from pathgen.provenance import Provenance
from pathgen.stores import PatchStore, find_stores
from pathgen.tiling.ledger import REASONS, LedgerRow, TileReport, write_ledger
from pathgen.tiling.resume import flat
from pathgen.tiling.selection import CAUSES, Histogram, Selected, Selection, combined, select
from pathgen.tiling.strangers import spare_others
from pathgen.tiling.tiled import Tiled, tiled

#: Rows that are copied at a time: about 30 MB.
_BATCH = 1024


@dataclass(frozen=True)
class RefilterReport:
    """What was chosen. `slides` is the new ledger."""

    slides: TileReport
    before: Mapping[str, int]
    """patches that each slide had"""
    scores: Mapping[str, Histogram] = field(default_factory=dict)
    """of all patches there were, by measure; of a plan"""

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row a slide: what it had, what it keeps, and why the others go."""
        return [
            {"slide": row.slide, "state": row.state, "had": self.before.get(row.slide, 0),
             "keeps": row.patches}
            for row in self.slides.rows
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        scores = {name: one.to_dict() for name, one in self.scores.items()}
        return {**self.slides.to_dict(), "before": dict(self.before), "scores": scores}


def refilter(
    stores: str | Path | Sequence[str | Path],
    out: str | Path,
    selection: Selection,
    *,
    overwrite: bool = False,
    plan: bool = False,
    progress: Progress = Silent(),
) -> RefilterReport:
    """Write new stores with the rows of others that `selection` keeps; the others do not change.

    A folder that `tile` made keeps its whole ledger, slides without a store included. On the
    thumbnails, patches that are no longer there are veiled.

    Args:
        stores: patch stores, or folders of them.
        out: gets a store a slide, ``thumbnails/``, ``slides.csv``, ``slides.json`` and
            ``config.yaml``; stores that an equal run made are kept.
        overwrite: replace patch stores of other selections.
        plan: count only; nothing is written.

    Raises:
        NoInputError: PG-N01, no patch stores.
        ConfigError: PG-C09, the selection is empty or does not fit a store; PG-O19, `out`
            is in use, or two stores have one name.
        StoreError: a store is damaged or unfinished; PG-O20, a ledger names files elsewhere.
        StorageError: `out` cannot be written.
        BusyError: PG-O06, another pathgen writes there.
    """
    if not plan and not selection.limits and not selection.classes:
        raise ConfigError(
            "nothing to choose by", code="PG-C09", hint="give a limit, e.g. --min-focus 0.15; "
            "--plan without one shows how the scores are spread",
        )  # fmt: skip
    out = Path(out)
    given = [stores] if isinstance(stores, str | Path) else list(stores)
    sources = list(_sources([Path(place) for place in given], out))
    if not any(source.store for source in sources):
        raise NoInputError(
            "no slide here was tiled", where=", ".join(map(str, given)),
            why="the ledger has no patch store", hint="see its slides.csv for the reasons",
        )  # fmt: skip
    chosen = _choose(sources, selection, progress)
    rows = [_row(source.row, selected) for source, selected in zip(sources, chosen, strict=True)]
    before = {source.row.slide: source.row.patches for source in sources}
    report = TileReport(tuple(rows), out, planned=plan)
    if plan:
        scores = _scores([source.store for source in sources if source.store])
        return RefilterReport(report.without_stores(), before, scores)
    settings = _settings(sources, selection)
    spare_others(out, _thumbnails(sources, out), settings.encode().__eq__)
    commit.writable_folder(out)
    with commit.lock(out):
        commit.sweep(out)
        _refuse_strangers(out, rows)
        commit.write_text(out / "config.yaml", settings)  # first: it says whose the folder is
        with progress.task("refilter", len(sources)) as bar:
            kept = 0
            for source, selected, row in zip(sources, chosen, rows, strict=True):
                if source.store is not None and selected is not None:
                    kept += _write(source, selected, row, out, selection, overwrite)
                bar.advance(note=row.slide)
        report = replace(report, kept=kept)
        write_ledger(report)
    return RefilterReport(report, before)


def _sources(places: Sequence[Path], out: Path) -> Iterator[Tiled]:
    """Every slide at `places` once, sorted as they were tiled."""
    seen: dict[str, Path | None] = {}
    for place in places:
        for source in tiled(place):
            name = source.row.store or source.row.slide
            if name in seen:
                raise ConfigError(
                    "two stores would have one name", code="PG-O19", where=name,
                    why=f"one is {seen[name]}, the other {source.store}",
                    hint="choose from one folder at a time, each with its own --out",
                )  # fmt: skip
            seen[name] = source.store
            if source.store is not None and _same(out / name, source.store):
                raise _in_the_way(source.store, "it would be replaced by a part of itself")
            yield source
    for place in places:
        if place.is_dir() and place.suffix != ".zarr" and _below(out, place):
            raise _in_the_way(out, f"it is in {place}, where stores are read from")


def _choose(
    sources: Sequence[Tiled], selection: Selection, progress: Progress
) -> list[Selected | None]:
    """Before anything is written: does the selection fit every store?"""
    chosen: list[Selected | None] = []
    with progress.task("choose", len(sources)) as bar:
        for source in sources:
            if source.store is None:
                chosen.append(None)
            else:
                with PatchStore.open(source.store) as store:
                    chosen.append(select(store, selection))
            bar.advance(note=source.row.slide)
    return chosen


def _row(row: LedgerRow, selected: Selected | None) -> LedgerRow:
    """As if the slide had been tiled so."""
    if selected is None:
        return row
    counts = {f"dropped_{c}": getattr(row, f"dropped_{c}") + selected.dropped[c] for c in CAUSES}
    row = replace(row, patches=len(selected.rows), **counts)
    if row.patches or row.state == "empty":
        return row
    message = "; ".join(part for part in (REASONS["filtered"], row.message) if part)
    return replace(row, state="empty", reason="filtered", message=message)


def _write(
    source: Tiled, selected: Selected, row: LedgerRow, out: Path, selection: Selection,
    overwrite: bool,
) -> bool:  # fmt: skip
    """Write one store and its thumbnail; True where an equal one was there."""
    assert source.store is not None
    assert row.store is not None
    path = out / row.store
    with PatchStore.open(source.store) as store:
        config = {"limits": combined(store, selection), "classes": dict(selection.classes)}
        provenance = Provenance(stage="refilter", config=config, inputs={"patches": store.id})
        if _is_there(path, provenance, overwrite):
            return True
        known = store.attrs.get("ledger", {})
        ledger = {name: value for name, value in asdict(row).items() if name in known}
        with store.selected(path, provenance) as writer:
            if ledger:
                writer.set_attr("ledger", ledger)
            for start in range(0, len(selected.rows), _BATCH):
                rows = selected.rows[start : start + _BATCH]
                writer.append(**_columns(store, rows))
        if source.thumbnail is not None and row.thumbnail is not None:
            gone = np.setdiff1d(np.arange(len(store)), selected.rows)
            _veil(source.thumbnail, out / row.thumbnail, store, store.coords(gone))
    return False


def _columns(store: PatchStore, rows: NDArray[np.int64]) -> dict[str, Any]:
    run = slice(int(rows[0]), int(rows[-1]) + 1)
    picked = run if run.stop - run.start == len(rows) else rows
    table = store.table
    return {
        name: table.read_bytes(name, picked) if column.is_bytes else table.read(name, picked)
        for name, column in table.columns.items()
    }


def _is_there(path: Path, wanted: Provenance, overwrite: bool) -> bool:
    if not os.path.lexists(path):
        return False
    try:
        with PatchStore.open(path) as store:
            if store.id == wanted.id:
                store.verify()
                return True
            why = _difference(store.provenance, wanted)
    except StoreError as error:
        if error.code not in ("PG-O04", "PG-O11"):
            raise _in_the_way(path, f"it is no patch store: {error.what}") from error
        return False  # unfinished or damaged: made anew
    if not overwrite:
        raise ConfigError(
            "output is in use", code="PG-O19", where=path,
            why=why, hint="make it anew with --overwrite, or choose another --out",
        )  # fmt: skip
    return False


def _difference(theirs: Provenance, mine: Provenance) -> str:
    if theirs.stage != mine.stage:
        return f"it was made by `pathgen {theirs.stage}`"
    if theirs.inputs != mine.inputs:
        return "it was made from other patches"
    had, asked = flat(theirs.config), flat(mine.config)
    for key in [*asked, *had]:
        if had.get(key) != asked.get(key):
            name = key.removeprefix("limits.")
            return f"{name} was {had.get(key)!r} and is now {asked.get(key)!r}"
    return "it was made by another version of pathgen"


def _refuse_strangers(out: Path, rows: Sequence[LedgerRow]) -> None:
    """Stores that the new ledger would not list, and later commands would still take."""
    mine = {row.store for row in rows}
    try:
        found = find_stores(out, kind=PatchStore.kind)
    except NoInputError:
        return
    strange = [name for p in found if (name := p.relative_to(out).as_posix()) not in mine]
    if strange:
        raise _in_the_way(out, f"stores of other slides are here: {', '.join(strange[:3])}")


def _in_the_way(path: Path, why: str) -> ConfigError:
    return ConfigError(
        "output is in use", code="PG-O19", where=path, why=why, hint="choose another --out"
    )


def _thumbnails(sources: Sequence[Tiled], out: Path) -> Iterator[Path]:
    """Those that will be made; one beside a store is its own."""
    for source in sources:
        row = source.row
        if source.thumbnail is None or row.thumbnail is None or row.store is None:
            continue
        if not os.path.lexists(out / row.store):
            yield out / row.thumbnail


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.resolve() == other.resolve()


def _below(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def _veil(source: Path, final: Path, store: PatchStore, gone: NDArray[np.int64]) -> None:
    """The thumbnail with a white veil over patches at level-0 corners `gone` (n, 2)."""
    from PIL import Image, ImageDraw

    data = source.read_bytes()
    slide = store.slide
    x0, y0, width, height = slide.bounds or (0, 0, slide.width, slide.height)
    if len(gone) and width and height:
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
        across, down = picture.width / width, picture.height / height
        draw = ImageDraw.Draw(picture, "RGBA")
        side = store.patch_size_level0
        for x, y in (gone - (x0, y0)).tolist():
            corner = ((x + side) * across, (y + side) * down)
            draw.rectangle((x * across, y * down, *corner), fill=(255, 255, 255, 190))
        with commit.draft(final) as draft:
            picture.save(draft, "JPEG", quality=85)
        return
    with commit.draft(final) as draft:
        draft.write_bytes(data)


def _settings(sources: Sequence[Tiled], selection: Selection) -> str:
    """YAML of what the stores have in common: size, scale, limits."""
    shared: dict[str, Any] | None = None
    for source in sources:
        if source.store is None:
            continue
        with PatchStore.open(source.store) as store:
            spec = store.spec
            one = {
                "patch_size": spec.size, "mpp": spec.mpp, "overlap": spec.overlap,
                "store": source.store.suffix[1:], "codec": store.attrs.get("codec"),
                **combined(store, selection), "classes": dict(selection.classes),
            }  # fmt: skip
        shared = one if shared is None else {k: v for k, v in shared.items() if one.get(k) == v}
    return str(yaml.safe_dump(shared or {}, sort_keys=False, allow_unicode=True))


def _scores(stores: Sequence[Path]) -> dict[str, Histogram]:
    values: dict[str, list[NDArray[np.float32]]] = {}
    for path in stores:
        with PatchStore.open(path) as store:
            for name in store.measures:
                values.setdefault(name, []).append(store.measure(name))
    joined = {name: np.concatenate(parts) for name, parts in values.items()}
    return {name: Histogram.of(all_) for name, all_ in joined.items() if len(all_)}
