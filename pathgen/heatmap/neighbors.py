"""More like this patch: nearest by cosine among all features of an encoder."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen import commit
from pathgen.errors import ConfigError, DataError, NoInputError, PathgenError
from pathgen.exchange.files import ROWS
from pathgen.heatmap.pixels import Pixels, SlidePixels, StorePixels, opened
from pathgen.heatmap.place import Place
from pathgen.heatmap.sheets import sheet
from pathgen.heatmap.subjects import Paths, matching
from pathgen.progress import Progress, Silent
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchStore
from pathgen.stores.store import SUFFIXES, find_stores, open_store
from pathgen.tiling.inputs import SlideInput, find_slides

#: Suffixes that a montage may have.
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
Among = Literal["all", "other-slides", "other-patients"]


@dataclass(frozen=True)
class Neighbor:
    """A patch and how near it is."""

    slide: str
    row: int
    """of its store"""
    x: int
    y: int
    """level-0 corner; -1 where it has no place"""
    cosine: float
    store: str
    """id of the patches"""


@dataclass(frozen=True, eq=False)
class Similar:
    """The patches nearest to one, the nearest first."""

    query: Neighbor
    neighbors: tuple[Neighbor, ...]
    searched: int
    """patches that were compared"""
    pixels: _Sources

    def __len__(self) -> int:
        return len(self.neighbors)

    def __repr__(self) -> str:
        best = f", cosine {self.neighbors[0].cosine:.3f} and below" if self.neighbors else ""
        return (
            f"Similar({self.query.slide}#{self.query.row}: {len(self)} of {self.searched:,} "
            f"patches{best})"
        )

    def table(self) -> list[dict[str, Any]]:
        """Plain rows: slide, row, x, y, cosine."""
        names = ("slide", "row", "x", "y", "cosine")
        return [{name: asdict(one)[name] for name in names} for one in self.neighbors]

    def montage(self, columns: int = 7) -> Image.Image:
        """The patch and its neighbors, each with slide, row and cosine.

        Raises:
            DataError: PG-H04, their pixels are in none of the places given.
        """
        shown = [self.query, *self.neighbors]
        captions = [("this patch", _short(self.query))]
        captions += [(f"cosine {one.cosine:.3f}", _short(one)) for one in self.neighbors]
        title = f"{self.query.slide}, patch {self.query.row}: nearest of {self.searched:,}"
        return sheet([self.pixels.of(one) for one in shown], captions, columns, title)

    def save(self, path: Path | str) -> Path:
        """The montage as an image file; its suffix says of which kind.

        Raises:
            ConfigError: PG-C01, no picture has such a suffix. DataError: as `montage`.
        """
        path = Path(path)
        if path.suffix.lower() not in PICTURES:
            raise ConfigError(
                "not a kind of picture", where=path.name, hint=f"use {', '.join(PICTURES)}"
            )
        picture = self.montage()
        with commit.draft(path) as draft:
            picture.save(draft)
        return path

    def _repr_html_(self) -> str:
        data = io.BytesIO()
        self.montage().save(data, "PNG")
        image = base64.b64encode(data.getvalue()).decode()
        return f'<img alt="{html.escape(repr(self))}" src="data:image/png;base64,{image}">'


def similar(
    patch: Path | str,
    within: Paths,
    k: int = 12,
    *,
    tiles: Paths | None = None,
    slides: Paths | None = None,
    among: Among = "all",
    progress: Progress | None = None,
) -> Similar:
    """The `k` patches whose features have the greatest cosine with one patch's, itself left out.

    Args:
        patch: ``STORE#ROW``, of a patch store or a feature store; its suffix may be left out.
        within: feature stores of one encoder, or folders of them; that patch's among them.
        tiles: patch stores, for the montage; default: the folder of `patch` where that is one.
        slides: slides to cut the montage's patches from, where no store has them.
        among: also leave out the patch's own slide, or all of its patient.

    Raises:
        NoInputError: PG-N01, no such store or row, or nothing to compare with.
        DataError: PG-H02, features of several encoders; PG-H08, no features of the patch.
    """
    path, row = parse(patch)
    progress = progress or Silent()
    with open_store(path) as store:
        if not 0 <= row < len(store):
            raise NoInputError(
                "no such patch", where=patch, why=f"the store has rows 0 to {len(store) - 1}",
                hint="name one of these after #",
            )  # fmt: skip
        source = str(store.source["id"]) if isinstance(store, FeatureStore) else store.id
        is_patches = isinstance(store, PatchStore)
    paths = find_stores(within, "features")
    query, vector, patient = _query(paths, source, row, patch)
    found: list[Neighbor] = []
    searched, encoder = 0, None
    with progress.task("comparing", len(paths)) as task:
        for place in paths:
            with FeatureStore.open(place) as features:
                encoder = _same_encoder(encoder, features)
                if _counts(features, query, patient, among):
                    new = _nearest(features, vector, query, k)
                    searched += len(features) - (str(features.source["id"]) == query.store)
                    found = sorted([*found, *new], key=lambda one: -one.cosine)[:k]
                task.advance(note=features.name)
    if not found:
        raise NoInputError("nothing to compare with", where=patch,
                           hint="give features of more slides to --within")  # fmt: skip
    near = tiles if tiles is not None else path.parent if is_patches else None
    return Similar(query, tuple(found), searched, _Sources(near, slides, paths))


def parse(patch: Path | str) -> tuple[Path, int]:
    """``tiles/B12.h5#1203`` -> path and row. Raises NoInputError."""
    name, sign, row = str(patch).rpartition("#")
    if not sign or not row.isdigit():
        raise NoInputError(
            "which patch is not said", where=patch, hint="write STORE#ROW, as tiles/B12.h5#1203"
        )  # fmt: skip
    path = Path(name)
    candidates = [path, *(path.with_name(path.name + suffix) for suffix in SUFFIXES)]
    found = next((p for p in candidates if p.exists() and p.suffix in SUFFIXES), None)
    if found is None:
        raise NoInputError("no such store", where=name, hint="check the path")
    return found, int(row)


