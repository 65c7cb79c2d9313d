"""DINO's weighted k-nearest-neighbor classifier on features (Caron et al. 2021; Wu et al. 2018).

Features are scaled to unit length; the k most similar training patches vote for their class
with weight exp(cosine / temperature). No training, hence the first thing to look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import ConfigError, DataError
from pathgen.evaluate.labelled import PathLike, load_labelled, several_encoders
from pathgen.provenance import digest

Vectors = NDArray[np.floating[Any]]

#: Test patches compared at once with all training patches,
CHUNK = 1024
#: and at most so many cosines at a time: 256 MiB, and twice that for their order.
COSINES = 64 * 2**20


def knn_predict(
    train: Vectors,
    labels: NDArray[np.integer[Any]],
    test: Vectors,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> NDArray[np.int64]:
    """Class of each test vector.

    Args:
        train: (n, dim). test: (m, dim).
        labels: (n,) classes, 0 or more.
        k: neighbors; all n when there are fewer.

    Returns:
        (m,) int64; of classes with equal votes the lowest.

    Raises:
        DataError: PG-D07, no training vector. ValueError: shapes or labels do not fit.
    """
    if not len(train):
        raise DataError("no labelled features to learn from", code="PG-D07")
    if train.shape[1:] != test.shape[1:] or len(labels) != len(train) or labels.min() < 0:
        raise ValueError(f"train {train.shape}, labels {labels.shape}, test {test.shape}")
    if k < 1 or temperature <= 0:
        raise ValueError(f"k is {k} and temperature {temperature}")
    k, classes = min(k, len(train)), int(labels.max()) + 1
    train, test = unit_length(train), unit_length(test)
    result = np.empty(len(test), np.int64)
    chunk = min(CHUNK, max(1, COSINES // len(train)))
    for start in range(0, len(test), chunk):
        cosine = test[start : start + chunk] @ train.T  # (chunk, n)
        nearest = np.argpartition(cosine, len(train) - k, axis=1)[:, len(train) - k :].copy()
        weight = np.exp(np.take_along_axis(cosine, nearest, 1).astype(np.float64) / temperature)
        votes = np.zeros((len(cosine), classes))
        np.add.at(votes, (np.arange(len(cosine))[:, None], labels[nearest]), weight)
        result[start : start + chunk] = votes.argmax(1)
    return result


def knn_accuracy(
    train_x: Vectors,
    train_y: NDArray[np.integer[Any]],
    test_x: Vectors,
    test_y: NDArray[np.integer[Any]],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test vectors whose class is found; see `knn_predict`."""
    predicted = knn_predict(train_x, train_y, test_x, k=k, temperature=temperature)
    return float((predicted == test_y).mean())


def unit_length(vectors: Vectors) -> NDArray[np.float32]:
    """(n, dim) float32 rows of length 1; a zero row stays zero."""
    values = np.asarray(vectors, np.float32)
    norms: NDArray[np.float32] = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, np.maximum(norms, np.float32(1e-12)), dtype=np.float32)


