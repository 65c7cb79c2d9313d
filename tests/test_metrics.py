"""Slide-level metrics and their intervals against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pathgen.errors import DataError
from pathgen.evaluate.metrics import METRICS, bootstrap_interval, classification_metrics
from pathgen.evaluate.ranking import weighted_areas

GRADES = tuple("012345")


def _cohort(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with every class, and scores with ties that know something of them."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    scores = np.round(rng.dirichlet(np.ones(classes), n) + np.eye(classes)[y] * 0.3, 1)
    return y, scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_metrics_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    y, p = _cohort(80, classes, seed)
    got = classification_metrics(y, p, GRADES[:classes])
    said = p.argmax(1)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(y, said))
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, said))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(y, said, average="macro"))
    assert got["weighted_f1"] == pytest.approx(sk.f1_score(y, said, average="weighted"))
    assert got["qwk"] == pytest.approx(sk.cohen_kappa_score(y, said, weights="quadratic"))
    areas = [sk.roc_auc_score(y == i, p[:, i]) for i in range(classes)]
    assert got["auc"] == pytest.approx(np.mean(areas))
    assert [row["auc"] for row in got["per_class"]] == pytest.approx(areas)
    assert got["confusion"] == sk.confusion_matrix(y, said).tolist()
    precision, recall, f1, support = sk.precision_recall_fscore_support(y, said, zero_division=0)
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert [row[name] or 0.0 for row in got["per_class"]] == pytest.approx(values)
    assert [row["support"] for row in got["per_class"]] == support.tolist()
    assert got["undefined"] == {}


def test_macro_auc_is_scikit_learns_one_against_the_rest() -> None:
    y, p = _cohort(60, 4, 1)
    got = classification_metrics(y, p, GRADES[:4])["auc"]
    assert got == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr", average="macro"))


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30
    )
)
@settings(max_examples=60, deadline=None)
def test_weighted_area_is_scikit_learns(rows: list[tuple[bool, int, int]]) -> None:
    positive, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    got = weighted_areas(positive, score.astype(float), weight[None].astype(float))
    if not weight[positive].sum() or not weight[~positive].sum():
        assert np.isnan(got.roc)
        assert np.isnan(got.precision)
    else:
        roc = sk.roc_auc_score(positive, score, sample_weight=weight)
        precision = sk.average_precision_score(positive, score, sample_weight=weight)
        assert got.roc.item() == pytest.approx(roc)
        assert got.precision.item() == pytest.approx(precision)


# --- undefined is said ----------------------------------------------------------------------


def test_one_class_only() -> None:
    got = classification_metrics([0, 0], np.array([[0.9, 0.1], [0.6, 0.4]]), ("0", "1"))
    assert got["accuracy"] == 1
    assert got["auc"] is None
    assert got["qwk"] is None
    assert got["undefined"]["auc"] == "there is only class 0"
    assert "one and the same class" in got["undefined"]["qwk"]


def test_a_missing_class_leaves_the_auc_undefined() -> None:
    y, p = np.array([0, 0, 2, 2]), np.eye(3)[[0, 1, 2, 2]]
    got = classification_metrics(y, p, ("0", "1", "2"))
    assert got["undefined"]["auc"] == "there is no slide of class 1"
    assert got["balanced_accuracy"] == pytest.approx(0.75)  # over the classes that occur
    assert got["per_class"][1]["recall"] is None
    assert got["per_class"][1]["precision"] == 0


def test_kappa_needs_an_order() -> None:
    y, p = _cohort(40, 3, 0)
    words = classification_metrics(y, p, ("benign", "cancer", "atypia"))
    assert words["qwk"] is None
    assert words["undefined"]["qwk"] == "the classes have no order"
    ordered = classification_metrics(y, p, ("benign", "cancer", "atypia"), ordinal=True)
    assert ordered["qwk"] == pytest.approx(
        sk.cohen_kappa_score(y, p.argmax(1), weights="quadratic")
    )


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "scores are not finite"),
        ([0, 2], [[0.5, 0.5]] * 2, "label is no class"),
        ([0, 1], [[0.5, 0.5]], "scores do not fit"),
        ([], np.zeros((0, 2)), "no predictions"),
    ],
)
def test_bad_input_is_refused(y: list[int], p: list[list[float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        classification_metrics(y, np.array(p), ("a", "b"))


# --- intervals ------------------------------------------------------------------------------


def test_intervals_agree_with_a_plain_loop() -> None:
    y, p = _cohort(50, 3, 2)
    groups = [f"p{i // 2}" for i in range(50)]
    got = bootstrap_interval(y, p, GRADES[:3], groups=groups, seed=3, resamples=400)
    rng = np.random.default_rng(99)
    values = []
    for _ in range(200):
        rows = np.concatenate([[2 * g, 2 * g + 1] for g in rng.integers(0, 25, 25)])
        if len(set(y[rows])) == 3:
            said = p[rows].argmax(1)
            values.append(
                (
                    sk.accuracy_score(y[rows], said),
                    sk.roc_auc_score(y[rows], p[rows], multi_class="ovr"),
                    sk.cohen_kappa_score(y[rows], said, weights="quadratic"),
                )
            )
    for name, column in zip(("accuracy", "auc", "qwk"), zip(*values, strict=True), strict=True):
        assert got[name] == pytest.approx(np.quantile(column, [0.025, 0.975]), abs=0.07)


def test_intervals_repeat_and_widen_with_grouping() -> None:
    y, p = _cohort(200, 3, 0)
    first = bootstrap_interval(y, p, GRADES[:3], seed=1)
    assert first == bootstrap_interval(y, p, GRADES[:3], seed=1)
    # 200 copies of 20 slides are 20 slides' worth of evidence, when the owner is known.
    few, scores = np.repeat(y[:20], 10), np.repeat(p[:20], 10, axis=0)
    owners = np.repeat(np.arange(20), 10).astype(str)
    alone = bootstrap_interval(few, scores, GRADES[:3])["accuracy"]
    owned = bootstrap_interval(few, scores, GRADES[:3], groups=owners)["accuracy"]
    assert owned[1] - owned[0] > 2 * (alone[1] - alone[0])


def test_an_interval_that_means_nothing_is_not_given() -> None:
    y, p = np.array([0] * 20 + [1]), np.eye(2)[[0] * 20 + [1]]
    got = bootstrap_interval(y, p, ("0", "1"))
    assert got["accuracy"] == [1, 1]
    assert got["auc"] is None
    assert "of 1,000 resamples" in got["undefined"]["auc"]


def test_intervals_of_ten_thousand_slides_take_seconds() -> None:
    y, p = _cohort(10_000, 6, 0)
    got = bootstrap_interval(y, p, GRADES, resamples=200)
    assert all(got[name][0] < got[name][1] for name in METRICS)
