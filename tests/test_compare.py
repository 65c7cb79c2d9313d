"""Two runs on the same slides: differences, intervals, tests, and who is called better."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from pathgen.cli import main
from pathgen.errors import ConfigError, DataError
from pathgen.evaluate.compare import compare
from pathgen.evaluate.paired import mcnemar, sign_flips
from pathgen.evaluate.predictions import Continuous, Predictions, Survival, write_predictions

CLASSES = ("0", "1", "2")


def _scores(y: np.ndarray, signal: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), len(y)) + signal * np.eye(3)[y]
    return p / p.sum(1, keepdims=True)


def _write(
    path: Path, y: np.ndarray, p: np.ndarray, names: list[str] | None = None, **more: object
) -> Path:
    names = names or [f"s{i:03}" for i in range(len(y))]
    path.mkdir()
    said = Predictions(
        names, more.pop("groups", names), [0] * len(y), [CLASSES[i] for i in y],
        [CLASSES[i] for i in p.argmax(1)], p, CLASSES, **more,
    )  # fmt: skip
    write_predictions(path / "predictions.csv", said)
    return path


@pytest.fixture
def y() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, 150)


def test_a_clear_difference_and_none(tmp_path: Path, y: np.ndarray) -> None:
    good = _write(tmp_path / "good", y, _scores(y, 2.0, 1))
    poor = _write(tmp_path / "poor", y, _scores(y, 0.2, 2))
    same = _write(tmp_path / "same", y, _scores(y, 2.0, 3))
    got = compare(good, poor)
    row = got["metrics"]["accuracy"]
    assert (got["first"], got["second"], row["better"]) == ("good", "poor", "first")
    assert row["difference"] == pytest.approx(row["first"] - row["second"])
    assert row["interval"][0] < row["difference"] < row["interval"][1]
    assert got["metrics"]["brier"]["better"] == "first"  # lower is better
    assert got["metrics"]["brier"]["difference"] < 0
    assert got["verdict"].startswith("good is better than poor in accuracy (+0.")
    turned = compare(poor, good)
    assert turned["metrics"]["accuracy"]["better"] == "second"
    assert turned["metrics"]["accuracy"]["difference"] == -row["difference"]
    assert turned["verdict"].startswith("good is better than poor in accuracy (+0.")
    even = compare(good, same, metrics=["accuracy"])
    assert even["metrics"]["accuracy"]["better"] is None
    assert even["verdict"] == "No difference is shown in accuracy: the interval holds 0."
    assert even["notes"] == []  # a single metric needs no warning about many


def test_the_interval_is_that_of_a_plain_loop(tmp_path: Path, y: np.ndarray) -> None:
    p, q = _scores(y, 1.0, 1), _scores(y, 0.6, 2)
    owners = [f"p{i // 3}" for i in range(150)]
    got = compare(
        _write(tmp_path / "a", y, p, groups=owners), _write(tmp_path / "b", y, q, groups=owners)
    )
    assert (got["patients"], got["unit"]) == (50, "patient")
    rng, values = np.random.default_rng(7), []
    for _ in range(250):
        rows = (3 * rng.integers(0, 50, 50)[:, None] + np.arange(3)).ravel()
        values.append(
            [
                sk.accuracy_score(y[rows], s[rows].argmax(1)) if k == 0 else
                sk.cohen_kappa_score(y[rows], s[rows].argmax(1), weights="quadratic")
                for k in range(2) for s in (p, q)
            ]
        )  # fmt: skip
    drawn = np.array(values)
    for name, column in (("accuracy", 0), ("qwk", 2)):
        low, high = np.quantile(drawn[:, column] - drawn[:, column + 1], [0.025, 0.975])
        assert got["metrics"][name]["interval"] == pytest.approx([low, high], abs=0.05)
    # Pairs that are both right or both wrong say nothing: the interval is narrower than of two.
    alone = np.quantile(drawn[:, 0] - np.roll(drawn[:, 1], 1), [0.025, 0.975])
    paired = got["metrics"]["accuracy"]["interval"]
    assert paired[1] - paired[0] < 1.3 * (alone[1] - alone[0])


def test_the_same_run_twice_differs_by_nothing(tmp_path: Path, y: np.ndarray) -> None:
    p = _scores(y, 1.0, 1)
    got = compare(_write(tmp_path / "a", y, p), _write(tmp_path / "b", y, p))
    for row in got["metrics"].values():
        assert (row["difference"], row["interval"], row["better"]) == (0, [0, 0], None)
    assert got["test"]["p"] == 1


@pytest.mark.parametrize(("one", "two"), [(0, 0), (3, 9), (12, 5), (70, 40), (1, 1), (2000, 2100)])
def test_mcnemar_is_the_binomial_test(one: int, two: int) -> None:
    first = np.array([True] * one + [False] * two + [True] * 5 + [False] * 5)
    second = np.array([False] * one + [True] * two + [True] * 5 + [False] * 5)
    got = mcnemar(first, second)
    want = stats.binomtest(one, one + two).pvalue if one + two else 1.0
    assert got["p"] == pytest.approx(want, rel=1e-9)
    assert (got["only_first_right"], got["only_second_right"]) == (one, two)


def test_flipping_signs_of_single_slides_is_mcnemar() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(80) < 0.8, rng.random(80) < 0.65
    difference = first.astype(float) - second
    got = sign_flips(difference, [str(i) for i in range(80)], flips=20_000)
    assert got["p"] == pytest.approx(mcnemar(first, second)["p"], abs=0.015)
    # Ten copies of a slide are still one patient.
    copied = sign_flips(np.repeat(difference, 10), np.repeat(np.arange(80), 10).astype(str))
    assert copied["p"] == pytest.approx(got["p"], abs=0.02)


def test_the_test_fits_the_data(tmp_path: Path, y: np.ndarray) -> None:
    p, q = _scores(y, 1.0, 1), _scores(y, 0.6, 2)
    single = compare(_write(tmp_path / "a", y, p), _write(tmp_path / "b", y, q))
    right = [s.argmax(1) == y for s in (p, q)]
    assert single["test"] == {"name": "exact McNemar test of accuracy", **mcnemar(*right)}
    owners = [f"p{i // 3}" for i in range(150)]
    several = compare(
        _write(tmp_path / "c", y, p, groups=owners), _write(tmp_path / "d", y, q, groups=owners)
    )
    assert several["test"]["name"] == "permutation test of accuracy, by patient"


def test_slides_of_one_run_alone_are_told(tmp_path: Path, y: np.ndarray) -> None:
    p = _scores(y, 1.0, 1)
    names = [f"s{i:03}" for i in range(150)]
    first = _write(tmp_path / "a", y[:140], p[:140], names[:140])
    order = np.random.default_rng(0).permutation(np.arange(5, 150))
    second = _write(tmp_path / "b", y[order], p[order], [f"{names[i]}.svs" for i in order])
    got = compare(first, second)
    assert got["n"] == 135
    assert got["only_first"] == names[:5]
    assert got["only_second"] == names[140:]
    assert got["metrics"]["auc"]["difference"] == 0  # joined by name, in any order
    assert "5 slides ('s000', 's001', 's002', ...) only in a: not compared" in got["notes"]


def test_columns_of_classes_in_another_order(tmp_path: Path, y: np.ndarray) -> None:
    p = _scores(y, 1.0, 1)
    first = _write(tmp_path / "a", y, p)
    (tmp_path / "b").mkdir()
    lines = ["slide,label,predicted,p_2,p_0,p_1"] + [
        f"s{i:03},{y[i]},{row.argmax()},{row[2]!r},{row[0]!r},{row[1]!r}".replace("np.float64", "")
        for i, row in enumerate(p)
    ]
    text = "\n".join(lines).replace("(", "").replace(")", "")
    (tmp_path / "b" / "predictions.csv").write_text(text)
    got = compare(first, tmp_path / "b")
    assert all(row["difference"] == pytest.approx(0) for row in got["metrics"].values())


def test_repeats_of_two_runs(tmp_path: Path, y: np.ndarray) -> None:
    names = [f"s{i:03}" for i in range(150)] * 2
    repeats = [0] * 150 + [1] * 150
    both = np.tile(y, 2)
    p = [_scores(y, signal, i) for i, signal in enumerate((1.0, 1.2, 0.4, 0.5))]
    first = _write(tmp_path / "a", both, np.concatenate(p[:2]), names, repeats=repeats)
    second = _write(tmp_path / "b", both, np.concatenate(p[2:]), names, repeats=repeats)
    got = compare(first, second, metrics=["accuracy"])
    accuracy = [np.mean(scores.argmax(1) == y) for scores in p]
    differences = [accuracy[0] - accuracy[2], accuracy[1] - accuracy[3]]
    row = got["metrics"]["accuracy"]
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert row["sd_over_repeats"] == pytest.approx(np.std(differences, ddof=1))
    assert got["repeats"] == [2, 2]
    assert got["test"]["name"].startswith("permutation test")
    single = compare(first, _write(tmp_path / "c", y, p[2]), metrics=["accuracy"])
    assert single["repeats"] == [2, 1]
    assert single["metrics"]["accuracy"]["difference"] == pytest.approx(
        np.mean(accuracy[:2]) - accuracy[2]
    )


def test_numbers_and_risks_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names, truth = [f"s{i}" for i in range(100)], rng.normal(size=100)
    for folder, noise in (("a", 0.3), ("b", 1.5)):
        (tmp_path / folder).mkdir()
        said = truth + rng.normal(0, noise, 100)
        write_predictions(
            tmp_path / folder / "predictions.csv",
            Continuous(names, names, [0] * 100, truth, said),
        )
        (tmp_path / f"{folder}-risk").mkdir()
        write_predictions(
            tmp_path / f"{folder}-risk" / "predictions.csv",
            Survival(names, names, [0] * 100, np.exp(-truth), np.ones(100, bool), said),
        )
    got = compare(tmp_path / "a", tmp_path / "b")
    assert got["metrics"]["mae"]["better"] == got["metrics"]["spearman"]["better"] == "first"
    assert "bias" not in got["metrics"]
    assert got["test"]["p"] < 0.01
    risks = compare(tmp_path / "a-risk", tmp_path / "b-risk")
    assert risks["metrics"]["c_index"]["better"] == "first"
    assert risks["test"] is None
    with pytest.raises(DataError, match="predict different things"):
        compare(tmp_path / "a", tmp_path / "a-risk")


def test_what_cannot_be_compared_is_refused(tmp_path: Path, y: np.ndarray) -> None:
    p = _scores(y, 1.0, 1)
    first = _write(tmp_path / "a", y, p)
    other = _write(tmp_path / "b", y, p, [f"t{i}" for i in range(150)])
    with pytest.raises(DataError, match="no slide in common"):
        compare(first, other)
    truth = y.copy()
    truth[7] = (truth[7] + 1) % 3
    with pytest.raises(DataError, match=r"disagree on what is true.*s007"):
        compare(first, _write(tmp_path / "c", truth, p))
    with pytest.raises(ConfigError, match=r"no such metric.*kappa.*accuracy, balanced_accuracy"):
        compare(first, first, metrics=["kappa"])
    (tmp_path / "d.csv").write_text("slide,label,p_0,p_1\ns000,0,0.5,0.5\n")
    with pytest.raises(DataError, match="predict different classes"):
        compare(first, tmp_path / "d.csv")


def test_the_command(tmp_path: Path, y: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    good = _write(tmp_path / "good", y, _scores(y, 2.0, 1))
    poor = _write(tmp_path / "poor", y, _scores(y, 0.2, 2))
    out = tmp_path / "comparison.json"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "compare", str(good), str(poor), "--metric", "qwk", "-o", str(out)])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "good is better than poor in qwk" in text
    assert "(150 slides of 150 patients, 95 % intervals by slide)" in text
    assert list(json.loads(out.read_text())["metrics"]) == ["qwk"]
