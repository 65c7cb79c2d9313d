"""Whether stores and exports are whole, and what each consumer would make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pathgen import commit
from pathgen.errors import ConfigError, NoInputError, PathgenError, StoreError
from pathgen.exchange.export import FORMATS, MANIFEST, read_manifest
from pathgen.exchange.files import crc32_of
from pathgen.exchange.findings import Finding
from pathgen.places import inside
from pathgen.progress import Progress, Silent
from pathgen.stores.patches import PatchStore
from pathgen.stores.store import SUFFIXES, Store, open_store

#: Images of a store that are decoded.
SAMPLE = 64
#: Format -> what in a folder says that it is one.
_MARKS: Mapping[str, tuple[str, ...]] = {
    "trident": ("*px_*px_overlap", "patches/*_patches.h5"),
    "torchmil": ("features/*.npy",),
    "slideflow": ("tfrecords", "**/*.tfrecords", "bags/bags_config.json"),
    "stamp": ("slide_table.csv",),
    "webdataset": ("*.tar",),
    "qupath": ("*.geojson", "*.geojson.gz"),
    "anndata": ("*.h5ad", "*/*.h5ad"),
    "folder": ("coords.csv",),
    "clam": ("h5_files/*.h5", "pt_files/*.pt", "patches/*.h5"),
}


@dataclass(frozen=True)
class VerifyReport:
    """What was found, in the order it was read."""

    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Findings by state."""
        states = Counter(finding.state for finding in self.findings)
        return {"ok": states["ok"], "warning": states["warning"], "error": states["error"]}

    @property
    def good(self) -> bool:
        """No errors; warnings are allowed."""
        return not self.counts["error"]

    def to_dict(self) -> dict[str, Any]:
        return {**self.counts, "findings": [finding.to_dict() for finding in self.findings]}


