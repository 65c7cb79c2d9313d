"""How a head is trained: batches, pieces, accumulation, precision, what is watched, sequence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_mil import witness_bags
from sklearn import metrics as sk

import pathgen.train.milbatches as batching
from pathgen.data.bags import Bags
from pathgen.errors import ConfigError, DataError
from pathgen.models.mil import PoolingConfig
from pathgen.train.mil import MILTrainConfig, _Fit, fit_mil, predict
from pathgen.train.milbatches import Ahead, Batch, Draw, answering_plan, batches, training_plan
from pathgen.train.milmonitor import score

SMALL = PoolingConfig(embed=16, hidden=8, dropout=0.0)
QUICK = MILTrainConfig(model=SMALL, epochs=2, batch_size=4, device="cpu")
SIZES = np.random.default_rng(0).integers(1, 1000, 203)


def _same(one: torch.nn.Module, other: torch.nn.Module, tolerance: float = 1e-5) -> None:
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 64, 500])
def test_an_epoch_has_every_bag_once_and_little_padding(size: int) -> None:
    plan = training_plan(SIZES, size, np.random.default_rng(0))
    assert sorted(np.concatenate(plan)) == list(range(len(SIZES)))
    assert {len(rows) for rows in plan[:-1]} <= {size, len(SIZES) % size, len(SIZES)}
    if size == 4:
        padded = sum(len(rows) * SIZES[rows].max() for rows in plan)
        assert padded < 1.15 * SIZES.sum()
        firsts = {int(rows[0]) for rows in plan[:5]}
        other = training_plan(SIZES, size, np.random.default_rng(1))
        assert firsts != {int(rows[0]) for rows in other[:5]}


def test_answers_are_asked_in_bounded_batches() -> None:
    sizes = np.append(SIZES, 60_000)
    plan = answering_plan(sizes)
    assert sorted(np.concatenate(plan)) == list(range(len(sizes)))
    for rows in plan:
        assert len(rows) == 1 or len(rows) * sizes[rows].max() <= batching.ANSWERED


def test_a_batch_is_the_bags_padded_with_zeros() -> None:
    bags = witness_bags(5, 0)
    bags = replace(bags, coords=[np.full((len(x), 2), i) for i, x in enumerate(bags.features)])
    plan = [np.array([3, 0]), np.array([4])]
    for rows, batch in zip(plan, batches(bags, plan, places=True), strict=True):
        assert batch.rows is rows
        assert batch.coords is not None
        for i, row in enumerate(rows):
            n = len(bags.features[row])
            assert batch.mask[i].sum() == n
            assert np.array_equal(batch.vectors[i, :n].numpy(), bags.features[row])
            assert (batch.vectors[i, n:] == 0).all()
            assert (batch.coords[i, :n] == row).all()


def test_a_draw_keeps_order_and_count() -> None:
    draw = Draw(50, 0.25)
    assert draw.kept(np.array([1, 2, 8, 100, 1000])).tolist() == [1, 2, 6, 50, 50]
    rows = draw.rows(100, np.random.default_rng(0))
    assert isinstance(rows, np.ndarray)
    assert len(set(rows.tolist())) == 50
    assert (np.diff(rows) > 0).all()
    assert draw.rows(1, np.random.default_rng(0)) == slice(None)


@pytest.mark.parametrize("threaded", [False, True])
def test_what_goes_wrong_in_the_making_is_raised_where_it_is_taken(threaded: bool) -> None:
    def made() -> Iterator[Batch]:
        yield next(batches(witness_bags(1, 0), [np.array([0])]))
        raise DataError("damaged", code="PG-D06")

    seen = 0
    with pytest.raises(DataError, match="damaged"), Ahead(made(), threaded) as ahead:
        for _ in ahead:
            seen += 1
    assert seen == 1


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    bags = witness_bags(3, 0)
    with pytest.raises(KeyboardInterrupt), Ahead(batches(bags, [np.array([0])] * 50), True) as a:
        for _ in a:
            raise KeyboardInterrupt
    assert threading.active_count() == before


# --- steps ----------------------------------------------------------------------------------


def test_pieces_of_a_step_give_the_gradient_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    train = witness_bags(12, 1)
    whole, _ = fit_mil(QUICK, train, train.select([]))
    monkeypatch.setitem(batching.TOGETHER, "cpu", 40)  # a bag or two at a time
    pieces, _ = fit_mil(QUICK, train, train.select([]))
    _same(whole, pieces)


def test_accumulated_batches_are_one_step() -> None:
    train = witness_bags(12, 1)
    one, _ = fit_mil(QUICK.model_copy(update={"batch_size": 12}), train, train.select([]))
    few = QUICK.model_copy(update={"batch_size": 3, "accumulate": 4})
    several, _ = fit_mil(few, train, train.select([]))
    _same(one, several)
    steps, _ = fit_mil(QUICK.model_copy(update={"batch_size": 3}), train, train.select([]))
    with pytest.raises(AssertionError):
        _same(one, steps)


@pytest.mark.parametrize("most", [None, 1e-3])
def test_a_long_gradient_is_shortened(most: float | None) -> None:
    train = witness_bags(4, 1)
    fit = _Fit(QUICK.model_copy(update={"clip_norm": most}), train, torch.device("cpu"))
    norms = []

    def record(*_: Any) -> None:
        parts = [p.grad.norm() for p in fit.head.parameters() if p.grad is not None]
        norms.append(float(torch.stack(parts).norm()))

    fit.optimizer.register_step_pre_hook(record)
    fit.epoch(0)
    assert (norms[0] <= 1e-3 * 1.001) == (most is not None)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid = witness_bags(12, 1), witness_bags(6, 2)
    alone, _ = fit_mil(QUICK, train, valid)
    monkeypatch.setattr(batching, "HEAVY", 0)
    ahead, _ = fit_mil(QUICK, train, valid)
    _same(alone, ahead, 0.0)


def test_half_precision_on_a_cpu_is_near_single() -> None:
    train, valid = witness_bags(12, 1), witness_bags(8, 2)
    single, _ = fit_mil(QUICK, train, valid)
    half, _ = fit_mil(QUICK.model_copy(update={"precision": "bf16"}), train, valid)
    assert all(p.dtype == torch.float32 for p in half.parameters())
    one, other = predict(single, valid).probabilities, predict(half, valid).probabilities
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.02)
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        fit_mil(QUICK.model_copy(update={"precision": "fp16"}), train, valid)


def test_few_slides_still_get_many_steps() -> None:
    auto = MILTrainConfig()
    assert [auto.bags_a_step(n) for n in (10, 63, 128, 400, 10_000)] == [1, 1, 2, 6, 8]
    assert MILTrainConfig(target="survival").bags_a_step(10) == 32
    assert MILTrainConfig(batch_size=5).bags_a_step(10) == 5


# --- what is watched ------------------------------------------------------------------------


def _judged(classes: int) -> tuple[Bags, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes)
    y = np.arange(60) % classes
    chances = rng.dirichlet(np.ones(classes), 60)
    chances[np.arange(60), y] += 0.5
    chances /= chances.sum(1, keepdims=True)
    names = [str(i) for i in range(60)]
    features = [np.zeros((1, 2), np.float32)] * 60
    bags = Bags(features, y, names, names, tuple(str(i) for i in range(classes)))
    return bags, chances, chances.argmax(1)


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_scikit_learns(classes: int) -> None:
    bags, chances, chosen = _judged(classes)
    y = bags.labels
    want = {
        "accuracy": sk.accuracy_score(y, chosen),
        "balanced_accuracy": sk.balanced_accuracy_score(y, chosen),
        "f1_macro": sk.f1_score(y, chosen, average="macro"),
        "qwk": sk.cohen_kappa_score(y, chosen, weights="quadratic"),
        "auc": np.mean([sk.roc_auc_score(y == k, chances[:, k]) for k in range(classes)]),
    }
    for name, value in want.items():
        assert score(name, bags, chances, chosen, chances[:, 0]) == pytest.approx(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("monitor", ["accuracy", "auc"])
def test_the_head_that_was_best_by_what_is_watched_comes_back(monitor: str) -> None:
    train, valid = witness_bags(24, 1), witness_bags(20, 2)
    config = QUICK.model_copy(update={"monitor": monitor, "lr": 0.02, "epochs": 12, "patience": 4})
    head, history = fit_mil(config, train, valid)
    ranks = [(epoch.score, -(epoch.valid_loss or 0)) for epoch in history]
    best = max(range(len(ranks)), key=lambda i: ranks[i])
    said = predict(head, valid)
    if monitor == "accuracy":
        found = (said.chosen == valid.labels).mean()
    else:
        found = sk.roc_auc_score(valid.labels, said.probabilities[:, 1])
    assert found == pytest.approx(history[best].score)
    assert len(history) in (12, best + 1 + config.patience)


def test_a_validation_part_that_cannot_say_is_refused() -> None:
    train, valid = witness_bags(8, 1), witness_bags(8, 2)
    with pytest.raises(DataError, match="cannot say auc") as error:
        fit_mil(QUICK.model_copy(update={"monitor": "auc"}), train, valid.select([0, 2]))
    assert error.value.code == "PG-N07"
    with pytest.raises(ConfigError, match="monitor"):
        (
            MILTrainConfig.model_validate(QUICK.model_dump()),
            fit_mil(QUICK.model_copy(update={"monitor": "mae"}), train, valid),
        )


# --- ordered classes ------------------------------------------------------------------------


def test_ordered_classes_are_learned() -> None:
    def graded(n: int, seed: int) -> Bags:
        rng = np.random.default_rng(seed)
        grade = np.arange(n) % 4
        features = [(rng.normal(size=(10, 4)) * 0.5 + [g, 0, 0, 0]).astype(np.float32)
                    for g in grade]  # fmt: skip
        names = [f"s{i}" for i in range(n)]
        return Bags(features, grade.astype(np.int64), names, names, tuple("0123"), target="ordinal")

    config = QUICK.model_copy(update={"epochs": 20, "lr": 2e-2, "batch_size": 8, "monitor": "qwk"})
    head, _ = fit_mil(config, graded(80, 1), graded(24, 2))
    test = graded(60, 3)
    said = predict(head, test)
    assert head.config.outputs == 3
    np.testing.assert_allclose(said.probabilities.sum(1), 1, atol=1e-6)
    assert sk.cohen_kappa_score(test.labels, said.chosen, weights="quadratic") > 0.85
