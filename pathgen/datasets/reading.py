"""What a reader of a public data set found, and the checks that all of them share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.datasets.cohort import Cohort, Member, write_cohort
from pathgen.datasets.guides import GUIDES
from pathgen.errors import DataError, NoInputError
from pathgen.progress import Progress
from pathgen.provenance import Provenance

MIB = 2**20
#: First bytes of an error page that was saved under a slide's name.
_TEXT = (b"<!DO", b"<!do", b"<htm", b"<HTM", b"<?xm", b'{"er')
#: Flags that a file check sets: the file is not there, has no bytes, or is a web page.
MISSING, EMPTY, NO_SLIDE = "missing", "empty", "no_slide"


@dataclass(frozen=True)
class Reading:
    """A cohort as found on disk; paths are relative to `root`."""

    dataset: str
    root: Path
    cohort: Cohort
    published: Mapping[str, int]
    """what the data set's authors count"""
    found: Mapping[str, int]
    """the same, counted here"""
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """``missing`` slides that labels name, ``extra`` files without a label, ``problems`` of single
    rows with their line, ``duplicates``"""
    notes: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    """name of each label file -> digest of its bytes"""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def differences(self) -> tuple[str, ...]:
        """Where the counts are not the published ones, in sentences."""
        return tuple(
            f"{name}: {self.found.get(name, 0):,} here, {count:,} published"
            for name, count in self.published.items()
            if self.found.get(name, 0) != count
        )

    def select(self, keep: Sequence[bool]) -> Reading:
        """Of some members alone; the counts stay those of all."""
        return replace(self, cohort=self.cohort.select(keep))

    def to_dict(self) -> dict[str, Any]:
        """For the JSON beside the CSV: no time, host or absolute path."""
        provenance = Provenance(
            stage="cohort", inputs=dict(self.inputs),
            config={"dataset": self.dataset, **self.options},
        )  # fmt: skip
        return {
            "provenance": {**provenance.model_dump(), "id": provenance.id},
            "slides": len(self.cohort),
            "labels": dict(sorted(Counter(self.cohort.column("label")).items())),
            "counts": {
                name: {"here": self.found.get(name, 0), "published": count}
                for name, count in self.published.items()
            },
            "lists": {name: list(entries) for name, entries in self.lists.items()},
            "notes": list(self.notes),
        }

    def write(self, out: Path) -> None:
        """The CSV with paths relative to its own folder, and the JSON of the same name."""
        write_cohort(out, self.placed(out))
        commit.write_json(out.with_suffix(".json"), self.to_dict())

    def placed(self, out: Path) -> Cohort:
        """The cohort with paths relative to the folder of `out`."""
        root = self.root.resolve()
        with suppress(ValueError):  # on another drive of Windows nothing is relative
            root = Path(os.path.relpath(root, out.parent.resolve()))

        def moved(path: str) -> str:
            return (root / path).as_posix() if path else ""

        members = tuple(
            replace(m, path=moved(m.path), annotation=moved(m.annotation))
            for m in self.cohort.members
        )
        return replace(self.cohort, members=members)


def need_root(root: Path, dataset: str) -> Path:
    """The data set's folder. Raises NoInputError (PG-N01) that says how to get the data."""
    if root.is_dir():
        return root
    raise NoInputError(
        "no such folder" if not root.exists() else "not a folder", where=root,
        why=f"it is to hold {GUIDES[dataset].title}",
        hint=f"`pathgen datasets {dataset}` without a folder says how to get the data",
    )  # fmt: skip


def unknown_layout(dataset: str, where: Path, why: str, hint: str | None = None) -> DataError:
    """PG-D20, with what the data set looks like."""
    layout = " · ".join(" ".join(line.split()) for line in GUIDES[dataset].layout.splitlines())
    return DataError(
        f"not laid out as {GUIDES[dataset].title}", code="PG-D20", where=where.name or where,
        why=f"{why}; it has: {_entries(where)}", hint=hint or f"looked for {layout}",
    )  # fmt: skip


