"""Slide heads: that they learn; the cross-validation."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_mil import witness_bags, write_cohort
from sklearn.linear_model import LogisticRegression

import pathgen.evaluate.mil as evaluation
import pathgen.evaluate.milfold as folding
from pathgen.cli import main
from pathgen.data.bags import Bags
from pathgen.errors import ConfigError, DataError, RunError
from pathgen.evaluate.mil import read_attention, train_mil
from pathgen.evaluate.predictions import evaluate_predictions, read_predictions
from pathgen.models.mil import MILHead, PoolingConfig
from pathgen.runs import load_model
from pathgen.train.mil import MILTrainConfig, fit_mil, predict

SMALL = PoolingConfig(embed=32, hidden=16)
QUICK = MILTrainConfig(model=SMALL, epochs=3, batch_size=4, device="cpu", folds=2)


# --- training -------------------------------------------------------------------------------


def _accuracy(head: MILHead, bags: Bags) -> float:
    return float((predict(head, bags).probabilities.argmax(1) == bags.labels).mean())


def test_attention_learns_witnesses_that_the_mean_cannot_see() -> None:
    train, valid, test = witness_bags(120, 1), witness_bags(40, 2), witness_bags(100, 3)
    mean = LogisticRegression().fit([b.mean(0) for b in train.features], train.labels)
    assert mean.score([b.mean(0) for b in test.features], test.labels) < 0.65
    config = MILTrainConfig(model=SMALL, lr=2e-3, epochs=30, batch_size=8, device="cpu")
    head, history = fit_mil(config, train, valid)
    assert history[-1].loss < history[0].loss
    assert _accuracy(head, test) > 0.9
    said = predict(head, test)
    positive = [a for a, label in zip(said.attention, test.labels, strict=True) if label]
    uniform = np.mean([2 / len(a) for a in positive])
    assert np.mean([a[:2].sum() for a in positive]) > 3 * uniform


def test_the_best_weights_come_back() -> None:
    train, valid = witness_bags(24, 1), witness_bags(12, 2)
    config = QUICK.model_copy(update={"lr": 0.02, "epochs": 40, "patience": 5})
    head, history = fit_mil(config, train, valid)
    losses = [epoch.valid_loss for epoch in history]
    assert len(history) < 40
    best = int(np.argmin(losses))
    assert len(history) == best + 1 + config.patience
    p = predict(head, valid).probabilities[np.arange(12), valid.labels]
    assert -np.log(p).mean() == pytest.approx(losses[best], rel=1e-4)


def test_training_repeats_and_leaves_chance_alone() -> None:
    train, valid = witness_bags(12, 1), witness_bags(6, 2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, _ = fit_mil(QUICK, train, valid)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    other, _ = fit_mil(QUICK, train, valid)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    seeded, _ = fit_mil(QUICK.model_copy(update={"seed": 1}), train, valid)
    assert not torch.equal(one.classify.weight, seeded.classify.weight)


def test_the_scale_of_features_does_not_matter() -> None:
    train, valid = witness_bags(12, 1), witness_bags(6, 2)
    head, _ = fit_mil(QUICK, train, valid)
    large = [Bags([1000 * x + 7 for x in b.features], b.labels, b.names, b.groups, b.classes)
             for b in (train, valid)]  # fmt: skip
    scaled, _ = fit_mil(QUICK, *large)
    np.testing.assert_allclose(
        predict(head, valid).probabilities, predict(scaled, large[1]).probabilities, atol=1e-3
    )


@pytest.mark.parametrize(
    "change",
    [
        {"instance_dropout": 0.9},
        {"max_instances": 1},
        {"batch_size": 5},
        {"class_weights": "none"},
        {"standardize": False},
        {"model": PoolingConfig(head="max", embed=16)},
    ],
    ids=str,
)
def test_every_setting_trains(change: dict[str, Any]) -> None:
    head, history = fit_mil(QUICK.model_copy(update=change), witness_bags(9, 1), witness_bags(4, 2))
    assert all(np.isfinite(epoch.loss) for epoch in history)
    assert np.isfinite(predict(head, witness_bags(4, 3)).probabilities).all()


def test_without_validation_the_last_epoch_counts() -> None:
    train = witness_bags(9, 1)
    _, history = fit_mil(QUICK, train, train.select([]))
    assert [epoch.valid_loss for epoch in history] == [None] * 3


def test_a_single_class_cannot_train() -> None:
    train = witness_bags(8, 1)
    with pytest.raises(DataError, match="two classes"):
        fit_mil(QUICK, train.select([0, 2, 4]), train)


@pytest.mark.parametrize(("weights", "share"), [("balanced", 0.5), ("none", 0.2)])
def test_a_rare_class_counts_as_much_as_asked(weights: str, share: float) -> None:
    """Of bags that look alike a head can say only how much each class counts."""
    names = [str(i) for i in range(20)]
    alike = [np.zeros((2, 3), np.float32)] * 20
    bags = Bags(alike, np.arange(20) % 5 // 4, names, names, ("0", "1"))
    config = QUICK.model_copy(
        update={"class_weights": weights, "epochs": 100, "lr": 3e-2, "batch_size": 20}
    )
    head, _ = fit_mil(config, bags, bags.select([]))
    assert predict(head, bags).probabilities[0, 1] == pytest.approx(share, abs=0.03)


def test_features_are_standardized_by_the_training_bags_alone() -> None:
    train, valid = witness_bags(8, 1), witness_bags(8, 2)
    for i, bag in enumerate((*train.features, *valid.features)):
        bag += i  # bags differ, and validation most
    head, _ = fit_mil(QUICK, train, valid)
    means = np.stack([bag.mean(0, dtype=np.float64) for bag in train.features])
    squares = np.stack([(bag.astype(np.float64) ** 2).mean(0) for bag in train.features])
    np.testing.assert_allclose(head.center, means.mean(0), rtol=1e-5)  # each bag the same
    np.testing.assert_allclose(head.scale, np.sqrt(squares.mean(0) - means.mean(0) ** 2), rtol=1e-5)


@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_loss_that_is_not_finite_stops_training(part: str) -> None:
    parts = {"train": witness_bags(8, 1), "valid": witness_bags(8, 2)}
    parts[part].features[3][:] = np.nan
    with pytest.raises(RunError, match="loss is not finite") as error:
        fit_mil(QUICK, **parts)
    assert error.value.code == "PG-T03"


# --- cross-validation -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, witness_bags(16, 0), [f"p{i // 4}{i % 2}" for i in range(16)])
    return folder


def _train(cohort: Path, out: Path, **options: Any) -> evaluation.MILResult:
    return train_mil(cohort / "features", cohort / "labels.csv", out, QUICK, **options)


def _files(folder: Path) -> dict[str, bytes]:
    passing = ("environment.json", ".pathgen-lock")  # host and time; nothing of the result
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in passing
    }


def test_a_cross_validation(cohort: Path, tmp_path: Path) -> None:
    result = _train(cohort, tmp_path / "mil")
    said = read_predictions(result.predictions)
    assert list(said.names) == [f"s{i:03}" for i in range(16)]
    assert said.probabilities is not None
    np.testing.assert_allclose(said.probabilities.sum(1), 1, atol=1e-6)
    owner_folds: dict[str, set[int]] = {}
    for group, fold in zip(said.groups, said.folds or [], strict=True):
        owner_folds.setdefault(group, set()).add(fold)
    assert all(len(found) == 1 for found in owner_folds.values())
    # The prediction of a slide is that of the saved head of its fold.
    head = load_model(tmp_path / "mil" / "fold-1", MILHead)
    bags = witness_bags(16, 0)
    rows = [i for i, fold in enumerate(said.folds or []) if fold == 1]
    again = predict(head, bags.select(rows))
    np.testing.assert_allclose(again.probabilities, said.probabilities[rows], atol=1e-6)
    attention = read_attention(tmp_path / "mil")
    assert {name: len(a) for name, a in attention.items()} == {
        name: len(x) for name, x in zip(bags.names, bags.features, strict=True)
    }
    np.testing.assert_allclose(attention[bags.names[rows[0]]], again.attention[0], atol=1e-6)
    assert all(a.sum() == pytest.approx(1, abs=1e-5) for a in attention.values())
    # metrics.json is what `pathgen evaluate mil` computes from the file.
    metrics = json.loads((tmp_path / "mil" / "metrics.json").read_text())
    fresh = evaluate_predictions(tmp_path / "mil", seed=0)
    assert metrics["notes"].pop(0) == "8 patients (column 'patient')"
    assert metrics["notes"].pop(0).startswith("whether the encoder was pretrained on the tested")
    assert {k: metrics[k] for k in fresh} == json.loads(json.dumps(fresh))
    assert len((tmp_path / "mil" / "fold-0" / "log.jsonl").read_text().splitlines()) == 3
    parts = json.loads((tmp_path / "mil" / "splits.json").read_text())
    assert set(parts[0]["test"]).isdisjoint(parts[0]["train"])
    assert "accuracy" in result.summary()


def test_a_second_time_does_nothing(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _train(cohort, tmp_path)
    before = _files(tmp_path)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(folding, "fit_mil", never)
    again = _train(cohort, tmp_path)
    assert again.metrics == first.metrics
    assert _files(tmp_path) == before
    with pytest.raises(RunError, match="seed: it has 0, asked for 1") as error:
        _train(cohort, tmp_path, seed=1)
    assert error.value.code == "PG-T04"
    with pytest.raises(RunError, match="labels"):  # outputs would mean other classes
        _train(cohort, tmp_path, classes=["1", "0"])
    with pytest.raises(AssertionError, match="trained again"):
        _train(cohort, tmp_path, overwrite=True)


def test_a_broken_off_run_goes_on_with_the_next_fold(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _train(cohort, tmp_path / "whole")
    fit, calls = folding.fit_mil, []

    def interrupted(config: Any, train: Any, valid: Any, *args: Any, **options: Any) -> Any:
        calls.append(options["title"])
        found = fit(config, train, valid, *args, **options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(folding, "fit_mil", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _train(cohort, tmp_path / "broken")
    assert not (tmp_path / "broken" / "done.json").exists()
    _train(cohort, tmp_path / "broken")
    assert calls == ["MIL head, fold 0", "MIL head, fold 1", "MIL head, fold 1"]
    assert _files(tmp_path / "broken") == _files(tmp_path / "whole")


def test_patients_under_another_name_stay_together(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (cohort / "labels.csv").read_text()
    labels = tmp_path / "labels.csv"
    labels.write_text(text.replace("patient", "Owner", 1))
    arguments = ["train-mil", str(cohort / "features"), "--labels", str(labels), "--set", "folds=2"]
    arguments += ["--set", "epochs=1", "--set", "model.embed=8", "--set", "model.hidden=8"]
    command = [*arguments, "--device", "cpu", "-o"]
    said = []
    for out, more in (("with", ["--patient-column", "owner"]), ("without", [])):
        with pytest.raises(SystemExit) as end:
            main([*command, str(tmp_path / out), *more])
        assert end.value.code == 0
        said.append(capsys.readouterr())
    assert "8 patients (column 'Owner')" in said[0].err
    assert "on 16 slides of 8 patients; mean of 2 folds: accuracy 0." in said[0].out
    assert "no patient column: each slide counts as a patient of its own" in said[1].err
    owners = {line.split(",")[0][:4]: line.split(",")[2] for line in text.splitlines()[1:]}
    for part in json.loads((tmp_path / "with" / "splits.json").read_text()):
        sides = [{owners[name] for name in names} for names in part.values()]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 8
    notes = json.loads((tmp_path / "without" / "metrics.json").read_text())["notes"]
    assert notes[0].startswith("16 patients (no patient column")
    with pytest.raises(SystemExit) as end:
        main([*command, str(tmp_path / "typo"), "--patient-column", "ovner"])
    assert end.value.code == 2
    assert "id you mean 'Owner'?" in capsys.readouterr().err


def test_bad_settings_are_named(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folds"):
        _train(cohort, tmp_path, folds=1)
    with pytest.raises(DataError, match="fewer patients than folds"):
        _train(cohort, tmp_path, folds=9)
    assert not list(tmp_path.iterdir())


@pytest.mark.data
def test_musk1_is_as_published(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of five folds; benchmarks/classic_mil.py does five of ten, on all five sets."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    classic = importlib.import_module("classic_mil")
    threads = torch.get_num_threads()
    try:
        found = classic.repeat(data / "mil" / "musk1.npz", seed=0, folds=5, epochs=25)
    finally:
        torch.set_num_threads(threads)
    low, high = classic.interval(found.right[None])
    assert low <= classic.PUBLISHED["musk1"] <= high
    assert low > 0.7  # an interval that holds anything says nothing
