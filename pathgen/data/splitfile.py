"""Splits that somebody fixed: a CSV of ``slide,split,part``.

`split` counts from 0, `part` is train, valid (or val) or test. A slide may stand in several splits
and once in each.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pathgen import commit
from pathgen.data.cells import bad, read_cells
from pathgen.data.labels import Labeled, LabelTable, count, match, shown, slide_key
from pathgen.data.splits import Split
from pathgen.errors import DataError

#: How a part may be written -> its name.
PARTS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid",
    "validation": "valid", "dev": "valid", "test": "test", "testing": "test",
}  # fmt: skip


def read_splits(
    path: Path | str, names: Sequence[str], owners: Sequence[str] | None = None
) -> tuple[list[Split], list[str]]:
    """The splits of a file as rows of `names`, and what a person should know of them.

    Slides are matched by name as labels are. A slide that a split does not name is in none of its
    parts.

    Args:
        path: the CSV.
        names: (N,) slides.
        owners: (N,) the patient, or what else must not part.

    Raises:
        DataError: PG-N06, with the line: not such a CSV, or a slide stands twice in one split;
            PG-N07, a split lacks a part, or a patient's slides are in two parts of it.
    """
    path = Path(path)
    table = read_cells(path)
    places = _columns(path, table.header)
    per_split: dict[int, dict[str, Labeled]] = {}
    for line, cells in table.rows:
        slide, split, part = (cells[i] for i in places)
        if not split.isdecimal():
            raise bad(path, "split is not a number from 0", f"line {line}: {split!r}")
        if part.casefold() not in PARTS:
            raise bad(
                path, "part is not train, valid or test", f"line {line}: {part!r}",
                "leave out slides that are in no part",
            )  # fmt: skip
        rows = per_split.setdefault(int(split), {})
        row = Labeled(slide, PARTS[part.casefold()], None, line)
        before = rows.setdefault(slide_key(slide), row)
        if before.label != row.label:
            raise bad(
                path, "slide in two parts of one split",
                f"{slide!r} is in {before.label} in line {before.line} and in {row.label} in line "
                f"{line}", "keep one of the lines",
            )  # fmt: skip
    if sorted(per_split) != list(range(len(per_split))):
        raise bad(
            path, "splits do not count from 0", f"it has {', '.join(map(str, sorted(per_split)))}"
        )
    return _matched(path, [per_split[i] for i in range(len(per_split))], names, owners)


def splits_of_rows(
    rows: Iterable[tuple[str, int, str]],
    names: Sequence[str],
    owners: Sequence[str] | None,
    source: str,
) -> tuple[list[Split], list[str]]:
    """As `read_splits`, from (slide, split, part) that `source` made; part is a name of `Split`."""
    per_split: dict[int, dict[str, Labeled]] = {}
    for line, (slide, split, part) in enumerate(rows):
        per_split.setdefault(split, {})[slide_key(slide)] = Labeled(slide, part, None, line)
    return _matched(Path(source), [per_split[i] for i in sorted(per_split)], names, owners)


def _matched(
    path: Path,
    per_split: Sequence[Mapping[str, Labeled]],
    names: Sequence[str],
    owners: Sequence[str] | None,
) -> tuple[list[Split], list[str]]:
    """Splits as rows of `names`; what the splits and the slides do not have in common is noted."""
    splits, notes = [], []
    for number, rows in enumerate(per_split):
        found = match(names, LabelTable(path, "part", rows))
        split = _split(path, number, names, found)
        _keep_together(path, number, split, names, owners)
        if missing := len(rows) - len(found):
            lost = count(missing, "slide")
            notes.append(f"split {number}: {lost} of {path.name} without features or label")
        if left := [name for name in names if name not in found]:
            notes.append(f"split {number}: {count(len(left), 'slide')} in no part ({shown(left)})")
        splits.append(split)
    return splits, notes


def write_splits(path: Path | str, splits: Sequence[Split], names: Sequence[str]) -> None:
    """Write what `read_splits` reads, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "split", "part"])
    for number, split in enumerate(splits):
        for part, rows in split._asdict().items():
            writer.writerows([names[i], number, part] for i in rows)
    commit.write_text(Path(path), text.getvalue())


def repeats_of(splits: Sequence[Split]) -> list[int]:
    """To which repeat each split belongs: within a repeat no slide is tested twice.

    The folds of one cross-validation are one repeat; three splits with the same test part, three.
    """
    tested: list[set[int]] = []
    result = []
    for split in splits:
        own = set(split.test.tolist())
        free = next((i for i, there in enumerate(tested) if not there & own), len(tested))
        if free == len(tested):
            tested.append(set())
        tested[free] |= own
        result.append(free)
    return result


def _columns(path: Path, header: Sequence[str]) -> list[int]:
    lower = [name.casefold() for name in header]
    missing = [name for name in ("slide", "split", "part") if name not in lower]
    if missing:
        raise bad(
            path, f"no column {missing[0]!r}", f"its first line has: {', '.join(header)}",
            "a splits file has the columns slide, split and part",
        )  # fmt: skip
    return [lower.index(name) for name in ("slide", "split", "part")]


def _split(path: Path, number: int, names: Sequence[str], found: Mapping[str, Labeled]) -> Split:
    rows: dict[str, list[int]] = {part: [] for part in Split._fields}
    for i, name in enumerate(names):
        if name in found:
            rows[str(found[name].label)].append(i)
    for part in ("train", "test"):
        if not rows[part]:
            raise DataError(
                f"split without a {part} part", code="PG-N07", where=f"{path.name}, split {number}",
                why=f"none of the {len(names):,} slides with features and a label is in it",
                hint="name slides as in the features folder",
            )  # fmt: skip
    return Split(*(np.array(rows[part], np.int64) for part in Split._fields))


def _keep_together(
    path: Path, number: int, split: Split, names: Sequence[str], owners: Sequence[str] | None
) -> None:
    if owners is None:
        return
    part_of: dict[str, tuple[str, str]] = {}
    for part, rows in split._asdict().items():
        for i in rows:
            there, other = part_of.setdefault(owners[i], (part, names[i]))
            if there != part:
                raise DataError(
                    "a split parts what belongs together", code="PG-N07",
                    where=f"{path.name}, split {number}",
                    why=f"{other!r} is in {there} and {names[i]!r} in {part}; both are of "
                    f"{owners[i]!r}",
                    hint="move one of them, or leave the patient and group columns out of the "
                    "labels to accept this",
                )  # fmt: skip
