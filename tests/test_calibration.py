"""Brier, log loss and calibration against scikit-learn and plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from pathgen.evaluate.calibration import BINS, METRICS, calibration, reliability
from pathgen.evaluate.metrics import bootstrap_interval, classification_metrics

CLASSES = tuple("012345")


def _cohort(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    return y, rng.dirichlet(np.ones(classes) * 0.6, n)


def _gaps(y: np.ndarray, p: np.ndarray) -> list[tuple[int, float]]:
    """Slides, and |accuracy - confidence|, of each bin (Guo et al. 2017, equation 3)."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for truth, row in zip(y, p, strict=True):
        sure = row.max()
        bins.setdefault(min(int(sure * BINS), BINS - 1), []).append((sure, row[truth] == sure))
    return [
        (
            len(rows),
            abs(sum(right for _, right in rows) - sum(sure for sure, _ in rows)) / len(rows),
        )
        for rows in bins.values()
    ]


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_values_are_those_of_other_libraries(classes: int) -> None:
    y, p = _cohort(90, classes, classes)
    got = classification_metrics(y, p, CLASSES[:classes])
    squared = sum((p[i, c] - (y[i] == c)) ** 2 for i in range(90) for c in range(classes)) / 90
    assert got["brier"] == pytest.approx(squared)
    assert got["brier"] == pytest.approx(
        sum(sk.brier_score_loss(y == c, p[:, c]) for c in range(classes))
    )
    frequency = np.array([(y == c).mean() for c in range(classes)])
    always = np.tile(frequency, (90, 1))
    reference = ((always - np.eye(classes)[y]) ** 2).sum(1).mean()
    assert got["brier_skill"] == pytest.approx(1 - squared / reference)
    assert got["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=range(classes)))
    gaps = _gaps(y, p)
    assert got["ece"] == pytest.approx(sum(n / 90 * gap for n, gap in gaps))
    assert got["mce"] == pytest.approx(max(gap for _, gap in gaps))


def test_forecasting_the_frequencies_has_no_skill() -> None:
    y, _ = _cohort(60, 3, 0)
    p = np.tile(np.bincount(y) / 60, (60, 1))
    assert classification_metrics(y, p, CLASSES[:3])["brier_skill"] == pytest.approx(0)
    right = classification_metrics(y, np.eye(3)[y], CLASSES[:3])
    assert (right["brier"], right["brier_skill"], right["ece"], right["mce"]) == (0, 1, 0, 0)
    wrong = classification_metrics(y, np.eye(3)[(y + 1) % 3], CLASSES[:3])
    assert wrong["brier"] == 2
    assert wrong["ece"] == 1


def test_confidence_of_one_and_edges_fall_into_a_bin() -> None:
    y = np.zeros(4, np.int64)
    p = np.array([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.7, 0.3]])
    rows = reliability(y, p)
    assert sum(row["n"] for row in rows) == 4
    assert [(row["low"], row["n"]) for row in rows] == [(0.5, 1), (0.7, 1), (0.9, 2)]
    assert all(row["low"] <= row["confidence"] <= row["high"] for row in rows)


def test_reliability_gives_the_ece() -> None:
    y, p = _cohort(200, 4, 3)
    rows = reliability(y, p)
    gaps = [abs(row["accuracy"] - row["confidence"]) for row in rows]
    weighted = sum(gap * row["n"] for gap, row in zip(gaps, rows, strict=True))
    got = classification_metrics(y, p, CLASSES[:4])
    assert got["ece"] == pytest.approx(weighted / 200)
    assert got["mce"] == pytest.approx(max(gaps))


def test_weights_count_as_copies() -> None:
    y, p = _cohort(30, 3, 5)
    times = np.random.default_rng(0).integers(0, 4, 30)
    weighted = calibration(y, p, times[None].astype(float))
    copied = calibration(
        np.repeat(y, times), np.repeat(p, times, axis=0), np.ones((1, times.sum()))
    )
    for name in METRICS:
        assert weighted[name] == pytest.approx(copied[name]), name


def test_scores_that_are_no_probabilities_are_said() -> None:
    y = np.array([0, 1, 0, 1])
    logits = np.array([[2.0, -1], [0, 3], [1, 1], [-4, 0]])
    got = classification_metrics(y, logits, ("a", "b"))
    assert got["auc"] is not None
    assert [got[name] for name in METRICS] == [None] * len(METRICS)
    assert "outside 0 to 1" in got["undefined"]["brier"]
    halves = classification_metrics(y, np.full((4, 2), 0.3), ("a", "b"))
    assert "do not sum to 1" in halves["undefined"]["ece"]
    alone = classification_metrics([0, 0], np.array([[0.9, 0.1], [0.6, 0.4]]), ("a", "b"))
    assert alone["brier"] == pytest.approx((0.02 + 0.32) / 2)
    assert alone["brier_skill"] is None
    assert alone["undefined"]["brier_skill"] == "there is only class a"
    bare = classification_metrics(y, None, ("a", "b"), predicted=y)
    assert bare["undefined"]["log_loss"] == "there are no scores, only decisions"


def test_intervals_hold_the_value() -> None:
    y, p = _cohort(150, 3, 1)
    value = classification_metrics(y, p, CLASSES[:3])
    found = bootstrap_interval(y, p, CLASSES[:3], resamples=300)
    for name in ("brier", "brier_skill", "log_loss"):
        assert found[name][0] < value[name] < found[name][1]
