"""Bags and feature stores with a known answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathgen.data.bags import Bags
from pathgen.provenance import Provenance
from pathgen.stores.features import FeatureStore

DIM = 8


def witness_bags(n: int, seed: int, dim: int = DIM, size: int = 40) -> Bags:
    """Positive bags hold pairs of witnesses at +5 and -5: means agree, bags do not.

    Every bag's mean is moved to zero, so that nothing linear in it can tell the classes apart.
    """
    rng = np.random.default_rng(seed)
    direction = np.ones(dim, np.float32) / np.sqrt(dim)
    features, labels = [], np.arange(n) % 2
    for label in labels:
        bag = rng.normal(size=(int(rng.integers(size // 2, size)), dim)).astype(np.float32)
        if label:
            bag[:2] = 5 * direction * np.array([[1], [-1]])
        features.append((bag - bag.mean(0)).astype(np.float32))
    names = [f"s{i:03}" for i in range(n)]
    return Bags(features, labels.astype(np.int64), names, names, ("0", "1"))


def write_store(
    folder: Path,
    name: str,
    features: NDArray[np.float32],
    *,
    encoder: str = "e1",
    patient: str | None = None,
) -> Path:
    path = folder / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    provenance = Provenance(stage="extract", config={}, inputs={"slide": name})
    source = {"id": f"id-{name}", "name": name, "patient": patient}
    with FeatureStore.create(
        path, features.shape[1], provenance,
        encoder={"name": encoder, "id": encoder, "dim": features.shape[1]}, source=source,
    ) as writer:  # fmt: skip
        if len(features):
            writer.append(
                features=features,
                coords=np.zeros((len(features), 2), np.int64),
                label=np.full(len(features), -1, np.int32),
            )
    return path


def write_cohort(folder: Path, bags: Bags, groups: Sequence[str] | None = None) -> Path:
    """Feature stores in ``folder/features`` and ``folder/labels.csv``; the CSV's path."""
    lines = ["slide,label,patient"]
    for i, name in enumerate(bags.names):
        write_store(folder / "features", name, bags.features[i])
        owner = (groups or bags.groups)[i]
        lines.append(f"{name}.svs,{bags.classes[bags.labels[i]]},{owner}")
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
