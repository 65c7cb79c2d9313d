"""Stores to the files of another tool, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field

from pathgen import commit
from pathgen.config import Config
from pathgen.data.labels import load_labels, match, unmatched
from pathgen.errors import ConfigError, NoInputError, StorageError
from pathgen.exchange.entries import Entry, gather
from pathgen.exchange.files import crc32_of
from pathgen.progress import Progress, Silent

#: What an export says of itself, in its folder.
MANIFEST = "pathgen-export.json"
MANIFEST_FORMAT = "pathgen-export"
#: Files that desktops leave in every folder they show.
_OF_THE_SYSTEM = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})

#: Name -> module and function that writes it. They load on first use.
FORMATS: Mapping[str, tuple[str, str]] = {
    "clam": ("clam", "write"),
    "clam-pixels": ("clam", "write_pixels"),
    "trident": ("trident", "write"),
    "torchmil": ("torchmil", "write"),
    "stamp": ("stamp", "write"),
    "slideflow": ("slideflow", "write"),
    "webdataset": ("shards", "write"),
    "folder": ("folder", "write"),
    "qupath": ("qupath", "write"),
    "anndata": ("h5ad", "write"),
}


class ExportConfig(Config):
    """What the formats let one choose."""

    encoder: str | None = None
    """whose features, for formats with a place for one"""
    slide_suffix: str | None = None
    """ending of the slide files, for stores that do not say it; as ``.svs``"""
    shard_size: int = Field(default=10_000, ge=1)
    """patches in a tar of a webdataset"""
    one_file: bool = False
    """all slides in one file, for anndata"""


@dataclass
class Log:
    """What a person should know of an export: notes, and slides that are not in it."""

    progress: Progress = field(default_factory=Silent)
    skipped: dict[str, str] = field(default_factory=dict)
    """slide -> why it has no file"""
    _said: dict[str, None] = field(default_factory=dict)
    _most: dict[str, tuple[int, float, str]] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Kept once, however often it is said."""
        self._said[text] = None

    def most(self, text: str, value: float, detail: str) -> None:
        """A note on one of many slides: they are counted, and the largest value is shown."""
        count, largest, shown = self._most.get(text, (0, -1.0, ""))
        self._most[text] = (count + 1, *max((largest, shown), (value, detail), key=lambda v: v[0]))

    @property
    def notes(self) -> tuple[str, ...]:
        counted = (
            f"{text} ({count} slide{'s' if count > 1 else ''}; {'most ' if count > 1 else ''}{one})"
            for text, (count, _, one) in self._most.items()
        )
        return (*self._said, *counted)

    def each(self, entries: Sequence[Entry]) -> Iterator[Entry]:
        """The entries, one at a time, with progress; each is closed when it is done."""
        with self.progress.task("export", len(entries)) as task:
            for entry in entries:
                yield entry
                entry.close()
                task.advance(1, note=entry.id)


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    path: Path
    format: str
    slides: int
    patches: int
    files: int
    notes: tuple[str, ...]
    skipped: Mapping[str, str]
    """slide -> why it has no file"""
    following: tuple[str, ...] = ()
    """commands of the tool that reads it; words in capitals are to be filled in"""

    def to_dict(self) -> dict[str, Any]:
        return {
            "out": str(self.path), "as": self.format, "slides": self.slides,
            "patches": self.patches, "files": self.files, "notes": list(self.notes),
            "skipped": dict(self.skipped), "next": list(self.following),
        }  # fmt: skip


