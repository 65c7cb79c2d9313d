"""What heads say of one slide, and who they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Voices:
    """The heads that were asked."""

    names: tuple[str, ...]
    """as ``fold-2``, below the run"""
    ids: tuple[str, ...]
    """digests of their weights"""
    seen: str
    """``held out``: the slide was in no part they learned from; ``trained on`` it; ``new``: it is
    not in the run; ``unknown``: a head without its run"""

    def sentence(self) -> str:
        """For people."""
        one = len(self.names) == 1
        who = f"head {self.names[0]}" if one else f"mean of {len(self.names)} heads"
        said = {
            "held out": f"{who}, which did not see this slide",
            "trained on": f"{who}, trained on this very slide: it may fit better than on others",
            "new": f"{who}; the slide is not in the run",
            "unknown": f"{who}; whether it was trained on this slide is not known",
        }
        return said[self.seen]


@dataclass(frozen=True)
class Answer:
    """The slide-level prediction: mean over the heads asked."""

    target: str
    """classes, ordinal, regression or survival"""
    names: tuple[str, ...]
    """of `values`: the classes, or ``value``, or ``risk``"""
    values: NDArray[np.float64]
    """(len(names),): probabilities that sum to one, the value, or the risk"""
    choice: int = 0
    """of the names, the one to name: the likeliest class, or the median of ordered ones"""

    @property
    def is_class(self) -> bool:
        return self.target in ("classes", "ordinal")

    @property
    def predicted(self) -> str:
        """The class to name; else the number."""
        if self.is_class:
            return self.names[self.choice]
        return f"{self.values[0]:.4g}"

    def sentence(self, most: int = 4) -> str:
        """``predicted 3 (0.82); 2 0.11, 4 0.05``; of an order, where the median is not likeliest,
        ``predicted 3, the median (0.31); 2 0.35, ...``.
        """
        if not self.is_class:
            return f"predicted {self.names[0]} {self.predicted}"
        best = self.choice
        order = np.argsort(-self.values, kind="stable")
        rest = order[order != best][: most - 1]
        others = ", ".join(f"{self.names[i]} {self.values[i]:.2f}" for i in rest)
        why = ", the median" if self.values[best] < self.values.max() else ""
        return f"predicted {self.names[best]}{why} ({self.values[best]:.2f})" + (
            f"; {others}" if others else ""
        )

    def facts(self) -> dict[str, Any]:
        values = dict(zip(self.names, self.values.tolist(), strict=True))
        if self.is_class:
            return {"predicted": self.predicted, "probabilities": values}
        return {"predicted": float(self.values[0]), self.names[0]: float(self.values[0])}


class Evidence(NamedTuple):
    """What each patch speaks for."""

    names: tuple[str, ...]
    values: NDArray[np.float32]
    """(n, len(names))"""

    @classmethod
    def of(
        cls, target: str, classes: Sequence[str], parts: NDArray[np.floating] | None
    ) -> Evidence | None:
        """From what each patch adds to each logit, (n, outputs); None where a head cannot tell.

        Classes: beyond what it adds to the mean class, for only differences between logits count.
        Ordinal: one column, as a patch moves all of the classes' limits alike.
        """
        if parts is None:
            return None
        if target == "classes":
            parts, names = parts - parts.mean(axis=1, keepdims=True), tuple(classes)
        elif target == "ordinal":
            parts, names = parts.mean(axis=1, keepdims=True), ("a higher class",)
        else:
            names = ("a higher risk",) if target == "survival" else ("a higher value",)
        return cls(names, np.asarray(parts, np.float32))


@dataclass(frozen=True)
class Spread:
    """How attention is shared out."""

    patches: int
    half: int
    """the fewest patches that hold half of it"""
    highest: float
    """the greatest weight as a multiple of the mean one"""

    @classmethod
    def of(cls, attention: NDArray[np.floating]) -> Spread:
        order = np.sort(np.asarray(attention, np.float64))[::-1]
        total = order.sum()
        if not len(order) or total <= 0:
            return cls(len(order), len(order), 1.0)
        half = int(np.searchsorted(np.cumsum(order), total / 2 * (1 - 1e-9)) + 1)
        return cls(len(order), half, float(order[0] * len(order) / total))

    @property
    def is_flat(self) -> bool:
        return self.highest < 1.05

    def sentence(self) -> str:
        if self.is_flat:
            return (
                f"All {self.patches:,} patches weigh nearly the same, so differences in color "
                "hardly matter here."
            )
        return (
            f"Half of the attention lies on {self.half:,} of {self.patches:,} patches; the highest "
            f"weighs {self.highest:,.1f} times the mean."
        )
