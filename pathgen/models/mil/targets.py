"""What a head is asked for, the loss of its answer, and what the answer means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pathgen.models.mil.config import Target
from pathgen.models.mil.packed import at_least_float32
from pathgen.models.mil.survival import cox_losses

__all__ = [
    "Criterion",
    "Target",
    "Truth",
    "choices",
    "criterion",
    "outputs_of",
    "probabilities",
    "risk",
    "values",
]


class Truth(NamedTuple):
    """What is known of B bags; a target needs its own fields, the others stay None."""

    labels: Tensor | None = None
    """(B,) int64 from 0: classes and ordinal"""
    values: Tensor | None = None
    """(B,) float: regression"""
    time: Tensor | None = None
    """(B,) float: survival, to the event or to the last time without one"""
    event: Tensor | None = None
    """(B,) bool: survival, whether the event was seen"""

    def select(self, rows: Tensor) -> Truth:
        """The bags in `rows` (int64 or bool)."""
        return Truth(*(None if field is None else field[rows] for field in self))

    def to(self, device: torch.device | str) -> Truth:
        """The same on another device."""
        return Truth(*(None if field is None else field.to(device) for field in self))

    @property
    def size(self) -> int:
        """How many bags; 0 when nothing is known."""
        return next((len(field) for field in self if field is not None), 0)


Criterion = Callable[[Tensor, Truth], Tensor]
"""Logits (B, outputs) and their truth -> (B,) losses, float32 or float64."""


def outputs_of(target: Target, classes: int = 0) -> int:
    """How many logits a head needs: `classes`, one fewer when they have an order, else one.

    Raises:
        ValueError: fewer than two classes for a target that has classes.
    """
    if target in ("regression", "survival"):
        return 1
    if classes < 2:
        raise ValueError(f"{target} needs two classes, not {classes}")
    return classes - 1 if target == "ordinal" else classes


def criterion(
    target: Target,
    *,
    weight: Tensor | None = None,
    ties: Literal["efron", "breslow"] = "efron",
) -> Criterion:
    """The loss of each bag.

    classes: cross-entropy. ordinal: the sum of the binary cross-entropies of "is it above class
    k?", for each k (Cao, Mirjalili & Raschka 2020, arXiv 1901.07884, equation 4). regression:
    squared error. survival: Cox's partial likelihood, whose risk sets are the bags of the same
    call; see `pathgen.models.mil.survival.cox_losses`. It says nothing about a single bag, so
    that a batch needs several, some with an event.

    Args:
        weight: (classes,) that the loss of a bag is multiplied with, by its class; for classes
            and ordinal.
        ties: how events at the same time count; for survival.
    """

    def weighted(losses: Tensor, labels: Tensor) -> Tensor:
        return losses if weight is None else losses * weight[labels].to(losses)

    def classes(logits: Tensor, truth: Truth) -> Tensor:
        labels = _known(truth.labels, "labels")
        losses = functional.cross_entropy(at_least_float32(logits), labels, reduction="none")
        return weighted(losses, labels)

    def ordinal(logits: Tensor, truth: Truth) -> Tensor:
        labels, logits = _known(truth.labels, "labels"), at_least_float32(logits)
        above = labels.unsqueeze(1) > torch.arange(logits.shape[1], device=labels.device)
        losses = functional.binary_cross_entropy_with_logits(
            logits, above.to(logits), reduction="none"
        )
        return weighted(losses.sum(1), labels)

    def regression(logits: Tensor, truth: Truth) -> Tensor:
        wanted = _known(truth.values, "values")
        return (at_least_float32(logits[:, 0]) - wanted.to(logits.device)).square()

    def survival(logits: Tensor, truth: Truth) -> Tensor:
        time, event = _known(truth.time, "time"), _known(truth.event, "event")
        return cox_losses(at_least_float32(logits[:, 0]), time, event, ties)

    table: dict[Target, Criterion] = {
        "classes": classes,
        "ordinal": ordinal,
        "regression": regression,
        "survival": survival,
    }
    return table[target]


def probabilities(target: Target, logits: Tensor) -> Tensor:
    """(B, outputs) -> (B, classes), not negative and with sum one; classes and ordinal.

    ordinal: logit k is that of "above class k", and a class has what the sigmoids beside it
    leave between them. The logits of our heads fall with k by construction; of any others one
    that rises is lowered to the one before it, so that nothing is negative.

    Raises:
        ValueError: the target has no classes.
    """
    if target == "classes":
        return logits.softmax(-1)
    if target != "ordinal":
        raise ValueError(f"{target} has no classes")
    above = logits.cummin(-1).values.sigmoid()  # (B, K - 1)
    ends = above.new_ones(len(above), 1), above.new_zeros(len(above), 1)
    steps = torch.cat([ends[0], above, ends[1]], -1)  # (B, K + 1), falls from 1 to 0
    return steps[:, :-1] - steps[:, 1:]


def choices(target: Target, chances: Tensor) -> Tensor:
    """(B, classes) probabilities -> (B,) int64, the class to name.

    classes: the most probable. ordinal: the median, that is how many of "is it above class k?"
    are answered with more than one half, as CORAL does; it lies nearer to the truth on average.

    Raises:
        ValueError: the target has no classes.
    """
    if target == "classes":
        return chances.argmax(-1)
    if target != "ordinal":
        raise ValueError(f"{target} has no classes")
    above = 1 - chances.cumsum(-1)[:, :-1]
    return (above > 0.5).sum(-1)


def values(logits: Tensor) -> Tensor:
    """(B, 1) of a regression -> (B,), in the unit of the target."""
    return logits[:, 0]


def risk(logits: Tensor) -> Tensor:
    """(B, 1) of a survival head -> (B,) log hazard ratio: the higher, the earlier the event.

    Of a trained head the ratio is to the mean training bag.
    """
    return logits[:, 0]


def _known(field: Tensor | None, name: str) -> Tensor:
    if field is None:
        raise ValueError(f"the truth has no {name}")
    return field
