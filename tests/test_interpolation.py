"""Blends of two sources and more: of embeddings by slerp, of teachers by their logits."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pathgen.augment import Conditions
from pathgen.models.interpolation import mixture, slerp
from pathgen.models.losses import DinoLoss
from pathgen.stores import PatchRef, Recipe


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), dim=st.integers(2, 40), alpha=st.floats(0, 1))
def test_slerp_turns_at_constant_speed_on_the_unit_sphere(
    seed: int, dim: int, alpha: float
) -> None:
    a = logits(3, dim, seed=seed, dtype=torch.float64)
    b = logits(3, dim, seed=seed + 1, dtype=torch.float64)
    share = torch.full((3,), alpha, dtype=torch.float64)
    point = slerp(a, b, share)
    torch.testing.assert_close(point.norm(dim=-1), torch.ones(3, dtype=torch.float64))
    # Angles by the chord, which is exact where acos is not.
    unit_a, unit_b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    whole = 2 * torch.asin(((unit_a - unit_b).norm(dim=-1) / 2).clamp(max=1))
    to_b = 2 * torch.asin(((point - unit_b).norm(dim=-1) / 2).clamp(max=1))
    torch.testing.assert_close(to_b, share * whole, atol=1e-6, rtol=1e-6)


def test_slerp_ends_are_the_sources_and_alpha_is_the_share_of_the_primary() -> None:
    a, b = logits(4, 384, seed=1), logits(4, 384, seed=2)
    assert torch.equal(slerp(a, b, torch.ones(4)), F.normalize(a, dim=-1))
    torch.testing.assert_close(slerp(a, b, torch.zeros(4)), F.normalize(b, dim=-1))
    near = slerp(a, b, torch.full((4,), 0.8))
    assert (F.cosine_similarity(near, a) > F.cosine_similarity(near, b)).all()
    torch.testing.assert_close(
        slerp(a, b, torch.full((4,), 0.3)), slerp(b, a, torch.full((4,), 0.7))
    )


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_slerp_of_equal_and_opposite_embeddings_stays_on_the_sphere(alpha: float) -> None:
    a = torch.stack([torch.eye(6)[0], torch.ones(6), logits(6, seed=3)])
    share = torch.full((3,), alpha)
    unit = F.normalize(a, dim=-1)
    torch.testing.assert_close(slerp(a, 2 * a, share), unit)
    opposite = slerp(a, -3 * a, share)
    torch.testing.assert_close(opposite.norm(dim=-1), torch.ones(3))
    # Half a turn at constant speed.
    expected = torch.full((3,), math.cos(math.pi * (1 - alpha)))
    torch.testing.assert_close((opposite * unit).sum(-1), expected, atol=1e-5, rtol=0)


def test_mixture_of_two_is_slerp_to_the_bit() -> None:
    a, b, alpha = logits(6, 40, seed=1), logits(6, 40, seed=2), torch.linspace(0, 1, 6)
    shares = torch.stack([alpha, 1 - alpha], 1)
    assert torch.equal(mixture([a, b], shares), slerp(a, b, alpha))


def test_mixture_of_three_lies_among_them_and_ends_at_each() -> None:
    vectors = [logits(4, 40, seed=i) for i in range(3)]
    for i in range(3):
        corner = torch.eye(3)[i].expand(4, 3)
        found = mixture(vectors, corner)
        torch.testing.assert_close(found, F.normalize(vectors[i], dim=-1), atol=1e-6, rtol=1e-5)
    two = torch.tensor([0.3, 0.7, 0.0]).expand(4, 3)
    torch.testing.assert_close(mixture(vectors, two), slerp(*vectors[:2], two[:, 0]))
    # Of three vectors at right angles, equal shares of the first two stay equal.
    point = mixture(list(torch.eye(3)[:, None]), torch.tensor([[0.25, 0.25, 0.5]]))[0]
    torch.testing.assert_close(point, torch.tensor([0.5, 0.5, 0.5**0.5]))


# --- disentanglement ----------------------------------------------------------------------


def test_arithmetic_target_is_mixup_and_differs() -> None:
    geometric, arithmetic = DinoLoss(40), DinoLoss(40, target="arithmetic")
    s, a, b = (logits(3, 40, seed=i) for i in range(3))
    alpha = torch.tensor([0.2, 0.5, 0.8])
    mixed = alpha[:, None] * geometric.target(a, 0.04) + (1 - alpha)[:, None] * (
        geometric.target(b, 0.04)
    )
    expected = -(mixed * F.log_softmax(s / 0.1, -1)).sum(-1).mean()
    found = arithmetic.disentangle(s, a, b, alpha, 0.04)
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, geometric.disentangle(s, a, b, alpha, 0.04))


def test_three_sources_mix_by_their_shares() -> None:
    loss = DinoLoss(40).double()
    loss.center.copy_(logits(40, seed=9, dtype=torch.float64))
    s, *parts = (logits(3, 40, seed=i, dtype=torch.float64) for i in range(4))
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [1, 0, 0]], dtype=torch.float64)
    mixed = sum(shares[:, k, None] * parts[k] for k in range(3)) - loss.center
    target = (mixed / 0.04).softmax(-1)
    expected = -(target * (s / 0.1).log_softmax(-1)).sum(-1).mean()
    found = loss.disentangle_all(s, [[part] for part in parts], shares, 0.04)
    torch.testing.assert_close(found, expected)


def test_all_pairs_of_views_are_averaged() -> None:
    loss = DinoLoss(40)
    s, a1, a2, b1, b2 = (logits(3, 40, seed=i) for i in range(5))
    alpha = torch.tensor([0.2, 0.5, 0.8])
    shares = torch.stack([alpha, 1 - alpha], 1)
    single = [loss.disentangle(s, a, b, alpha, 0.04) for a in (a1, a2) for b in (b1, b2)]
    found = loss.disentangle_all(s, [[a1, a2], [b1, b2]], shares, 0.04)
    torch.testing.assert_close(found, torch.stack(single).mean())


def test_a_plain_positive_answers_every_teacher_view_of_the_primary() -> None:
    loss = DinoLoss(40)
    loss.center.copy_(logits(40, seed=9))
    s, a, b = (logits(3, 40, seed=i) for i in range(3))
    ends = [loss.disentangle(s, x, b, torch.ones(3), 0.04) for x in (a, b)]
    torch.testing.assert_close(loss.positive(s, [a, b], 0.04), torch.stack(ends).mean())


def test_conditions_of_three_sources_are_their_mixture() -> None:
    rng = np.random.default_rng(0)

    class Features:
        source: ClassVar[dict[str, str]] = {"id": "s"}
        vectors = rng.normal(size=(4, 8)).astype(np.float32)

        def __len__(self) -> int:
            return 4

        def features(self) -> NDArray[np.float32]:
            return self.vectors

    store: Any = Features()
    a, b, c, d = (PatchRef("s", row) for row in range(4))
    recipes = [Recipe(a, b, 0.5, 1, tertiary=c, beta=0.2), Recipe(d, a, 0.25, 2)]
    found = Conditions([store]).of(recipes)
    e = torch.from_numpy(Features.vectors)
    inner = slerp(e[:1], e[1:2], torch.tensor([5 / 7]))
    torch.testing.assert_close(found[:1], slerp(inner, e[2:3], torch.tensor([0.7])))
    torch.testing.assert_close(found[1:], slerp(e[3:], e[:1], torch.tensor([0.25])))
