"""Concordance against a plain loop, curves and log-rank test against SciPy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from pathgen.errors import DataError
from pathgen.evaluate.judgement import judge_arrays, summary
from pathgen.evaluate.survival import concordance, judged_risks, kaplan_meier, logrank


def _cohort(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times and risks with many ties, a third censored."""
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1)
    time = np.ceil(rng.exponential(np.exp(-risk) * 10))
    return time, rng.random(n) < 0.67, risk


def _by_hand(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C: over pairs of which it is known who had the event first."""
    hits, pairs = 0.0, 0
    for i in range(len(time)):
        for j in range(len(time)):
            first = time[i] < time[j] or (time[i] == time[j] and not event[j])
            if i != j and event[i] and first:
                pairs += 1
                hits += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return hits / pairs


@pytest.mark.parametrize("seed", range(4))
def test_concordance_is_harrells(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    time, event, risk = _cohort(60, seed)
    want = _by_hand(time, event, risk)
    assert judged_risks(time, event, risk).point()["c_index"] == pytest.approx(want)
    monkeypatch.setattr("pathgen.evaluate.survival.PAIRS", 100)  # a row at a time
    assert judged_risks(time, event, risk).point()["c_index"] == pytest.approx(want)


def test_weights_count_as_copies() -> None:
    time, event, risk = _cohort(40, 9)
    times = np.random.default_rng(0).integers(0, 4, 40)
    got = concordance(time, event, risk, times[None].astype(float))
    assert got.item() == pytest.approx(
        _by_hand(*(np.repeat(v, times) for v in (time, event, risk)))
    )


def test_order_and_its_reverse() -> None:
    time, event = np.arange(1.0, 9), np.ones(8, bool)
    for risk, want in ((-time, 1.0), (time, 0.0), (np.zeros(8), 0.5)):
        assert judged_risks(time, event, risk).point()["c_index"] == want


@pytest.mark.parametrize("seed", range(3))
def test_curve_and_test_are_scipys(seed: int) -> None:
    time, event, risk = _cohort(80, seed)
    got = kaplan_meier(time, event)
    data = stats.CensoredData(uncensored=time[event], right=time[~event])
    theirs = stats.ecdf(data).sf
    at = dict(zip(theirs.quantiles, theirs.probabilities, strict=True))
    steps = list(zip(got["time"], got["survival"], strict=True))[1:-1]
    assert len(steps) == len(np.unique(time[event]))
    for moment, survival in steps:
        assert survival == pytest.approx(at[moment], abs=1e-6)
    with warnings.catch_warnings():  # where the curve is 0 its formula has no limits
        warnings.simplefilter("ignore", RuntimeWarning)
        limits = theirs.confidence_interval(method="log-log")
    low, high = (
        dict(zip(theirs.quantiles, part.probabilities, strict=True))
        for part in (limits.low, limits.high)
    )
    columns = (got[k] for k in ("time", "survival", "low", "high"))
    for moment, survival, bottom, top in zip(*columns, strict=True):
        if 0 < survival < 1 and moment in low:
            assert (bottom, top) == pytest.approx((low[moment], high[moment]), abs=1e-5)
    assert (got["n"], got["events"], got["time"][0], got["survival"][0]) == (80, event.sum(), 0, 1)
    high_risk = risk > np.median(risk)
    groups = [
        stats.CensoredData(uncensored=time[rows & event], right=time[rows & ~event])
        for rows in (high_risk, ~high_risk)
    ]
    theirs_test = stats.logrank(*groups)
    chi2, p = logrank(time, event, high_risk)
    assert chi2 == pytest.approx(theirs_test.statistic**2)
    assert p == pytest.approx(theirs_test.pvalue)


def test_a_long_curve_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    got = kaplan_meier(rng.random(5000), np.ones(5000, bool))
    assert len(got["time"]) <= 202
    assert (got["survival"][0], got["survival"][-1]) == (1, 0)
    assert np.abs(np.array(got["survival"]) - (1 - np.array(got["time"]))).max() < 0.05


def test_what_is_undefined_is_said() -> None:
    time, _, risk = _cohort(20, 0)
    nobody = judged_risks(time, np.zeros(20), risk)
    assert nobody.point()["undefined"]["c_index"] == "there is no event"
    assert nobody.details()["logrank"] is None
    alone = judged_risks([3.0, 5.0], [0, 1], [0.1, 0.2]).point()
    assert "no slide was seen for longer" in alone["undefined"]["c_index"]
    with pytest.raises(DataError, match="a time is negative"):
        judged_risks([-1.0], [1], [0.0])
    with pytest.raises(DataError, match="events are 0 or 1"):
        judged_risks([1.0, 2.0], [1, 2], [0.0, 1.0])


def test_the_judgement() -> None:
    time, event, risk = _cohort(120, 5)
    got = judge_arrays(
        time, event=event, predicted=risk, kind="survival", folds=[i % 2 for i in range(120)]
    )
    low, high = got["intervals"]["c_index"]
    assert low < got["c_index"] < high
    assert got["c_index"] > 0.6
    assert got["logrank"]["p"] < 0.05
    assert [row["n"] for row in got["kaplan_meier"]] == [
        int((risk <= np.median(risk)).sum()), int((risk > np.median(risk)).sum())
    ]  # fmt: skip
    assert got["baselines"]["none"]["c_index"] == 0.5
    assert len(got["folds"]) == 2
    assert summary(got).startswith("C-index 0.")


def test_a_death_counts_once_however_often_it_is_told() -> None:
    time, event, risk = _cohort(60, 3)
    names = [f"s{i}" for i in range(60)]
    once = judge_arrays(time, event=event, predicted=risk, kind="survival", names=names)
    wide = np.concatenate([risk - 1, risk + 1])
    for more in (
        {"names": names * 2, "repeats": [0] * 60 + [1] * 60},
        {"groups": names * 2},
    ):  # two repeats; two slides of each patient
        got = judge_arrays(
            np.tile(time, 2), event=np.tile(event, 2), predicted=wide, kind="survival", **more
        )
        assert got["logrank"]["p"] == pytest.approx(once["logrank"]["p"], rel=1e-9)
        assert [row["n"] for row in got["kaplan_meier"]] == [30, 30]
        assert [row["high"] for row in got["kaplan_meier"]] == [
            row["high"] for row in once["kaplan_meier"]
        ]
        assert got["intervals"]["unit"] == ("slide" if "repeats" in more else "patient")
        told = 1 if "repeats" in more else 2
        assert got["events"] == told * once["events"]
