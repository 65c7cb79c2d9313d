"""What metrics.json says: classes, curves, sites, folds and repeats."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from pathgen.errors import DataError
from pathgen.evaluate.continuous import judged_numbers
from pathgen.evaluate.judgement import judge_arrays, summary
from pathgen.evaluate.metrics import METRICS, classification_metrics, judged_classes
from pathgen.evaluate.survival import judged_risks


def _cohort(n: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    p = rng.dirichlet(np.ones(classes), n) + np.eye(classes)[y] * 0.4
    return y, p / p.sum(1, keepdims=True)


def test_everything_is_json() -> None:
    y, p = _cohort(60)
    got = judge_arrays(y, p, sites=["a", "b"] * 30, folds=[0, 1, 2] * 20)
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_curves_are_scikit_learns() -> None:
    y, p = _cohort(80)
    got = judge_arrays(y, np.round(p, 1), classes=("x", "y", "z"))["curves"]
    scores = np.round(p, 1)
    for i, (roc, pr) in enumerate(zip(got["roc"], got["pr"], strict=True)):
        assert roc["class"] == pr["class"] == "xyz"[i]
        x, up, _ = sk.roc_curve(y == i, scores[:, i], drop_intermediate=False)
        np.testing.assert_allclose((roc["x"], roc["y"]), (x, up), atol=1e-5)
        precision, recall, _ = sk.precision_recall_curve(y == i, scores[:, i])
        np.testing.assert_allclose(
            (pr["x"], pr["y"]), (recall[-2::-1], precision[-2::-1]), atol=1e-5
        )


def test_long_curves_stay_themselves() -> None:
    y, p = _cohort(4000)
    got = judge_arrays(y, p)
    for kind, ends in (("roc", ((0, 0), (1, 1))), ("pr", (None, None))):
        for i, curve in enumerate(got["curves"][kind]):
            points = list(zip(curve["x"], curve["y"], strict=True))
            assert len(points) <= 200
            assert points == sorted(points, key=lambda point: point[0])
            if ends[0]:
                assert (points[0], points[-1]) == ends
                area = np.trapezoid(curve["y"], curve["x"])
                assert area == pytest.approx(got["per_class"][i]["auc"], abs=0.01)
            assert points[-1][0] == 1


def test_a_class_alone_has_no_curve() -> None:
    got = judge_arrays([0, 0, 2], np.eye(3)[[0, 1, 2]])["curves"]
    assert [curve["class"] for curve in got["roc"]] == ["0", "2"]


def test_intervals_of_each_class_hold_its_value() -> None:
    y, p = _cohort(200)
    got = judge_arrays(y, p)
    for value, interval in zip(got["per_class"], got["intervals"]["per_class"], strict=True):
        assert value["class"] == interval["class"]
        for name in ("precision", "recall", "f1", "auc", "auprc"):
            assert interval[name][0] < value[name] < interval[name][1]


def test_a_site_is_judged_as_if_alone() -> None:
    y, p = _cohort(90)
    sites = ["radboud" if i % 3 else "" for i in range(90)]
    names = [f"s{i:02}" for i in range(90)]
    got = judge_arrays(y, p, sites=sites, names=names)["sites"]
    assert [(row["site"], row["n"]) for row in got] == [("unknown", 30), ("radboud", 60)]
    rows = np.arange(90) % 3 > 0
    want = judge_arrays(y[rows], p[rows], names=[n for n, r in zip(names, rows, strict=True) if r])
    assert {name: got[1][name] for name in METRICS} == {name: want[name] for name in METRICS}
    assert got[1]["intervals"]["qwk"] == want["intervals"]["qwk"]


def test_repeats_are_averaged_and_drawn_together() -> None:
    y, p = _cohort(50)
    other = np.roll(p, 1, axis=1)
    names = [f"s{i}" for i in range(50)]
    groups = [f"p{i // 2}" for i in range(50)]
    both = judge_arrays(
        np.tile(y, 2), np.concatenate([p, other]), names=names * 2, groups=groups * 2,
        repeats=[0] * 50 + [1] * 50, folds=[i % 2 for i in range(50)] * 2,
    )  # fmt: skip
    alone = [classification_metrics(y, scores, ("0", "1", "2")) for scores in (p, other)]
    for name in METRICS:
        assert both[name] == pytest.approx(np.mean([values[name] for values in alone])), name
        assert both["repeat_mean"][name]["mean"] == pytest.approx(both[name])
    assert (both["n"], both["patients"], both["repeats"]) == (50, 25, 2)
    assert [(row["repeat"], row["fold"], row["n"]) for row in both["folds"]] == [
        (0, 0, 25), (0, 1, 25), (1, 0, 25), (1, 1, 25)
    ]  # fmt: skip
    assert both["per_class"][1]["recall"] == pytest.approx(
        np.mean([values["per_class"][1]["recall"] for values in alone])
    )
    assert np.sum(both["confusion"]) == 100
    # The same answers twice are no more evidence than once.
    once = judge_arrays(y, p, groups=groups)
    twice = judge_arrays(
        np.tile(y, 2), np.tile(p, (2, 1)), names=names * 2, groups=groups * 2,
        repeats=[0] * 50 + [1] * 50,
    )  # fmt: skip
    assert twice["intervals"]["auc"] == pytest.approx(once["intervals"]["auc"])
    assert "in 2 repeats" in summary(twice)


def test_one_repeat_is_none() -> None:
    y, p = _cohort(20)
    names = [str(i) for i in range(20)]
    got = judge_arrays(y, p, names=names, repeats=[3] * 20)
    assert got == judge_arrays(y, p, names=names)
    assert (got["repeats"], got["by_repeat"], got["repeat_mean"]) == (1, [], None)


def test_an_undefined_metric_has_its_reason_in_the_intervals_too() -> None:
    y, p = _cohort(30)
    got = judge_arrays(y, p, classes=("a", "b", "c"))
    assert got["intervals"]["qwk"] is None
    assert got["intervals"]["undefined"]["qwk"] == "the classes have no order"
    assert judge_arrays(y, p, classes=("a", "b", "c"), ordinal=True)["qwk"] is not None


def test_wrong_arguments_are_refused() -> None:
    y, p = _cohort(10)
    with pytest.raises(DataError, match="rows do not fit"):
        judge_arrays(y, p, groups=["x"])
    with pytest.raises(ValueError, match="repeats need names"):
        judge_arrays(y, p, repeats=[0] * 10)
    with pytest.raises(ValueError, match="kind is"):
        judge_arrays(y, predicted=y, kind="ranking")


def test_a_draw_may_leave_a_repeat_or_a_site_empty() -> None:
    """Few patients, each in one repeat only: such draws are undefined, not errors."""
    y, p = _cohort(6)
    names = list("abcdef")
    got = judge_arrays(y, p, names=names, repeats=[0, 0, 0, 1, 1, 1], sites=list("xxxxxy"))
    assert got["intervals"]["accuracy"] is not None
    for kind, more in (("regression", {}), ("survival", {"event": [1] * 6})):
        judge_arrays(
            np.arange(6.0), predicted=y, kind=kind, names=names, repeats=[0, 0, 0, 1, 1, 1], **more
        )
    # An empty weighting defines nothing.
    nothing = np.zeros((1, 6))
    measured = judged_classes(y, p, ("0", "1", "2")).measure(nothing)
    for name, values in (measured.values | measured.by_class).items():
        assert np.isnan(values).all(), name
    for judged in (judged_numbers(np.arange(6.0), y), judged_risks(np.arange(6.0), y > 0, y)):
        assert all(np.isnan(values).all() for values in judged.measure(nothing).values.values())
