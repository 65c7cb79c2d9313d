"""Which slides are meant, and what there is of each: the file, its patches, its features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pathgen.errors import DataError, NoInputError, PathgenError
from pathgen.stores.facts import is_store
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchStore
from pathgen.stores.store import find_stores, open_store
from pathgen.tiling.inputs import SlideInput, find_slides
from pathgen.tiling.readers.check import slide_identity

Paths = Path | str | Sequence[Path | str]


@dataclass(frozen=True)
class Subject:
    """One slide to be drawn."""

    name: str
    slide: SlideInput | None = None
    features: Path | None = None
    patches: Path | None = None
    problem: PathgenError | None = None
    """known before anything is read"""


def find_subjects(
    given: Paths,
    *,
    features: Paths | None = None,
    patches: Paths | None = None,
    slides: Paths | None = None,
) -> list[Subject]:
    """One entry a slide, sorted by name.

    Args:
        given: slide files, folders of slides, patch or feature stores, or folders of these.
        features, patches, slides: where the other things of the given slides are. What belongs
            to none of them is passed over.

    Raises:
        NoInputError: PG-N01, a path is not there or holds nothing.
        DataError: PG-H05, two stores of one slide.
    """
    files: list[Path | str] = []
    stores: list[Path] = []
    for path in [given] if isinstance(given, Path | str) else given:
        found = _stores(path)
        if found:
            stores += found
        else:
            files.append(path)
    subjects: dict[str, Subject] = {}
    for slide in find_slides(files)[0] if files else []:
        if not slide.same_as:
            subjects[slide.name] = Subject(slide.name, slide, problem=slide.problem)
    wanted = {name.split("/")[-1] for name in subjects} | {path.stem for path in stores}
    index = _Index([*stores, *_named(features, wanted), *_named(patches, wanted)])
    for path in stores:
        for name in index.names(path):
            subjects.setdefault(name, Subject(name, problem=index.problems.get(path)))
    others = find_slides(slides)[0] if slides is not None else []
    done = [index.complete(subject, others) for _, subject in sorted(subjects.items())]
    if not done:
        raise NoInputError("no slides to draw", hint="give slides, patch stores or feature stores")
    return done


def check_identity(subject: Subject, store: FeatureStore | PatchStore) -> None:
    """That a store was made from this very slide file.

    Raises:
        DataError: PG-H05, it was made from another one.
    """
    facts = store.slide.model_dump() if isinstance(store, PatchStore) else store.source.get("slide")
    known = (facts or {}).get("identity")
    if subject.slide is None or not known:
        return
    if slide_identity(subject.slide.path) != known:
        raise DataError(
            "store and slide of one name do not belong together", code="PG-H05",
            where=subject.name, why=f"{store.path.name} was made from another file of this name",
            hint="give the slide that was tiled, or make the store again",
        )  # fmt: skip


class _Index:
    """Stores by the slide that they are of."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.features: dict[str, Path] = {}
        self.patches: dict[str, Path] = {}
        self.files: dict[str, str] = {}
        """name -> name of the slide file"""
        self.names_of: dict[Path, str] = {}
        self.problems: dict[Path, PathgenError] = {}
        for path in dict.fromkeys(paths):
            self._add(path)

    def _add(self, path: Path) -> None:
        try:
            store = open_store(path)
        except PathgenError as error:  # one bad store leaves the others alone
            self.problems[path] = error
            return
        with store:
            if isinstance(store, FeatureStore):
                table, file = self.features, (store.source.get("slide") or {}).get("file")
            elif isinstance(store, PatchStore):
                table, file = self.patches, store.slide.file
            else:
                return
            name = store.name
        other = table.setdefault(name, path)
        if other != path:
            raise DataError(
                "two stores of one slide", code="PG-H05", where=name, why=f"{other} and {path}",
                hint="give the features of one encoder, and patches of one tiling",
            )  # fmt: skip
        self.names_of[path] = name
        if file:
            self.files[name] = file

    def names(self, path: Path) -> Iterator[str]:
        """The slide of a store; of one that cannot be opened, the name of its file."""
        if path in self.problems:
            yield path.stem
        elif path in self.names_of:
            yield self.names_of[path]

    def complete(self, subject: Subject, slides: Sequence[SlideInput]) -> Subject:
        slide = subject.slide or matching(subject.name, slides, self.files.get(subject.name))
        file = slide.path.name if slide is not None else ""
        features, patches = (
            table.get(self._own(subject.name, file, table)) for table in (self.features,
            self.patches)
        )  # fmt: skip
        problem = None if features is not None else subject.problem
        return replace(subject, slide=slide, features=features, patches=patches, problem=problem)

    def _own(self, name: str, file: str, table: dict[str, Path]) -> str:
        """The name under which a table has a slide: the same, or the one store of that file."""
        if name in table or not file:
            return name
        same = [known for known in table if self.files.get(known) == file]
        same = same or [known for known in table if known.split("/")[-1] == name.split("/")[-1]]
        return same[0] if len(same) == 1 else name


def matching(name: str, slides: Sequence[SlideInput], file: str | None) -> SlideInput | None:
    """The slide of a store: by name, else by file name where that is one's own."""
    by_name = [slide for slide in slides if slide.name == name]
    by_file = [slide for slide in slides if file is not None and slide.path.name == file]
    for found in (by_name, by_file):
        if len(found) == 1:
            return found[0]
    return None


def _stores(path: Path | str) -> list[Path]:
    """Patch and feature stores at a path; none where slides are."""
    if "://" in str(path):
        return []
    place = Path(path)
    if not place.exists():
        return []  # a glob, or missing: `find_slides` says so
    if not place.is_dir() or is_store(place):
        return [place] if is_store(place) else []
    return _every(place, missing_ok=True)


def _named(paths: Paths | None, names: set[str]) -> list[Path]:
    """The stores whose files have one of these names; all where none has, to be looked into."""
    found = _every(paths)
    return [path for path in found if path.stem in names] or found


def _every(paths: Paths | None, *, missing_ok: bool = False) -> list[Path]:
    if paths is None:
        return []
    try:
        return [path for path in find_stores(paths) if is_store(path)]
    except NoInputError:
        if missing_ok:
            return []
        raise
