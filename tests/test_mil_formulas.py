"""Each head against its formula, written out in numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_heads import (
    CLASSES,
    NAMES,
    Weights,
    bags_of,
    embedded,
    gated,
    linear,
    make,
    softmax,
    weights_of,
)
from numpy.typing import NDArray

from pathgen.models.mil import Truth
from pathgen.models.mil.clam import smooth_svm
from pathgen.models.mil.division import content_keys, divide
from pathgen.models.mil.targets import criterion

Array = NDArray[np.float64]
LABELS = (2, 0, 3)


def _bags() -> tuple[torch.Tensor, torch.Tensor]:
    return bags_of([9, 4, 1], pad=float("nan"))  # type: ignore[no-any-return]


def _rows(bags: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    return [bag[there] for bag, there in zip(bags, mask, strict=True)]


def _agree(output: Any, i: int, logits: Array, attention: Array) -> None:
    np.testing.assert_allclose(output.logits[i].detach(), logits, rtol=1e-4, atol=1e-5)
    seen = output.attention[i, : len(attention)].detach()
    np.testing.assert_allclose(seen, attention, rtol=1e-4, atol=1e-6)


def _ce(logits: Array, label: int) -> float:
    return float(np.log(np.exp(logits).sum()) - logits[label])


def _losses(head: Any, **weights: Any) -> Array:
    bags, mask = _bags()
    truth = Truth(labels=torch.tensor(LABELS))
    found = head.losses(bags, mask, truth, criterion("classes", **weights))
    return np.asarray(found.detach().double())


# --- without attention, and ABMIL -----------------------------------------------------------


def _mean(w: Weights, h: Array) -> tuple[Array, Array]:
    return linear(w, "classify", h.mean(0)), np.full(len(h), 1 / len(h))


def _max(w: Weights, h: Array) -> tuple[Array, Array]:
    wins = (h == h.max(0)).astype(float)
    return linear(w, "classify", h.max(0)), (wins / wins.sum(0)).mean(1)


def _instance_max(w: Weights, h: Array) -> tuple[Array, Array]:
    scores = linear(w, "classify", h)
    top = np.bincount(scores.argmax(0), minlength=len(h))
    return scores.max(0), top / scores.shape[1]


def _abmil(w: Weights, h: Array) -> tuple[Array, Array]:
    a = gated(w, "pool", h)[:, 0]
    return linear(w, "classify", a @ h), a


def _plain(w: Weights, h: Array) -> tuple[Array, Array]:
    content = np.tanh(h @ w["pool.content.weight"].T + w["pool.content.bias"])
    a = softmax(content @ w["pool.weight.weight"][0])
    return linear(w, "classify", a @ h), a


def _clam_mb(w: Weights, h: Array) -> tuple[Array, Array]:
    a = gated(w, "pool", h)  # (n, C)
    logits = np.array(
        [w["classify.weight"][c] @ (a[:, c] @ h) + w["classify.bias"][c] for c in range(CLASSES)]
    )
    return logits, a[:, logits.argmax()]


def _dsmil(w: Weights, h: Array) -> tuple[Array, Array]:
    first, second, a = _dsmil_streams(w, h)
    logits = (first + second) / 2
    return logits, a[:, logits.argmax()]


def _dsmil_streams(w: Weights, h: Array) -> tuple[Array, Array, Array]:
    c, q, v = linear(w, "classify", h), linear(w, "query", h), h @ w["value.weight"].T
    a = np.stack([softmax(q @ q[m] / np.sqrt(q.shape[1])) for m in c.argmax(0)], 1)
    z = np.concatenate([a[:, o] @ v for o in range(a.shape[1])])
    return c.max(0), linear(w, "bag", z), a


ORACLES = {
    "mean": _mean,
    "max": _max,
    "instance-max": _instance_max,
    "abmil": _abmil,
    "abmil-plain": _plain,
    "clam-sb": _abmil,
    "clam-mb": _clam_mb,
    "dsmil": _dsmil,
}


@pytest.mark.parametrize("name", ORACLES)
def test_the_formula(name: str) -> None:
    head = make(name)
    bags, mask = _bags()
    output, w = head(bags, mask), weights_of(head)
    for i, rows in enumerate(_rows(bags, mask)):
        _agree(output, i, *ORACLES[name](w, embedded(w, rows)))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("dsmil", "dtfd")])
def test_the_loss_is_the_criterion_where_nothing_is_added(name: str) -> None:
    head = make(name, clam={"instance_weight": 0.0})
    logits = head(*_bags()).logits.detach().double().numpy()
    weight = torch.tensor([1.0, 2, 3, 4])
    want = [float(weight[k]) * _ce(row, k) for row, k in zip(logits, LABELS, strict=True)]
    np.testing.assert_allclose(_losses(head, weight=weight), want, rtol=1e-4, atol=1e-6)


def test_dsmil_halves_the_loss_between_its_streams() -> None:
    head = make("dsmil")
    w = weights_of(head)
    for found, label, rows in zip(_losses(head), LABELS, _rows(*_bags()), strict=True):
        first, second, _ = _dsmil_streams(w, embedded(w, rows))
        assert found == pytest.approx(
            (_ce(first, label) + _ce(second, label)) / 2, rel=1e-4, abs=1e-6
        )


# --- CLAM -----------------------------------------------------------------------------------


def _svm(logits: Array, label: int) -> float:
    margin = np.array([0.0 if j == label else 1.0 for j in range(len(logits))])
    return float(np.log(np.exp(logits + margin - logits[label]).sum()))


@pytest.mark.parametrize("name", ["clam-sb", "clam-mb"])
@pytest.mark.parametrize("loss", ["svm", "ce"])
@pytest.mark.parametrize("subtyping", [False, True])
def test_clam_trains_on_its_best_and_worst_patches(name: str, loss: str, subtyping: bool) -> None:
    settings = {"k_sample": 3, "instance_loss": loss, "subtyping": subtyping}
    head = make(name, clam=settings)
    w, measure = weights_of(head), {"svm": _svm, "ce": _ce}[loss]
    for found, label, rows in zip(_losses(head), LABELS, _rows(*_bags()), strict=True):
        h = embedded(w, rows)
        a, k = gated(w, "pool", h), min(3, len(h))
        total = 0.0
        for c in range(CLASSES) if subtyping else [label]:
            order = np.argsort(a[:, c if name == "clam-mb" else 0])
            said = linear(w, "instances", h).reshape(len(h), CLASSES, 2)[:, c]
            top, bottom = order[-k:], order[:k]
            if c == label:
                terms = [measure(said[i], 1) for i in top] + [measure(said[i], 0) for i in bottom]
            else:
                terms = [measure(said[i], 0) for i in top]
            total += float(np.mean(terms))
        total /= CLASSES if subtyping else 1
        logits, _ = ORACLES[name](w, h)
        assert found == pytest.approx(0.7 * _ce(logits, label) + 0.3 * total, rel=1e-4, abs=1e-6)


def test_the_svm_is_smooth_and_wants_a_margin() -> None:
    logits = torch.tensor([[9.0, -9.0], [0.0, 0.0], [-9.0, 9.0]])
    losses = smooth_svm(logits, torch.zeros(3, dtype=torch.int64))
    want = [_svm(row, 0) for row in logits.double().numpy()]
    np.testing.assert_allclose(losses, want, rtol=1e-5, atol=1e-6)
    assert losses[0] < 1e-6 < 1 < losses[1] < 18.9 < losses[2] < 19.1


def test_clam_trains_without_classes_on_the_bag_alone() -> None:
    head = make("clam-sb", "regression")
    assert head.instances is None
    ordinal = make("clam-mb", "ordinal")
    assert ordinal.instances is not None
    assert ordinal.instances.out_features == 2 * CLASSES
    assert ordinal.classify.out_features == 1


# --- DTFD -----------------------------------------------------------------------------------


def _dtfd(w: Weights, rows: torch.Tensor, distill: str) -> tuple[list[Array], Array, Array]:
    """Logits of each of three pseudo-bags, of the bag, and attention."""
    h, n = embedded(w, rows), len(rows)
    count = min(3, n)
    order = np.argsort([_hash(row) for row in rows.numpy()], kind="stable")
    attention, first, tokens, owners = np.zeros(n), [], [], []
    for part in (order[i::count] for i in range(count)):
        a = gated(w, "pool", h[part])[:, 0]
        first.append(linear(w, "first", a @ h[part]))
        derived = softmax(a[:, None] * (h[part] @ w["first.weight"].T), 1)
        strength = derived[:, first[-1].argmax()]
        if distill == "afs":
            tokens.append(a @ h[part])
            owners.append(dict(zip(part, a, strict=True)))
        else:
            picks = [strength.argmax(), strength.argmin()][: 1 + (distill == "max-min")]
            tokens += [h[part[i]] for i in picks]
            owners += [{part[i]: 1.0} for i in picks]
    weights = gated(w, "pool_parts", np.array(tokens))[:, 0]
    for weight, owner in zip(weights, owners, strict=True):
        for patch, share in owner.items():
            attention[patch] += weight * share
    return first, linear(w, "classify", weights @ np.array(tokens)), attention


def _hash(row: NDArray[np.float32]) -> int:
    """The sum of float bits times SplitMix64's numbers made odd, as a signed 64-bit integer."""
    bits, state, total = row.view(np.int32).tolist(), 0, 0
    for bit in bits:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        total += bit * ((z ^ (z >> 31)) | 1)
    total %= 2**64
    return total - 2**64 if total >= 2**63 else total


