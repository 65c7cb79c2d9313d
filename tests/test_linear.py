"""The linear probe and the paired bootstrap, against scikit-learn and arithmetic by hand."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pathgen.cli import main
from pathgen.errors import DataError, RunError
from pathgen.evaluate.linear import GRID, HELD_OUT, evaluate_linear, held_out_rows, linear_probe
from pathgen.evaluate.paired import paired_interval
from pathgen.provenance import Provenance
from pathgen.stores import FeatureStore


def clusters(seed: int, n: int, spread: float = 2.0) -> tuple[NDArray[Any], NDArray[np.int64]]:
    centers = np.random.default_rng(99).normal(size=(4, 12))
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 4, n)
    x = centers[labels] + spread * chance.normal(size=(n, 12))
    return (10 + x * np.geomspace(0.01, 100, 12)).astype(np.float32), labels


# --- the probe -------------------------------------------------------------------------------


def test_the_probe_is_scikit_learns_on_standardized_features() -> None:
    (train, labels), (test, _) = clusters(0, 300), clusters(1, 200)
    scaler = StandardScaler().fit(train.astype(np.float64))
    reference = LogisticRegression(C=0.1, max_iter=2000).fit(
        scaler.transform(train.astype(np.float64)), labels
    )
    expected = reference.predict(scaler.transform(test.astype(np.float64)))
    probe = linear_probe(train, labels, test, grid=[0.1])
    assert np.array_equal(probe.predicted, expected)
    assert probe.held_out == {}
    assert probe.converged


def test_units_of_features_do_not_matter() -> None:
    (train, labels), (test, _) = clusters(0, 200), clusters(1, 100)
    factor = 2.0 ** np.arange(12)
    plain = linear_probe(train, labels, test)
    scaled = linear_probe(train * factor - 7, labels, test * factor - 7)
    assert (plain.predicted == scaled.predicted).mean() > 0.99
    assert plain.c == scaled.c


def test_the_penalty_is_chosen_without_the_test_rows() -> None:
    train, labels = clusters(0, 200)
    one, other = (linear_probe(train, labels, clusters(seed, 50)[0]) for seed in (1, 2))
    assert one.c == other.c
    assert one.held_out == other.held_out
    assert set(one.held_out) == set(GRID)
    assert one.c == min(c for c, a in one.held_out.items() if a == max(one.held_out.values()))


def test_more_noise_asks_for_a_stronger_penalty() -> None:
    chance = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    useful = (labels * 2.0 - 1)[:, None] + 0.1 * chance.normal(size=(80, 3))
    noisy = np.c_[0.3 * useful + chance.normal(size=(80, 3)), chance.normal(size=(80, 200))]
    easy = linear_probe(useful, labels, useful)
    hard = linear_probe(noisy, labels, noisy)
    assert set(easy.held_out.values()) == {1.0}
    assert easy.c == min(GRID)
    assert max(hard.held_out.values()) < 1.0


def test_rows_held_out_are_a_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 10, 1])
    learn, judge = held_out_rows(labels, seed=3)
    assert sorted([*learn, *judge]) == list(range(61))
    assert np.bincount(labels[judge], minlength=3).tolist() == [50 * HELD_OUT, 10 * HELD_OUT, 0]
    assert not np.array_equal(judge, held_out_rows(labels, seed=4)[1])


def test_a_feature_that_never_varies_does_no_harm() -> None:
    train, labels = clusters(0, 100)
    still = np.c_[train, np.full((100, 1), 5.0)]
    assert np.array_equal(
        linear_probe(still, labels, still, grid=[1.0]).predicted,
        linear_probe(train, labels, train, grid=[1.0]).predicted,
    )


def test_what_cannot_be_learned_is_said() -> None:
    train, _ = clusters(0, 10)
    with pytest.raises(DataError, match="two classes"):
        linear_probe(train, np.zeros(10, np.int64), train)
    with pytest.raises(DataError, match="too few"):
        linear_probe(train[:4], np.arange(4), train)
    with pytest.raises(ValueError, match="train"):
        linear_probe(train, np.arange(10), train[:, :5])


# --- stores and the command ------------------------------------------------------------------


def store(path: Path, x: NDArray[Any], labels: NDArray[np.int64], encoder: str = "e") -> Path:
    facts = {"name": "net", "id": encoder, "dim": x.shape[1]}
    path.parent.mkdir(exist_ok=True, parents=True)
    with FeatureStore.create(
        path, x.shape[1], Provenance(stage="extract", config={}, inputs={}), encoder=facts,
        source={"id": path.stem, "name": path.stem}, classes=("a", "b", "c", "d"),
    ) as writer:  # fmt: skip
        writer.append(
            features=x.astype(np.float32), coords=np.zeros((len(x), 2), np.int64),
            label=labels.astype(np.int32),
        )  # fmt: skip
    return path


def test_stores_give_what_arrays_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (train, labels), (test, truth) = clusters(0, 200), clusters(1, 100)
    paths = store(tmp_path / "a.h5", train, labels), store(tmp_path / "b.h5", test, truth)
    probe = linear_probe(train, labels, test)
    found = evaluate_linear(*paths)
    assert found["accuracy"] == (probe.predicted == truth).mean()
    assert (found["c"], found["n_train"], found["n_test"]) == (probe.c, 200, 100)

    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "linear", *map(str, paths), "--json", "-o", str(tmp_path / "r.json")])
    assert not ended.value.code
    assert json.loads((tmp_path / "r.json").read_text()) == found
    assert json.loads(capsys.readouterr().out)["accuracy"] == found["accuracy"]


def test_features_of_two_encoders_are_refused(tmp_path: Path) -> None:
    x, labels = clusters(0, 50)
    one, two = store(tmp_path / "a.h5", x, labels), store(tmp_path / "b.h5", x, labels, "other")
    with pytest.raises(RunError) as caught:
        evaluate_linear(one, two)
    assert caught.value.code == "PG-T04"


# --- the paired bootstrap --------------------------------------------------------------------


def test_equal_methods_differ_by_nothing() -> None:
    right = np.random.default_rng(0).random((3, 50)) < 0.5
    found = paired_interval(right, right)
    assert found["difference"] == 0
    assert found["interval"] == [0, 0]
    assert found["sd_over_runs"] == 0


def test_the_interval_is_that_of_all_possible_draws() -> None:
    """Three rows have 27 equally likely draws; a very uneven level needs only their extremes."""
    first, second = np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])
    exact = sorted(np.mean([(first - second)[list(d)]]) for d in product(range(3), repeat=3))
    found = paired_interval(first, second, resamples=20_000, level=0.5)
    assert found["interval"] == pytest.approx(np.quantile(exact, [0.25, 0.75]))
    assert paired_interval(first, second, resamples=20_000, level=0.99)["interval"] == [-1, 1]


def test_a_slide_is_drawn_as_a_whole() -> None:
    """Within each slide all rows agree: 20 rows know no more than their two slides do."""
    first = np.repeat([1.0, 0.0], 10)
    second = np.zeros(20)
    slides = ["one"] * 10 + ["two"] * 10
    alone, together = (paired_interval(first, second, groups=g) for g in (None, slides))
    assert together["interval"] == [0, 1]
    assert together["groups"] == 2
    assert alone["interval"][0] > 0.2
    assert alone["groups"] == 20


def test_pairing_narrows_the_interval() -> None:
    chance = np.random.default_rng(0)
    hard = chance.random(400) < 0.5
    first = hard | (chance.random(400) < 0.04)
    width = np.ptp(paired_interval(first, hard)["interval"])
    apart = np.ptp(paired_interval(first, chance.permutation(hard))["interval"])
    assert width < 0.5 * apart


def test_runs_are_pooled_by_their_mean() -> None:
    first = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    second = np.zeros((2, 4))
    found = paired_interval(first, second)
    assert found["difference"] == 0.75
    assert found["sd_over_runs"] == pytest.approx(0.5 / 2**0.5)  # of 0.5 and 1.0
    assert found["runs"] == 2
    assert paired_interval(first[0], second[0])["sd_over_runs"] is None


@pytest.mark.parametrize(
    ("second", "groups"), [(np.zeros(3), None), (np.zeros(4), ["a"] * 3)], ids=["rows", "groups"]
)
def test_scores_of_other_rows_are_refused(second: NDArray[Any], groups: list[str] | None) -> None:
    with pytest.raises(DataError, match="same rows"):
        paired_interval(np.zeros(4), second, groups=groups)
