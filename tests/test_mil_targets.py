"""Targets: losses against scikit-learn and written-out sums, probabilities, units."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from helpers_heads import bags_of, make
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from pathgen.models.mil import Truth
from pathgen.models.mil.links import Affine, Thresholds
from pathgen.models.mil.survival import cox_losses
from pathgen.models.mil.targets import (
    choices,
    criterion,
    outputs_of,
    probabilities,
    risk,
    values,
)

Ties = Literal["efron", "breslow"]


def test_classes_are_cross_entropy() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 2, 0, 0])
    chances = probabilities("classes", logits)
    losses = criterion("classes")(logits, Truth(labels=labels))
    assert losses.mean().item() == pytest.approx(log_loss(labels, chances.numpy()))
    weight = torch.tensor([1.0, 0.5, 4.0])
    weighted = criterion("classes", weight=weight)(logits, Truth(labels=labels))
    torch.testing.assert_close(weighted, losses * weight[labels])
    assert choices("classes", chances).tolist() == chances.argmax(1).tolist()


# --- ordinal --------------------------------------------------------------------------------


def test_ordinal_is_a_question_for_each_threshold() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.1, -0.1, -3.0]], dtype=torch.float64)
    labels = torch.tensor([2, 0])
    want = []
    for row, label in zip(logits.numpy(), labels.tolist(), strict=True):
        above = 1 / (1 + np.exp(-row))
        want.append(-sum(np.log(above[k] if label > k else 1 - above[k]) for k in range(3)))
    found = criterion("ordinal")(logits, Truth(labels=labels))
    np.testing.assert_allclose(found, want)
    weighted = criterion("ordinal", weight=torch.tensor([3.0, 1, 2, 1]))
    np.testing.assert_allclose(weighted(logits, Truth(labels=labels)), [2 * want[0], 3 * want[1]])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=6))
def test_ordinal_probabilities_are_probabilities(row: list[float]) -> None:
    chances = probabilities("ordinal", torch.tensor([row]))  # whether or not they fall
    assert chances.shape == (1, len(row) + 1)
    assert (chances >= 0).all()
    assert chances.sum().item() == pytest.approx(1, abs=1e-6)
    falling = sorted(row, reverse=True)
    chances = probabilities("ordinal", torch.tensor([falling], dtype=torch.float64))
    above = 1 / (1 + np.exp(-np.array(falling)))
    np.testing.assert_allclose(1 - chances[0].cumsum(0)[:-1], above, atol=1e-12)
    assert choices("ordinal", chances).item() == (above > 0.5).sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_thresholds_never_cross_and_begin_at_the_shares(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    link = Thresholds(outputs_of("ordinal", classes))
    even = probabilities("ordinal", link(torch.zeros(1, 1)))
    np.testing.assert_allclose(even.detach(), np.full((1, classes), 1 / classes), atol=1e-6)
    labels = torch.from_numpy(rng.integers(0, classes, 400))
    link.expect(Truth(labels=labels))
    share = (np.bincount(labels, minlength=classes) + 1) / (400 + classes)
    found = probabilities("ordinal", link(torch.zeros(1, 1)))[0]
    np.testing.assert_allclose(found.detach(), share, atol=1e-5)
    with torch.no_grad():
        for weights in link.parameters():
            weights.copy_(torch.from_numpy(rng.normal(0, 20, weights.shape)))
    logits = link(torch.from_numpy(rng.normal(0, 9, (5, 1))).float())
    assert (logits.diff(dim=1) <= 0).all()


def test_weighted_shares_place_the_thresholds() -> None:
    link = Thresholds(2)
    truth = Truth(labels=torch.tensor([0] * 600 + [1] * 300 + [2] * 100))
    link.expect(truth, torch.tensor([1 / 6, 1 / 3, 1.0]) * 10)
    chances = probabilities("ordinal", link(torch.zeros(1, 1)))
    np.testing.assert_allclose(chances.detach(), np.full((1, 3), 1 / 3), atol=1e-6)


def test_an_ordinal_head_has_one_score_a_patch() -> None:
    head = make("abmil", "ordinal")
    bags, mask = bags_of([6, 6])
    output = head(bags, mask)
    assert head.classify.out_features == 1
    gaps = output.logits.diff(dim=1)
    torch.testing.assert_close(gaps[0], gaps[1])  # the thresholds' alone
    assert output.evidence is not None
    assert (output.evidence == output.evidence[..., :1]).all()


# --- numbers --------------------------------------------------------------------------------


def test_regression_answers_in_the_unit_of_its_target() -> None:
    truth = Truth(values=torch.tensor([40.0, 60, 80]))
    link = Affine(1)
    link.expect(truth)
    spread = np.std([40, 60, 80])
    said = values(link(torch.tensor([[0.0], [1.0], [-2.0]])))
    np.testing.assert_allclose(said, [60, 60 + spread, 60 - 2 * spread], rtol=1e-6)
    losses = criterion("regression")(torch.tensor([[41.0], [60], [70]]), truth)
    assert losses.tolist() == [1, 0, 100]
    link.expect(Truth(values=torch.full((4,), 7.0)))  # no spread: stays in its unit
    assert values(link(torch.tensor([[2.0]]))).item() == 9


# --- survival -------------------------------------------------------------------------------


def _cox(r: list[float], time: list[int], event: list[bool], ties: Ties) -> float:
    """The negative log partial likelihood, term by term."""
    total = 0.0
    for t in sorted({t for t, e in zip(time, event, strict=True) if e}):
        tied = [i for i in range(len(r)) if time[i] == t and event[i]]
        left = sum(np.exp(r[i]) for i in range(len(r)) if time[i] >= t)
        own = sum(np.exp(r[i]) for i in tied)
        total -= sum(r[i] for i in tied)
        for l in range(len(tied)):  # noqa: E741 - as in the formula
            total += np.log(left - (l / len(tied) * own if ties == "efron" else 0.0))
    return float(total)


ROW = st.tuples(st.floats(-5, 5), st.integers(1, 4), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12), st.sampled_from(["efron", "breslow"]))
def test_cox_is_the_written_out_sum(rows: list[tuple[float, int, bool]], ties: Ties) -> None:
    r, time, event = (list(column) for column in zip(*rows, strict=True))
    score = torch.tensor(r, dtype=torch.float64, requires_grad=True)
    losses = cox_losses(score, torch.tensor(time), torch.tensor(event), ties)
    assert losses.sum().item() == pytest.approx(_cox(r, time, event, ties), abs=1e-9)
    assert (losses[~torch.tensor(event)] == 0).all()
    (gradient,) = torch.autograd.grad(losses.sum(), score)
    assert gradient.isfinite().all()
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)  # a shift of all changes nothing


def test_cox_gradients_are_those_of_differences() -> None:
    score = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    time, event = torch.tensor([1, 1, 2, 2]), torch.tensor([True, True, True, False])
    for ties in ("efron", "breslow"):
        assert torch.autograd.gradcheck(
            lambda r, t=ties: cox_losses(r, time, event, t).sum(), score
        )


def test_cox_bears_extreme_risks() -> None:
    score = torch.tensor([1000.0, -1000.0, 0.0, -1000.0], requires_grad=True)
    time, event = torch.tensor([1.0, 2, 3, 2]), torch.tensor([1, 1, 0, 1])
    losses = cox_losses(score, time, event)
    np.testing.assert_allclose(losses.detach(), [0, 1000, 0, 1000])
    losses.sum().backward()
    assert score.grad is not None
    assert score.grad.isfinite().all()


def test_cox_says_nothing_of_one_bag_or_without_events() -> None:
    survival = criterion("survival")
    logits = torch.randn(3, 1, requires_grad=True)
    time = torch.tensor([1.0, 2, 3])
    assert (survival(logits, Truth(time=time, event=torch.zeros(3))) == 0).all()
    assert (survival(logits[:1], Truth(time=time[:1], event=torch.ones(1))) == 0).all()


def test_cox_orders_those_who_die_early_first() -> None:
    time = torch.arange(1.0, 7)
    truth = Truth(time=time, event=torch.ones(6))
    survival = criterion("survival")
    best = min(
        itertools.permutations(range(6)),
        key=lambda order: float(survival(torch.tensor(order).float()[:, None], truth).sum()),
    )
    assert best == (5, 4, 3, 2, 1, 0)
    assert risk(torch.tensor([[2.0], [1.0]])).tolist() == [2, 1]


# --- asking -----------------------------------------------------------------------------------


def test_outputs() -> None:
    assert [outputs_of(t, 6) for t in ("classes", "ordinal", "regression", "survival")] == [
        6,
        5,
        1,
        1,
    ]
    with pytest.raises(ValueError, match="two classes"):
        outputs_of("ordinal", 1)
    for target in ("regression", "survival"):
        with pytest.raises(ValueError, match="no classes"):
            probabilities(target, torch.zeros(1, 1))
        with pytest.raises(ValueError, match="no classes"):
            choices(target, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("target", "field"),
    [("classes", "labels"), ("ordinal", "labels"), ("regression", "values"), ("survival", "time")],
)
def test_a_truth_without_its_field_is_refused(target: str, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        criterion(target)(torch.zeros(2, 2), Truth())  # type: ignore[arg-type]


def test_a_truth_is_selected_and_counted() -> None:
    truth = Truth(labels=torch.tensor([3, 1, 2]), event=torch.tensor([True, False, True]))
    chosen = truth.select(torch.tensor([2, 0])).to("cpu")
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [2, 3]
    assert chosen.values is None
    assert (truth.size, chosen.size, Truth().size) == (3, 2, 0)