@pytest.mark.parametrize("distill", ["afs", "max", "max-min"])
def test_dtfd_in_two_tiers(distill: str) -> None:
    head = make("dtfd", dtfd={"pseudo_bags": 3, "distill": distill})
    bags, mask = _bags()
    output, w, losses = head(bags, mask), weights_of(head), _losses(head)
    for i, (rows, label) in enumerate(zip(_rows(bags, mask), LABELS, strict=True)):
        first, logits, attention = _dtfd(w, rows, distill)
        _agree(output, i, logits, attention)
        want = _ce(logits, label) + np.mean([_ce(part, label) for part in first])
        assert losses[i] == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_dtfd_divides_at_random_in_training_and_the_same_otherwise() -> None:
    head = make("dtfd", dropout=0.0)
    bags, mask = bags_of([20])
    assert torch.equal(head(bags, mask).logits, head(bags, mask).logits)
    head.train()
    one, other = head(bags, mask).logits, head(bags, mask).logits
    assert not torch.equal(one, other)


def test_keys_are_of_the_content() -> None:
    rows = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0))
    keys = content_keys(rows)
    assert len(keys.unique()) == len(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    assert torch.equal(content_keys(rows[order]), keys[order])
    assert torch.equal(content_keys(rows.half()), content_keys(rows.half().float()))
    assert keys[:9].tolist() == [_hash(row) for row in rows[:9].numpy()]


def test_a_division_deals_every_patch_once() -> None:
    keys = torch.randn(14, generator=torch.Generator().manual_seed(0))
    order, sizes, counts = divide(keys, [10, 0, 4], [4, 0, 2])
    assert order.sort().values.tolist() == list(range(14))
    assert list(sizes) == [3, 3, 2, 2, 2, 2]
    assert list(counts) == [4, 0, 2]
    assert all((order[:10] < 10).tolist())
