"""The heads of a run, and which of them may be asked about a slide."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathgen.errors import RunError
from pathgen.heatmap.answer import Voices
from pathgen.modelfiles import load_model, model_folder, read_object

if TYPE_CHECKING:
    from pathgen.models.mil import MILHead, Target

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Head:
    """One trained head and the slides it knows."""

    name: str
    """as ``fold-2``"""
    id: str
    """digest of its weights"""
    module: MILHead
    classes: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    """slide -> train, valid or test"""


@dataclass(frozen=True)
class Heads:
    """All heads of a run; they take the same features and answer the same question."""

    heads: tuple[Head, ...]
    encoder: str | None = None
    """id of the encoder of the features they were trained on; None where nothing says it"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """how those features were made, where the run says it: see `pathgen.data.made`"""

    @property
    def dim(self) -> int:
        return self.heads[0].module.config.dim

    @property
    def target(self) -> Target:
        return self.heads[0].module.config.target

    @property
    def classes(self) -> tuple[str, ...]:
        return self.heads[0].classes

    def known_as(self, slide: str) -> str:
        """The slide's name in the run: the same, or one in a folder there that ends in it."""
        names = {name for head in self.heads for name in head.parts}
        ends = [name for name in names if f"/{name}".endswith(f"/{slide}")
                or f"/{slide}".endswith(f"/{name}")]  # fmt: skip
        return ends[0] if slide not in names and len(ends) == 1 else slide

    def for_slide(self, slide: str) -> tuple[tuple[Head, ...], Voices]:
        """Those that did not learn from the slide; all of a run that does not have it.

        Where every head learned from it they are asked all the same, and it is said.
        """
        names = {name for head in self.heads for name in head.parts}
        if slide not in names:
            # Several of the run may be meant by a name without its folder: then none is known.
            alike = any(name.split("/")[-1] == slide.split("/")[-1] for name in names)
            return self.heads, _voices(self.heads, "new" if names and not alike else "unknown")
        fair = tuple(head for head in self.heads if head.parts.get(slide, "test") == "test")
        if fair:
            return fair, _voices(fair, "held out")
        return self.heads, _voices(self.heads, "trained on")


def _voices(heads: Sequence[Head], seen: str) -> Voices:
    return Voices(tuple(h.name for h in heads), tuple(h.id for h in heads), seen)


def load_heads(path: Path | str) -> Heads:
    """The heads at `path`: a run of `pathgen train-mil`, one fold of it, or a head's model folder.

    Raises:
        RunError: PG-T04, no finished head is there, or two do not go together.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(
            "no slide classifier here", where=path, why="there is no such folder",
            hint="give a run of pathgen train-mil, one fold of it, or a model folder",
        )  # fmt: skip
    folds = [fold for fold in fold_folders(path) if (fold / "model").is_dir()]
    if folds:
        return _together(path, [_head(fold, path) for fold in folds])
    if fold_folders(path):
        raise RunError(
            "no slide classifier here", where=path, why="no fold of the run is finished",
            hint="run the same training again to finish it",
        )  # fmt: skip
    model = model_folder(path)
    fold = model.parent if model.name == "model" else model
    # A file of splits alone makes no run: `datasets splits` writes one beside the CSV.
    runs = (
        f for f in fold.parents if (f / "splits.json").is_file() and (f / "config.yaml").is_file()
    )
    run = next(runs, fold)
    return _together(run, [_head(fold, run)])


def fold_folders(run: Path) -> list[Path]:
    """The folds of a run, of all its repeats, in order of number."""
    found = [*run.glob("fold-*"), *run.glob("repeat-*/fold-*")]
    return sorted((f for f in found if f.is_dir()), key=lambda f: _numbers(f.relative_to(run)))


def _numbers(path: Path) -> list[int]:
    tails = [part.rpartition("-")[2] for part in path.parts]
    return [int(tail) if tail.isdigit() else -1 for tail in tails]


def _head(fold: Path, run: Path) -> Head:
    from pathgen.models.mil import MILHead
    from pathgen.models.weights import weights_id

    module = load_model(fold, MILHead)  # type: ignore[type-abstract]
    metrics = fold / "metrics.json"
    classes = read_object(metrics).get("classes") if metrics.is_file() else None
    name = fold.relative_to(run).as_posix() if fold != run else fold.name
    return Head(name, weights_id(module), module, _classes(module, classes), _parts(fold, run))


def _classes(module: MILHead, named: Sequence[str] | None) -> tuple[str, ...]:
    """The classes, numbered where nothing names them; none of a number."""
    config = module.config
    if config.target in ("regression", "survival"):
        return ()
    count = config.outputs + (config.target == "ordinal")
    if named and len(named) == count:
        return tuple(map(str, named))
    return tuple(f"class {i}" for i in range(count))


def _together(run: Path, heads: Sequence[Head]) -> Heads:
    first = heads[0]
    for head in heads:
        if (head.module.config.dim, head.classes) != (first.module.config.dim, first.classes):
            raise RunError(
                "heads that do not go together", where=run,
                why=f"{first.name} and {head.name} differ in features or classes",
                hint="give one of them",
            )  # fmt: skip
    provenance = run / "provenance.json"
    inputs = read_object(provenance).get("inputs", {}) if provenance.is_file() else {}
    facts = run / "features.json"
    known = read_object(facts) if facts.is_file() else {}
    return Heads(tuple(heads), inputs.get("encoder") or None, known)


def _parts(fold: Path, run: Path) -> dict[str, str]:
    """Slide -> part, from the run's splits."""
    path, number = run / "splits.json", _numbers(Path(fold.name))[0]
    if not path.is_file() or number < 0:
        return {}
    repeat = _numbers(Path(fold.parent.name))[0] if fold.parent != run else 0
    split = split_of(path, repeat, number)
    return {slide: part for part in PARTS for slide in map(str, split.get(part, ()))}


def split_of(path: Path, repeat: int, fold: int) -> Mapping[str, Sequence[str]]:
    """Part -> slides of one split. Raises RunError (PG-T04) where the file has no such split."""
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        of_repeat = [split for split in splits if split.get("repeat", 0) == repeat]
        found: Mapping[str, Sequence[str]] = of_repeat[fold]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            "splits of the run cannot be read", where=path, why=str(error),
            hint="run the same training again to write them",
        ) from error  # fmt: skip
    return found