def verify(
    places: Sequence[Path | str] | Path | str,
    form: str | None = None,
    *,
    slides: Path | str | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check stores, folders that `pathgen tile` wrote, and exports of ours or of other tools.

    A store is read completely: its seal, every checksum, and a sample of its images. A folder
    of `pathgen tile` is held against its ledger. An export is read as its consumer reads it.

    Args:
        places: stores or folders.
        form: the format of folders that are no stores; default: told by what is in them.
        slides: folder of the slides, for coordinates of CLAM and TRIDENT: whether they have the
            levels, sizes and places that the files name.

    Raises:
        NoInputError: PG-N01, nothing there, or nothing that is known. ConfigError: PG-C01.
    """
    if form is not None and form not in FORMATS:
        raise ConfigError(
            "unknown format", where=form, why=f"known: {', '.join(FORMATS)}",
            hint="give one of these to --as",
        )  # fmt: skip
    given = [Path(places)] if isinstance(places, str | Path) else [Path(p) for p in places]
    jobs = [job for place in given for job in _jobs(place, form)]
    if slides is not None:
        jobs += [_slide_job(place, form, Path(slides)) for place in given]
    findings: list[Finding] = []
    with (progress or Silent()).task("verify", len(jobs)) as task:
        for path, job in jobs:
            findings += _run(path, job)
            task.advance(1, note=path.name)
    return VerifyReport(tuple(findings))


Job = Callable[[Path], Iterator[Finding]]


def _jobs(place: Path, form: str | None) -> list[tuple[Path, Job]]:
    if not place.exists():
        raise NoInputError("no such file or folder", where=place, hint="check the path")
    if form is not None:
        return [*_manifest_job(place), (place, _checker(form))]
    if place.suffix in SUFFIXES and (place.is_file() or _is_store(place)):
        return [(place, check_store)]
    if not place.is_dir():
        raise NoInputError(
            "neither a store nor a folder", where=place, hint="give stores or folders; --as FORMAT "
            "for files of other tools",
        )  # fmt: skip
    manifest = read_manifest(place)
    if manifest is not None:
        return [*_manifest_job(place), (place, _checker(str(manifest.get("as"))))]
    stores = [path for path in _stores_below(place) if _is_store(path)]
    if stores:
        ledger: list[tuple[Path, Job]] = (
            [(place, check_ledger)] if (place / "slides.json").is_file() else []
        )
        return [*((path, check_store) for path in stores), *ledger]
    found = guess_format(place)
    if found is None:
        raise NoInputError(
            "nothing to verify here", where=place,
            why="it holds neither stores nor files of a format that is known",
            hint=f"say what it is: --as {'|'.join(FORMATS)}",
        )  # fmt: skip
    return [(place, _checker(found))]


def _slide_job(place: Path, form: str | None, slides: Path) -> tuple[Path, Job]:
    from pathgen.exchange.slidecheck import check_slides

    found = form or str((read_manifest(place) or {}).get("as", guess_format(place)))
    if found not in ("clam", "trident"):
        raise ConfigError(
            "only coordinates of CLAM and TRIDENT are held against slides", where=place,
            why=f"this is {found}", hint="leave --slides out, or give --as clam or trident",
        )  # fmt: skip
    return place, lambda folder: check_slides(folder, found, slides)


def guess_format(folder: Path) -> str | None:
    """What the files in a folder look like."""
    for form, marks in _MARKS.items():
        if any(next(folder.glob(mark), None) is not None for mark in marks):
            return form
    return None


def _run(path: Path, job: Job) -> Iterator[Finding]:
    found = 0
    try:
        for finding in job(path):
            found += 1
            yield finding
    except PathgenError as error:
        where = Path(error.where) if error.where else path
        why = "another tool's file? Give its folder, with --as" if error.code == "PG-O15" else ""
        yield Finding.error(where, "pathgen", f"{error.code} {error.what}", why or error.why or "")
        return
    if not found:
        yield Finding.error(path, "pathgen", "no files of this format", "check the folder and --as")


def _checker(form: str) -> Job:
    if form not in FORMATS:
        raise NoInputError(
            "export of an unknown format", where=form, hint="run: pip install -U pathgen"
        )
    checker: Job = import_module(f"pathgen.exchange.{FORMATS[form][0]}").check
    return checker


def check_store(path: Path) -> Iterator[Finding]:
    """Seal, every checksum, and for patches a sample of images and the sanity of positions."""
    with open_store(path) as store:
        store.verify(deep=True)
        if not isinstance(store, PatchStore):
            yield Finding.good(path, "pathgen", f"{len(store)} rows of {store.kind}")
            return
        rows = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store))).astype(np.int64))
        for part in np.array_split(rows, max(1, len(rows) // 16)):
            store.images(part)
        problem = _misplaced(store)
        if problem:
            yield Finding.error(path, "pathgen", problem)
            return
        yield Finding.good(path, "pathgen", f"{len(store)} patches, {len(rows)} decoded")


def _misplaced(store: PatchStore) -> str:
    coords, slide = store.coords(), store.slide
    if not len(coords):
        return ""
    twice = len(coords) - len(np.unique(coords, axis=0))
    if twice:
        return f"{twice} patches stand at the place of another"
    # Import of other tools' patches may go past the edge, where slides are white.
    outside = (coords < 0).any(axis=1) | (coords >= (slide.width, slide.height)).any(axis=1)
    return f"{int(outside.sum())} patches lie outside of the slide" if outside.any() else ""


def check_ledger(folder: Path) -> Iterator[Finding]:
    """The counts of ``slides.json`` against its rows and the stores."""
    path = folder / "slides.json"
    try:
        ledger = commit.read_json(path)
        rows, counts = ledger["slides"], ledger["counts"]
        problems = list(_ledger_problems(folder, rows, counts))
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding.error(path, "pathgen", "ledger cannot be read", str(error))
        return
    for problem in problems:
        yield Finding.error(path, "pathgen", problem)
    if not problems:
        yield Finding.good(
            path, "pathgen", f"{len(rows)} slides, {counts['patches']} patches; counts add up"
        )


def _ledger_problems(
    folder: Path, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]
) -> Iterator[str]:
    states = Counter(row["state"] for row in rows)
    for state in ("done", "empty", "failed"):
        if states[state] != counts[state]:
            yield f"{counts[state]} slides {state} by the counts, {states[state]} by the rows"
    if sum(row["patches"] for row in rows) != counts["patches"]:
        yield "patches of the rows do not add up to the counts"
    for row in rows:
        dropped = sum(value for name, value in row.items() if name.startswith("dropped_"))
        if row["state"] != "failed" and row["candidates"] != dropped + row["patches"]:
            yield f"{row['slide']}: candidates are not dropped plus patches"
        if row["store"]:
            try:
                path = inside(folder, row["store"], folder / "slides.json")
            except StoreError as error:
                yield f"{row['slide']}: {error.what}: {error.why}"
            else:
                yield from _store_problems(path, row)
    listed = {row["store"] for row in rows if row["store"]}
    for path in _stores_below(folder):
        name = path.relative_to(folder).as_posix()
        if name not in listed and _is_store(path):
            yield f"{name} is in no row of the ledger"


def _store_problems(path: Path, row: Mapping[str, Any]) -> Iterator[str]:
    if not path.exists():
        yield f"{row['slide']}: its store {row['store']} is not there"
        return
    try:
        with open_store(path) as store:
            rows = len(store)
    except StoreError:
        return  # said where the store is checked
    if rows != row["patches"]:
        yield f"{row['slide']}: {row['patches']} patches by the ledger, {rows} in its store"


def _manifest_job(place: Path) -> list[tuple[Path, Job]]:
    return [(place, check_manifest)] if read_manifest(place) is not None else []


def check_manifest(folder: Path) -> Iterator[Finding]:
    """Every file of an export of ours, by its checksum."""
    files: Mapping[str, int] = (read_manifest(folder) or {}).get("files", {})
    bad = 0
    for name, expected in files.items():
        path = inside(folder, name, folder / MANIFEST)
        if not path.is_file():
            bad += 1
            yield Finding.error(path, "pathgen", "not there", "the export wrote it")
        elif crc32_of(path) != expected:
            bad += 1
            yield Finding.error(path, "pathgen", "changed since it was exported")
    if not bad:
        yield Finding.good(folder, "pathgen", f"{len(files)} files as they were exported")


def _stores_below(folder: Path) -> list[Path]:
    from pathgen.stores.store import find_stores

    try:
        return find_stores(folder)
    except NoInputError:
        return []


def _is_store(path: Path) -> bool:
    """False for a readable file of another tool."""
    try:
        store: Store = open_store(path)
    except StoreError as error:
        return error.code != "PG-O15"
    store.close()
    return True
