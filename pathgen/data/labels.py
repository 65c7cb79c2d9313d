"""Labels of slides from a CSV that people made by hand: read strictly, matched by name.

Cells stay text: ``007`` and ``none`` are what they say, but ``NA`` and ``nan`` are no label.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pathgen.columns import PATIENT, folded
from pathgen.data.cells import Cells, bad, read_cells
from pathgen.errors import DataError

#: role -> accepted column names, best first; see `folded` for what does not matter.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "slide": (
        "slide", "wsi", "slide_id", "image_path", "filename", "sample_id", "image_id",
        "image_name", "name",
    ),
    "label": ("label", "isup_grade", "grade", "class", "target"),
    "patient": PATIENT,
    "site": (
        "site", "provider", "data_provider", "center", "centre", "institution", "hospital",
        "tissue_source_site",
    ),
    "group": ("group", "duplicate_group"),
    "time": (
        "time", "survival_time", "survival_months", "survival_days", "time_to_event", "os_time",
        "os_months", "os_days", "duration",
    ),
    "event": ("event", "event_observed", "os_event", "vital_status", "os_status", "status"),
}  # fmt: skip
#: Endings that are no part of a slide's name, longest first.
ENDINGS = (
    ".ome.tiff", ".ome.zarr", ".ome.tif", ".svslide", ".isyntax", ".jpeg", ".tiff", ".mrxs",
    ".ndpi", ".zarr", ".svs", ".tif", ".scn", ".bif", ".vms", ".vmu", ".dcm", ".czi", ".jpg",
    ".png", ".h5", ".pt",
)  # fmt: skip


#: Cells that say that nothing is known, in any case; "none" may be a class.
MISSING = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan"})


class Labeled(NamedTuple):
    """One row: the slide as written, and its cells (None where they are `MISSING`)."""

    slide: str
    label: str | None
    """of survival data the time"""
    patient: str | None
    line: int
    site: str | None = None
    group: str | None = None
    """slides of one group, such as near-duplicates, are kept together as a patient's are"""
    event: str | None = None
    """of survival data: whether the time ended with it"""


@dataclass(frozen=True)
class LabelTable:
    """The rows of a labels file, one a slide, by `slide_key`."""

    path: Path
    column: str
    """name of the label column"""
    rows: Mapping[str, Labeled]
    patient_column: str | None = None
    site_column: str | None = None
    group_column: str | None = None
    event_column: str | None = None
    notes: tuple[str, ...] = ()
    """what a person should know of how cells and columns were read"""


def slide_key(text: str) -> str:
    """What two spellings of one slide share: no ending, forward slashes, no leading ``./``."""
    key = text.strip().replace("\\", "/")
    ending = next((end for end in ENDINGS if key.lower().endswith(end)), "")
    parts = key.removesuffix(key[len(key) - len(ending) :] if ending else "").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def load_labels(
    path: Path | str,
    *,
    label_column: str | None = None,
    patient_column: str | None = None,
    site_column: str | None = None,
    group_column: str | None = None,
    time_column: str | None = None,
    event_column: str | None = None,
    survival: bool = False,
) -> LabelTable:
    """Read a CSV of slide, label and, if there are such columns, patient, site and group.

    Args:
        path: the file. Columns are found by `ALIASES`.
        label_column: name of the label column when it has another name; so the other columns.
        survival: in place of a label, columns of a time and an event.

    Raises:
        DataError: PG-N06, with the line: not a CSV, a column is missing or stands twice, a row is
            longer or shorter than the header, or a slide stands twice with other values.
    """
    path = Path(path)
    table = read_cells(path)
    at = {"slide": find_column(path, table.header, "slide")}
    if survival:
        at["label"] = find_column(path, table.header, "time", time_column)
        at["event"] = find_column(path, table.header, "event", event_column)
    else:
        at["label"] = find_column(path, table.header, "label", label_column)
    taken = {i for i, _ in at.values()}
    for role, wanted in (("patient", patient_column), ("site", site_column),
                         ("group", group_column)):  # fmt: skip
        others = ["" if i in taken else h for i, h in enumerate(table.header)]
        if (found := find_optional(path, others, role, wanted)) is not None:
            at[role] = found
    rows: dict[str, Labeled] = {}
    for line, cells in table.rows:
        said = {role: known(cells[i]) for role, (i, _) in at.items()}
        row = Labeled(
            cells[at["slide"][0]], said["label"], said.get("patient"), line, said.get("site"),
            said.get("group"), said.get("event"),
        )  # fmt: skip
        key = slide_key(row.slide)
        if not key:
            raise bad(path, "row without a slide", f"line {line}: {', '.join(cells)}")
        before = rows.setdefault(key, row)
        if before._replace(slide="", line=0) != row._replace(slide="", line=0):
            raise bad(
                path, "slide stands twice with different values",
                f"{row.slide!r} is {_shown(before)} in line {before.line} and {_shown(row)} in "
                f"line {line}", "keep one of the lines",
            )  # fmt: skip
    names = {role: name for role, (_, name) in at.items()}
    return LabelTable(
        path, names["label"], rows, names.get("patient"), names.get("site"), names.get("group"),
        names.get("event"), _notes(table, at["label"][0], names.get("patient")),
    )  # fmt: skip