def export_stores(
    stores: Sequence[Path | str] | Path | str,
    out: Path | str,
    form: str,
    config: ExportConfig | None = None,
    *,
    labels: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write patch stores, feature stores or both as another tool's files.

    Equal stores give equal bytes. The folder appears when it is complete; ``pathgen-export.json``
    in it names the stores and has a checksum of every file.

    Args:
        stores: stores, or folders that are searched. Features belong to the patches they were
            made from, where both are given.
        out: folder to make.
        form: a name in `FORMATS`.
        labels: CSV of slide labels; default: those known when the slides were tiled.
        overwrite: replace an earlier export there, unless files were added to it.

    Raises:
        NoInputError: PG-N01. StoreError: a store is damaged. ConfigError: PG-C01, no such format.
        DataError: PG-F02, the stores lack something; PG-F03, the format cannot tell these patches.
        StorageError: PG-F01, something else is at `out`, or files were added to the export there;
            PG-O01, PG-O03, it cannot be written.
    """
    out, log = Path(out), Log(progress or Silent())
    if form not in FORMATS:
        raise ConfigError(
            "unknown format", where=form, why=f"known: {', '.join(FORMATS)}",
            hint="give one of these to --as",
        )  # fmt: skip
    check_free(out, overwrite)
    table = load_labels(labels) if labels else None
    entries = gather(stores, table)
    names = [entry.name for entry in entries]
    left = "" if table is None else unmatched(names, table, match(names, table))
    if left:
        log.note(left.removesuffix("?"))
    module, name = FORMATS[form]
    write: Callable[[Sequence[Entry], Path, ExportConfig, Log], None] = getattr(
        import_module(f"pathgen.exchange.{module}"), name
    )
    slides, patches = len(entries), sum(map(len, entries))
    for entry in entries:
        entry.close()
    commit.writable_folder(out.parent)
    with commit.draft(out) as draft:
        draft.mkdir()
        write(entries, draft, config or ExportConfig(), log)
        files = sorted(p for p in draft.rglob("*") if p.is_file())
        if not files:
            raise NoInputError(
                "nothing to export", where=", ".join(log.skipped) or None,
                why="; ".join(sorted(set(log.skipped.values()))) or None,
            )  # fmt: skip
        _write_manifest(draft, form, entries, files, log)
        check_free(out, overwrite)  # others may have written there meanwhile
    following = _following(form, out, entries, config)
    return ExportReport(
        out, form, slides, patches, len(files), log.notes, dict(log.skipped), following
    )  # fmt: skip


def _following(
    form: str, out: Path, entries: Sequence[Entry], config: ExportConfig | None
) -> tuple[str, ...]:
    from pathgen.exchange.following import commands

    found = commands(form, out, entries, config.slide_suffix if config else None)
    for entry in entries:
        entry.close()
    return found


def check_free(out: Path, overwrite: bool) -> None:
    """Raise StorageError (PG-F01) unless `out` is free, or an export that may be replaced.

    An export to which its reader or a person has added files may not.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise _in_use(out, "it is no folder")
    if not any(out.iterdir()):
        return
    manifest = read_manifest(out)
    if manifest is None:
        raise _in_use(out, "it holds files that are no export")
    if not overwrite:
        raise _in_use(
            out, "an earlier export is there", "replace it with --overwrite, or choose another "
            "--out",
        )  # fmt: skip
    added = _added(out, manifest)
    if added:
        more = f" and {len(added) - 1} more" if len(added) > 1 else ""
        raise _in_use(
            out, f"the export did not write {added[0]}{more}, and replacing it would remove them",
            "move what was added away, or choose another --out",
        )  # fmt: skip


def _added(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files in an export that its manifest does not list."""
    listed = {MANIFEST, *manifest.get("files", ())}
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*")
             if (p.is_symlink() or not p.is_dir()) and p.name not in _OF_THE_SYSTEM)  # fmt: skip
    return sorted(name for name in found if name not in listed)


def _in_use(out: Path, why: str, hint: str = "choose another --out") -> StorageError:
    return StorageError("output is in use", code="PG-F01", where=out, why=why, hint=hint)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the export in `folder` says of itself; None when it is none of ours."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = commit.read_json(path)
    except (OSError, ValueError):
        return None
    is_ours = isinstance(found, dict) and found.get("format") == MANIFEST_FORMAT
    return found if is_ours else None


def _write_manifest(
    folder: Path, form: str, entries: Sequence[Entry], files: Sequence[Path], log: Log
) -> None:
    slides = [
        {
            "id": entry.id, "name": entry.name, "patches": len(entry),
            "stores": [store.id for store in entry.stores],
        }
        for entry in entries if entry.id not in log.skipped
    ]  # fmt: skip
    commit.write_json(
        folder / MANIFEST,
        {
            "format": MANIFEST_FORMAT, "version": 1, "as": form, "slides": slides,
            "skipped": log.skipped, "notes": log.notes,
            "files": {p.relative_to(folder).as_posix(): crc32_of(p) for p in files},
        },
    )  # fmt: skip
    for entry in entries:
        entry.close()
