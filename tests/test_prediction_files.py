"""Predictions files of ours and of others, and the metrics of what they say."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathgen.errors import ConfigError, DataError, NoInputError
from pathgen.evaluate.judgement import summary
from pathgen.evaluate.metrics import METRICS, classification_metrics
from pathgen.evaluate.predictions import (
    Continuous,
    Predictions,
    Survival,
    evaluate_predictions,
    read_any,
    read_predictions,
    write_predictions,
)
from pathgen.report import write_report


def _cohort(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with every class, and scores with ties that know something of them."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    scores = np.round(rng.dirichlet(np.ones(classes), n) + np.eye(classes)[y] * 0.3, 1)
    return y, scores / scores.sum(1, keepdims=True)


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


def test_a_page_does_not_say_of_a_file_that_it_is_of_folds(tmp_path: Path) -> None:
    path, out = tmp_path / "mine.csv", tmp_path / "out"
    for fold, said in (("", False), ("fold,", True)):
        rows = "".join(f"S{i},{f'{i % 3},' if said else ''}{'ab'[i % 2]},a\n" for i in range(12))
        path.write_text(f"slide,{fold}label,predicted\n{rows}")
        out.mkdir(exist_ok=True)
        (out / "mine.json").write_text(json.dumps(evaluate_predictions(path)))
        assert ("by the fold that had not seen" in write_report(out).read_text()) is said


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


# --- sites, repeats, numbers and risks ------------------------------------------------------


def test_sites_and_repeats_come_back(tmp_path: Path) -> None:
    said = replace(
        _predictions(["a", "=b", "c", "a", "=b", "c"]), sites=["x", "-y", ""] * 2,
        repeats=[0, 0, 0, 1, 1, 1],
    )  # fmt: skip
    path = tmp_path / "predictions.csv"
    write_predictions(path, said)
    assert path.read_text().startswith("slide,patient,site,repeat,fold,label,predicted,p_0,")
    got = read_predictions(path)
    assert (list(got.names), got.sites, got.repeats) == (said.names, said.sites, said.repeats)
    values = evaluate_predictions(path)
    assert (values["n"], values["repeats"]) == (3, 2)
    assert [row["site"] for row in values["sites"]] == ["unknown", "-y", "x"]
    text = path.read_text().replace(",1,", ",0,")
    path.write_text(text)
    with pytest.raises(DataError, match=r"slide predicted twice.*'=b', 'a', 'c'"):
        read_predictions(path)


def test_numbers_come_back_and_are_known_as_such(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"s{i}" for i in range(9)]
    said = Continuous(names, names, [0] * 9, np.arange(9.0), rng.normal(size=9), sites=["a"] * 9)
    path = tmp_path / "predictions.csv"
    write_predictions(path, said)
    assert path.read_text().startswith("slide,patient,site,fold,target,predicted\n")
    got = read_any(path)
    assert isinstance(got, Continuous)
    assert got.target is not None
    assert (got.target.tolist(), got.predicted.tolist()) == (
        said.target.tolist(), said.predicted.tolist()
    )  # fmt: skip
    values = evaluate_predictions(tmp_path)
    assert values["kind"] == "regression"
    assert values["mae"] == pytest.approx(np.abs(said.target - said.predicted).mean())
    # Whole numbers under another tool's names are classes, unless one says otherwise.
    path.write_text("slide,target,predicted\na,1,2\nb,2,2\nc,3,3\n")
    assert evaluate_predictions(path)["kind"] == "classes"
    assert evaluate_predictions(path, kind="regression")["mae"] == pytest.approx(1 / 3)
    path.write_text("slide,target,predicted\na,NA,2.5\nb,2,2.5\nc,3,3.0\n")
    values = evaluate_predictions(path)
    assert (values["kind"], values["n"]) == ("regression", 2)
    assert values["notes"] == ["1 prediction without a label left out ('a')"]


def test_risks_come_back_and_take_targets(tmp_path: Path) -> None:
    names = [f"s{i}" for i in range(8)]
    time, event = np.arange(1.0, 9), np.array([1, 0, 1, 1, 0, 1, 1, 1], bool)
    path = tmp_path / "predictions.csv"
    write_predictions(path, Survival(names, names, [0] * 8, time, event, -time))
    assert path.read_text().startswith("slide,patient,fold,time,event,risk\n")
    got = read_any(path)
    assert isinstance(got, Survival)
    assert got.event is not None
    assert (got.event.tolist(), got.risk.tolist()) == (event.tolist(), (-time).tolist())
    assert evaluate_predictions(path)["c_index"] == 1
    path.write_text("slide,risk\n" + "".join(f"s{i},{i}\n" for i in range(8)))
    with pytest.raises(DataError, match="predictions without time and event"):
        evaluate_predictions(path)
    targets = tmp_path / "targets.csv"
    rows = [f"s{i},{i + 1},{'dead' if e else 'alive'},p{i // 2}" for i, e in enumerate(event)]
    targets.write_text("\n".join(["slide,os_months,os_status,patient", *rows]))
    values = evaluate_predictions(path, targets=targets)
    assert (values["c_index"], values["events"], values["patients"]) == (0, 6, 4)
    path.write_text("slide,time,event,risk\na,1,maybe,0.5\n")
    with pytest.raises(DataError, match=r"event is neither yes nor no.*Line 2: 'maybe'"):
        evaluate_predictions(path)


def test_sites_of_the_targets(tmp_path: Path) -> None:
    path, targets = tmp_path / "predictions.csv", tmp_path / "targets.csv"
    path.write_text("slide,predicted\nA,x\nB,x\nC,y\n")
    targets.write_text("slide,label,data_provider\nA,x,radboud\nB,y,karolinska\nC,y,radboud\n")
    values = evaluate_predictions(path, targets=targets)
    assert [(row["site"], row["accuracy"]) for row in values["sites"]] == [
        ("karolinska", 0), ("radboud", 1)
    ]  # fmt: skip


def test_no_file_and_a_column_of_no_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no predictions here"):
        evaluate_predictions(tmp_path)
    path = tmp_path / "predictions.csv"
    path.write_text("slide,label,predicted\na,x,x\nb,y,x\n")
    with pytest.raises(ConfigError, match="--label-column"):
        evaluate_predictions(path, label_column="other")
