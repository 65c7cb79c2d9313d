"""DINO's schedules, weight-decay groups and clipping, against their formulas and torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers_dino import reference_schedule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pathgen.data.loading import steps_per_epoch
from pathgen.errors import RunError
from pathgen.models.dino import DinoHeadConfig, StudentTeacher
from pathgen.models.encoder import EncoderConfig
from pathgen.runs import RunConfig
from pathgen.train.engine import Engine
from pathgen.train.optimize import (
    OptimConfig,
    Optimizer,
    cosine,
    parameter_groups,
    ramp,
    total_steps,
)

TINY = EncoderConfig(
    image_size=32,
    kwargs={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    drop_path=0.2,
)
HEAD = DinoHeadConfig(hidden=32, bottleneck=16, prototypes=40)


@settings(max_examples=50, deadline=None)
@given(
    base=st.floats(1e-6, 1), final=st.floats(0, 1), total=st.integers(1, 300), share=st.floats(0, 1)
)
def test_cosine_is_dinos_schedule(base: float, final: float, total: int, share: float) -> None:
    warmup = int(share * total)
    found = [cosine(base, final, step, total, warmup=warmup) for step in range(total)]
    np.testing.assert_allclose(found, reference_schedule(base, final, warmup, total), rtol=1e-9)


def test_published_recipe_learning_rate() -> None:
    # 1,281,167 images in batches of 512, 100 epochs of which 10 warm up: peak 1e-3.
    optim = OptimConfig(batch_size=512)
    epoch, steps = steps_per_epoch(1_281_167, 512), total_steps(optim, 1_281_167)
    assert (epoch, steps) == (2502, 250_200)
    peak = optim.lr * optim.batch_size / 256
    rates = [cosine(peak, optim.min_lr, s, steps, warmup=10 * epoch) for s in (0, 25_019, 25_020)]
    assert rates == pytest.approx([0.0, 1e-3, 1e-3])
    assert cosine(0.996, 1.0, 0, steps) == pytest.approx(0.996)
    assert cosine(0.04, 0.4, steps // 2, steps) == pytest.approx(0.22)


def test_temperature_ramp_is_linspace_then_constant() -> None:
    expected = [*np.linspace(0.04, 0.07, 30), 0.07, 0.07]
    assert [ramp(0.04, 0.07, e, 30) for e in range(32)] == pytest.approx(expected)
    assert ramp(0.04, 0.07, 0, 0) == 0.07


def test_biases_and_one_dimensional_parameters_are_not_decayed() -> None:
    pair = StudentTeacher(TINY, HEAD)
    decayed, plain = (group["params"] for group in parameter_groups(pair.trained, 0.04))
    names = {id(p): name for name, p in pair.trained.named_parameters()}
    assert all(p.ndim > 1 for p in decayed)
    assert all(p.ndim == 1 or names[id(p)].endswith(".bias") for p in plain)
    assert any("norm" in names[id(p)] for p in plain)
    assert any("pos_embed" in names[id(p)] for p in decayed)
    trained = [p for p in pair.trained.parameters() if p.requires_grad]
    assert len(decayed) + len(plain) == len(trained)


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))


def gradient_seen(optimizer: Optimizer, loss: Tensor, watched: list[nn.Parameter]) -> list[Tensor]:
    seen: list[Tensor] = []
    optimizer.adamw.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in watched)  # type: ignore[union-attr]
    )
    optimizer.step(loss)
    return seen


def test_each_parameter_is_clipped_on_its_own() -> None:
    model = Scales()
    optimizer = Optimizer(model, Engine(RunConfig(device="cpu")), clip_norm=3.0)
    loss = (100 * model.large).sum() + (0.1 * model.small).sum()
    large, small = gradient_seen(optimizer, loss, [model.large, model.small])
    assert large.norm().item() == pytest.approx(3.0, rel=1e-5)
    assert torch.equal(small, torch.full((4, 4), 0.1))  # a global clip would shrink it


def test_global_clipping_agrees_with_torch() -> None:
    model, other = Scales(), Scales()
    optimizer = Optimizer(model, Engine(RunConfig(device="cpu")), clip_norm=1.0, clip="global")
    loss = (7 * model.large).sum() + (2 * model.small).sum()
    found = gradient_seen(optimizer, loss, [model.large, model.small])
    ((7 * other.large).sum() + (2 * other.small).sum()).backward()
    nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    for mine, its in zip(found, other.parameters(), strict=True):
        torch.testing.assert_close(mine, its.grad)


def test_frozen_parameters_stay_and_others_move() -> None:
    model = Scales()
    optimizer = Optimizer(model, Engine(RunConfig(device="cpu")), weight_decay=0.5)
    optimizer.step((model.large + model.small).sum(), frozen=[model.small])
    assert torch.equal(model.small, torch.ones(4, 4))
    assert not torch.equal(model.large, torch.ones(4, 4))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = Scales()
    optimizer = Optimizer(model, Engine(RunConfig(device="cpu")))
    with pytest.raises(RunError) as caught:
        optimizer.step((model.large * math.inf).sum())
    assert caught.value.code == "PG-T03"
    assert torch.equal(model.large, torch.ones(4, 4))


def test_set_decays_the_first_group_only() -> None:
    pair = StudentTeacher(TINY, HEAD)
    optimizer = Optimizer(pair.trained, Engine(RunConfig(device="cpu")))
    optimizer.set(lr=0.5, weight_decay=0.3)
    assert [g["lr"] for g in optimizer.adamw.param_groups] == [0.5, 0.5]
    assert [g["weight_decay"] for g in optimizer.adamw.param_groups] == [0.3, 0.0]
