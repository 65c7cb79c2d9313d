"""The vectors of a slide: read from its feature store, or made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError
from pathgen.heatmap.heads import Heads
from pathgen.heatmap.settings import HeatmapConfig
from pathgen.heatmap.subjects import Subject, check_identity
from pathgen.progress import Progress
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchStore

if TYPE_CHECKING:
    from pathgen.encoders import PatchEncoder
    from pathgen.tiling.task import TileConfig


@dataclass(frozen=True)
class Vectors:
    """One row a patch, in the order of the patches."""

    name: str
    source: str
    """id of the patches"""
    features: NDArray[np.float32]
    coords: NDArray[np.int64]
    facts: Mapping[str, Any]
    """of the patches and their slide, as a feature store has them in its source"""
    made: str = ""
    """how, where that is worth a note"""

    def __len__(self) -> int:
        return len(self.features)


def stored(subject: Subject, heads: Heads) -> Vectors:
    """From the slide's feature store.

    Raises:
        DataError: PG-H02, of another encoder than the heads'; PG-H05, of another slide; PG-D06,
            not finite.
    """
    assert subject.features is not None
    with FeatureStore.open(subject.features) as store:
        check_identity(subject, store)
        encoder = store.encoder
        check_encoder(heads, str(encoder.get("name")), str(encoder.get("id", "")), store.dim,
                      store.path.name)  # fmt: skip
        features = store.features().astype(np.float32, copy=False)
        if not np.isfinite(features).all():
            raise DataError(
                "features with nan or infinity", code="PG-D06", where=store.name,
                hint="extract the features of this slide again",
            )  # fmt: skip
        return Vectors(
            store.name, str(store.source["id"]), features, store.coords(), dict(store.source)
        )


def embedded(
    subject: Subject,
    heads: Heads,
    encoder: PatchEncoder,
    tiling: TileConfig | None,
    folder: Path,
    config: HeatmapConfig,
    *,
    overwrite: bool,
    progress: Progress,
) -> Vectors:
    """From patches cut from the slide as `tiling` says, or without that from its patch store.

    The feature store stays in `folder`; the next call reads it.

    Raises:
        DataError: PG-H02, another encoder than the heads'; PG-H05, the patches are of another
            slide.
        SlideError: the slide cannot be tiled. StoreError: PG-O18, other features are there.
    """
    from pathgen.extract import ExtractConfig, encoder_facts, extract_features

    facts = encoder_facts(encoder)
    check_encoder(heads, str(facts["name"]), str(facts["id"]), int(facts["dim"]), "--encoder")
    how = ExtractConfig(batch_size=config.batch_size)
    if tiling is None:
        assert subject.patches is not None
        with PatchStore.open(subject.patches) as store:
            check_identity(subject, store)
        given: Path | str = subject.patches
    else:
        assert subject.slide is not None
        path = subject.slide.path
        given = path if isinstance(path, Path) else path.url
        if subject.slide.mpp is not None:
            tiling = tiling.model_copy(update={"slide_mpp": subject.slide.mpp})
    (made,) = extract_features(
        encoder, given, folder, how, tile=tiling, overwrite=overwrite, progress=progress
    )
    found = stored(replace(subject, features=made), heads)
    return replace(found, made=_sentence(tiling) if tiling is not None else "")


def check_encoder(heads: Heads, name: str, identity: str, dim: int, where: str) -> None:
    """That features fit the heads. Raises DataError (PG-H02)."""
    same = heads.encoder is None or identity == heads.encoder
    if dim != heads.dim or not same:
        known = heads.facts.get("encoder") or {}
        wanted = known.get("name") or "the one of the training features"
        raise DataError(
            "features of another encoder than the head's", code="PG-H02", where=where,
            why=f"{name} ({dim} numbers, id {identity or 'unknown'}); the head takes {wanted} "
            f"({heads.dim} numbers, id {heads.encoder or 'unknown'})",
            hint="extract features with the encoder that the head was trained on",
        )  # fmt: skip


def _sentence(tiling: TileConfig) -> str:
    scale = f"{tiling.mpp:g} µm per pixel" if tiling.mpp is not None else "level 0"
    overlap = f", overlapping by {tiling.overlap} pixels," if tiling.overlap > 0 else ""
    return f"Patches of {tiling.patch_size} pixels at {scale}{overlap} were cut from the slide."
