"""The section of a tiles folder: ledger, thumbnails, stain scores, a look at the patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import StoreError
from pathgen.report import figures
from pathgen.report.blocks import (
    Card,
    Figure,
    Gallery,
    Heading,
    Note,
    Section,
    State,
    Stats,
    Table,
    Text,
)
from pathgen.report.collect import Found, Unreadable, read_object, read_settings, spread
from pathgen.report.text import as_float, compact, count, number

if TYPE_CHECKING:
    from pathgen.stores import PatchStore

Row = Mapping[str, Any]

ROWS_SHOWN = 500
CARDS = 24
#: When many slides failed, not all of them get a card either.
CARDS_MOST = 60
STORES_READ = 400
PATCHES_SHOWN = 48
STAINS = ("hematoxylin", "eosin")
#: Why candidates were dropped; those with `False` are named only where there are some.
DROPPED: Mapping[str, tuple[str, bool]] = {
    "dropped_tissue": ("with too little tissue", True),
    "dropped_class": ("with too little of the classes asked for", False),
    "dropped_stain": ("with too little hematoxylin", True),
    "dropped_quality": ("of low quality", False),
    "dropped_damaged": ("on damaged tiles", False),
}
STATES: tuple[State, ...] = ("done", "empty", "failed")

_LEAST = " The dashed line is the least that a kept patch has."


def slides_section(found: Found, folder: Path, number_: int) -> Section:
    """What became of each slide. A piece that is missing leaves a note in its place."""
    section = Section(f"slides-{number_}", f"Slides and patches · {found.name(folder)}")
    try:
        ledger = read_object(folder / "slides.json", found.root)
    except Unreadable as problem:
        section.add(Note(str(problem)))
        return section
    rows = [row for row in ledger.get("slides") or () if isinstance(row, Mapping)]
    _counts(section, ledger, rows)
    _table(section, rows)
    least = _thresholds(section, found, folder)
    _gallery(section, folder, rows)
    _patches(section, folder, rows, least)
    return section


def _counts(section: Section, ledger: Mapping[str, Any], rows: Sequence[Row]) -> None:
    states = Counter(str(row.get("state")) for row in rows)
    names = ("candidates", *DROPPED, "patches")
    sums = {name: sum(_whole(row.get(name)) for row in rows) for name in names}
    dropped = " + ".join(
        f"{sums[name]:,} {why}" for name, (why, always) in DROPPED.items() if always or sums[name]
    )
    section.add(
        Stats(
            [(f"{len(rows):,}", "slides")]
            + [(f"{states[state]:,}", state) for state in STATES]
            + [(f"{sums['patches']:,}", "patches")]
        )
    )
    section.add(
        Text(
            f"{count(len(rows), 'slide')} = {states['done']} done + {states['empty']} empty + "
            f"{states['failed']} failed. Where slides were read, {sums['candidates']:,} candidate "
            f"patches = {sums['patches']:,} kept + {dropped}."
        )
    )
    counted: dict[str, int] = {"slides": len(rows), **_of(states), **sums}
    said = ledger.get("counts")
    wrong = [n for n, v in counted.items() if not isinstance(said, Mapping) or said.get(n, v) != v]
    if wrong or sum(states[state] for state in STATES) != len(rows):
        section.add(Note("The counts in slides.json do not agree with its rows; rows are shown."))
    section.facts.append(
        f"{count(len(rows), 'slide')} ({states['done']} done, {states['empty']} empty, "
        f"{states['failed']} failed) with {count(sums['patches'], 'patch', 'patches')}"
    )


def _table(section: Section, rows: Sequence[Row]) -> None:
    shown = _troubled_first(rows, ROWS_SHOWN)
    left = f" {len(shown)} of {len(rows)} are here, all in slides.csv." if shown != rows else ""
    labelled = any(row.get("label") is not None for row in rows)
    head = ["slide", "state", "reason", "um per pixel", "candidates", "patches"]
    body = []
    for row in shown:
        reason, message = str(row.get("reason") or ""), str(row.get("message") or "")
        reason = "" if reason == "ok" else reason
        mpp, source = as_float(row.get("mpp")), row.get("mpp_source")
        body.append(
            [
                str(row.get("slide")),
                str(row.get("state")),
                ": ".join(part for part in (reason, message) if part),
                number(mpp, 4) + (f" ({source})" if mpp is not None and source else ""),
                number(_whole(row.get("candidates"))),
                number(_whole(row.get("patches"))),
                *([str(row["label"] if row.get("label") is not None else "")] if labelled else []),
            ]
        )
    section.add(
        Table(
            "Every slide ends in one state: done (patches were kept), empty (read, nothing kept) "
            f"or failed (the reason says why).{left}",
            [*head, "label"] if labelled else head, body,
            numeric=frozenset({4, 5}), state=1, tall=len(body) > 15,
        )
    )  # fmt: skip


def _gallery(section: Section, folder: Path, rows: Sequence[Row]) -> None:
    chosen: Sequence[Row] = rows
    if len(rows) > CARDS:
        chosen = _troubled_first(rows, max(CARDS, min(CARDS_MOST, _troubled(rows) + CARDS // 2)))
    cards, problems = [], []
    for row in chosen:
        image = None
        text = _card_text(row)
        if row.get("thumbnail"):
            name = str(row["thumbnail"])
            path = _inside(folder, name)
            try:
                image = figures.thumbnail(path) if path else None
            except figures.BadImage as problem:
                problems.append(Note(f"{name} {problem}."))
            if path is None:
                problems.append(Note(f"{name} is not inside the folder of its ledger."))
        cards.append(Card(str(row.get("slide")), text, _state(row), image))
    if not cards:
        return
    cards.sort(key=lambda card: card.image is None)  # those to look at first
    left = f" {len(chosen)} of {len(rows)} slides." if len(chosen) < len(rows) else ""
    section.add(
        Heading("Tissue and kept patches"),
        *problems,
        Gallery(
            "The outline is the tissue that was found; the grid shows the patches that were kept. "
            f"Pen, glass and background should lie outside.{left}",
            cards,
        ),
    )


def _card_text(row: Row) -> str:
    state, patches = _state(row), _whole(row.get("patches"))
    if state == "done":
        return count(patches, "patch", "patches")
    return f"{state}: {row.get('message') or row.get('reason') or 'no reason given'}"


def _thresholds(section: Section, found: Found, folder: Path) -> dict[str, float]:
    try:
        config = read_settings(folder / "config.yaml", found.root)
    except Unreadable as problem:
        section.add(Note(f"{problem} Thresholds are not drawn."))
        return {}
    names = ("patch_size", "mpp", "overlap", "min_tissue", "min_hematoxylin", "min_focus",
             "max_pen", "codec", "store")  # fmt: skip
    section.add(
        Text("Settings: " + ", ".join(f"{n} {compact(config[n])}" for n in names if n in config))
    )
    limits = {"hematoxylin": "min_hematoxylin", "focus": "min_focus"}
    least = {name: as_float(config.get(key)) for name, key in limits.items()}
    return {name: value for name, value in least.items() if value}


def _patches(
    section: Section, folder: Path, rows: Sequence[Row], least: Mapping[str, float]
) -> None:
    """Score histograms and the contact sheet, from up to `STORES_READ` stores."""
    named = [str(row["store"]) for row in rows if row.get("store") and _whole(row.get("patches"))]
    read = spread(named, STORES_READ)
    stores: list[tuple[str, PatchStore]] = []
    try:
        for name in read:
            store = _open(section, folder, name)
            if store is not None:
                stores.append((name, store))
        _histograms(section, stores, least, len(named))
        _contact_sheet(section, stores)
    finally:
        for _, store in stores:
            store.close()


def _open(section: Section, folder: Path, name: str) -> PatchStore | None:
    from pathgen.stores import PatchStore

    path = _inside(folder, name)
    if path is None:
        section.add(Note(f"{name} is not inside the folder of its ledger."))
        return None
    if not path.exists():
        section.add(Note(f"{name} is missing."))
        return None
    try:
        return PatchStore.open(path)
    except StoreError as error:
        section.add(Note(f"{name}: {error.what} ({error.code})."))
        return None


def _histograms(
    section: Section,
    stores: Sequence[tuple[str, PatchStore]],
    least: Mapping[str, float],
    total: int,
) -> None:
    pooled: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*STAINS, "focus")}
    for name, store in stores:
        try:
            for stain in STAINS:
                pooled[stain].append(store.measure(stain))
            if "focus" in store.measures:  # older stores have none
                pooled["focus"].append(store.measure("focus"))
        except StoreError as error:
            section.add(Note(f"{name}: {error.what} ({error.code})."))
    values = {name: np.concatenate(parts) for name, parts in pooled.items() if parts}
    focus = values.pop("focus", None)
    left = f" From {len(stores)} of {total} stores." if len(stores) < total else ""
    if values:
        _stains(section, values, least, left)
    if focus is not None:
        _focus(section, focus, least, left)


def _stains(
    section: Section, values: Mapping[str, NDArray[np.float32]], least: Mapping[str, float],
    left: str,
) -> None:  # fmt: skip
    line = _LEAST if any(name in least for name in values) else ""
    section.add(
        Heading("Stain scores of the kept patches"),
        Figure(
            figures.histograms(values, least, "share of stained pixels in a patch"),
            "Histograms of the hematoxylin and eosin scores",
            "How many patches have which share of pixels with the stain, all slides pooled; one "
            f"slide far from the others shows as a peak of its own.{line}{left}",
        ),
    )


def _focus(
    section: Section, values: NDArray[np.float32], least: Mapping[str, float], left: str
) -> None:
    section.add(
        Heading("Sharpness of the kept patches"),
        Figure(
            figures.histograms({"focus": values}, least, "focus", limits=(0.0, 0.6)),
            "Histogram of the focus scores",
            "Sharp tissue has 0.2 to 0.5, tissue out of focus by a Gaussian of 1 um 0.1 to 0.17; "
            f"smooth material such as mucus is low too.{_LEAST * ('focus' in least)}{left}",
        ),
    )


def _contact_sheet(section: Section, stores: Sequence[tuple[str, PatchStore]]) -> None:
    """Patches drawn at random from all stores, each patch as likely."""
    starts = np.cumsum([0, *(len(store) for _, store in stores)])
    if not starts[-1]:
        return
    chance = np.random.default_rng(0)
    chosen = np.sort(chance.choice(starts[-1], min(PATCHES_SHOWN, starts[-1]), replace=False))
    images = []
    for place, (name, store) in enumerate(stores):
        own = chosen[(chosen >= starts[place]) & (chosen < starts[place + 1])] - starts[place]
        try:
            images += list(store.images(own)) if len(own) else []
        except StoreError as error:
            section.add(Note(f"{name}: {error.what} ({error.code})."))
    if images:
        chance.shuffle(images)
        section.add(
            Heading("Patches at random"),
            Figure(
                figures.contact_sheet(images),
                f"{len(images)} patches in rows",
                f"{len(images)} of {starts[-1]:,} patches, each as likely; background, pen or "
                "blur here means that the filters let it through.",
            ),
        )


# --- helpers ---------------------------------------------------------------------------------


def _inside(folder: Path, name: str) -> Path | None:
    """The path a ledger names, unless it leads out of the ledger's folder."""
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) else None


def _of(states: Mapping[str, int]) -> dict[str, int]:
    return {str(state): states[state] for state in STATES}


def _state(row: Row) -> State:
    return next((state for state in STATES if row.get("state") == state), "")


def _troubled(rows: Sequence[Row]) -> int:
    return sum(_state(row) != "done" for row in rows)


def _troubled_first(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """Up to `most` rows in their order: all that are not done, then done ones evenly spaced."""
    if len(rows) <= most:
        return rows
    other = spread([i for i, row in enumerate(rows) if _state(row) != "done"], most)
    done = [i for i, row in enumerate(rows) if _state(row) == "done"]
    return [rows[i] for i in sorted([*other, *spread(done, most - len(other))])]


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
