"""The splits of a protocol: who trains, who validates, who is tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathgen.datasets.cohort import PARTS, Cohort
from pathgen.datasets.definitions import PROTOCOLS, Protocol, protocol_named
from pathgen.datasets.splitting import codes, deal, joined
from pathgen.errors import DataError

__all__ = ["PROTOCOLS", "Protocol", "Splits", "divide", "protocol_named"]

TRAIN, VALID, TEST, NOWHERE = 0, 1, 2, -1


@dataclass(frozen=True)
class Splits:
    """Who trains, validates and tests, split by split."""

    protocol: Protocol
    slides: tuple[str, ...]
    """(N,) the cohort's, by name"""
    parts: NDArray[np.int8]
    """(S, N) 0 train, 1 valid, 2 test, -1 in no part"""
    seeds: tuple[int, ...]
    """(S,) repeat that a split belongs to"""
    left_out: Mapping[str, str]
    """slide -> why it is in no part of any split"""
    notes: tuple[str, ...] = ()
    """what stratification could not give, and what was not known"""

    def __len__(self) -> int:
        return len(self.parts)

    def names(self, split: int, part: str) -> list[str]:
        """Slides of a part: train, valid or test."""
        rows = np.flatnonzero(self.parts[split] == PARTS.index(part))
        return [self.slides[i] for i in rows]

    def pretraining(self, split: int) -> list[str]:
        """Slides that an encoder of this split may see without labels."""
        if self.protocol.pretraining == "transductive":
            return list(self.slides)
        barred = self.parts[split] != TRAIN
        return [slide for slide, no in zip(self.slides, barred, strict=True) if not no]

    def rows(self) -> list[tuple[str, int, str]]:
        """(slide, split, part), as a splits file has them."""
        return [
            (self.slides[i], split, PARTS[self.parts[split, i]])
            for split in range(len(self))
            for i in np.flatnonzero(self.parts[split] != NOWHERE)
        ]


def divide(protocol: Protocol | str, cohort: Cohort) -> Splits:
    """The splits of a protocol.

    Slides of one patient or of one duplicate group never part. The result depends on the slides'
    names, labels, sites and groups alone, not on their order.

    Args:
        protocol: one of `PROTOCOLS`, or a name of it.
        cohort: slides; those without a label are in no part.

    Raises:
        DataError: PG-D21, the cohort lacks a column, has other classes or no flagged slides where
            the protocol leaves some out; PG-N07, too few slides for such splits.
    """
    protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
    left_out = _left_out(protocol, cohort)
    used = np.array([m.slide not in left_out for m in cohort.members])
    kept = cohort.select(used.tolist())
    _check_classes(protocol, kept)
    groups = joined(kept.column(protocol.patient_column), kept.column("group"))
    notes = _unknown(protocol, kept)
    if protocol.design == "official":
        parts, seeds, said = _official(protocol, kept, groups)
        notes += said
    elif protocol.design == "folds":
        parts, seeds = _folds(protocol, kept, groups)
    else:
        parts, seeds = _shares(protocol, kept, groups)
    everyone = np.full((len(parts), len(cohort)), NOWHERE, np.int8)
    everyone[:, used] = parts
    slides = tuple(cohort.column("slide"))
    return Splits(
        protocol, slides, everyone, seeds, left_out,
        (*notes, *_missing(protocol, kept, parts)),
    )  # fmt: skip


def _left_out(protocol: Protocol, cohort: Cohort) -> dict[str, str]:
    labels = cohort.column(protocol.label_column)
    flag = protocol.leave_out
    found = {}
    for member, label in zip(cohort.members, labels, strict=True):
        if flag and flag in member.flags:
            found[member.slide] = flag
        elif not label:
            found[member.slide] = "no label"
    if flag and flag not in found.values():
        raise DataError(
            f"protocol {protocol.name} leaves out slides that are {flag}, and none is marked so",
            code="PG-D21", where=cohort.name,
            why=f"no slide has {flag!r} in the column flags",
            hint="give the list when the cohort is made: pathgen datasets panda ROOT --noisy CSV "
            "(or --clean CSV)",
        )  # fmt: skip
    return found


def _check_classes(protocol: Protocol, cohort: Cohort) -> None:
    labels = Counter(cohort.column(protocol.label_column))
    strange = sorted(set(labels) - set(protocol.classes))
    if strange:
        raise DataError(
            f"labels that protocol {protocol.name} does not know", code="PG-D21",
            where=cohort.name, why=f"{strange[0]!r} ({labels[strange[0]]} slides) is none of "
            f"{', '.join(protocol.classes)}",
            hint=f"this protocol is for cohorts of `pathgen datasets {protocol.dataset}`",
        )  # fmt: skip
    if len(labels) < 2:
        raise DataError(
            "all slides have the same label" if labels else "no slide has a label",
            code="PG-N07", where=cohort.name, why=f"{len(cohort)} slides",
            hint=f"check the column {protocol.label_column}",
        )  # fmt: skip


def _cells(protocol: Protocol, cohort: Cohort) -> NDArray[np.int64]:
    columns = {"label": protocol.label_column, "site": protocol.site_column}
    return codes(*(cohort.column(columns.get(name, name)) for name in protocol.stratify))


