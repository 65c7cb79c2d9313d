"""What is to be drawn, and the embeddings it is drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_augment import DIM, Features, stores
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pathgen.augment import AugmentConfig, Conditions, plan_recipes
from pathgen.errors import NoInputError
from pathgen.stores import PatchRef, Recipe

configs = st.builds(
    AugmentConfig,
    generative=st.integers(0, 3),
    interpolated=st.integers(1, 3),
    max_sources=st.none() | st.integers(1, 10),
    alphas=st.sampled_from([(0.5,), (0.2, 0.4, 0.6, 0.8)]),
    seed=st.integers(0, 2**40),
)
shapes = st.lists(st.integers(0, 8), min_size=1, max_size=4).filter(lambda n: sum(n) >= 2)


# --- the plan --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(lengths=shapes, config=configs)
def test_plan_is_complete_and_well_formed(lengths: list[int], config: AugmentConfig) -> None:
    plan = plan_recipes(stores(lengths), config)
    refs = [PatchRef(f"s{i}", row) for i, n in enumerate(lengths) for row in range(n)]
    primaries = list(dict.fromkeys(recipe.primary for recipe in plan))
    assert len(primaries) == min(len(refs), config.max_sources or len(refs))
    assert primaries == sorted(primaries)  # in the order of stores and rows
    assert len({recipe.seed for recipe in plan}) == len(plan)
    alphas = {float(np.float32(alpha)) for alpha in config.alphas}
    for primary in primaries:
        own = [recipe for recipe in plan if recipe.primary == primary]
        variations = [recipe for recipe in own if recipe.secondary == primary]
        blends = [recipe for recipe in own if recipe.secondary != primary]
        assert (len(variations), len(blends)) == (config.generative, config.interpolated)
        assert all(recipe.alpha == 1 for recipe in variations)
        assert all(recipe.alpha in alphas and recipe.secondary in refs for recipe in blends)


@settings(deadline=None, max_examples=30)
@given(lengths=shapes, config=configs, batch_size=st.integers(1, 500))
def test_plan_depends_on_seed_alone(
    lengths: list[int], config: AugmentConfig, batch_size: int
) -> None:
    plan = plan_recipes(stores(lengths), config)
    same = config.model_copy(update={"batch_size": batch_size, "steps": 7, "guidance": 1.0})
    assert plan_recipes(stores(lengths, seed=1), same) == plan
    other = config.model_copy(update={"seed": config.seed + 1})
    assert plan_recipes(stores(lengths), other) != plan


def test_secondaries_are_uniform_over_all_other_patches() -> None:
    config = AugmentConfig(generative=0, interpolated=4000)
    plan = plan_recipes(stores([3, 0, 4]), config)
    of_first = [recipe.secondary for recipe in plan if recipe.primary == PatchRef("s0", 1)]
    counts = {ref: of_first.count(ref) for ref in set(of_first)}
    assert set(counts) == {PatchRef("s0", r) for r in (0, 2)} | {
        PatchRef("s2", r) for r in range(4)
    }
    expected = 4000 / 6
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 25  # 5 degrees of freedom: above 25 once in 7,000 plans


def test_plan_needs_patches() -> None:
    with pytest.raises(NoInputError):
        plan_recipes(stores([0]), AugmentConfig())
    with pytest.raises(NoInputError, match="two patches"):
        plan_recipes(stores([1]), AugmentConfig())
    assert len(plan_recipes(stores([1]), AugmentConfig(interpolated=0))) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"generative": 0, "interpolated": 0},
        {"alphas": (0.5, 1.0)},
        {"alphas": ()},
        {"max_sources": 0},
        {"format": "jpeg"},
        {"filter": {"min_cosine": 0.5, "min_quantile": 0.5}},
        {"filter": {"min_cosine": 1.5}},
        {"guidance_interval": (0.7, 0.2)},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)


# --- the condition ---------------------------------------------------------------------------


def test_conditions_lie_on_the_arc_between_their_sources() -> None:
    conditions = Conditions(stores([4, 5]))
    one, two = PatchRef("s0", 3), PatchRef("s1", 2)
    unit = torch.nn.functional.normalize(conditions.vectors, dim=1)
    first, second = unit[3], unit[6]
    alphas = (1.0, 0.8, 0.5, 0.0)
    made = conditions.of([Recipe(one, two, alpha, 0) for alpha in alphas])
    torch.testing.assert_close(made.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(made[0], first)
    torch.testing.assert_close(made[3], second)
    whole = torch.acos(first @ second)
    for alpha, point in zip(alphas, made, strict=True):  # alpha is the primary's share of the arc
        torch.testing.assert_close(
            torch.acos((point @ first).clamp(-1, 1)), (1 - alpha) * whole, atol=1e-3, rtol=0
        )


def test_a_number_of_a_patch_finds_it_again() -> None:
    conditions = Conditions(stores([4, 0, 5]))
    for number in range(9):
        patch = conditions.patch(number)
        assert conditions.index(patch) == number
        torch.testing.assert_close(conditions.at([patch])[0], conditions.vectors[number])
    assert conditions.patch(4) == PatchRef("s2", 0)


def test_opposite_and_zero_embeddings_give_no_nan() -> None:
    vectors = np.zeros((3, DIM), np.float32)
    vectors[0, 0], vectors[1, 0] = 1, -1
    conditions = Conditions([Features("s0", vectors)])  # type: ignore[list-item]
    pairs = [(0, 1), (1, 0), (0, 2), (2, 1)]
    made = conditions.of([Recipe(PatchRef("s0", a), PatchRef("s0", b), 0.4, 0) for a, b in pairs])
    assert torch.isfinite(made).all()
