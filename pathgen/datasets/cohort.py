"""A cohort: which slides there are, what they are labeled, and which of them belong together.

As a CSV, one line a slide, sorted by slide:

| column | what |
|---|---|
| slide | name, as stores and features have it: the path below the root without its ending |
| path | the slide's file, relative to the CSV's folder |
| label | class, empty where it is not known or hidden |
| patient | empty where the data set does not say |
| site | who provided or scanned it |
| group | slides of one group are the same tissue (duplicates); empty: alone |
| split | official part: train, valid or test; empty where there is none |
| annotation | file of annotations (a mask, outlines), relative to the CSV's folder |
| flags | words such as ``noisy``, parted by ``;`` |

and further columns of the data set (``subtype``, ``gleason``).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pathgen import commit
from pathgen.data.cells import bad, read_cells
from pathgen.data.labels import known
from pathgen.errors import DataError

COLUMNS = ("slide", "path", "label", "patient", "site", "group", "split", "annotation", "flags")
#: Columns that a written cohort has even when they are empty.
ALWAYS = ("slide", "path", "label")
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Member:
    """One slide of a cohort; what is not known is an empty string."""

    slide: str
    path: str = ""
    label: str = ""
    patient: str = ""
    site: str = ""
    group: str = ""
    split: str = ""
    annotation: str = ""
    flags: frozenset[str] = frozenset()
    more: Mapping[str, str] = field(default_factory=dict)
    """further columns"""

    def value(self, column: str) -> str:
        """Of any column by its name. Raises KeyError for one that is not there."""
        if column == "flags":
            return ";".join(sorted(self.flags))
        return str(getattr(self, column)) if column in COLUMNS else self.more[column]


@dataclass(frozen=True)
class Cohort:
    """Slides sorted by name."""

    members: tuple[Member, ...]
    name: str = "cohort"
    """what errors call it: the data set, or the file it was read from"""

    def __post_init__(self) -> None:
        counts = Counter(member.slide for member in self.members)
        twice = sorted(slide for slide, n in counts.items() if n > 1)
        if twice:
            raise DataError(
                "a slide stands twice in a cohort", code="PG-D21", where=self.name,
                why=f"{len(twice)} of them, first {twice[0]!r}", hint="name each slide once",
            )  # fmt: skip
        object.__setattr__(self, "members", tuple(sorted(self.members, key=lambda m: m.slide)))

    def __len__(self) -> int:
        return len(self.members)

    @property
    def columns(self) -> tuple[str, ...]:
        """`COLUMNS` and the further ones."""
        return COLUMNS + tuple(dict.fromkeys(name for m in self.members for name in m.more))

    def column(self, name: str) -> list[str]:
        """(N,) values of a column, empty where not known.

        Raises:
            DataError: PG-D21, no such column.
        """
        if name not in self.columns:
            raise DataError(
                f"the cohort has no column {name!r}", code="PG-D21", where=self.name,
                why=f"it has: {', '.join(self.columns)}",
                hint="write the cohort with `pathgen datasets`, or add the column",
            )  # fmt: skip
        return [m.value(name) if name in COLUMNS else m.more.get(name, "") for m in self.members]

    def select(self, keep: Sequence[bool]) -> Cohort:
        """The members where `keep` is true."""
        return replace(self, members=tuple(m for m, k in zip(self.members, keep, strict=True) if k))


def write_cohort(path: Path, cohort: Cohort) -> None:
    """Write the CSV without the columns that say nothing; equal cohorts give equal bytes."""
    values = {name: cohort.column(name) for name in cohort.columns}
    said = {name: cells for name, cells in values.items() if name in ALWAYS or any(cells)}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(said)
    table.writerows(zip(*said.values(), strict=True))
    commit.write_text(path, text.getvalue())


def read_cohort(path: Path | str) -> Cohort:
    """Read a cohort CSV. Columns besides ``slide`` may be absent; cells such as ``NA`` are empty.

    Raises:
        DataError: PG-N06 the file cannot be understood, PG-D21 a slide stands twice or a part is
            none of train, valid, test.
    """
    path = Path(path)
    table = read_cells(path)
    names = [name.strip().lower() for name in table.header]
    if "slide" not in names:
        raise bad(
            path, "not a cohort", f"it has no column 'slide' but {', '.join(table.header)}",
            "`pathgen datasets` writes cohorts; of a CSV of your own: `pathgen datasets folder "
            "ROOT --labels CSV`",
        )  # fmt: skip
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise bad(path, "a column stands twice", repr(twice[0]), "rename one of them")
    members = []
    for line, row in table.rows:
        cells = {name: known(cell) or "" for name, cell in zip(names, row, strict=True)}
        cells["slide"] = row[names.index("slide")]
        if not cells["slide"]:
            raise bad(path, "row without a slide", f"line {line}")
        if cells.get("split", "") not in ("", *PARTS):
            raise DataError(
                "not a part", code="PG-D21", where=path.name,
                why=f"line {line}: {cells['split']!r}", hint=f"one of {', '.join(PARTS)}, or empty",
            )  # fmt: skip
        flags = frozenset(word for word in cells.pop("flags", "").split(";") if word)
        own = {name: cells[name] for name in COLUMNS if name in cells}
        more = {name: cell for name, cell in cells.items() if name not in COLUMNS}
        members.append(Member(**own, flags=flags, more=more))  # type: ignore[arg-type]
    return Cohort(tuple(members), path.name)
