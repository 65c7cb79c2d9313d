"""From noise to latents: one solver for every process, of first or of second order.

The process is ``x_t = signal(t) * x_0 + spread(t) * noise``, and the solver follows the ordinary
differential equation that has its marginals. All coefficients are known before the first step,
in float64 on the CPU, so that no step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen.models.diffusion import NoiseConfig, alphas_cumprod

Sampler = Literal["ddim", "euler", "dpm"]


def sampling_times(config: NoiseConfig, steps: int) -> NDArray[np.float64]:
    """Times at which the network is asked, (steps,), from the noisiest, in steps of training.

    Of a schedule of betas they are its last step and every train_steps / steps before it
    ("trailing", arXiv 2305.08891): the last is the only one that is (almost) pure noise, which
    sampling starts from. Of flow matching they divide [0, train_steps] evenly, 0 left out.
    """
    times = config.train_steps * (1 - np.arange(steps) / steps)
    return times if config.prediction == "flow" else np.round(times) - 1


def levels(
    config: NoiseConfig, times: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """signal(t) and spread(t), each of the shape of `times`."""
    if config.prediction == "flow":
        spread = times / config.train_steps
        return 1 - spread, spread
    alphas = alphas_cumprod(config)[times.astype(np.int64)]
    return np.sqrt(alphas), np.sqrt(1 - alphas)


class Solver:
    """Steps from noise to a latent without noise.

    ddim, euler: first order, DDIM with eta 0 (arXiv 2010.02502). On the straight lines of flow
    matching that step is Euler's, hence the two names for one thing. dpm: DPM-Solver++(2M)
    (arXiv 2211.01095), of second order: it also looks at the estimate of the step before. Its
    last step, to no noise at all, is of first order.

    Args:
        times: where the network is asked, falling; see `sampling_times`.
    """

    def __init__(self, config: NoiseConfig, times: NDArray[np.float64], sampler: Sampler) -> None:
        self.prediction = config.prediction
        self.times: list[float] = times.tolist()
        signal, spread = levels(config, times)
        self.signal: list[float] = [*signal.tolist(), 1.0]
        self.spread: list[float] = [*spread.tolist(), 0.0]
        self._looks_back = [0.0] * len(times)
        if sampler == "dpm":
            self._looks_back = _extrapolation(signal, spread)
        self._before: Tensor | None = None

    def step(self, index: int, latents: Tensor, predicted: Tensor) -> Tensor:
        """Latents at the next level, from those at level `index` and what the network says there.

        Steps are to be taken in order, once each.
        """
        signal, spread = self.signal[index], self.spread[index]
        clean = self._clean(signal, spread, latents, predicted)
        estimate = clean
        if self._before is not None and self._looks_back[index]:
            estimate = clean + self._looks_back[index] * (clean - self._before)
        self._before = clean
        kept = self.spread[index + 1] / spread
        return kept * latents + (self.signal[index + 1] - signal * kept) * estimate

    def _clean(self, signal: float, spread: float, latents: Tensor, predicted: Tensor) -> Tensor:
        """The latent without noise, by the network's account."""
        if self.prediction == "epsilon":
            return (latents - spread * predicted) / signal
        if self.prediction == "v":
            return signal * latents - spread * predicted
        return latents - spread * predicted


def _extrapolation(signal: NDArray[np.float64], spread: NDArray[np.float64]) -> list[float]:
    """How far each step leans on the change since the step before it: half the ratio of the two
    steps in log(signal / spread). Not in the first step, which has none before it, not in the
    last, which is infinitely long, and not after an infinitely long one (pure noise)."""
    with np.errstate(divide="ignore"):
        log_snr = np.log(signal) - np.log(spread)
    factors = [0.0] * len(signal)
    for index in range(1, len(signal) - 1):
        before, now = log_snr[index] - log_snr[index - 1], log_snr[index + 1] - log_snr[index]
        factors[index] = 0.0 if math.isinf(before) else float(0.5 * now / before)
    return factors


def starting_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (len(seeds), *shape); row i depends on `seeds[i]` only."""
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
