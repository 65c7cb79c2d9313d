"""Who trains, who validates, who tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from pathgen.errors import DataError

Index = NDArray[np.int64]
#: A greedy assignment can leave a fold empty when groups are few; another order may not.
ATTEMPTS = 20


class Split(NamedTuple):
    """Rows of three parts that share no row and no group; `valid` may be empty."""

    train: Index
    valid: Index
    test: Index


def folds(
    labels: Sequence[int] | NDArray[np.integer],
    groups: Sequence[str],
    k: int = 5,
    seed: int = 0,
    valid_share: float = 0.2,
) -> list[Split]:
    """k splits, stratified by label and apart by group; each row is in one test part.

    The validation part is about `valid_share` of the rest, chosen so that training keeps every
    class where that is possible. What could not be done is said by `shortfalls`.

    Args:
        labels: (N,) class of each bag.
        groups: (N,) patient of each bag.

    Raises:
        DataError: PG-N07, fewer groups than folds, one class only, or a fold that would train on
            one class only.
    """
    y, owner = np.asarray(labels, np.int64), _codes(groups)
    if k < 2:
        raise DataError("cross-validation needs two folds", code="PG-N07", where=f"folds={k}")
    patients, classes = len(np.unique(owner)), len(np.unique(y))
    if classes < 2:
        raise DataError(
            "all slides have the same label", code="PG-N07",
            why=f"{len(y)} slides, {classes} class", hint="check the label column",
        )  # fmt: skip
    if patients < k:
        raise DataError(
            "fewer patients than folds", code="PG-N07",
            why=f"{patients} patients (of {len(y)} slides) for {k} folds",
            hint=f"use --folds {patients}" if patients > 1 else "check the patient column",
        )  # fmt: skip
    rows = np.arange(len(y), dtype=np.int64)
    splits = []
    for fold, test in enumerate(_parts(y, owner, k, seed)):
        rest = np.setdiff1d(rows, test)
        if len(np.unique(y[rest])) < 2:
            raise DataError(
                "a fold would train on one class only", code="PG-N07", where=f"fold {fold}",
                why="all slides of the other classes are in its test part",
                hint="use more folds or more patients",
            )  # fmt: skip
        valid = _validation(y, owner, rest, valid_share, seed + 1 + fold)
        splits.append(Split(np.setdiff1d(rest, valid), valid, test))
    return splits


def shortfalls(
    splits: Sequence[Split], labels: Sequence[int] | NDArray[np.integer], classes: Sequence[str]
) -> list[str]:
    """What stratification could not give, in sentences; empty when every part has every class."""
    y = np.asarray(labels, np.int64)
    texts = []
    for fold, split in enumerate(splits):
        if not len(split.valid):
            texts.append(f"fold {fold} has no validation part: it trains for all epochs")
        for part, rows in (("training", split.train), ("test", split.test)):
            missing = [name for i, name in enumerate(classes) if not (y[rows] == i).any()]
            if missing:
                texts.append(f"fold {fold}: no slide of class {', '.join(missing)} in {part}")
    return texts


def _codes(groups: Sequence[str]) -> Index:
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1].astype(np.int64)


def _parts(y: Index, owner: Index, k: int, seed: int) -> list[Index]:
    """k disjoint parts of whole groups, none empty."""
    for attempt in range(ATTEMPTS):
        splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed + 1000 * attempt)
        with warnings.catch_warnings():
            # `shortfalls` says it better, and after the fact.
            warnings.filterwarnings("ignore", message="The least populated class", module="sklearn")
            # With fewer of every class than folds scikit-learn refuses; groups alone then count.
            target = y if np.bincount(y).max() >= k else np.zeros_like(y)
            parts = [test.astype(np.int64) for _, test in splitter.split(y, target, owner)]
        if all(len(part) for part in parts):
            return parts
    raise DataError(
        "the slides cannot be divided by patient", code="PG-N07",
        why=f"no {k} parts without an empty one were found among {len(np.unique(owner))} patients",
        hint=f"use --folds {max(2, k - 1)}",
    )  # fmt: skip


def _validation(y: Index, owner: Index, rest: Index, share: float, seed: int) -> Index:
    """Rows of `rest` to validate on: training first keeps its classes, then validation gets them.

    Empty when `share` is 0 or any validation part would take a class away from training.
    """
    patients = len(np.unique(owner[rest]))
    if share <= 0 or patients < 2:
        return np.empty(0, np.int64)
    parts = _parts(y[rest], owner[rest], min(patients, max(2, round(1 / share))), seed)
    candidates = [rest[part] for part in parts]
    whole = len(np.unique(y[rest]))
    safe = [c for c in candidates if len(np.unique(y[np.setdiff1d(rest, c)])) == whole]
    if not safe:
        return np.empty(0, np.int64)
    return max(safe, key=lambda c: (len(np.unique(y[c])), -abs(len(c) - share * len(rest))))