def _entries(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing"
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def child(folder: Path, *names: str) -> Path | None:
    """The entry that has one of the names in any case, by their order; None without one."""
    if not folder.is_dir():
        return None
    there = {path.name.casefold(): path for path in sorted(folder.iterdir(), reverse=True)}
    return next((there[n.casefold()] for n in names if n.casefold() in there), None)


def file_digest(path: Path) -> str:
    """16 hex digits of the bytes of a file."""
    digest = blake2b(digest_size=8)
    with path.open("rb") as handle:
        while block := handle.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def check_files(
    root: Path, members: Sequence[Member], progress: Progress
) -> tuple[list[Member], dict[str, tuple[str, ...]]]:
    """The members with flags for files that are missing, empty or no slides, and with the group of
    those whose bytes are equal.

    Only files of equal length can be equal, so only those are read whole.

    Returns:
        Members, and the slides of each flag and of each pair of equal files.
    """
    sizes: dict[str, int] = {}
    wrong: dict[str, str] = {}
    with progress.task("looking at slide files", len(members)) as task:
        for member in members:
            flag = _flag(root / member.path, sizes, member.slide)
            if flag:
                wrong[member.slide] = flag
            task.advance()
    equal = _equal_files(root, members, sizes, progress)
    found = []
    for member in members:
        flags = member.flags | ({wrong[member.slide]} if member.slide in wrong else set())
        group = member.group or equal.get(member.slide, "")
        found.append(replace(member, flags=frozenset(flags), group=group))
    lists = {
        flag: tuple(slide for slide, own in wrong.items() if own == flag)
        for flag in (MISSING, EMPTY, NO_SLIDE)
    }
    lists["duplicates"] = tuple(f"{group}: {slide}" for slide, group in sorted(equal.items()))
    return _one_group(found, equal), {name: entries for name, entries in lists.items() if entries}


def _flag(path: Path, sizes: dict[str, int], slide: str) -> str:
    try:
        size = path.stat().st_size
        if path.is_dir():
            return ""
        with path.open("rb") as handle:
            head = handle.read(4)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        raise DataError(
            "a slide file cannot be read", code="PG-D20", where=path.name, why=str(error.strerror),
            hint="check permissions, links and the disk",
        ) from error  # fmt: skip
    if not size:
        return EMPTY
    if head in _TEXT:
        return NO_SLIDE
    sizes[slide] = size
    return ""


def _equal_files(
    root: Path, members: Sequence[Member], sizes: Mapping[str, int], progress: Progress
) -> dict[str, str]:
    """Slide -> name of the group of files with its bytes; those that are alone are left out."""
    often = Counter(sizes.values())
    doubtful = [m for m in members if often.get(sizes.get(m.slide, -1), 0) > 1]
    digests: dict[str, list[str]] = {}
    if doubtful:
        with progress.task("comparing files of equal length", len(doubtful)) as task:
            for member in doubtful:
                digests.setdefault(file_digest(root / member.path), []).append(member.slide)
                task.advance()
    return {
        slide: f"same-{digest}"
        for digest, slides in digests.items()
        if len(slides) > 1
        for slide in slides
    }


def _one_group(members: Sequence[Member], equal: Mapping[str, str]) -> list[Member]:
    """Where a slide with a given group has the bytes of another, both are of one group."""
    from pathgen.datasets.splitting import joined

    if not equal or all(m.group == equal.get(m.slide, m.group) for m in members):
        return list(members)
    own = [m.group for m in members]
    root = joined(own, [equal.get(m.slide, "") for m in members])
    names: dict[int, str] = {}
    for number, group in sorted(zip(root.tolist(), own, strict=True), key=lambda pair: pair[1]):
        if group:
            names.setdefault(number, group)
    return [
        replace(m, group=names.get(int(number), m.group))
        for m, number in zip(members, root, strict=True)
    ]


def extra_files(folder: Path, known: set[str], suffixes: frozenset[str]) -> tuple[str, ...]:
    """Slide files in a folder whose name, without its ending, no label has."""
    return tuple(
        path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes and path.name[0] != "." and path.stem not in known
    )
