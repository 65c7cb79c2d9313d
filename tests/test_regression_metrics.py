"""Metrics of predicted numbers against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from pathgen.errors import DataError
from pathgen.evaluate.continuous import METRICS, judged_numbers
from pathgen.evaluate.judgement import judge_arrays, summary


def _cohort(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.round(rng.normal(5, 2, n), 1)  # with ties
    return truth, np.round(truth + rng.normal(0, 2, n), 1)


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_other_libraries(seed: int) -> None:
    truth, said = _cohort(70, seed)
    got = judged_numbers(truth, said).point()
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(truth, said))
    assert got["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, said))
    assert got["r2"] == pytest.approx(sk.r2_score(truth, said))
    assert got["pearson"] == pytest.approx(stats.pearsonr(truth, said).statistic)
    assert got["spearman"] == pytest.approx(stats.spearmanr(truth, said).statistic)
    assert got["bias"] == pytest.approx(np.mean(said - truth))
    assert got["undefined"] == {}


def test_far_from_zero_no_digits_are_lost() -> None:
    truth, said = _cohort(50, 0)
    near, far = (judged_numbers(truth + a, said + a).point() for a in (0.0, 1e8))
    for name in METRICS:
        assert far[name] == pytest.approx(near[name], rel=1e-3), name


def test_weights_count_as_copies() -> None:
    truth, said = _cohort(40, 1)
    times = np.random.default_rng(0).integers(0, 4, 40)
    weighted = judged_numbers(truth, said).measure(times[None].astype(float)).values
    copied = judged_numbers(np.repeat(truth, times), np.repeat(said, times)).point()
    for name in METRICS:
        assert weighted[name].item() == pytest.approx(copied[name]), name


def test_what_is_undefined_is_said() -> None:
    truth, said = _cohort(20, 2)
    constant = judged_numbers(truth, np.full(20, 3.3)).point()
    assert constant["pearson"] is None
    assert constant["spearman"] is None
    assert constant["r2"] is not None
    assert "one and the same number" in constant["undefined"]["spearman"]
    same = judged_numbers(np.full(20, 1 / 3), said).point()
    assert same["r2"] is None
    assert same["undefined"]["r2"] == "all slides have the same target"
    with pytest.raises(DataError, match=r"predictions are not finite.*first 1"):
        judged_numbers([1, 2], [1, np.nan])
    with pytest.raises(DataError, match="do not fit"):
        judged_numbers([1, 2], [1])


def test_the_judgement() -> None:
    truth, said = _cohort(60, 3)
    got = judge_arrays(
        truth, predicted=said, kind="regression", folds=[i % 3 for i in range(60)],
        sites=["a", "b"] * 30,
    )  # fmt: skip
    assert got["kind"] == "regression"
    assert all(
        got["intervals"][name][0] < got[name] < got["intervals"][name][1] for name in METRICS
    )
    assert got["baselines"]["mean"]["r2"] == pytest.approx(0)
    assert got["fold_mean"]["mae"]["mean"] == pytest.approx(
        np.mean([np.abs(truth - said)[i::3].mean() for i in range(3)])
    )
    assert [row["mae"] for row in got["sites"]] == pytest.approx(
        [np.abs(truth - said)[i::2].mean() for i in range(2)]
    )
    assert got["scatter"]["truth"] == truth.tolist()
    assert summary(got).startswith(f"mean absolute error {got['mae']:.3f} [")
    assert "always the mean: mean absolute error" in summary(got)
