"""Drawing: the solver against diffusers, against exact solutions, and image by image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from helpers_ldm import DIM, embeddings, small
from torch import Tensor

from pathgen.errors import ConfigError
from pathgen.models.diffusion import NoiseConfig
from pathgen.models.sampling import Solver, levels, sampling_times, starting_noise

PREDICTIONS = ("epsilon", "v", "flow")
THEIR_NAMES = {"epsilon": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}


def solve(solver: Solver, latents: Tensor, network: Any) -> Tensor:
    for index, time in enumerate(solver.times):
        latents = solver.step(index, latents, network(latents, time))
    return latents


def some_network(latents: Tensor, time: float) -> Tensor:
    """Any smooth function of latents and time will do to compare two solvers."""
    return torch.tanh(latents * 0.8 + 0.1) * (0.5 + time / 2000)


# --- against diffusers -----------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize("schedule", ["scaled_linear", "squaredcos_cap_v2"])
def test_steps_are_those_of_diffusers(prediction: Any, sampler: Any, schedule: Any) -> None:
    config = NoiseConfig(prediction=prediction, schedule=schedule)
    common: dict[str, Any] = {
        "beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": schedule,
        "prediction_type": THEIR_NAMES[prediction], "timestep_spacing": "trailing",
    }  # fmt: skip
    # Clipping at a log-SNR of -10 keeps the cosine schedule's last times, which ours keeps too.
    theirs: Any = (
        DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
        if sampler == "ddim"
        else DPMSolverMultistepScheduler(**common, final_sigmas_type="zero")
    )
    for steps in (5, 20):
        theirs.set_timesteps(steps)
        solver = Solver(config, sampling_times(config, steps), sampler)
        assert solver.times == theirs.timesteps.tolist()
        latents = start = torch.randn(64, dtype=torch.double)
        for time in theirs.timesteps:
            latents = theirs.step(some_network(latents, float(time)), time, latents).prev_sample
        ours = solve(solver, start, some_network)
        torch.testing.assert_close(ours, latents.double(), atol=1e-3, rtol=1e-3)


def test_euler_steps_of_flow_are_those_of_diffusers() -> None:
    config = NoiseConfig(prediction="flow")
    solver = Solver(config, sampling_times(config, 10), "euler")
    theirs: Any = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=np.array(solver.times) / 1000)
    latents = start = torch.randn(64, dtype=torch.double)
    for time in theirs.timesteps:
        latents = theirs.step(some_network(latents, float(time)), time, latents).prev_sample
    torch.testing.assert_close(solve(solver, start, some_network), latents, atol=1e-5, rtol=1e-5)


def test_second_order_steps_of_flow_are_those_of_diffusers() -> None:
    """Theirs begins at time 999 and truncates times to whole numbers; ours begins there here."""
    theirs: Any = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", final_sigmas_type="zero"
    )
    theirs.set_timesteps(20)
    times = theirs.sigmas.double()[:-1].numpy() * 1000
    solver = Solver(NoiseConfig(prediction="flow"), times, "dpm")
    latents = start = torch.randn(64, dtype=torch.double)
    for index, time in enumerate(theirs.timesteps):
        said = some_network(latents, solver.times[index])
        latents = theirs.step(said, time, latents).prev_sample
    torch.testing.assert_close(solve(solver, start, some_network), latents, atol=1e-4, rtol=1e-4)


# --- against exact solutions -----------------------------------------------------------------

MEAN, SPREAD = 0.7, 1.3


def gaussian_network(config: NoiseConfig) -> Any:
    """What a perfect network says when every value of the latents is N(0.7, 1.3 ** 2)."""

    def network(latents: Tensor, time: float) -> Tensor:
        signal, spread = (float(x[0]) for x in levels(config, np.array([time])))
        share = signal * SPREAD**2 / ((signal * SPREAD) ** 2 + spread**2)
        clean = MEAN + share * (latents - signal * MEAN)
        noise = (latents - signal * clean) / spread
        if config.prediction == "epsilon":
            return noise
        return signal * noise - spread * clean if config.prediction == "v" else noise - clean

    return network


def quantile(config: NoiseConfig, time: float | None, standard: Tensor) -> Tensor:
    """Where the differential equation takes a start: quantiles stay quantiles. None: no noise."""
    signal, spread = 1.0, 0.0
    if time is not None:
        signal, spread = (float(x[0]) for x in levels(config, np.array([time])))
    return signal * MEAN + math.hypot(signal * SPREAD, spread) * standard


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 200), ("dpm", 25)])
def test_a_gaussian_is_drawn_with_its_mean_and_spread(
    prediction: Any, sampler: Any, steps: int
) -> None:
    config = NoiseConfig(prediction=prediction)
    start = torch.randn(20_000, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    solver = Solver(config, sampling_times(config, steps), sampler)
    drawn = solve(solver, start, gaussian_network(config))
    # sqrt(a_T) is 0.07 on the schedule of betas: pure noise is not quite where it starts.
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.08)
    assert float(drawn.std()) == pytest.approx(SPREAD, rel=0.03)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_order_of_convergence(prediction: Any) -> None:
    """Down to time 200, twice the steps: half of the first-order error, a quarter of the second.

    What is left after that, a step to no noise, is of first order in all.
    """
    config = NoiseConfig(prediction=prediction)
    standard = torch.linspace(-2, 2, 9, dtype=torch.double)

    def error(steps: int, sampler: Any) -> float:
        times = np.linspace(999, 199, steps + 1)
        solver, network = Solver(config, times, sampler), gaussian_network(config)
        latents = quantile(config, 999, standard)
        for index, time in enumerate(solver.times[:-1]):
            latents = solver.step(index, latents, network(latents, time))
        return float((latents - quantile(config, 199, standard)).abs().max())

    assert error(50, "ddim") / error(100, "ddim") == pytest.approx(2, abs=0.3)
    assert error(50, "dpm") / error(100, "dpm") == pytest.approx(4, abs=1)
    assert error(25, "dpm") < error(100, "ddim")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm"])
def test_a_perfect_denoiser_is_led_back_to_the_picture(prediction: Any, sampler: Any) -> None:
    """Sampling starts at the noisiest time and ends without noise, in any number of steps."""
    model = small(prediction=prediction)
    target, seen = torch.randn(1, 4, 8, 8), []

    def denoise(latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        time = float(times[0])
        seen.append(time)
        signal, spread = (float(x[0]) for x in levels(model.config, np.array([time])))
        noise = (latents - signal * target) / spread
        if prediction == "epsilon":
            return noise
        return signal * noise - spread * target if prediction == "v" else noise - target

    model.denoise = denoise  # type: ignore[method-assign]
    for steps in (1, 4, 6, 60):  # some divide the 1,000 of training, some do not
        seen.clear()
        drawn = model.sample(
            embeddings(2), steps=steps, guidance=1.0, seeds=[1, 2], sampler=sampler
        )
        assert seen[0] == (1000 if prediction == "flow" else 999)
        assert len(seen) == len(set(seen)) == steps
        torch.testing.assert_close(drawn, target.expand(2, -1, -1, -1), atol=1e-2, rtol=0)


def test_few_steps_come_near_to_many() -> None:
    """Of a network: 12 steps of second order are nearer to 100 of DDIM than 12 of DDIM are."""
    model, given = small(kind="dit", prediction="v"), embeddings(2)

    def draw(steps: int, sampler: Any) -> Tensor:
        return model.sample(given, steps=steps, guidance=1.5, seeds=[1, 2], sampler=sampler)

    many = draw(100, "ddim")
    dpm, ddim = (float((draw(12, name) - many).norm() / many.norm()) for name in ("dpm", "ddim"))
    assert dpm < 0.5 * ddim


# --- guidance --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_guidance_one_is_the_conditional_prediction(kind: str) -> None:
    model = small(kind=kind)
    latents, times = torch.randn(3, 4, 8, 8), torch.full((3,), 500)
    condition = model.condition(embeddings(3))
    with torch.no_grad():
        expected = model.denoise(latents, times, condition)
        null = model.denoise(latents, times, torch.zeros_like(condition))
        assert torch.equal(model._guided(latents, 500, condition, 1.0), expected)
        zero, twice = (model._guided(latents, 500, condition, g) for g in (0.0, 2.0))
    torch.testing.assert_close(zero, null, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(twice, 2 * expected - null, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, null, atol=1e-4)


def test_guidance_stays_in_its_interval() -> None:
    """The null prediction is computed there only, and an interval of nothing is guidance 1."""
    model, given = small(prediction="flow"), embeddings(2)
    seen = []
    network = model.denoise

    def denoise(latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        seen.append((float(times[0]), len(latents)))
        return network(latents, times, condition)

    model.denoise = denoise  # type: ignore[method-assign]
    settings: dict[str, Any] = {"steps": 10, "seeds": [1, 2]}
    model.sample(given, guidance=3.0, guidance_interval=(0.25, 0.75), **settings)
    assert [count for _, count in seen] == [2, 2, 2, 4, 4, 4, 4, 4, 2, 2]
    assert [time for time, count in seen if count == 4] == pytest.approx([700, 600, 500, 400, 300])
    never = model.sample(given, guidance=3.0, guidance_interval=(0.01, 0.02), **settings)
    assert torch.equal(never, model.sample(given, guidance=1.0, **settings))


# --- image by image --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "prediction", "sampler"),
    [("unet", "epsilon", "ddim"), ("unet", "v", "dpm"), ("dit", "flow", "dpm")],
)
def test_an_image_depends_on_its_seed_not_on_its_company(
    kind: str, prediction: str, sampler: Any
) -> None:
    model = small(kind=kind, prediction=prediction)
    given, seeds = embeddings(5), [11, 2**62, 13, 14, 15]
    settings: dict[str, Any] = {"steps": 3, "guidance": 2.0, "sampler": sampler}
    together = model.sample(given, seeds=seeds, **settings)
    for i in (0, 1, 4):
        alone = model.sample(given[i : i + 1], seeds=seeds[i : i + 1], **settings)
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)
    assert torch.equal(together, model.sample(given, seeds=seeds, **settings))
    others = model.sample(given, seeds=[1, 2, 3, 4, 5], **settings)
    assert not torch.isclose(together, others).flatten(1).all(1).any()


def test_bf16_draws_nearly_the_same_in_float32() -> None:
    model, given = small(kind="dit", prediction="flow"), embeddings(2)
    settings: dict[str, Any] = {"steps": 3, "seeds": [1, 2]}
    exactly = model.sample(given, **settings)
    roughly = model.sample(given, precision="bf16", **settings)
    assert roughly.dtype == torch.float32
    assert 0 < float((roughly - exactly).norm() / exactly.norm()) < 0.05


def test_starting_noise_is_standard_normal_and_one_per_seed() -> None:
    noise = starting_noise(range(200), (4, 8, 8))
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(noise[7], starting_noise([7], (4, 8, 8))[0])
    assert len(torch.unique(noise[:, 0, 0, 0])) == 200


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"steps": 1001}, {"seeds": [1]}, {"embeddings": torch.zeros(2, DIM - 1)}],
)
def test_wrong_calls_are_explained(wrong: dict[str, Any]) -> None:
    given = {"embeddings": embeddings(2), "steps": 2, "seeds": [1, 2], **wrong}
    with pytest.raises(ConfigError):
        small().sample(given.pop("embeddings"), **given)
