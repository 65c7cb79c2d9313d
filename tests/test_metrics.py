"""Slide-level metrics against scikit-learn, and predictions files of ours and of others."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pathgen.errors import DataError
from pathgen.evaluate.judgement import summary
from pathgen.evaluate.metrics import (
    METRICS,
    bootstrap_interval,
    classification_metrics,
    weighted_areas,
)
from pathgen.evaluate.predictions import (
    Predictions,
    evaluate_predictions,
    read_predictions,
    write_predictions,
)

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
    got = weighted_areas(positive, score.astype(float), weight[None].astype(float)).item()
    if not weight[positive].sum() or not weight[~positive].sum():
        assert np.isnan(got)
    else:
        assert got == pytest.approx(sk.roc_auc_score(positive, score, sample_weight=weight))


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
    for _ in range(400):
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
        assert got[name] == pytest.approx(np.quantile(column, [0.025, 0.975]), abs=0.06)


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


# --- prediction files -----------------------------------------------------------------------


def _predictions(names: list[str], classes: tuple[str, ...] = ("0", "1", "2")) -> Predictions:
    n = len(names)
    y, p = _cohort(max(n, 3), 3, 0)
    return Predictions(
        names, [f"p{i // 2}" for i in range(n)], [i % 2 for i in range(n)],
        [classes[i] for i in y[:n]], [classes[i] for i in p[:n].argmax(1)], p[:n], classes,
    )  # fmt: skip


def test_a_file_gives_the_metrics_of_its_arrays(tmp_path: Path) -> None:
    said = _predictions([f"s{i}" for i in range(40)])
    write_predictions(tmp_path / "predictions.csv", said)
    got = evaluate_predictions(tmp_path, seed=4)
    y = np.array([int(label) for label in said.labels or []])
    want = classification_metrics(y, said.probabilities, said.classes)
    for name in METRICS:
        assert got[name] == pytest.approx(want[name])
    assert got["patients"] == 20
    assert [fold["n"] for fold in got["folds"]] == [20, 20]
    assert got["fold_mean"]["accuracy"]["mean"] == pytest.approx(
        np.mean([fold["accuracy"] for fold in got["folds"]])
    )
    assert got["baselines"]["majority"]["accuracy"] == np.bincount(y).max() / 40
    assert summary(got).startswith(f"accuracy {want['accuracy']:.3f} [")
    mean = got["fold_mean"]["accuracy"]
    assert "on 40 slides of 20 patients; mean of 2 folds: " in summary(got)
    assert f"accuracy {mean['mean']:.3f} (sd {mean['sd']:.3f}), AUC 0." in summary(got)


TEXT = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=10)


@given(st.lists(TEXT, min_size=1, max_size=8, unique=True))
@settings(max_examples=60, deadline=None)
def test_names_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("p") / "predictions.csv"
    write_predictions(path, _predictions(names, ("=1+1", "'-x", "a,b")))
    got = read_predictions(path)
    assert list(got.names) == names
    assert got.classes == ("=1+1", "'-x", "a,b")
    assert set(got.labels or []) <= set(got.classes)


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, _predictions(["=HYPERLINK(1)", "@x", "+1-1", "-1", "-a"]))
    with path.open(newline="") as file:
        slides = [row["slide"] for row in csv.DictReader(file)]
    assert slides == ["'=HYPERLINK(1)", "'@x", "'+1-1", "-1", "'-a"]


def test_targets_from_another_file(tmp_path: Path) -> None:
    path, targets = tmp_path / "mine.csv", tmp_path / "targets.csv"
    path.write_text("slide,p_a,p_b\nS1,0.9,0.1\nS2,0.2,0.8\nS3,0.7,0.3\n")
    targets.write_text("slide,label\nS1.svs,a\nS2.svs,a\nS9.svs,b\n")
    got = evaluate_predictions(path, targets=targets)
    assert (got["n"], got["accuracy"]) == (2, 0.5)
    assert got["notes"] == [
        "1 prediction without a target left out ('S3')", "1 target without a prediction"
    ]  # fmt: skip
    with pytest.raises(DataError, match="predictions without labels"):
        evaluate_predictions(path)


def test_a_number_is_a_position_only_where_no_class_has_its_name(tmp_path: Path) -> None:
    path, targets = tmp_path / "mine.csv", tmp_path / "targets.csv"
    rows = [f"S{i},{','.join(str(float(i % 5 == c)) for c in range(5))}\n" for i in range(8)]
    numbers = range(1, 6)
    path.write_text(f"slide,{','.join(f'p_{i}' for i in numbers)}\n{''.join(rows)}")
    targets.write_text("slide,label\n" + "".join(f"S{i},{(i + 1) % 5}\n" for i in range(8)))
    with pytest.raises(DataError, match=r"label is no class.*'0'; classes are 1, 2, 3, 4, 5"):
        evaluate_predictions(path, targets=targets)
    targets.write_text("slide,label\nS0,0\nS1,0\n")  # none is a class's name, but 1 would be
    with pytest.raises(DataError, match="label is no class"):
        evaluate_predictions(path, targets=targets)
    path.write_text(f"slide,{','.join(f'p_{c}' for c in 'vwxyz')}\n{''.join(rows)}")
    targets.write_text("slide,label\n" + "".join(f"S{i},{i % 5}\n" for i in range(8)))
    got = evaluate_predictions(path, targets=targets)
    assert got["accuracy"] == 1
    assert got["notes"] == ["labels are read as positions: 0 is v"]


def test_what_is_not_known_is_not_judged(tmp_path: Path) -> None:
    path, targets = tmp_path / "predictions.csv", tmp_path / "targets.csv"
    path.write_text("slide,label,predicted\nA,x,x\nB,NA,x\nC,y,y\n")
    got = evaluate_predictions(path)
    assert (got["n"], got["classes"]) == (2, ["x", "y"])
    assert got["notes"] == ["1 prediction without a label left out ('B')"]
    path.write_text("slide,label,predicted\nA,NA,NA\nC,y,y\n")  # here it is a class
    assert evaluate_predictions(path)["n"] == 2
    targets.write_text("slide,label\nA,y\nC,n/a\n")
    got = evaluate_predictions(path, targets=targets)
    assert got["n"] == 1
    assert got["notes"][-1] == "1 label cell ('n/a') read as no label"


def test_patients_of_the_targets(tmp_path: Path) -> None:
    path, targets = tmp_path / "predictions.csv", tmp_path / "targets.csv"
    path.write_text("slide,predicted\nA,x\nB,x\nC,y\n")
    targets.write_text("slide,label,Subject ID\nA,x,p\nB,y,p\nC,y,\n")
    assert evaluate_predictions(path, targets=targets)["patients"] == 2
    with pytest.raises(DataError, match="Did you mean 'Subject ID'"):
        evaluate_predictions(path, targets=targets, patient_column="subjectid1")
    path.write_text("slide,Patient ID,label,predicted\nA,p,x,x\nB,p,y,x\nC,,y,y\n")
    assert evaluate_predictions(path)["patients"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,label\nS1,a\n", "no predictions in this file"),
        ("slide,label,p_a,p_b\nS1,a,0.5,x\n", "Line 2: 'x'"),
        ("slide,label,p_a,p_b\nS1,a,0.5,nan\n", "Line 2: 'nan'"),
        ("slide,label,p_a,p_b\nS1,c,0.5,0.5\n", "label is no class"),
        ("slide,label,p_a,p_b\nS1,a,0.5,0.5\nS1,a,0.5,0.5\n", "slide predicted twice"),
    ],
)
def test_a_bad_predictions_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        evaluate_predictions(tmp_path)


def test_decisions_without_scores(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("slide,label,predicted\nA,x,x\nB,y,x\nC,y,y\n")
    got = evaluate_predictions(tmp_path)
    assert got["accuracy"] == pytest.approx(2 / 3)
    assert got["undefined"]["auc"] == "there are no scores, only decisions"


@pytest.mark.data
@pytest.mark.parametrize("task", [1, 2])
def test_the_bright_baseline(data: Path, task: int) -> None:
    """Official targets and baseline: labels are positions among the score columns."""
    meta = data / "meta"
    path = meta / f"bright_validation_baseline_task{task}_predictions.csv"
    got = evaluate_predictions(
        path, targets=meta / "bright_validation_targets.csv", label_column=f"Task{task}-target"
    )
    with path.open(newline="") as file:
        said = {row["image_name"]: row for row in csv.DictReader(file)}
    with (meta / "bright_validation_targets.csv").open(newline="") as file:
        truth = {row["image_name"]: int(row[f"Task{task}-target"]) for row in csv.DictReader(file)}
    names = [name for name in said if name in truth]
    y = [truth[name] for name in names]
    labels = [int(said[name]["predicted_label"]) for name in names]
    p = np.array([[float(v) for k, v in said[n].items() if "-score" in k] for n in names])
    assert got["n"] == len(names)
    assert got["macro_f1"] == pytest.approx(sk.f1_score(y, labels, average="macro"))
    assert got["weighted_f1"] == pytest.approx(sk.f1_score(y, labels, average="weighted"))
    areas = [sk.roc_auc_score(np.array(y) == i, p[:, i]) for i in range(p.shape[1])]
    assert got["auc"] == pytest.approx(np.mean(areas))
    assert any("read as positions" in note for note in got["notes"])
