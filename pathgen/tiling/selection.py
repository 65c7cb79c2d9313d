"""Which patches of a store are wanted: limits on what tiling measured, and classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pathgen.config import Config, WrongValue
from pathgen.errors import ConfigError
from pathgen.stores import PatchStore
from pathgen.stores.patches import MEASURES
from pathgen.tiling.task import LIMITS

#: Where a patch that fails the limit of a measure is counted; others count as quality.
_COUNTED = {
    "tissue": "tissue", "hematoxylin": "stain", "hematoxylin_mean": "stain", "eosin": "stain",
    "eosin_mean": "stain",
}  # fmt: skip
#: In which order; a patch counts where it fails first, as in `tile`.
CAUSES = ("tissue", "class", "stain", "quality")


class Selection(Config):
    """The patches that pass every limit and, where classes are named, hold enough of one."""

    limits: dict[str, float] = Field(default={})
    """``min_<measure>`` or ``max_<measure>`` -> value; limits are inclusive"""
    classes: dict[str, float] = Field(default={})
    """class of the mask given at tiling -> least share of a patch, 0..1; one of them is enough"""

    @field_validator("limits")
    @classmethod
    def _named(cls, limits: dict[str, float]) -> dict[str, float]:
        for name, value in limits.items():
            if not name.startswith(("min_", "max_")):
                raise ValueError(f"{name}: a limit is min_<measure> or max_<measure>")
            if not np.isfinite(value):
                raise WrongValue(name, f"it is {value}")
            share = not name.endswith("_mean")  # those are optical densities
            if name[4:] in MEASURES and not 0 <= value <= (1 if share else np.inf):
                what = "between 0 and 1" if share else "0 or more"
                raise WrongValue(name, f"a limit of {name[4:]} is {what}, not {value:g}")
        return limits

    @field_validator("classes")
    @classmethod
    def _shares(cls, classes: dict[str, float]) -> dict[str, float]:
        for name, share in classes.items():
            if not 0 <= share <= 1:
                raise WrongValue(name, f"a share is between 0 and 1, not {share:g}")
        return classes


@dataclass(frozen=True)
class Selected:
    """Rows that are kept, rising, and how many the others are by cause."""

    rows: NDArray[np.int64]
    dropped: dict[str, int]


def select(store: PatchStore, wanted: Selection) -> Selected:
    """Choose among the rows of a store.

    Raises:
        ConfigError: PG-C09, the store has no such measure or class, or was tiled with a
            stricter limit than is asked for.
        StoreError: PG-O11, damaged.
    """
    _check(store, wanted)
    failed = {cause: np.zeros(len(store), np.bool_) for cause in CAUSES}
    for name, limit in wanted.limits.items():
        measure = name[4:]
        values = store.measure(measure)
        wrong = values < limit if name.startswith("min_") else values > limit
        failed[_COUNTED.get(measure, "quality")] |= wrong
    if wanted.classes:
        shares, names = store.class_shares(), store.class_names
        failed["class"] = np.all(
            [shares[:, names.index(n)] < least for n, least in wanted.classes.items()], axis=0
        )
    left = np.ones(len(store), np.bool_)
    dropped = {}
    for cause in CAUSES:
        dropped[cause] = int((left & failed[cause]).sum())
        left &= ~failed[cause]
    return Selected(np.flatnonzero(left), dropped)


def limits_of(store: PatchStore) -> dict[str, float]:
    """The limits that the patches of a store have passed already."""
    config = store.provenance.config
    if store.provenance.stage == "refilter":
        return dict(config["limits"])
    return {name: float(config[name]) for name in LIMITS if config.get(name) is not None}


def combined(store: PatchStore, wanted: Selection) -> dict[str, float]:
    """The limits that the chosen patches will have passed."""
    return dict(sorted({**limits_of(store), **wanted.limits}.items()))


def _check(store: PatchStore, wanted: Selection) -> None:
    for name in wanted.limits:
        if name[4:] not in store.measures:
            raise _refused(
                store, f"it has no measure {name[4:]!r}; it has {', '.join(store.measures)}",
                "check the name; of a store made before there was one, tile the slide again",
            )  # fmt: skip
    for name in wanted.classes:
        if name not in store.class_names:
            known = ", ".join(store.class_names) or "none, as it was tiled without --masks"
            raise _refused(store, f"it has no class {name!r}; it has {known}", "check the name")
    for name, had in limits_of(store).items():
        asked = wanted.limits.get(name, had)
        if (asked < had) if name.startswith("min_") else (asked > had):
            raise _refused(
                store, f"{name} is {asked:g}, and it was made with {had:g}: what lies between "
                "is not in it", f"ask for {had:g} or stricter, or tile again with {_open(name)}",
            )  # fmt: skip


def _open(name: str) -> str:
    """The option that keeps all patches."""
    return f"--set {name}={0 if name.startswith('min_') else 1}"


def _refused(store: PatchStore, why: str, hint: str) -> ConfigError:
    return ConfigError(
        "patches cannot be chosen so", code="PG-C09", where=store.path, why=why, hint=hint
    )


@dataclass(frozen=True)
class Histogram:
    """How a measure is spread over patches. edges: (bins + 1,); counts: (bins,)."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    median: float

    @classmethod
    def of(cls, values: NDArray[np.float32], bins: int = 20) -> Histogram:
        """Of values (n,), n > 0. The edges end at the least and the largest value; where these
        are one, at 0 and 1, or the next whole numbers around the value."""
        low, high = float(values.min()), float(values.max())
        if low == high:
            low, high = min(0, np.floor(low)), max(1, np.ceil(high))
        counts, edges = np.histogram(values.astype(np.float64), bins, (low, high))
        return cls(edges, counts.astype(np.int64), float(np.median(values)))

    def line(self) -> str:
        """``0.02 |.:=+*#=:. | 0.61`` in ASCII, the height of a bin by its character."""
        levels = " .:-=+*#%@"
        heights = np.ceil(self.counts / max(self.counts.max(), 1) * (len(levels) - 1)).astype(int)
        bars = "".join(levels[h] for h in heights)
        return f"{self.edges[0]:5.3f} |{bars}| {self.edges[-1]:5.3f}  median {self.median:.3f}"

    def to_dict(self) -> Mapping[str, object]:
        return {
            "edges": [round(v, 6) for v in self.edges.tolist()], "counts": self.counts.tolist(),
            "median": round(self.median, 6),
        }  # fmt: skip
