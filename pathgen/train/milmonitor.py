"""What early stopping may watch: one number from what a head says of the validation bags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathgen.data.bags import Bags
from pathgen.data.truth import Target
from pathgen.errors import DataError

Monitor = Literal[
    "loss", "accuracy", "balanced_accuracy", "f1_macro", "auc", "qwk", "mae", "r2", "c_index"
]
#: What can be watched, besides the loss, by target.
FOR_TARGET: Mapping[Target, tuple[Monitor, ...]] = {
    "classes": ("accuracy", "balanced_accuracy", "f1_macro", "auc", "qwk"),
    "ordinal": ("accuracy", "balanced_accuracy", "f1_macro", "auc", "qwk"),
    "regression": ("mae", "r2"),
    "survival": ("c_index",),
}


def check_monitor(name: Monitor, valid: Bags) -> None:
    """Raise DataError (PG-N07) before the first epoch where the bags do not define the number."""
    labels = np.unique(valid.labels)
    missing, hint = "", "use monitor=loss, or a larger valid_share"
    if name == "auc" and len(labels) < len(valid.classes):
        missing = "it lacks slides of a class"
    elif name == "qwk" and len(labels) < 2:
        missing = "its slides are of one class"
    elif name == "r2" and len(np.unique(valid.values)) < 2:  # type: ignore[arg-type]
        missing = "its values are all the same"
    elif name == "c_index" and not comparable_pairs(*_survival(valid)).any():
        missing = "no two of its times can be compared"
    elif name == "loss" and valid.target == "survival" and _alone(*_survival(valid)):
        # Then it is 0 whatever the head says, and the first epoch would be the best.
        missing = "no slide is left at the time of an event"
        hint = "use a larger valid_share, or 0"
    if missing:
        raise DataError(
            f"validation part cannot say {name}", code="PG-N07", why=missing,
            hint=hint,
        )  # fmt: skip


def score(
    name: Monitor,
    valid: Bags,
    probabilities: NDArray[np.float64],
    chosen: NDArray[np.int64],
    answers: NDArray[np.float64],
) -> float:
    """The number, larger is better: an error is returned with its sign turned.

    Args:
        probabilities: (N, classes).
        chosen: (N,) class named.
        answers: (N,) value or risk.
    """
    y = valid.labels
    if name == "accuracy":
        return float((chosen == y).mean())
    if name == "mae":
        return -float(np.abs(answers - _values(valid)).mean())
    if name == "r2":
        wanted = _values(valid)
        rest = ((answers - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum()
        return 1.0 - float(rest)
    if name == "c_index":
        return concordance(answers, *_survival(valid))
    from sklearn.metrics import cohen_kappa_score, f1_score, recall_score, roc_auc_score

    if name == "auc":
        two = probabilities.shape[1] == 2
        return float(
            roc_auc_score(y, probabilities[:, 1])
            if two
            else roc_auc_score(y, probabilities, multi_class="ovr", average="macro")
        )
    if name == "qwk":
        names = np.arange(len(valid.classes))
        return float(cohen_kappa_score(y, chosen, labels=names, weights="quadratic"))
    there = np.unique(y)
    measure = recall_score if name == "balanced_accuracy" else f1_score
    return float(measure(y, chosen, labels=there, average="macro", zero_division=0))


def concordance(
    risk: NDArray[np.float64], time: NDArray[np.float64], event: NDArray[np.bool_]
) -> float:
    """Harrell's C: of the pairs whose order is known, the share with the higher risk first.

    Equal risks count a half.
    """
    pairs = comparable_pairs(time, event)
    higher = risk[:, None] - risk[None, :]
    return float(((higher > 0) + 0.5 * (higher == 0))[pairs].mean())


def comparable_pairs(time: NDArray[np.float64], event: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N, N): the event of i was seen before the time of j, or when j was cut off."""
    later = time[None, :] > time[:, None]
    cut_off_then = (time[None, :] == time[:, None]) & ~event[None, :]
    pairs: NDArray[np.bool_] = event[:, None] & (later | cut_off_then)
    return pairs


def _alone(time: NDArray[np.float64], event: NDArray[np.bool_]) -> bool:
    """Whether whoever has an event is the only one at risk then."""
    return not ((time >= time[:, None]).sum(1) > 1)[event].any()


def _values(valid: Bags) -> NDArray[np.float64]:
    if valid.values is None:
        raise ValueError("the bags have no values")
    return valid.values


def _survival(valid: Bags) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if valid.events is None:
        raise ValueError("the bags have no events")
    return _values(valid), valid.events
