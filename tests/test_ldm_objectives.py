"""What the E-LDM is asked to predict, how much each time weighs, and what chance decides."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from helpers_ldm import chance, embeddings, small
from pydantic import ValidationError
from torch import Tensor

from pathgen.models.diffusion import Draws, NoiseConfig, Process

PREDICTIONS = ("epsilon", "v", "flow")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def process(**settings: Any) -> Process:
    return Process(NoiseConfig(**settings))


def theirs(schedule: str) -> Any:
    return DDPMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule=schedule)


# --- noise and targets -----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_and_velocity_are_those_of_diffusers(schedule: Any) -> None:
    ours, scheduler = process(schedule=schedule, prediction="v"), theirs(schedule)
    torch.testing.assert_close(ours.alphas_cumprod, scheduler.alphas_cumprod, atol=2e-6, rtol=1e-3)
    latents, noise = torch.randn(2, 50, 4, 8, 8).unbind()
    times = torch.randint(1000, (50,))
    noisy, velocity = scheduler.add_noise, scheduler.get_velocity
    mixed, target = ours.add_noise(latents, noise, times), ours.target(latents, noise, times)
    torch.testing.assert_close(mixed, noisy(latents, noise, times), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(target, velocity(latents, noise, times), atol=1e-4, rtol=1e-4)
    assert torch.equal(process(schedule=schedule).target(latents, noise, times), noise)


def test_betas_rise_in_their_square_roots_between_the_ends() -> None:
    alphas = process().alphas_cumprod.double()
    betas = 1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])
    assert float(betas[0]) == pytest.approx(0.0015, rel=1e-3)
    assert float(betas[-1]) == pytest.approx(0.0195, rel=1e-3)
    slopes = betas.sqrt().diff()
    torch.testing.assert_close(slopes, slopes.mean().expand_as(slopes), rtol=0.1, atol=0)


def test_flow_is_a_straight_line_from_picture_to_noise() -> None:
    line = process(prediction="flow")
    latents, noise = torch.randn(2, 3, 4, 8, 8).unbind()
    for share in (0.0, 0.25, 1.0):
        times = torch.full((3,), 1000 * share)
        mixed = line.add_noise(latents, noise, times)
        torch.testing.assert_close(mixed, (1 - share) * latents + share * noise)
        assert torch.equal(line.target(latents, noise, times), noise - latents)
    # Its slope: a small step in time moves along the target.
    here, there = (line.add_noise(latents, noise, torch.full((3,), t)) for t in (400.0, 410.0))
    torch.testing.assert_close((there - here) / 0.01, noise - latents, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_zero_for_the_right_answer(prediction: Any) -> None:
    """Worked out from what the network sees and the picture alone, in float64."""
    model = small(prediction=prediction)
    latents = torch.randn(5, 4, 8, 8)

    def denoise(noisy: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        if prediction == "flow":
            t = (times.double() / 1000).view(-1, 1, 1, 1)
            return ((noisy - (1 - t) * latents) / t - latents).float()
        betas = torch.linspace(math.sqrt(0.0015), math.sqrt(0.0195), 1000, dtype=torch.double) ** 2
        a = (1 - betas).cumprod(0)[times].view(-1, 1, 1, 1)
        noise = (noisy - a.sqrt() * latents) / (1 - a).sqrt()
        answer = noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * latents
        return answer.float()

    model.denoise = denoise  # type: ignore[method-assign]
    assert float(model.loss(latents, embeddings(5), model.draw(5, chance()))) < 1e-6


# --- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_the_error_of_the_clean_latent(prediction: Any, gamma: float) -> None:
    """min(snr, gamma) times the squared error of x_0, by either prediction: float64 by hand."""
    weighted = process(prediction=prediction, min_snr=gamma)
    times = torch.tensor([0, 1, 30, 200, 500, 800, 999])
    betas = torch.linspace(math.sqrt(0.0015), math.sqrt(0.0195), 1000, dtype=torch.double) ** 2
    a = (1 - betas).cumprod(0)[times]
    snr = a / (1 - a)
    # An error d of the prediction is one of (sqrt(1 - a) / sqrt(a)) d, or sqrt(1 - a) d, of x_0.
    of_clean = (1 - a) / a if prediction == "epsilon" else 1 - a
    expected = snr.clamp(max=gamma) * of_clean
    torch.testing.assert_close(weighted.weights(times).double(), expected, rtol=1e-3, atol=1e-6)
    # As the diffusers examples have it.
    other = compute_snr(theirs("scaled_linear"), times).double()
    divisor = other if prediction == "epsilon" else other + 1
    capped = torch.minimum(other, torch.full_like(other, gamma))
    torch.testing.assert_close(
        weighted.weights(times).double(), capped / divisor, rtol=1e-3, atol=0
    )


def test_min_snr_is_in_the_loss_and_off_by_default() -> None:
    latents, given = torch.randn(6, 4, 8, 8), embeddings(6)
    plain, weighted = small(), small(min_snr=5.0)
    draws = plain.draw(6, chance())
    errors = torch.stack(
        [
            plain.loss(latents[i : i + 1], given[i : i + 1], draws.rows(slice(i, i + 1)))
            for i in range(6)
        ]
    )
    weights = weighted.process.weights(draws.times)
    assert float(weights.min()) < 0.9
    torch.testing.assert_close(plain.loss(latents, given, draws), errors.mean())
    torch.testing.assert_close(weighted.loss(latents, given, draws), (errors * weights).mean())
    assert torch.equal(plain.process.weights(draws.times), torch.ones(6))


@pytest.mark.parametrize(
    "wrong",
    [
        {"prediction": "flow", "min_snr": 5.0},
        {"prediction": "v", "times": "logit_normal"},
        {"prediction": "x0"},
        {"times": "cosine"},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NoiseConfig(**wrong)


# --- chance ----------------------------------------------------------------------------------


def draws_of(count: int, **settings: Any) -> Draws:
    return process(**settings).draw((count, 1, 2, 2), chance())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_draws_are_a_function_of_the_seed_and_can_be_shared_out(prediction: Any) -> None:
    """Two processes with half of the rows each see what one alone sees."""
    model = small(prediction=prediction)
    latents, given = torch.randn(4, 4, 8, 8), embeddings(4)
    draws, again = model.draw(4, chance(3)), model.draw(4, chance(3))
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    halves = [
        model.loss(latents[part], given[part], draws.rows(part))
        for part in (slice(0, 2), slice(2, 4))
    ]
    together = model.loss(latents, given, draws)
    torch.testing.assert_close(torch.stack(halves).mean(), together)
    torch.testing.assert_close(model.loss(latents, given, again), together, atol=0, rtol=0)


def test_times_cover_the_schedule_evenly() -> None:
    steps = draws_of(100_000).times
    assert steps.dtype == torch.int64
    assert (int(steps.min()), int(steps.max())) == (0, 999)
    assert float(steps.float().std()) == pytest.approx(1000 / math.sqrt(12), rel=0.01)
    line = draws_of(100_000, prediction="flow").times
    assert 0 <= float(line.min()) < 1
    assert 999 < float(line.max()) <= 1000
    assert float(line.std()) == pytest.approx(1000 / math.sqrt(12), rel=0.01)


def test_logit_normal_times_dwell_on_the_middle() -> None:
    """Quartiles of sigmoid(N(0, 1)): sigmoid of those of the normal distribution, 0.6745."""
    times = draws_of(100_000, prediction="flow", times="logit_normal").times / 1000
    quartiles = torch.quantile(times, torch.tensor([0.25, 0.5, 0.75]))
    outer = 1 / (1 + math.exp(0.67449))
    torch.testing.assert_close(quartiles, torch.tensor([outer, 0.5, 1 - outer]), atol=0.01, rtol=0)


def test_share_of_dropped_conditions() -> None:
    model, conditions = small(condition_dropout=0.1), []

    def denoise(latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        conditions.append(condition)
        return torch.zeros_like(latents)

    model.denoise = denoise  # type: ignore[method-assign]
    count = 20_000
    draws = model.process.draw((count, 4, 1, 1), chance())
    model.loss(torch.zeros(count, 4, 1, 1), embeddings(count), draws)
    dropped = (conditions[0] == 0).all(1)
    deviation = math.sqrt(0.1 * 0.9 / count)
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=4 * deviation)
    torch.testing.assert_close(conditions[0][~dropped].norm(dim=1), torch.ones(count)[~dropped])
