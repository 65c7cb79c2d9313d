"""Survival and numbers as targets: read, trained, written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as metrics
from helpers_mil import write_store

from pathgen.data.bags import Bags, load_bags
from pathgen.errors import ConfigError, DataError
from pathgen.evaluate.mil import train_mil
from pathgen.models.mil import PoolingConfig
from pathgen.train.mil import MILTrainConfig, fit_mil, predict
from pathgen.train.milbatches import training_plan
from pathgen.train.milmonitor import concordance, score

SMALL = PoolingConfig(embed=16, hidden=8)
QUICK = MILTrainConfig(model=SMALL, epochs=25, lr=1e-2, batch_size=16, device="cpu")


def number_bags(n: int, seed: int, target: str) -> Bags:
    """The first dimension of a bag's vectors lies at its number; times fall with it."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=n)
    features = [(rng.normal(size=(12, 4)) * 0.3 + [z, 0, 0, 0]).astype(np.float32) for z in level]
    names = [f"s{i:03}" for i in range(n)]
    values, events = 50 + 10 * level, None
    if target == "survival":
        times, cut = rng.exponential(np.exp(-2 * level)), rng.exponential(2.0, n)
        values, events = np.minimum(times, cut), times <= cut
    return Bags(
        features, np.zeros(n, np.int64), names, names, (), target=target, values=values,
        events=events,
    )  # fmt: skip


def test_concordance_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    time = rng.integers(1, 8, 40).astype(float)
    event, risk = rng.random(40) < 0.6, rng.integers(0, 5, 40).astype(float)
    pairs = good = 0.0
    for i in range(40):
        for j in range(40):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs += 1
                good += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    assert concordance(risk, time, event) == pytest.approx(good / pairs)


def test_risk_is_learned() -> None:
    train, valid, test = (number_bags(n, s, "survival") for n, s in ((90, 1), (30, 2), (80, 3)))
    config = QUICK.model_copy(update={"target": "survival", "monitor": "c_index"})
    head, history = fit_mil(config, train, valid)
    said = predict(head, test)
    assert said.probabilities.shape == (80, 0)
    assert test.values is not None
    assert test.events is not None
    found = concordance(said.logits[:, 0], test.values, test.events)
    truth = concordance(np.array([x[:, 0].mean() for x in test.features]), test.values, test.events)
    assert truth > 0.75
    assert found > truth - 0.06
    assert all(epoch.score is not None for epoch in history)
    # Heads of several folds have one zero, so that their risks can be ranked together.
    assert predict(head, train).logits.mean() == pytest.approx(0, abs=1e-5)


def test_numbers_are_learned_in_their_unit() -> None:
    train, valid, test = (number_bags(n, s, "regression") for n, s in ((90, 1), (30, 2), (60, 3)))
    head, _ = fit_mil(QUICK.model_copy(update={"target": "regression"}), train, valid)
    said = predict(head, test).logits[:, 0]
    assert test.values is not None
    assert np.corrcoef(said, test.values)[0, 1] > 0.95
    assert abs((said - test.values).mean()) < 3  # of a spread of 10


def test_of_numbers_a_smaller_error_is_better() -> None:
    valid = number_bags(20, 3, "regression")
    assert valid.values is not None
    said = valid.values + np.random.default_rng(0).normal(size=20)
    nothing = np.zeros((20, 0)), np.zeros(20, np.int64)
    found = score("mae", valid, *nothing, said)
    assert found == pytest.approx(-metrics.mean_absolute_error(valid.values, said))
    assert score("r2", valid, *nothing, said) == pytest.approx(metrics.r2_score(valid.values, said))


def test_every_batch_has_events() -> None:
    events = np.zeros(100, bool)
    events[:11] = True
    plan = training_plan(np.full(100, 5), 10, np.random.default_rng(0), events)
    assert sorted(np.concatenate(plan)) == list(range(100))
    assert min(events[rows].sum() for rows in plan) >= 1
    assert max(len(rows) for rows in plan) <= 11


