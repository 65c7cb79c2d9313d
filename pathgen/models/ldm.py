"""Latent diffusion that draws a patch from its embedding: the E-LDM of Gen-SIS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.config import Config
from pathgen.errors import ConfigError

Sampler = Literal["ddim", "dpm"]


class LDMConfig(Config):
    """The denoiser, its condition and its noise schedule."""

    embedding_dim: int = Field(default=384, ge=1)
    context_dim: int = Field(default=512, ge=1)
    block_out_channels: tuple[int, ...] = (64, 128, 128, 256)
    layers_per_block: int = Field(default=2, ge=1)
    attention: tuple[bool, ...] = (False, True, True, True)
    """Attention, and with it the condition, at each level from the finest; always in the middle."""
    heads: int = Field(default=1, ge=1)
    norm_groups: int = Field(default=32, ge=1)
    latent_channels: int = Field(default=4, ge=1)
    latent_size: int = Field(default=32, ge=1)
    condition_dropout: float = Field(default=0.1, ge=0, le=1)
    train_steps: int = Field(default=1000, ge=2)
    beta_start: float = Field(default=0.0015, gt=0, lt=1)
    beta_end: float = Field(default=0.0195, gt=0, lt=1)
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """scaled_linear: linear in the square root of beta."""
    prediction: Literal["epsilon", "v"] = "epsilon"
    encoder_id: str = ""
    """Which encoder's embeddings it was trained on; written by training."""
    autoencoder_id: str = ""
    """Whose latents; digest of its weights, written by training."""

    @model_validator(mode="after")
    def _fits(self) -> LDMConfig:
        if len(self.attention) != len(self.block_out_channels):
            raise ValueError("attention needs one entry for each of block_out_channels")
        if any(width % self.norm_groups for width in self.block_out_channels):
            raise ValueError("norm_groups must divide every one of block_out_channels")
        if any(width % self.heads for width in self.block_out_channels):
            raise ValueError("heads must divide every one of block_out_channels")
        if self.latent_size % 2 ** (len(self.block_out_channels) - 1):
            raise ValueError("latent_size must be divisible by 2 ** (len(block_out_channels) - 1)")
        return self


