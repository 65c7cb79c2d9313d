"""Two runs' answers to the same slides, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathgen.data.labels import class_order, shown, slide_key
from pathgen.errors import DataError
from pathgen.evaluate.metrics import JudgedClasses
from pathgen.evaluate.predictions import Answered
from pathgen.evaluate.resampling import Floats, Ints, Judged, Measured, measure_repeats


class Side(NamedTuple):
    """One run's answers to the slides that both have."""

    judged: Judged
    repeats: Ints | None
    place: Ints
    """(rows,) which of the common slides a row is of"""

    def measure(self, weights: Floats) -> Measured:
        """Metrics under (B, slides) weights of the common slides."""
        return measure_repeats(self.judged, self.repeats, weights[:, self.place])


class Common(NamedTuple):
    """Which slides are compared."""

    common: list[str]
    groups: list[str]
    """patient of each"""
    only_first: list[str]
    only_second: list[str]


def paired_sides(
    first: Answered, second: Answered, names: Sequence[str]
) -> tuple[Side, Side, Common]:
    """Both sides, cut to the slides that both have.

    Raises:
        DataError: PG-N06, no slide in common, other classes, or another truth.
    """
    keys = [[slide_key(name) for name in side.slides.names or ()] for side in (first, second)]
    common = sorted(set(keys[0]) & set(keys[1]))
    if not common:
        raise DataError(
            "the two runs have no slide in common", where=" and ".join(names),
            why=f"{shown(keys[0])} and {shown(keys[1])}",
        )  # fmt: skip
    judged = _same_classes(first.judged, second.judged, names)
    a, b = (
        _side(one, side.slides.repeats, own, common)
        for one, side, own in zip(judged, (first, second), keys, strict=True)
    )
    _check_truth(a, b, common, names)
    groups = _groups(first, second, keys, common)
    only = [sorted(set(own) - set(common)) for own in keys]
    return a, b, Common(common, groups, *only)


def _same_classes(first: Judged, second: Judged, names: Sequence[str]) -> tuple[Judged, Judged]:
    """Both over the same classes in the same order."""
    if first.kind != second.kind:
        raise DataError(
            "the runs predict different things", where=" and ".join(names),
            why=f"{first.kind} and {second.kind}",
        )  # fmt: skip
    if not (isinstance(first, JudgedClasses) and isinstance(second, JudgedClasses)):
        return first, second
    scored = [side.classes for side in (first, second) if side.scores is not None]
    classes = scored[0] if scored else class_order([*first.classes, *second.classes])
    for side in (first, second):
        same = set(side.classes) == set(classes)
        if not same and (side.scores is not None or not set(side.classes) < set(classes)):
            raise DataError(
                "the runs predict different classes", where=" and ".join(names),
                why=f"{', '.join(first.classes)} and {', '.join(second.classes)}",
            )  # fmt: skip
    return first.named(classes), second.named(classes)


def _side(judged: Judged, repeats: Ints | None, keys: Sequence[str], common: Sequence[str]) -> Side:
    index = {key: i for i, key in enumerate(common)}
    rows = np.array([i for i, key in enumerate(keys) if key in index], np.int64)
    place = np.array([index[keys[i]] for i in rows], np.int64)
    return Side(judged.select(rows), None if repeats is None else repeats[rows], place)


def _check_truth(a: Side, b: Side, common: Sequence[str], names: Sequence[str]) -> None:
    """PG-N06 where the two say different things to be true of a slide."""
    truth: dict[int, object] = {}
    for side in (a, b):
        for place, value in zip(side.place.tolist(), side.judged.truths(), strict=True):
            if truth.setdefault(place, value) != value:
                raise DataError(
                    "the runs disagree on what is true", where=common[place],
                    why=f"{truth[place]!r} in {names[0]}, {value!r} in {names[1]}",
                    hint="give the labels with --targets",
                )  # fmt: skip


def _groups(
    first: Answered, second: Answered, keys: Sequence[Sequence[str]], common: Sequence[str]
) -> list[str]:
    """Patient of each common slide: who knows one says it."""
    owner: dict[str, str] = {}
    for side, own in zip((first, second), keys, strict=True):
        for key, name, group in zip(own, side.slides.names or (), side.slides.groups, strict=True):
            if group != name:
                owner.setdefault(key, group)
    return [owner.get(key, key) for key in common]
