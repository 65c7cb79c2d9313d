"""Bags of vectors, and what is true of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.data.truth import Answers, Target, strata
from pathgen.data.vectors import ChosenVectors, StoredVectors, Vectors, sizes_of


@dataclass(frozen=True)
class Bags:
    """One entry per bag in every field but `classes` and `target`."""

    features: Sequence[Vectors]
    """each (n, dim), float32 or float16; n differs between bags, dim does not"""
    labels: NDArray[np.int64]
    """(N,) index into `classes`; 0 where a target has none"""
    names: Sequence[str]
    groups: Sequence[str]
    """the patient"""
    classes: tuple[str, ...]
    coords: Sequence[NDArray[np.int64]] | None = None
    """each (n, 2), level-0 pixels (x, y)"""
    sites: Sequence[str] | None = None
    """where the slide is from, such as the provider; empty where that is not known"""
    units: Sequence[str] | None = None
    """where groups of slides join patients: see `owners`"""
    target: Target = "classes"
    values: NDArray[np.float64] | None = None
    """(N,) the number of a regression, the time of survival"""
    events: NDArray[np.bool_] | None = None
    """(N,) of survival: whether the event was seen"""

    def __post_init__(self) -> None:
        fields = (
            self.features, self.labels, self.names, self.groups, self.coords, self.sites,
            self.units, self.values, self.events,
        )  # fmt: skip
        lengths = {len(field) for field in fields if field is not None}
        if len(lengths) != 1:
            raise ValueError(f"fields of different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dim(self) -> int:
        """Length of a vector; 0 without bags."""
        if isinstance(self.features, StoredVectors | ChosenVectors):
            return self.features.dim
        return int(self.features[0].shape[1]) if len(self) else 0

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(N,) vectors of each bag."""
        return sizes_of(self.features)

    @property
    def owners(self) -> Sequence[str]:
        """Bags of one owner never part in a split: the patient, or what `units` says."""
        return self.groups if self.units is None else self.units

    @property
    def strata(self) -> NDArray[np.int64]:
        """(N,) what splits are balanced by; see `pathgen.data.truth.strata`."""
        return strata(self.target, Answers(self.labels, self.classes, self.values, self.events))

    def select(self, rows: Sequence[int] | NDArray[np.integer]) -> Bags:
        """The bags in `rows`, in that order, with the same classes."""
        rows = np.asarray(rows, np.int64)
        stored = isinstance(self.features, StoredVectors | ChosenVectors)
        return Bags(
            self.features.select(rows) if stored else [self.features[i] for i in rows],  # type: ignore[attr-defined]
            self.labels[rows],
            [self.names[i] for i in rows],
            [self.groups[i] for i in rows],
            self.classes,
            None if self.coords is None else Picked(self.coords, rows),
            None if self.sites is None else [self.sites[i] for i in rows],
            None if self.units is None else [self.units[i] for i in rows],
            self.target,
            None if self.values is None else self.values[rows],
            None if self.events is None else self.events[rows],
        )

    def answering(self, order: NDArray[np.int64]) -> Bags:
        """Bag i with what is true of bag ``order[i]``: for labels that were shuffled."""
        return replace(
            self,
            labels=self.labels[order],
            values=None if self.values is None else self.values[order],
            events=None if self.events is None else self.events[order],
        )


class Picked(Sequence[Any]):
    """Some entries of a sequence, looked up when they are asked for."""

    def __init__(self, source: Sequence[Any], rows: NDArray[np.integer[Any]]) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return Picked(self.source, self.rows[i])
        return self.source[int(self.rows[i])]