def find_column(
    path: Path, header: Sequence[str], role: str, wanted: str | None = None
) -> tuple[int, str]:
    """Position and name of the column for a role. Raises DataError (PG-N06)."""
    if wanted is not None:
        name = wanted.strip().lower()
        fits = [(i, h) for i, h in enumerate(header) if h and h.lower() == name]
        if not fits:
            names = {folded(h): h for h in header if h}
            close = difflib.get_close_matches(folded(wanted), names, n=1)
            raise bad(
                path, f"no column {wanted!r}", f"it has: {', '.join(names.values())}",
                f"did you mean {names[close[0]]!r}?" if close else None,
            )  # fmt: skip
    else:
        fits = _known(header, role)
        if not fits:
            raise bad(
                path, f"no {role} column", f"its first line has: {', '.join(header)}",
                f"call one of them {ALIASES[role][0]}"
                + ("" if role == "slide" else f" or give its name with --{role}-column"),
            )  # fmt: skip
        best = folded(fits[0][1])
        if role != "label" or best == role:
            fits = [fit for fit in fits if folded(fit[1]) == best]
    if len(fits) > 1:
        raise bad(
            path, f"several {role} columns", ", ".join(h for _, h in fits),
            f"say which with --{role}-column" if role != "slide" and wanted is None
            else "rename all but one",
        )  # fmt: skip
    return fits[0]


def find_patient(
    path: Path, header: Sequence[str], wanted: str | None = None
) -> tuple[int, str] | None:
    """`find_optional` of the patient."""
    return find_optional(path, header, "patient", wanted)


def find_optional(
    path: Path, header: Sequence[str], role: str, wanted: str | None = None
) -> tuple[int, str] | None:
    """As `find_column`, but None where no column is known to have the role."""
    if wanted is None and not _known(header, role):
        return None
    return find_column(path, header, role, wanted)


def known(cell: str) -> str | None:
    """The cell, None where it is `MISSING`."""
    return None if cell.casefold() in MISSING else cell


def match(names: Sequence[str], table: LabelTable) -> dict[str, Labeled]:
    """Row of each slide that has one, by the slide's name.

    Names agree when one is the end of the other, folder by folder: ``site/S1`` with ``S1.svs``
    and with ``/data/site/S1.svs``, but not with ``other/S1``.

    Raises:
        DataError: PG-N06, a row fits two slides or a slide two different rows.
    """
    ends: dict[str, list[str]] = {}
    for key in table.rows:
        ends.setdefault(key.rpartition("/")[2], []).append(key)
    found: dict[str, Labeled] = {}
    taken: dict[str, str] = {}
    for name in names:
        own = slide_key(name)
        fits = [key for key in ends.get(own.rpartition("/")[2], []) if _agree(own, key)]
        fits = [own] if own in fits else fits
        if len(fits) > 1:
            raise bad(table.path, "several rows fit one slide", f"{name!r}: {', '.join(fits)}")
        for key in fits:
            if key in taken:
                raise bad(
                    table.path, "a row fits two slides",
                    f"{table.rows[key].slide!r} (line {table.rows[key].line}) fits "
                    f"{taken[key]!r} and {name!r}", "write the folder too",
                )  # fmt: skip
            taken[key], found[name] = name, table.rows[key]
    return found


