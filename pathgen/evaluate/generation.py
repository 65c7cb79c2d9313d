"""How near synthetic images are to real ones, on features of an encoder: FID, KID, precision.

The names are those of the usual measures; the features are those of the encoder that is given,
not Inception's, so values of two encoders cannot be compared, nor with published ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import ConfigError, DataError
from pathgen.evaluate.labelled import PathLike, several_encoders
from pathgen.stores import FeatureStore, find_stores

Vectors = NDArray[np.floating[Any]]

#: Squared distances held at a time, in float64: 128 MiB.
DISTANCES = 16 * 2**20


class KernelDistance(NamedTuple):
    """KID over random subsets."""

    mean: float
    sd: float
    subsets: int
    size: int
    """images of each side in a subset"""


class Manifolds(NamedTuple):
    """Improved precision and recall, 0 to 1 each."""

    precision: float
    """share of synthetic images inside the real manifold"""
    recall: float
    """share of real images inside the synthetic manifold"""


def frechet_distance(real: Vectors, synthetic: Vectors) -> float:
    """FID: squared Frechet distance of the Gaussians fitted to (n, D) and (m, D), in float64.

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), covariances with n - 1 (Heusel et al. 2017).
    With S = A^T A the last trace is the sum of the singular values of A1 A2^T, which needs no
    matrix root and stays exact where a covariance has not full rank, n < D + 1. The value falls
    with growing n, m even for equal distributions: compare at equal sizes only.

    Raises:
        DataError: PG-D06, fewer than two vectors, other lengths, or values that are not finite.
    """
    first, second = _pair(real, synthetic, least=2)
    mean = first.mean(0) - second.mean(0)
    one, two = _factor(first), _factor(second)
    cross = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    value = mean @ mean + (one**2).sum() + (two**2).sum() - 2 * cross
    return max(0.0, float(value))


def kernel_distance(
    real: Vectors, synthetic: Vectors, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID: squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased, in float64.

    Mean and standard deviation over random subsets (Binkowski et al. 2018), each without
    repeats. A subset has `size` images a side, but at most half of the smaller set: with all of
    it every subset would be the same.

    Raises:
        DataError: PG-D06, as `frechet_distance`; four vectors a side are the least.
    """
    first, second = _pair(real, synthetic, least=4)
    if subsets < 1 or size < 2:
        raise ConfigError("KID needs subsets", where=f"subsets={subsets}, size={size}")
    size = min(size, len(first) // 2, len(second) // 2)
    chance = np.random.default_rng([seed, 0x4B4944])
    values = [
        _discrepancy(
            first[chance.choice(len(first), size, replace=False)],
            second[chance.choice(len(second), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)), subsets, size)


def precision_recall(real: Vectors, synthetic: Vectors, k: int = 3) -> Manifolds:
    """Improved precision and recall (Kynkaanniemi et al. 2019).

    The manifold of a set is the union of balls about its vectors, each as wide as the distance
    to the `k`-th nearest other vector of the set. Precision rises with fidelity, recall with
    variety.

    Raises:
        DataError: PG-D06, as `frechet_distance`; k + 1 vectors a side are the least.
    """
    first, second = _pair(real, synthetic, least=k + 1)
    return Manifolds(
        precision=_inside(second, first, _radius(first, k)),
        recall=_inside(first, second, _radius(second, k)),
    )


def compare_sets(
    real: Vectors, synthetic: Vectors, *, subsets: int = 100, seed: int = 0, k: int = 3
) -> dict[str, Any]:
    """All measures of two sets of vectors, (n, D) and (m, D), as plain values.

    Returns:
        fid, kid, kid_sd, kid_subsets, kid_size, precision, recall, k, n_real, n_synthetic, dim,
        and warning: what makes the values doubtful, or None.
    """
    kid = kernel_distance(real, synthetic, subsets=subsets, seed=seed)
    manifolds = precision_recall(real, synthetic, k)
    return {
        "fid": frechet_distance(real, synthetic),
        "kid": kid.mean,
        "kid_sd": kid.sd,
        "kid_subsets": kid.subsets,
        "kid_size": kid.size,
        "precision": manifolds.precision,
        "recall": manifolds.recall,
        "k": k,
        "n_real": len(real),
        "n_synthetic": len(synthetic),
        "dim": int(real.shape[1]),
        "warning": doubt(len(real), len(synthetic), int(real.shape[1])),
    }


def doubt(n_real: int, n_synthetic: int, dim: int) -> str | None:
    """What to say of an FID of so few images; None when both covariances can have full rank."""
    few = min(n_real, n_synthetic)
    if few > dim:
        return None
    return (
        f"FID of {few} images in {dim} dimensions: the covariance has not full rank (that takes "
        f"{dim + 1}), and the value is far too high. KID is unbiased at any size."
    )


def evaluate_generation(
    real: PathLike | Sequence[PathLike],
    synthetic: PathLike | Sequence[PathLike],
    *,
    sample: int | None = None,
    subsets: int = 100,
    k: int = 3,
    seed: int = 0,
    title: str | None = None,
) -> dict[str, Any]:
    """FID, KID, precision and recall of features of synthetic images beside those of real ones.

    Args:
        real, synthetic: feature stores of one encoder, or folders of them.
        sample: at most so many vectors of each side, drawn at random by `seed`. None: all.
        title: name of the row in a report; default the encoder's.

    Returns:
        As `compare_sets`, with title, encoder and seed.

    Raises:
        NoInputError, StoreError: no features. RunError: PG-T04, several encoders.
        DataError: PG-D06, too few vectors. ConfigError: PG-C01.
    """
    if subsets < 1 or k < 1 or (sample is not None and sample < 1):
        raise ConfigError(
            "a setting has a wrong value", where=f"sample={sample}, subsets={subsets}, k={k}",
            hint="all are 1 or more",
        )  # fmt: skip
    (x, encoder), (y, other) = _load(real), _load(synthetic)
    if encoder["id"] != other["id"]:
        raise several_encoders([str(encoder["id"]), str(other["id"])])
    if sample is not None:
        chance = np.random.default_rng([seed, 0x464944])
        x, y = (v[np.sort(chance.permutation(len(v))[:sample])] for v in (x, y))
    return {
        "format": "pathgen.generation",
        "title": title or str(encoder["name"]),
        "encoder": {name: encoder.get(name) for name in ("name", "id", "dim")},
        "seed": seed,
        **compare_sets(x, y, subsets=subsets, seed=seed, k=k),
    }


def _load(paths: PathLike | Sequence[PathLike]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    stores = [FeatureStore.open(path) for path in find_stores(given, kind="features")]
    ids = sorted({str(store.encoder["id"]) for store in stores})
    if len(ids) > 1:
        raise several_encoders(ids)
    vectors = []
    for store in stores:
        with store:
            vectors.append(store.features().astype(np.float32))
    return np.concatenate(vectors), dict(stores[0].encoder)


def _pair(
    real: Vectors, synthetic: Vectors, least: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in float64. Raises DataError PG-D06."""
    why = ""
    if real.ndim != 2 or real.shape[1:] != synthetic.shape[1:]:
        why = f"shapes {real.shape} and {synthetic.shape}"
    elif min(len(real), len(synthetic)) < least:
        why = f"{len(real)} and {len(synthetic)} vectors; {least} of each are the least"
    elif not (np.isfinite(real).all() and np.isfinite(synthetic).all()):
        why = "some values are not finite"
    if why:
        raise DataError("sets of features cannot be compared", code="PG-D06", why=why)
    return np.asarray(real, np.float64), np.asarray(synthetic, np.float64)


def _factor(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """R with R^T R = covariance of (n, D); (min(n, D), D)."""
    centered = (vectors - vectors.mean(0)) / np.sqrt(len(vectors) - 1)
    return cast("NDArray[np.float64]", np.linalg.qr(centered, mode="r"))


def _discrepancy(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Unbiased squared MMD of (n, D) and (m, D): an image is not compared with itself."""
    n, m = len(first), len(second)
    own, theirs, cross = (_kernel(a, b) for a, b in ((first, first), (second, second),
                                                    (first, second)))  # fmt: skip
    within = (own.sum() - np.trace(own)) / (n * (n - 1))
    within += (theirs.sum() - np.trace(theirs)) / (m * (m - 1))
    return float(within - 2 * cross.mean())


def _kernel(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = (first @ second.T / first.shape[1] + 1) ** 3
    return values


def _radius(vectors: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Squared distance of each vector to its k-th nearest other one, (n,)."""
    return np.concatenate(
        [np.partition(part, k, axis=1)[:, k] for _, part in _distances(vectors, vectors)]
    )  # place 0 is the vector itself


def _inside(
    asked: NDArray[np.float64], centers: NDArray[np.float64], radius: NDArray[np.float64]
) -> float:
    """Share of `asked` that lie in one ball or more."""
    hits = [(part <= radius).any(1) for _, part in _distances(asked, centers)]
    return float(np.concatenate(hits).mean())


def _distances(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Squared distances, so many rows of `first` at a time: (start, (rows, len(second)))."""
    rows = max(1, DISTANCES // len(second))
    squares = (second**2).sum(1)
    for start in range(0, len(first), rows):
        part = first[start : start + rows]
        values = (part**2).sum(1)[:, None] + squares - 2 * part @ second.T
        yield start, np.maximum(values, 0)
