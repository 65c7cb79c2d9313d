"""From clean to noisy and what the network learns of it: DDPM's schedule, or flow matching.

Every process here is ``x_t = signal(t) * x_0 + spread(t) * noise``. A *time* counts in steps of
training, from 0, (almost) no noise, to `train_steps`, (almost) nothing else.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from pathgen.config import Config

Prediction = Literal["epsilon", "v", "flow"]


class NoiseConfig(Config):
    """How latents are made noisy, what is predicted, and how the times of training are drawn."""

    train_steps: int = Field(default=1000, ge=2)
    beta_start: float = Field(default=0.0015, gt=0, lt=1)
    beta_end: float = Field(default=0.0195, gt=0, lt=1)
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """scaled_linear: linear in the square root of beta. Flow matching has no betas."""
    prediction: Prediction = "epsilon"
    """epsilon: the noise (DDPM). v: velocity on the same schedule (arXiv 2202.00512). flow: the
    straight line from picture to noise (rectified flow, arXiv 2209.03003)."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """How flow matching draws its times: uniform as SiT (arXiv 2401.08740), or sigmoid(N(0, 1)),
    which dwells on the middle, as Stable Diffusion 3 (arXiv 2403.03206). Others are uniform."""
    min_snr: float = Field(default=0.0, ge=0)
    """Min-SNR-gamma weights (arXiv 2303.09556); 5 is usual, 0 weighs all times the same."""

    @model_validator(mode="after")
    def _noise_fits(self) -> NoiseConfig:
        if self.prediction == "flow" and self.min_snr:
            raise ValueError("min_snr is for epsilon and v; flow matching has `times` for this")
        if self.prediction != "flow" and self.times != "uniform":
            raise ValueError("times other than uniform are for prediction: flow")
        return self


class Draws(NamedTuple):
    """What chance decides for a batch of B latents (C, h, w)."""

    times: Tensor
    """(B,): int64 below `train_steps`, or for flow matching float32 up to it"""
    noise: Tensor
    """float32 (B, C, h, w), standard normal"""
    chances: Tensor
    """float32 (B,) in [0, 1); below `condition_dropout` the condition is dropped"""

    def rows(self, part: slice) -> Draws:
        """Those of a part of the batch: what one process needs of the whole."""
        return Draws(self.times[part], self.noise[part], self.chances[part])


class Process(nn.Module):
    """Noise for training: what is drawn, mixed, asked of the network, and how much it weighs."""

    alphas_cumprod: Tensor

    def __init__(self, config: NoiseConfig) -> None:
        super().__init__()
        self.config = config
        table = torch.tensor(alphas_cumprod(config), dtype=torch.float32)
        self.register_buffer("alphas_cumprod", table, persistent=False)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Draws:
        """Times, noise and chances for latents of `shape` (B, C, h, w), on the generator's device.

        Draw for the global batch and take `Draws.rows`, and the number of processes has no part.
        """
        config, device = self.config, generator.device
        size = shape[:1]
        if config.prediction != "flow":
            times = torch.randint(config.train_steps, size, generator=generator, device=device)
        elif config.times == "uniform":
            times = torch.rand(size, generator=generator, device=device) * config.train_steps
        else:
            normal = torch.randn(size, generator=generator, device=device)
            times = normal.sigmoid() * config.train_steps
        noise = torch.randn(shape, generator=generator, device=device)
        return Draws(times, noise, torch.rand(size, generator=generator, device=device))

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """signal(t) latents + spread(t) noise; sqrt(a_t), sqrt(1 - a_t), or for flow 1 - t, t."""
        signal, spread = self._mixture(latents, times)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network is to say of `add_noise(latents, noise, times)`: (B, C, h, w).

        epsilon: the noise. v: sqrt(a_t) noise - sqrt(1 - a_t) latents. flow: noise - latents.
        """
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "flow":
            return noise - latents
        signal, spread = self._mixture(latents, times)
        return signal * noise - spread * latents

    def weights(self, times: Tensor) -> Tensor:
        """Min-SNR-gamma weight of each time's squared error, (B,); ones when it is off.

        With snr = a_t / (1 - a_t): min(snr, gamma) / snr for epsilon, min(snr, gamma) / (snr + 1)
        for v, both of which weigh the error of the clean latent by min(snr, gamma).
        """
        gamma = self.config.min_snr
        if not gamma:
            return torch.ones(times.shape, device=times.device)
        alphas = self.alphas_cumprod[times]
        snr = alphas / (1 - alphas)
        capped = snr.clamp(max=gamma)
        return capped / snr if self.config.prediction == "epsilon" else capped / (snr + 1)

    def _mixture(self, latents: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """signal(t) and spread(t), both (B, 1, 1, 1)."""
        if self.config.prediction == "flow":
            spread = (times / self.config.train_steps).to(latents)
            signal = 1 - spread
        else:
            alphas = self.alphas_cumprod[times].to(latents)
            signal, spread = alphas.sqrt(), (1 - alphas).sqrt()
        return signal.view(-1, 1, 1, 1), spread.view(-1, 1, 1, 1)


def alphas_cumprod(config: NoiseConfig) -> NDArray[np.float64]:
    """Share of signal in the variance after each step of training, (train_steps,), falling."""
    steps, start, end = config.train_steps, config.beta_start, config.beta_end
    if config.schedule == "linear":
        betas = np.linspace(start, end, steps)
    elif config.schedule == "scaled_linear":
        betas = np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2
    else:  # arXiv 2102.09672, equation 17, with its cap of 0.999
        level = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], 0.999)
    return np.asarray(np.cumprod(1 - betas))