def unmatched(names: Sequence[str], table: LabelTable, matched: Mapping[str, Labeled]) -> str:
    """``3 labels match no slide, did you mean 'S-001' for 'S001'?``, or nothing when all do."""
    used = {row.line for row in matched.values()}
    left = [row.slide for row in table.rows.values() if row.line not in used]
    if not left:
        return ""
    free = {slide_key(name): name for name in names if name not in matched}
    text = f"{count(len(left), 'label')} match{'' if len(left) > 1 else 'es'} no slide"
    for slide in left[:200]:  # looking through all names for each is slow
        if close := difflib.get_close_matches(slide_key(slide), free, n=1, cutoff=0.75):
            return f"{text}, did you mean {free[close[0]]!r} for {slide!r}?"
    return f"{text} ({shown(left)})"


def count(n: int, noun: str) -> str:
    """``1 slide``, ``2 slides``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def shown(names: Sequence[str], most: int = 3) -> str:
    """The first few names, quoted."""
    text = ", ".join(repr(name) for name in names[:most])
    return f"{text}, ..." if len(names) > most else text


def class_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Distinct labels: by value when all are numbers, else alphabetical.

    Raises:
        DataError: PG-N06, two labels are one number, or differ in case alone.
    """
    distinct = sorted(set(labels))
    values = [as_number(label) for label in distinct]
    numeric = all(value is not None for value in values)
    seen: dict[object, str] = {}
    for label, value in zip(distinct, values, strict=True):
        other = seen.setdefault(value if numeric else label.casefold(), label)
        if other != label:
            raise DataError(
                "two labels that look like one", where=f"{other}, {label}",
                why="they are the same number" if numeric else "they differ in case only",
                hint="write both alike",
            )  # fmt: skip
    return tuple(sorted(distinct, key=lambda label: as_number(label) or 0.0) if numeric
                 else distinct)  # fmt: skip


def as_number(label: str) -> float | None:
    """The label's value, None when it is a word; ``nan`` and ``inf`` are words."""
    try:
        value = float(label)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _agree(one: str, other: str) -> bool:
    short, long = sorted((one.split("/"), other.split("/")), key=len)
    return long[-len(short) :] == short


def _known(header: Sequence[str], role: str) -> list[tuple[int, str]]:
    rank = {folded(alias): i for i, alias in enumerate(ALIASES[role])}
    fits = [(i, h) for i, h in enumerate(header) if folded(h) in rank]
    return sorted(fits, key=lambda fit: rank[folded(fit[1])])


def _notes(table: Cells, label: int, owner: str | None) -> tuple[str, ...]:
    notes = []
    said = [row[label] for _, row in table.rows if row[label] and known(row[label]) is None]
    if said:
        cells = f"{count(len(said), 'label cell')} ({shown(sorted(set(said)))})"
        notes.append(f"{cells} read as no label")
    like = [h for i, h in enumerate(table.header) if i != label and "patient" in folded(h)]
    if like and owner is None:  # left unread, it would part the slides of one patient
        notes.append(f"column {like[0]!r} is not read; if it is the patient, use --patient-column")
    return tuple(notes)


def _shown(row: Labeled) -> str:
    label = repr(row.label) if row.label else "unlabeled"
    others = {"event": row.event, "patient": row.patient, "site": row.site, "group": row.group}
    return label + "".join(f" of {role} {cell!r}" for role, cell in others.items() if cell)
