"""Whole groups of slides dealt into parts that look alike.

The parts are a function of slide names, labels, sites, groups and the seed alone: not of the order
of the rows, the machine or the version of any library. Chance is a hash of seed and slide name.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
#: How often the groups of several slides are looked through again for a better part.
SWEEPS = 4


def deal(
    names: Sequence[str],
    cells: Sequence[int] | Index,
    groups: Sequence[int] | Index,
    shares: Sequence[float],
    seed: int,
) -> Index:
    """A part for each slide: groups stay whole, every part gets its share of every cell.

    Groups of several slides go first, the largest first, each where the squared distance from the
    wanted counts grows least. Slides on their own then fill each cell up. Where groups leave room
    for it, each cell of each part is within one slide of its share, and so is each part as a whole
    within the number of parts.

    Args:
        names: (N,) slides, all different.
        cells: (N,) stratum of each, such as grade x provider, from 0.
        groups: (N,) group of each, from 0; slides of one group never part.
        shares: (P,) of the parts, summing to 1.
        seed: of the chance that decides between equals.

    Returns:
        (N,) int64 part of each slide, from 0.

    Raises:
        ValueError: fewer groups than parts, or shares that are not positive and do not sum to 1.
    """
    share = np.asarray(shares, np.float64)
    if (share <= 0).any() or abs(share.sum() - 1) > 1e-9:
        raise ValueError(f"shares must be positive and sum to 1: {list(shares)}")
    order = np.argsort(np.array([_chance(seed, name) for name in names], np.uint64), kind="stable")
    cell, group = _dense(np.asarray(cells, np.int64)), np.asarray(groups, np.int64)[order]
    cell = cell[order]
    # A group is as early as its first slide: its number in the input means nothing.
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    group = rank[group].astype(np.int64)
    sizes = np.bincount(group)
    if len(sizes) < len(share):
        raise ValueError(f"{len(sizes)} groups for {len(share)} parts")
    counts = np.bincount(cell)
    wanted = share[:, None] * counts  # (P, C)
    part = np.full(len(cell), -1, np.int64)
    several = _deal_groups(cell, group, sizes, wanted, counts)
    part[:] = several[group]
    placed = np.zeros_like(wanted)
    known = part >= 0
    np.add.at(placed, (part[known], cell[known]), 1)
    _fill(part, cell, wanted - placed)
    _leave_none_empty(part, group, len(share))
    result = np.empty_like(part)
    result[order] = part
    return result


def codes(*columns: Sequence[str]) -> Index:
    """(N,) number of each distinct combination of the columns' values, in sorted order."""
    rows = list(zip(*columns, strict=True))
    number = {row: i for i, row in enumerate(sorted(set(rows)))}
    return np.array([number[row] for row in rows], np.int64)


def joined(*columns: Sequence[str]) -> Index:
    """(N,) group of each slide: slides that share a value in any of the columns, or that are joined
    by others that do. An empty value is shared with nobody."""
    count = len(columns[0])
    root = np.arange(count)

    def top(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = int(root[i])
        return i

    for column in columns:
        seen: dict[str, int] = {}
        for i, value in enumerate(column):
            if value:
                one, other = sorted((top(seen.setdefault(value, i)), top(i)))
                root[other] = one
    tops = np.array([top(i) for i in range(count)], np.int64)
    return _dense(tops)


def _chance(seed: int, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big")


def _dense(values: Index) -> Index:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _deal_groups(
    cell: Index, group: Index, sizes: Index, wanted: NDArray[np.float64], counts: Index
) -> Index:
    """(G,) part of each group of several slides; -1 for slides on their own."""
    part = np.full(len(sizes), -1, np.int64)
    missing = wanted.copy()  # (P, C), and as a whole in `short`
    short = wanted.sum(1)
    rows = np.argsort(group, kind="stable")
    ends = np.cumsum(sizes)
    several = np.flatnonzero(sizes > 1)
    several = several[np.argsort(-sizes[several], kind="stable")]
    inside = {}
    for g in several.tolist():
        own, there = np.unique(cell[rows[ends[g] - sizes[g] : ends[g]]], return_counts=True)
        inside[g] = own, there.astype(np.float64)

    def best(g: int) -> int:
        own, there = inside[g]
        # By how much the sum of squares grows; a cell counts by the share of it that moves.
        growth = (there * (there - 2 * missing[:, own]) / counts[own]).sum(1)
        growth += sizes[g] * (sizes[g] - 2 * short) / counts.sum()
        return int(growth.argmin())

    def move(g: int, to: int, sign: int) -> None:
        own, there = inside[g]
        missing[to, own] -= sign * there
        short[to] -= sign * sizes[g]

    for g in inside:
        part[g] = best(g)
        move(g, part[g], 1)
    for _ in range(SWEEPS):
        before = part.copy()
        for g in inside:
            move(g, part[g], -1)
            part[g] = best(g)
            move(g, part[g], 1)
        if (part == before).all():
            break
    return part


def _fill(part: Index, cell: Index, missing: NDArray[np.float64]) -> None:
    """Give the slides that have no part one, cell by cell: what rounding owes a part in one cell it
    gets in a later one."""
    owed = np.zeros(len(missing))
    for c in range(missing.shape[1]):
        free = np.flatnonzero((cell == c) & (part < 0))
        share = _level(missing[:, c], len(free))
        whole = np.floor(share + 1e-9)
        rest = share - whole
        left = len(free) - int(whole.sum())
        # Only a part with a fraction is rounded up; between equals the first.
        order = np.lexsort((np.arange(len(rest)), -np.round(rest + owed, 9), rest < 1e-9))
        whole[order[:left]] += 1
        owed += share - whole
        part[free] = np.repeat(np.arange(len(missing)), whole.astype(np.int64))


def _level(missing: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """`count` divided so that what is then still missing is as even as can be; none negative."""
    order = np.sort(missing)[::-1]
    tops = (np.cumsum(order) - count) / np.arange(1, len(order) + 1)
    level = tops[np.flatnonzero(order > tops)[-1]] if count else order[0]
    share: NDArray[np.float64] = np.maximum(missing - level, 0.0)
    return share


def _leave_none_empty(part: Index, group: Index, parts: int) -> None:
    """A part that got nothing takes the smallest group of the part with the most groups."""
    for empty in np.setdiff1d(np.arange(parts), part).tolist():
        pairs = np.unique(np.stack([part, group]), axis=1)
        donor = int(np.bincount(pairs[0], minlength=parts).argmax())
        own = pairs[1][pairs[0] == donor]
        smallest = own[np.bincount(group)[own].argmin()]
        part[group == smallest] = empty
