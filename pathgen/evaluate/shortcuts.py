"""What could be predicted without looking: a slide's color and stain, and its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.progress import Progress, Silent
from pathgen.stores import FeatureStore, PatchStore, find_stores
from pathgen.tiling.stain import stain_scores

#: Patches of a slide whose pixels are read: evenly spaced, so that all of the slide counts.
SAMPLE = 64
STAINS = ("hematoxylin", "hematoxylin_mean", "eosin", "eosin_mean")
COLORS = tuple(f"{what}_{color}" for what in ("mean", "od") for color in ("red", "green", "blue"))
SIZES = ("patches", "log_patches", "tissue_mm2", "log_tissue_mm2")
#: Optical density to base 10 of each value; 0 counts as 1.
_DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255)


class Measures(NamedTuple):
    """A few numbers a slide."""

    columns: tuple[str, ...]
    rows: Mapping[str, NDArray[np.float64]]
    """slide -> (columns,); a slide without patches has none"""


def stain_measures(
    patches: Path | str | Sequence[Path | str], progress: Progress | None = None
) -> Measures:
    """Mean color, mean optical density and stain scores of each slide.

    Colors are 0..255 and densities to base 10, over the pixels of at most `SAMPLE` patches; stain
    scores are the means over all patches of what tiling measured, or of the sample where it did
    not (see `pathgen.tiling.stain`).

    Raises:
        NoInputError, StoreError: no patch stores, or one is damaged.
    """
    paths = find_stores(patches, kind="patches")
    rows = {}
    with (progress or Silent()).task("colors and stains", len(paths)) as task:
        for path in paths:
            with PatchStore.open(path) as store:
                if len(store):
                    rows[store.name] = _stain(store)
            task.advance()
    return Measures((*COLORS, *STAINS), rows)


def size_measures(
    stores: Path | str | Sequence[Path | str], progress: Progress | None = None
) -> Measures:
    """Number of patches of each slide and, of patch stores that know it, the tissue area.

    Args:
        stores: patch stores, or feature stores, which know the number alone.
    """
    paths = find_stores(stores)
    counts: dict[str, int] = {}
    areas: dict[str, float | None] = {}
    with (progress or Silent()).task("sizes", len(paths)) as task:
        for path in paths:
            kind = PatchStore if _is_patches(path) else FeatureStore
            with kind.open(path) as store:
                if len(store):
                    counts[store.name] = len(store)
                    areas[store.name] = _area(store) if isinstance(store, PatchStore) else None
            task.advance()
    known = {name: area for name, area in areas.items() if area is not None}
    if len(known) < len(counts):
        return Measures(SIZES[:2], {name: np.array([n, np.log(n)]) for name, n in counts.items()})
    return Measures(
        SIZES,
        {
            name: np.array([n, np.log(n), known[name], _log(known[name])])
            for name, n in counts.items()
        },
    )


def _stain(store: PatchStore) -> NDArray[np.float64]:
    rows = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store))).astype(np.int64))
    images = store.images(rows)
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)])
    shares = counts / counts.sum(1, keepdims=True)  # (3, 256)
    measured: Mapping[str, NDArray[np.float32]]
    if set(STAINS) <= set(store.measures):
        measured = {name: store.measure(name) for name in STAINS}
    else:
        measured = stain_scores(images)
    stains = [float(np.mean(measured[name], dtype=np.float64)) for name in STAINS]
    return np.concatenate([shares @ np.arange(256), shares @ _DENSITY, stains])


def _area(store: PatchStore) -> float | None:
    """Tissue in square millimeters; None where scale or tissue is not known."""
    mpp = store.attrs.get("target_mpp")
    if mpp is None or "tissue" not in store.measures:
        return None
    step = store.spec.size - store.spec.overlap  # overlapping tissue counts once
    return float(store.measure("tissue").sum(dtype=np.float64) * (step * float(mpp) / 1000) ** 2)


def _log(area: float) -> float:
    """Of square millimeters; below a square micrometer all is one."""
    return float(np.log(max(area, 1e-6)))


def _is_patches(path: Path) -> bool:
    from pathgen.stores import open_store

    with open_store(path) as store:
        return isinstance(store, PatchStore)
