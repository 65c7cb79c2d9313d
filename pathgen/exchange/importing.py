"""Files of other tools to stores: features as they are, coordinates by cutting the slides again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pathgen import commit
from pathgen.config import Config
from pathgen.data.labels import LabelTable, load_labels
from pathgen.errors import ConfigError, PathgenError, StorageError, StoreError
from pathgen.exchange.entries import labels_of
from pathgen.exchange.foreign import (
    ForeignFeatures,
    coordinate_files,
    feature_files,
    patch_size,
    read_coords,
    read_features,
)
from pathgen.progress import Progress, Silent
from pathgen.provenance import Provenance
from pathgen.stores.features import FeatureStore
from pathgen.stores.store import open_store

FORMATS = ("clam", "trident", "torchmil")


class ImportConfig(Config):
    """What the files do not say."""

    encoder: str | None = None
    """name of the features' encoder; of TRIDENT's, which folder"""
    slide_mpp: float | None = Field(default=None, ge=0.05, le=10)
    """microns per level-0 pixel of slides that do not say it"""
    patch_size: int | None = Field(default=None, ge=1, le=16384)
    """side in pixels that every region is averaged to; None: as the files say"""
    mpp: float | None = Field(default=None, ge=0.05, le=100)
    """scale that every region is averaged to; None: as the files say"""


@dataclass
class ImportReport:
    """What became of each slide."""

    path: Path
    kind: str
    """``features`` or ``patches``"""
    stores: list[Path] = field(default_factory=list)
    rows: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """slide -> why it has no store"""
    notes: list[str] = field(default_factory=list)
    sizes: dict[str, tuple[int, float]] = field(default_factory=dict)
    """slide -> pixels a side and microns per pixel of its patches"""
    enlarged: list[str] = field(default_factory=list)
    """slides of which the regions have fewer pixels than were asked for"""

    def to_dict(self) -> dict[str, Any]:
        return {
            "out": str(self.path), "kind": self.kind, "stores": [str(p) for p in self.stores],
            "rows": self.rows, "failed": self.failed, "notes": self.notes,
            "sizes": {
                slide: {"patch_size": size, "mpp": mpp} for slide, (size, mpp) in self.sizes.items()
            },
        }  # fmt: skip

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def import_files(
    files: Sequence[Path | str] | Path | str,
    out: Path | str,
    form: str,
    config: ImportConfig | None = None,
    *,
    slides: Path | str | None = None,
    labels: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Feature stores from another tool's features, or patch stores from its coordinates.

    Rows keep the order of the files. One bad file does not end the others; it is in `failed`.

    Args:
        files: the tool's output folders, or files.
        out: folder for the stores.
        form: ``clam``, ``trident`` or ``torchmil``.
        slides: folder of the slides. With it coordinates are read and their regions cut from the
            slides; without, features are taken over. Such a folder gets ``slides.csv`` and
            ``slides.json``, as `pathgen tile` writes them.
        labels: CSV of slide labels.
        overwrite: replace stores of other content.

    Raises:
        NoInputError: PG-N01. DataError: PG-F04, the files cannot be told apart; PG-N06, no label
            fits a slide.
        ConfigError: PG-C01, no such format, or a size is asked for without slides; PG-O19, files
            of someone else have the names of the ledger.
        StorageError: the output cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(
            "unknown format", where=form, why=f"known: {', '.join(FORMATS)}",
            hint="give one of these to --from",
        )  # fmt: skip
    config, out, progress = config or ImportConfig(), Path(out), progress or Silent()
    places = [Path(files)] if isinstance(files, str | Path) else [Path(one) for one in files]
    table = load_labels(labels) if labels else None
    if slides is None and (config.patch_size or config.mpp):
        raise ConfigError(
            "features have no pixels to be resampled", where="--patch-size, --mpp",
            hint="give the folder of the slides with --slides, or leave these out",
        )  # fmt: skip
    if slides is not None:
        from pathgen.exchange.regions import import_patches

        found = coordinate_files(places, form)
        commit.writable_folder(out)
        with commit.lock(out):
            return import_patches(found, Path(slides), out, config, table, overwrite, progress)
    features = feature_files(places, form, config.encoder)
    commit.writable_folder(out)
    with commit.lock(out):
        return _import_features(features, out, form, config, table, overwrite, progress)


def _import_features(
    found: Mapping[str, ForeignFeatures], out: Path, form: str, config: ImportConfig,
    labels: LabelTable | None, overwrite: bool, progress: Progress,
) -> ImportReport:  # fmt: skip
    report = ImportReport(out, "features")
    known = labels_of(list(found), labels) if labels else {}
    with progress.task("import", len(found)) as task:
        for slide, one in found.items():
            row = known.get(slide)
            told = {"label": row.label, "patient": row.patient} if row else {}
            try:
                _import_one(one, out / f"{slide}.h5", form, config, told, overwrite, report)
            except (StorageError, StoreError):
                raise
            except PathgenError as error:
                report.failed[slide] = str(error)
            task.advance(1, note=slide)
    return report


def _import_one(
    one: ForeignFeatures, path: Path, form: str, config: ImportConfig, told: Mapping[str, Any],
    overwrite: bool, report: ImportReport,
) -> None:  # fmt: skip
    features = read_features(one)
    name = one.encoder or config.encoder or "unknown"
    if name == "unknown":
        report.note("the files do not say the encoder; name it with --encoder")
    inputs = {"features": digest_of(one.path)}
    if one.coords is not None and one.coords != one.path:
        inputs["coords"] = digest_of(one.coords)
    provenance = Provenance(
        stage="import", config={"from": form, "encoder": name, "slide": one.slide, **told},
        inputs=inputs,
    )  # fmt: skip
    coords = _coords(one, len(features), report)
    report.rows += len(features)
    report.stores.append(path)
    if is_done(path, provenance, overwrite):
        return
    source = {"id": inputs["features"], "name": one.slide, **_facts(one, report), **told}
    labels = one.facts.get("instances", np.full(len(features), -1, np.int32))
    with FeatureStore.create(
        path, features.shape[1], provenance,
        encoder={"name": name, "id": f"{form}:{name}", "dim": features.shape[1]},
        source={key: value for key, value in source.items() if value is not None},
        classes=_classes(one, labels),
    ) as writer:  # fmt: skip
        if len(features):
            writer.append(features=features, coords=coords, label=labels)


def _coords(one: ForeignFeatures, count: int, report: ImportReport) -> np.ndarray[Any, Any]:
    """Level-0 positions; (-1, -1) where the tool keeps none with its features."""
    if one.path.suffix == ".h5":
        return read_coords(one.path, count)
    if one.coords is not None:
        return read_coords(one.coords, count)
    report.note("features without level-0 positions: their stores have (-1, -1) instead")
    return np.full((count, 2), -1, np.int64)


def _facts(one: ForeignFeatures, report: ImportReport) -> dict[str, Any]:
    """What is known of the patches without their slide."""
    facts = {key: one.facts[key] for key in ("label",) if one.facts.get(key) is not None}
    if one.coords is None:
        return facts
    try:
        size = patch_size(one.coords)
    except PathgenError:
        report.note("some files do not say the size of their patches")
        return facts
    if size.side is None:
        report.note("patches are counted at a level of the slide: their size at level 0 is open")
        return facts
    return {
        **facts, "patch_size": size.size, "patch_size_level0": size.side, "overlap": size.overlap
    }  # fmt: skip


def _classes(one: ForeignFeatures, labels: np.ndarray[Any, Any]) -> list[str]:
    names = list(one.facts.get("classes", ()))
    most = int(labels.max(initial=-1)) + 1
    return [*names, *(str(i) for i in range(len(names), most))]


def is_done(path: Path, provenance: Provenance, overwrite: bool) -> bool:
    """Whether the store is there. Raises StorageError (PG-F01) when something else is."""
    if not path.exists():
        return False
    try:
        with open_store(path) as store:
            if store.id == provenance.id:
                return True
            ours = store.provenance.stage == "import"
    except StoreError as error:
        if error.code in ("PG-O04", "PG-O11"):  # ours, unfinished or damaged
            return False
        ours = False
    if ours and overwrite:
        return False
    raise StorageError(
        "output is in use", code="PG-F01", where=path,
        why="an earlier import of other content" if ours else "it is no import",
        hint="replace it with --overwrite, or choose another --out" if ours
        else "choose another --out",
    )  # fmt: skip


def digest_of(path: Path) -> str:
    """16 hex digits of a file's content."""
    state = blake2b(digest_size=8)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
