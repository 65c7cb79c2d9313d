"""The files of CLAM, TRIDENT and torchmil on disk: which there are, and what each says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError, NoInputError
from pathgen.exchange.hdf5 import describe, read_array


@dataclass(frozen=True)
class ForeignFeatures:
    """Features of one slide in another tool's file."""

    slide: str
    path: Path
    encoder: str | None = None
    coords: Path | None = None
    """file with the attributes of the patches"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """label and classes, where the tool knows them"""


@dataclass(frozen=True)
class ForeignSize:
    """What a file says of its patches: `size` pixels, at a level or by magnification."""

    size: int
    overlap: int = 0
    level: int | None = None
    """pyramid level the size is counted at; None: `side` says how large the patches are"""
    side: float | None = None
    """level-0 pixels, where the file says so"""


def coordinate_files(places: Sequence[Path], form: str) -> dict[str, Path]:
    """Slide -> its file of coordinates. Raises NoInputError (PG-N01)."""
    found: dict[str, Path] = {}
    for path in _h5_files(places, "patches"):
        if "coords" in describe(path).arrays:
            ending = "_patches" if form == "trident" else ""
            _add(found, path.stem.removesuffix(ending), path)
    return _some(found, places, "coordinates", "patches/")


def feature_files(
    places: Sequence[Path], form: str, encoder: str | None = None
) -> dict[str, ForeignFeatures]:
    """Slide -> its features. Raises NoInputError (PG-N01) or DataError (PG-F04)."""
    finder = {"clam": _clam, "trident": _trident, "torchmil": _torchmil}[form]
    found: dict[str, ForeignFeatures] = {}
    for one in finder(places, encoder):
        other = found.setdefault(one.slide, one)
        if other is not one:
            raise _twice(one.slide, other.path, one.path)
    return _some(found, places, "features", "h5_files/, pt_files/, features_*/ or features/")


def patch_size(path: Path) -> ForeignSize:
    """Size of the patches by the attributes of `coords`, in the dialect they are in.

    TRIDENT's names win where a file has both: they are the ones that say the side at level 0.

    Raises:
        DataError: PG-F04, neither dialect is complete.
    """
    attrs = describe(path).attrs.get("coords", {})
    try:
        size, overlap = int(attrs["patch_size"]), int(attrs.get("overlap", 0))
        if "patch_size_level0" in attrs:
            return ForeignSize(size, overlap, None, float(attrs["patch_size_level0"]))
        if "target_magnification" in attrs:
            ratio = float(attrs["level0_magnification"]) / float(attrs["target_magnification"])
            return ForeignSize(size, overlap, None, float(round(size * ratio)))
        level = int(attrs["patch_level"])
        step = 1.0 if level == 0 else float(np.ravel(attrs.get("downsample", 0.0))[0])
        return ForeignSize(size, overlap, level, size * step or None)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            "size of the patches is not known", code="PG-F04", where=path,
            why=f"coords has the attributes: {', '.join(sorted(attrs)) or 'none'}",
            hint="patch_size with patch_level (CLAM) or with the magnifications (TRIDENT) is "
            "needed",
        ) from error  # fmt: skip


def read_features(found: ForeignFeatures) -> NDArray[np.float32]:
    """(n, dim). Raises DataError (PG-F04)."""
    import pickle

    path = found.path
    try:
        if path.suffix == ".pt":
            import torch

            values = np.asarray(torch.load(path, weights_only=True, map_location="cpu").numpy())
        elif path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = read_array(path, "features")
    except (OSError, ValueError, RuntimeError, EOFError, AttributeError,
            pickle.UnpicklingError) as error:  # fmt: skip
        if isinstance(error, DataError):
            raise
        raise _bad(path, f"it cannot be loaded: {str(error).splitlines()[0]}") from error
    if values.ndim == 3 and values.shape[0] == 1:  # written by some CLAM forks
        values = values[0]
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
        raise _bad(path, f"features are {values.dtype} {values.shape}, not numbers (N, D)")
    if not np.isfinite(values).all():
        raise _bad(path, "features hold nan or infinity")
    return values.astype(np.float32)


def read_coords(path: Path, count: int | None = None) -> NDArray[np.int64]:
    """Level-0 (n, 2). Raises DataError (PG-F04)."""
    values = read_array(path, "coords")
    if values.ndim != 2 or values.shape[1] != 2 or values.dtype.kind not in "iuf":
        raise _bad(path, f"coords are {values.dtype} {values.shape}, not numbers (N, 2)")
    if values.dtype.kind == "f" and not (
        np.isfinite(values).all() and np.array_equal(values, np.rint(values))
    ):
        raise _bad(path, "coords are no whole level-0 pixels")
    if count is not None and len(values) != count:
        raise _bad(path, f"{len(values)} coords for {count} features")
    return values.astype(np.int64)


def _clam(places: Sequence[Path], encoder: str | None) -> Iterator[ForeignFeatures]:
    patches = {
        path.stem: path for place in places if place.is_dir()
        for path in sorted((place / "patches").glob("*.h5"))
    }  # fmt: skip
    named: set[str] = set()
    for path in _h5_files(places, "h5_files"):
        if "features" in describe(path).arrays:
            named.add(path.stem)
            yield ForeignFeatures(path.stem, path, encoder, patches.get(path.stem))
    for place in places:
        files = (
            [place]
            if place.suffix == ".pt"
            else sorted([*place.glob("*.pt"), *place.glob("pt_files/*.pt")])
        )
        for path in files:
            if path.stem not in named:
                yield ForeignFeatures(path.stem, path, encoder, patches.get(path.stem))


def _trident(places: Sequence[Path], encoder: str | None) -> Iterator[ForeignFeatures]:
    for place in places:
        if place.is_file():
            name = place.parent.name.removeprefix("features_")
            yield ForeignFeatures(place.stem, place, encoder or name, place)
            continue
        folders = (
            [place]
            if place.name.startswith("features_")
            else sorted([*place.glob("features_*"), *place.glob("*/features_*")])
        )
        known = {folder: folder.name.removeprefix("features_") for folder in folders}
        chosen = [f for f in folders if encoder in (None, known[f])]
        if len(chosen) > 1:
            raise DataError(
                "several folders of features", code="PG-F04", where=place,
                why=", ".join(str(folder.relative_to(place)) for folder in chosen),
                hint="give one of these folders, or choose by --encoder",
            )  # fmt: skip
        if folders and not chosen:
            raise DataError(
                "no features of this encoder", code="PG-F04", where=encoder,
                why=f"there are: {', '.join(sorted(set(known.values())))}",
                hint="give one of these to --encoder",
            )  # fmt: skip
        for folder in chosen:
            for path in sorted(folder.glob("*.h5")):
                yield ForeignFeatures(path.stem, path, known[folder], path)


def _torchmil(places: Sequence[Path], encoder: str | None) -> Iterator[ForeignFeatures]:
    for place in places:
        folder = place if (place / "features").is_dir() else place.parent
        names = _class_names(folder / "classes.json")
        for path in sorted((folder / "features").glob("*.npy")):
            facts: dict[str, Any] = {"classes": names["inst_labels"]}
            label = _array(folder / "labels" / path.name)
            if label is not None and label.size == 1:
                index = int(label.reshape(-1)[0])
                known = 0 <= index < len(names["labels"])
                facts["label"] = names["labels"][index] if known else str(index)
            instances = _array(folder / "inst_labels" / path.name)
            if instances is not None:
                facts["instances"] = instances.reshape(-1).astype(np.int32)
            yield ForeignFeatures(path.stem, path, encoder, None, facts)


def _class_names(path: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {name: [str(v) for v in found.get(name, [])] for name in ("labels", "inst_labels")}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise _bad(path, f"it cannot be read: {error}") from error


def _array(path: Path) -> NDArray[Any] | None:
    if not path.is_file():
        return None
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _bad(path, f"it cannot be loaded: {str(error).splitlines()[0]}") from error
    return values


def _h5_files(places: Sequence[Path], below: str) -> Iterator[Path]:
    """Files given, those in a folder, and those in its folder `below`, one level down too."""
    for place in places:
        if place.is_file():
            if place.suffix in (".h5", ".hdf5"):
                yield place
            continue
        own = sorted(place.glob("*.h5"))
        yield from own or sorted([*place.glob(f"{below}/*.h5"), *place.glob(f"*/{below}/*.h5")])


def _add(found: dict[str, Path], slide: str, path: Path) -> None:
    other = found.setdefault(slide, path)
    if other is not path:
        raise _twice(slide, other, path)


def _some(found: dict[str, Any], places: Sequence[Path], what: str, where: str) -> dict[str, Any]:
    for place in places:
        if not place.exists():
            raise NoInputError("no such file or folder", where=place, hint="check the path")
    if not found:
        raise NoInputError(
            f"no {what} found", where=", ".join(map(str, places)) or None,
            why=f"looked for {where}",
            hint="give the tool's output folder, and check --from"
            + ("; coordinates alone need --slides too" if what == "features" else ""),
        )  # fmt: skip
    return dict(sorted(found.items()))


def _twice(slide: str, one: Path, other: Path) -> DataError:
    return DataError(
        "a slide stands twice", code="PG-F04", where=slide, why=f"{one} and {other}",
        hint="import them into different folders",
    )  # fmt: skip


def _bad(path: Path, why: str) -> DataError:
    return DataError(
        "file cannot be understood", code="PG-F04", where=path, why=why,
        hint="check which tool made it, and --from",
    )  # fmt: skip