def _query(
    paths: Sequence[Path], source: str, row: int, patch: Path | str
) -> tuple[Neighbor, NDArray[np.float32], str | None]:
    """The patch itself, its unit vector and its patient."""
    for path in paths:
        with FeatureStore.open(path) as store:
            if str(store.source["id"]) == source and row < len(store):
                x, y = store.coords([row])[0].tolist()
                query = Neighbor(store.name, row, x, y, 1.0, source)
                return query, _unit(store.features([row]))[0], store.patient
    raise DataError(
        "no features of this patch", code="PG-H08", where=patch,
        why="none of the stores was made from its patches",
        hint="give the features that were extracted from that store to --within",
    )  # fmt: skip


def _nearest(
    store: FeatureStore, vector: NDArray[np.float32], query: Neighbor, k: int
) -> Iterator[Neighbor]:
    """The best `k` of a store; ties in the order of rows."""
    cosines = np.empty(len(store), np.float32)
    for first in range(0, len(store), ROWS):
        rows = np.arange(first, min(first + ROWS, len(store)))
        cosines[rows] = _unit(store.features(rows)) @ vector
    source = str(store.source["id"])
    if source == query.store:
        cosines[query.row] = -np.inf
    best = np.argsort(-cosines, kind="stable")[:k]
    best = best[np.isfinite(cosines[best])]
    for row, (x, y) in zip(best.tolist(), store.coords(best).tolist(), strict=True):
        yield Neighbor(store.name, row, x, y, float(cosines[row]), source)


def _unit(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Of length one; a vector of zeros stays one."""
    single = features.astype(np.float32)
    length = np.linalg.norm(single, axis=1, keepdims=True)
    return np.asarray(single / np.where(length > 0, length, 1), np.float32)


def _counts(store: FeatureStore, query: Neighbor, patient: str | None, among: Among) -> bool:
    same_slide = store.name == query.slide
    same_patient = patient is not None and store.patient == patient
    return among == "all" or not (same_slide or (among == "other-patients" and same_patient))


def _same_encoder(known: tuple[Any, int] | None, store: FeatureStore) -> tuple[Any, int]:
    """Id and length, equal for all. Raises DataError (PG-H02)."""
    own = store.encoder.get("id"), store.dim
    if known is not None and own != known:
        raise DataError(
            "features of several encoders", code="PG-H02", where=store.name,
            why="their vectors cannot be compared", hint="give the features of one encoder",
        )  # fmt: skip
    return own


def _short(one: Neighbor) -> str:
    name = one.slide.split("/")[-1]
    return f"{name if len(name) <= 14 else name[:13] + '…'}#{one.row}"


class _Sources:
    """Where pixels of patches are found: the stores, by id, else the slides, by name."""

    def __init__(self, tiles: Paths | None, slides: Paths | None, paths: Sequence[Path]) -> None:
        self.tiles, self.slides, self.paths = tiles, slides, paths

    def of(self, one: Neighbor) -> NDArray[np.uint8]:
        """RGB (size, size, 3). Raises DataError (PG-H04)."""
        pixels, place = self._pixels(one)
        image = pixels.patches(place, [one.row])
        assert image is not None  # of stores and slides
        return np.asarray(image[0])

    def _pixels(self, one: Neighbor) -> tuple[Pixels, Place]:
        path = self._stores.get(one.store)
        if path is not None:
            with PatchStore.open(path) as store:
                return StorePixels(path), Place.of(store.attrs, store.coords(), store.name)
        place, file = self._features[one.store]
        slide = matching(one.slide, self._slides, file)
        if slide is not None:
            return SlidePixels(opened(slide)), place
        raise DataError(
            "patches without pixels", code="PG-H04", where=f"{one.slide}#{one.row}",
            why="its patch store and its slide are in none of the places given",
            hint="give patch stores with --tiles, or slides with --slides",
        )  # fmt: skip

    @cached_property
    def _stores(self) -> dict[str, Path]:
        """Patch stores by id."""
        found: dict[str, Path] = {}
        for path in find_stores(self.tiles, "patches") if self.tiles is not None else ():
            try:
                with PatchStore.open(path) as store:
                    found[store.id] = path
            except PathgenError:
                continue  # of another kind, or damaged: no place to look
        return found

    @cached_property
    def _features(self) -> dict[str, tuple[Place, str | None]]:
        """Id of patches -> their places, and the name of the slide file."""
        found = {}
        for path in self.paths:
            with FeatureStore.open(path) as store:
                file = (store.source.get("slide") or {}).get("file")
                place = Place.of(store.source, store.coords(), store.name)
                found[str(store.source["id"])] = place, file
        return found

    @cached_property
    def _slides(self) -> list[SlideInput]:
        return find_slides(self.slides)[0] if self.slides is not None else []