def _deal(
    protocol: Protocol,
    cohort: Cohort,
    groups: NDArray[np.int64],
    rows: NDArray[np.int64],
    shares: Sequence[float],
    seed: int,
) -> NDArray[np.int64]:
    """Part of each of `rows`."""
    count = len(np.unique(groups[rows]))
    if count < len(shares):
        raise DataError(
            "too few slides to divide", code="PG-N07", where=cohort.name,
            why=f"{len(rows)} slides in {count} groups (patients, duplicates) for {len(shares)} "
            f"parts of protocol {protocol.name}",
        )  # fmt: skip
    names = cohort.column("slide")
    cells = _cells(protocol, cohort)
    return deal([names[i] for i in rows], cells[rows], groups[rows], shares, seed)


def _folds(
    protocol: Protocol, cohort: Cohort, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int8], tuple[int, ...]]:
    """Of the slides that a fold does not test, so many validate that they are the share of all."""
    train, valid, _ = protocol.shares
    everyone = np.arange(len(cohort))
    parts, seeds = [], []
    for seed in protocol.seeds:
        fold = _deal(
            protocol, cohort, groups, everyone, [1 / protocol.folds] * protocol.folds, seed
        )
        for i in range(protocol.folds):
            part = np.full(len(cohort), TEST, np.int8)
            rest = np.flatnonzero(fold != i)
            share = valid / (train + valid)
            # Another seed a fold: else a slide that validates once would do so in every fold.
            part[rest] = _deal(
                protocol, cohort, groups, rest, [1 - share, share], 1000 * seed + 1 + i
            )
            parts.append(part)
            seeds.append(seed)
    return np.stack(parts), tuple(seeds)


def _shares(
    protocol: Protocol, cohort: Cohort, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int8], tuple[int, ...]]:
    everyone = np.arange(len(cohort))
    parts = [
        _deal(protocol, cohort, groups, everyone, protocol.shares, seed).astype(np.int8)
        for seed in protocol.seeds
    ]
    return np.stack(parts), protocol.seeds


def _official(
    protocol: Protocol, cohort: Cohort, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int8], tuple[int, ...], list[str]]:
    given = np.array(cohort.column("split"))
    tested = given == protocol.official_test
    for part, found in (("train", given == "train"), (protocol.official_test, tested)):
        if not found.any():
            raise DataError(
                f"no slide of the official {part} part", code="PG-N07", where=cohort.name,
                why=f"protocol {protocol.name} tests on the official {protocol.official_test} part "
                "and trains on the official train part",
                hint="the cohort's column split has train, valid and test",
            )  # fmt: skip
    validates = "" if protocol.official_test == "valid" else "valid"
    parts = []
    for seed in protocol.seeds:
        own = np.full(len(cohort), NOWHERE, np.int8)
        own[tested] = TEST
        own[given == "train"] = TRAIN
        if validates and (given == validates).any():
            own[given == validates] = VALID
        else:
            rows = np.flatnonzero(given == "train")
            own[rows] = _deal(protocol, cohort, groups, rows, protocol.shares[:2], seed)
        parts.append(own)
    notes = _kept_apart(parts, groups, cohort)
    used = [part for part in ("train", validates, protocol.official_test) if part]
    unused = int((~np.isin(given, used)).sum())
    if unused:
        notes.append(f"{unused} labeled slides are in no official part that is used")
    return np.stack(parts), protocol.seeds, notes


def _kept_apart(
    parts: Sequence[NDArray[np.int8]], groups: NDArray[np.int64], cohort: Cohort
) -> list[str]:
    """Take slides of a patient or duplicate group that official parts divide out of training, or
    of validation where it is tested on; the test part stays as published."""
    gone: set[str] = set()
    for part in parts:
        for weaker, stronger in ((VALID, (TEST,)), (TRAIN, (TEST, VALID))):
            held = np.isin(groups, groups[np.isin(part, stronger)])
            leak = (part == weaker) & held
            part[leak] = NOWHERE
            gone |= {cohort.members[i].slide for i in np.flatnonzero(leak)}
    if not gone:
        return []
    first = ", ".join(sorted(gone)[:3])
    return [
        f"{len(gone)} slides are left out of training or validation: the official parts divide "
        f"their patient or duplicates ({first}{', ...' if len(gone) > 3 else ''})"
    ]


def _unknown(protocol: Protocol, cohort: Cohort) -> list[str]:
    notes = []
    if not any(cohort.column(protocol.patient_column)):
        notes.append("patients are not known: each slide counts as a patient of its own")
    if not any(cohort.column("group")):
        notes.append("no duplicates are known: the cohort's column group is empty")
    if "site" in protocol.stratify and not any(cohort.column(protocol.site_column)):
        notes.append("sites are not known: stratified on the label alone")
    return notes


def _missing(protocol: Protocol, cohort: Cohort, parts: NDArray[np.int8]) -> list[str]:
    labels = np.array(cohort.column(protocol.label_column))
    notes = []
    for split, part in enumerate(parts):
        for code, name in ((TRAIN, "training"), (TEST, "test")):
            there = set(labels[part == code].tolist())
            lacking = [c for c in protocol.classes if c not in there]
            if lacking:
                notes.append(f"split {split}: no slide of class {', '.join(lacking)} in {name}")
    return notes