def test_what_cannot_be_learned_is_refused() -> None:
    bags = number_bags(10, 0, "survival")
    with pytest.raises(ConfigError, match="compares bags"):
        fit_mil(QUICK.model_copy(update={"batch_size": 1}), bags, bags)
    none = Bags(
        bags.features, bags.labels, bags.names, bags.groups, (), target="survival",
        values=bags.values, events=np.zeros(10, bool),
    )  # fmt: skip
    with pytest.raises(DataError, match="needs an event") as error:
        fit_mil(QUICK, none, none)
    assert error.value.code == "PG-N07"
    with pytest.raises(DataError, match="cannot say loss") as error:
        fit_mil(QUICK, bags, none)  # whose loss is 0 whatever the head says
    assert error.value.code == "PG-N07"
    with pytest.raises(ConfigError, match="monitor"):
        fit_mil(QUICK.model_copy(update={"monitor": "qwk"}), bags, bags)


def _write(folder: Path, bags: Bags, rows: list[str]) -> Path:
    for name, vectors in zip(bags.names, bags.features, strict=True):
        write_store(folder / "features", name, vectors)
    path = folder / "labels.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_survival_cross_validation(tmp_path: Path) -> None:
    bags = number_bags(24, 4, "survival")
    assert bags.values is not None
    assert bags.events is not None
    rows = ["slide,patient,OS_months,vital_status"]
    for name, time, event in zip(bags.names, bags.values, bags.events, strict=True):
        rows.append(f"{name},{name},{time},{'dead' if event else 'Alive'}")
    labels = _write(tmp_path, bags, rows)
    config = QUICK.model_copy(update={"epochs": 4, "folds": 2})
    result = train_mil(tmp_path / "features", labels, tmp_path / "mil", config, target="survival")
    lines = result.predictions.read_text().splitlines()
    assert lines[0] == "slide,patient,fold,time,event,risk"
    assert len(lines) == 25
    said = {line.split(",")[0]: line.split(",") for line in lines[1:]}
    for name, time, event in zip(bags.names, bags.values, bags.events, strict=True):
        assert float(said[name][3]) == time
        assert said[name][4] == str(int(event))
    risk = np.array([float(said[name][5]) for name in bags.names])
    assert result.metrics["c_index"] == pytest.approx(
        concordance(risk, bags.values, bags.events), abs=1e-9
    )
    saved = json.loads((tmp_path / "mil" / "fold-0" / "metrics.json").read_text())
    assert saved["target"] == "survival"


def test_a_cross_validation_of_numbers(tmp_path: Path) -> None:
    bags = number_bags(24, 5, "regression")
    assert bags.values is not None
    rows = ["slide,score", *(f"{n},{v}" for n, v in zip(bags.names, bags.values, strict=True))]
    labels = _write(tmp_path, bags, rows)
    config = QUICK.model_copy(update={"folds": 2})
    result = train_mil(
        tmp_path / "features", labels, tmp_path / "mil", config, target="regression",
        label_column="score",
    )  # fmt: skip
    lines = [line.split(",") for line in result.predictions.read_text().splitlines()]
    assert lines[0] == ["slide", "patient", "fold", "target", "predicted"]
    target, said = (np.array([float(line[i]) for line in lines[1:]]) for i in (3, 4))
    np.testing.assert_array_equal(target, bags.values)
    assert result.metrics["mae"] == pytest.approx(np.abs(target - said).mean())


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("s000,x,1", "a time is a number"),
        ("s000,-1,1", "time is negative"),
        ("s000,1,maybe", "neither yes nor no"),
        ("s000,1,", "neither yes nor no"),
    ],
)
def test_bad_cells_are_named_with_their_line(tmp_path: Path, cells: str, message: str) -> None:
    bags = number_bags(2, 0, "survival")
    labels = _write(tmp_path, bags, ["slide,time,event", "s001,3,0", cells])
    with pytest.raises(DataError, match=message) as error:
        load_bags(tmp_path / "features", labels, target="survival")
    assert error.value.code == "PG-N06"
    assert "Line 3" in str(error.value)