class ColorHistogram:
    """The baseline that any encoder must beat: joint RGB histogram, as a `PatchEncoder`.

    Each channel is cut into `bins` equal parts of 0-255; the vector is the square root of the
    share of pixels in each of the ``bins ** 3`` cells, so that cosine is the Bhattacharyya
    coefficient.
    """

    def __init__(self, bins: int = 8) -> None:
        self.bins = bins
        self.dim = bins**3
        self.id = digest(["color-histogram", bins])

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, bins ** 3) float32 of unit length."""
        return np.stack([self._one(patch) for patch in patches])

    def _one(self, patch: NDArray[np.uint8]) -> NDArray[np.float32]:
        part = (patch.reshape(-1, 3).astype(np.int64) * self.bins) >> 8
        cell = (part[:, 0] * self.bins + part[:, 1]) * self.bins + part[:, 2]
        share = np.bincount(cell, minlength=self.dim) / len(cell)
        return np.sqrt(share).astype(np.float32)


def color_histogram_features(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], bins: int = 8
) -> NDArray[np.float32]:
    """Features of `ColorHistogram` for images of any sizes: (n, bins ** 3) float32."""
    histogram = ColorHistogram(bins)
    return np.concatenate(
        [histogram.encode(image[None]) for image in images]
        or [np.empty((0, histogram.dim), np.float32)]
    )


def group_folds(
    groups: NDArray[np.str_], folds: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to learn from and rows to judge; no group is in both, each row is judged once.

    Groups are shuffled, then the largest still to place goes to the smallest fold.

    Raises:
        DataError: PG-D09, there is one group only.
    """
    names, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise DataError(
            "slides cannot be left out of a single one",
            code="PG-D09",
            where=str(names[0]) if len(names) else None,
            hint="give separate features by --test, or more slides",
        )
    folds = min(folds, len(names))
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(names))
    fold_of = np.empty(len(names), np.int64)
    load = np.zeros(folds, np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[group] = load.argmin()
        load[load.argmin()] += sizes[group]
    for fold in range(folds):
        judged = fold_of[number] == fold
        yield np.flatnonzero(~judged), np.flatnonzero(judged)


def evaluate_knn(
    train: PathLike | Sequence[PathLike],
    test: PathLike | Sequence[PathLike] | None = None,
    *,
    labels: PathLike | None = None,
    k: int = 20,
    temperature: float = 0.07,
    folds: int = 5,
    seed: int = 0,
    title: str | None = None,
) -> dict[str, Any]:
    """How well neighbors in feature space share a class.

    Args:
        train: feature stores to learn from, or folders of them.
        test: feature stores to be judged on; None leaves slides (or patients) out in `folds`.
        labels: CSV with slide, x, y, label of patches, and perhaps the slide's patient, which wins
            over the one known at tiling; None takes class folders' names.
        title: name of the row in a report; default the encoder's.

    Returns:
        Plain values: accuracy, balanced_accuracy, macro_f1, per_class (precision, recall, f1,
        count), chance (share of the largest class among the judged), n_train, n_test,
        n_unlabelled, k, temperature, folds, seed, encoder, shared_groups (slides or patients on
        both sides; 0 when left out by fold). With folds, n_train is the mean over them.

    Raises:
        NoInputError, StoreError: no features. DataError: PG-D07 no labels, PG-D08 a bad label
        file, PG-D09 a single slide and no `test`. RunError: PG-T04, several encoders.
    """
    if k < 1 or folds < 2 or temperature <= 0:
        raise ConfigError(
            "k-NN setting has a wrong value",
            where=f"k={k}, folds={folds}, temperature={temperature}",
            hint="k is 1 or more, folds 2 or more, temperature above 0",
        )
    learn = load_labelled(train, labels)
    if test is None:
        judge = learn
        predicted = np.empty(len(learn), np.int64)
        sizes = []
        for known, asked in group_folds(learn.groups, folds, seed):
            x, y = learn.x[known], learn.y[known]
            predicted[asked] = knn_predict(x, y, learn.x[asked], k=k, temperature=temperature)
            sizes.append(len(known))
        n_train, n_folds, shared, unlabelled = round(np.mean(sizes)), len(sizes), 0, 0
    else:
        judge = load_labelled(test, labels, classes=learn.classes)
        if judge.encoder["id"] != learn.encoder["id"]:
            raise several_encoders([learn.encoder["id"], judge.encoder["id"]])
        predicted = knn_predict(learn.x, learn.y, judge.x, k=k, temperature=temperature)
        n_train, n_folds, unlabelled = len(learn), 0, judge.unlabelled
        shared = len(set(learn.groups.tolist()) & set(judge.groups.tolist()))
    return {
        "title": title or str(learn.encoder["name"]),
        **scores(judge.y, predicted, learn.classes),
        "n_train": n_train,
        "n_test": len(judge),
        "n_unlabelled": learn.unlabelled + unlabelled,
        "k": k,
        "temperature": temperature,
        "folds": n_folds,
        "seed": seed,
        "encoder": {name: learn.encoder.get(name) for name in ("name", "id", "dim")},
        "shared_groups": shared,
    }


def scores(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro F1, chance and a line per class.

    Balanced accuracy is the mean recall over classes that occur in `truth`; macro F1 the mean
    over those that occur in either. A class number past `classes` is one never learned.
    """
    n = max(len(classes), int(truth.max()) + 1)
    confusion = np.zeros((n, n), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    count, claimed, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    recall = right / np.maximum(count, 1)
    precision = right / np.maximum(claimed, 1)
    f1 = 2 * right / np.maximum(count + claimed, 1)
    seen, either = count > 0, count + claimed > 0
    return {
        "accuracy": float(right.sum() / len(truth)),
        "balanced_accuracy": float(recall[seen].mean()),
        "macro_f1": float(f1[either].mean()),
        "chance": float(count.max() / len(truth)),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "count": int(count[i]),
            }
            for i, name in enumerate(classes)
        },
    }
