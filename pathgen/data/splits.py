"""Who trains, who validates, who tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError

Index = NDArray[np.int64]


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
    sites: Sequence[str] | None = None,
) -> list[Split]:
    """k splits, stratified by label and apart by group; each row is in one test part.

    The validation part is about `valid_share` of the rest, chosen so that training keeps every
    class where that is possible. What could not be done is said by `shortfalls`.

    Args:
        labels: (N,) class of each bag.
        groups: (N,) patient of each bag.
        sites: (N,) where each is from; parts are then alike in label x site too.

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
    balance = _balance(y, sites)
    splits = []
    for fold, test in enumerate(_parts(balance, owner, k, seed)):
        rest = np.setdiff1d(rows, test)
        if len(np.unique(y[rest])) < 2:
            raise DataError(
                "a fold would train on one class only", code="PG-N07", where=f"fold {fold}",
                why="all slides of the other classes are in its test part",
                hint="use more folds or more patients",
            )  # fmt: skip
        valid = _validation(y, balance, owner, rest, valid_share, seed + 1 + fold)
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


def joined(groups: Sequence[str], others: Sequence[str]) -> list[str]:
    """(N,) an owner for each row: rows of one group share it, and groups that `others` connect.

    An empty text in `others` connects nothing. An owner is called as the first of its groups.
    """
    parent: dict[str, str] = {group: group for group in groups}

    def top(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    first: dict[str, str] = {}
    for group, other in zip(groups, others, strict=True):
        if other:
            one, two = sorted((top(group), top(first.setdefault(other, group))))
            parent[two] = one
    return [top(group) for group in groups]


def shuffled(groups: Sequence[str], rng: np.random.Generator) -> Index:
    """(N,) whose truth each row gets when labels are dealt out anew among patients.

    The rows' truths, patient by patient, are laid along the rows of the same patients in another
    order: every truth is used once, and what one patient's rows have in common mostly stays so.
    """
    owner = _codes(groups)
    own = np.argsort(owner, kind="stable")
    order = rng.permutation(int(owner.max()) + 1 if len(owner) else 0)
    given = np.argsort(np.argsort(order)[owner], kind="stable")
    result = np.empty(len(owner), np.int64)
    result[given] = own
    return result


def _codes(groups: Sequence[str]) -> Index:
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1].astype(np.int64)


def _balance(y: Index, sites: Sequence[str] | None) -> Index:
    """(N, columns) 0 or 1: what parts are to have equal shares of. Label, label x site, rows."""
    one = np.ones((len(y), 1), np.int64)
    columns = [_one_hot(y), one]
    if sites is not None:
        place = _codes(sites)
        columns.insert(0, _one_hot(_codes([f"{a} {b}" for a, b in zip(y, place, strict=True)])))
    return np.concatenate(columns, axis=1)


def _one_hot(codes: Index) -> Index:
    hot: Index = (codes[:, None] == np.unique(codes)).astype(np.int64)
    return hot


def _parts(balance: Index, owner: Index, k: int, seed: int) -> list[Index]:
    """k disjoint parts of whole groups, none empty where there are k groups.

    Groups are dealt out one by one, the largest first and else by chance, each to the part that
    has least of what it brings: the choice that adds least to the squares of the parts' shares.
    """
    codes = np.unique(owner, return_inverse=True)[1]
    groups = int(codes.max()) + 1
    brings = np.zeros((groups, balance.shape[1]))
    np.add.at(brings, codes, balance)
    rng = np.random.default_rng(seed)
    order = rng.permutation(groups)
    order = order[np.argsort(-brings[order, -1], kind="stable")]
    weight = 1.0 / np.maximum(balance.sum(0), 1) ** 2
    held, place, names = (
        np.zeros((k, balance.shape[1])),
        np.empty(groups, np.int64),
        rng.permutation(k),
    )
    for group in order:
        best = int((held @ (brings[group] * weight)).argmin())
        held[best] += brings[group]
        place[group] = names[best]
    part = place[codes]
    return [np.flatnonzero(part == i) for i in range(k)]


def _validation(
    y: Index, balance: Index, owner: Index, rest: Index, share: float, seed: int
) -> Index:
    """Rows of `rest` to validate on: training first keeps its classes, then validation gets them.

    Empty when `share` is 0 or any validation part would take a class away from training.
    """
    patients = len(np.unique(owner[rest]))
    if share <= 0 or patients < 2:
        return np.empty(0, np.int64)
    count = min(patients, max(2, round(1 / share)))
    candidates = [rest[part] for part in _parts(balance[rest], owner[rest], count, seed)]
    whole = len(np.unique(y[rest]))
    safe = [c for c in candidates if len(np.unique(y[np.setdiff1d(rest, c)])) == whole]
    if not safe:
        return np.empty(0, np.int64)
    return max(safe, key=lambda c: (len(np.unique(y[c])), -abs(len(c) - share * len(rest))))