class EmbeddingConditionedLDM(nn.Module):
    """A UNet that removes noise from latents, told by one token what the patch is.

    The token is Linear(e / |e|), read by cross-attention. "No condition" is the zero vector in
    place of e / |e|, so the Linear's bias is what the unconditional model sees.
    """

    def __init__(self, config: LDMConfig) -> None:
        super().__init__()
        self.config = config
        down = ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in config.attention]
        up = ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in config.attention]
        self.unet: Any = UNet2DConditionModel(  # type: ignore[no-untyped-call]
            sample_size=config.latent_size,
            in_channels=config.latent_channels,
            out_channels=config.latent_channels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            down_block_types=tuple(down),
            up_block_types=tuple(reversed(up)),
            cross_attention_dim=config.context_dim,
            encoder_hid_dim=config.embedding_dim,
            encoder_hid_dim_type="text_proj",
            attention_head_dim=config.heads,  # diffusers' misnomer: the number of heads
            norm_num_groups=config.norm_groups,
        )
        self.noise = _scheduler(config, "ddim")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        size = self.config.latent_size
        return self.config.latent_channels, size, size

    def condition(self, embeddings: Tensor) -> Tensor:
        """Embeddings taken to unit length, (B, D) -> (B, D); zeros, the null condition, stay."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.config.embedding_dim:
            raise ConfigError(
                "embeddings do not fit the diffusion model",
                where="ldm.model.embedding_dim",
                why=f"expected (B, {self.config.embedding_dim}), got {tuple(embeddings.shape)}",
            )
        return F.normalize(embeddings.float(), dim=1)

    def denoise(self, latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """The network alone: noisy latents (B, C, h, w), times (B,), condition (B, D)."""
        token = condition.unsqueeze(1)  # (B, D) -> (B, 1, D); the UNet's Linear makes it (B, 1, K)
        return cast(Tensor, self.unet(latents, times, encoder_hidden_states=token).sample)

    def loss(
        self, latents: Tensor, embeddings: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mean squared error of the predicted noise (or velocity), a scalar.

        Times, noise and which conditions to drop are drawn from `generator`, on its device.
        """
        count = len(latents)
        device = latents.device if generator is None else generator.device
        times = torch.randint(
            self.config.train_steps, (count,), generator=generator, device=device
        ).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=device).to(latents)
        kept = torch.rand((count, 1), generator=generator, device=device).to(latents.device)
        condition = self.condition(embeddings) * (kept >= self.config.condition_dropout)
        predicted = self.denoise(self.add_noise(latents, noise, times), times, condition)
        if self.config.prediction == "v":
            noise = self.noise.get_velocity(latents, noise, times)
        return F.mse_loss(predicted.float(), noise.float())

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """sqrt(a_t) latents + sqrt(1 - a_t) noise, with a_t the schedule's cumulative alpha."""
        return cast(Tensor, self.noise.add_noise(latents, noise, times))

    @torch.no_grad()
    def sample(
        self,
        embeddings: Tensor,
        *,
        steps: int = 50,
        guidance: float = 2.0,
        seeds: Sequence[int],
        sampler: Sampler = "ddim",
    ) -> Tensor:
        """Latents (B, C, h, w) drawn from embeddings (B, D), in float32.

        Image i starts from noise made on the CPU from `seeds[i]` alone, and nothing random
        follows (DDIM with eta 0, or DPM-Solver++): it is the same in any batch and on any
        device, up to the rounding of the network's arithmetic there.

        Args:
            steps: network evaluations for each image, of 1 to `train_steps`.
            guidance: prediction = null + guidance * (conditional - null). 1 is the conditional
                prediction itself, and the null one is then not computed.
        """
        if len(seeds) != len(embeddings):
            raise ConfigError(
                "one seed for each embedding is needed",
                where="seeds",
                why=f"{len(seeds)} seeds for {len(embeddings)} embeddings",
            )
        if not 1 <= steps <= self.config.train_steps:
            raise ConfigError(
                "sampling steps out of range",
                where="steps",
                why=f"{steps} is not within 1 to {self.config.train_steps}",
            )
        scheduler = _scheduler(self.config, sampler)
        scheduler.set_timesteps(steps)
        device = next(self.parameters()).device
        condition = self.condition(embeddings.to(device))
        latents: Tensor = starting_noise(seeds, self.latent_shape).to(device)
        latents = latents * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            predicted = self._guided(latents, int(time), condition, guidance)
            stepped = scheduler.step(predicted, time, latents)
            latents = stepped.prev_sample
        # Where `steps` does not divide `train_steps`, DDIM's last step would stop at the first
        # noise level; for the others the two are the same.
        return stepped.pred_original_sample if sampler == "ddim" else latents

    def _guided(self, latents: Tensor, time: int, condition: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598), both predictions in one pass."""
        if math.isclose(guidance, 1.0):
            times = torch.full((len(latents),), time, device=latents.device)
            return self.denoise(latents, times, condition).float()
        times = torch.full((2 * len(latents),), time, device=latents.device)
        both = torch.cat([condition, torch.zeros_like(condition)])
        given, null = self.denoise(torch.cat([latents, latents]), times, both).float().chunk(2)
        return null + guidance * (given - null)


def starting_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (len(seeds), *shape); row i depends on `seeds[i]` only."""
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def _scheduler(config: LDMConfig, sampler: Sampler) -> Any:
    prediction = {"epsilon": "epsilon", "v": "v_prediction"}[config.prediction]
    common: dict[str, Any] = {
        "num_train_timesteps": config.train_steps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.schedule,
        "prediction_type": prediction,
        # "trailing" starts at the last training step, the only one whose input is (almost) pure
        # noise as sampling starts from; "leading" with 20 steps would start at 951 and treat
        # pure noise as if it held a picture (arXiv 2305.08891).
        "timestep_spacing": "trailing",
    }
    if sampler == "dpm":
        return DPMSolverMultistepScheduler(  # type: ignore[no-untyped-call]
            **common, final_sigmas_type="zero"
        )
    # set_alpha_to_one: the last step goes to the noise-free latent, not to the first noise level.
    return DDIMScheduler(  # type: ignore[no-untyped-call]
        **common, clip_sample=False, set_alpha_to_one=True
    )
