"""Latent diffusion that draws a patch from its embedding: the E-LDM of Gen-SIS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from diffusers import UNet2DConditionModel
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.errors import ConfigError
from pathgen.models.diffusion import Draws, NoiseConfig, Process
from pathgen.models.dit import DiT, DiTConfig
from pathgen.models.sampling import Sampler, Solver, sampling_times, starting_noise

__all__ = ["EmbeddingConditionedLDM", "LDMConfig", "Sampler", "starting_noise"]

Precision = Literal["fp32", "bf16", "fp16"]


class LDMConfig(NoiseConfig):
    """The denoiser, its condition and its noise."""

    kind: Literal["unet", "dit"] = "unet"
    """unet: that of latent diffusion (arXiv 2112.10752). dit: a transformer, sizes in `dit`."""
    embedding_dim: int = Field(default=384, ge=1)
    context_dim: int = Field(default=512, ge=1)
    """Length of the UNet's cross-attention token."""
    block_out_channels: tuple[int, ...] = (64, 128, 128, 256)
    layers_per_block: int = Field(default=2, ge=1)
    attention: tuple[bool, ...] = (False, True, True, True)
    """Attention, and with it the condition, at each level from the finest; always in the middle."""
    heads: int = Field(default=1, ge=1)
    norm_groups: int = Field(default=32, ge=1)
    dit: DiTConfig = Field(default_factory=DiTConfig)
    """Sizes of kind dit, for which the UNet's (from context_dim to norm_groups) do not count."""
    latent_channels: int = Field(default=4, ge=1)
    latent_size: int = Field(default=32, ge=1)
    condition_length: float = Field(default=1.0, gt=0)
    """Length to which embeddings are taken. sqrt(embedding_dim) gives them entries about as large
    as other inputs of networks have, which a short training learns to heed far sooner."""
    condition_dropout: float = Field(default=0.1, ge=0, le=1)
    encoder_id: str = ""
    """Which encoder's embeddings it was trained on; written by training."""
    autoencoder_id: str = ""
    """Whose latents; digest of its weights, written by training."""

    @model_validator(mode="after")
    def _fits(self) -> LDMConfig:
        if self.kind == "dit":
            if self.latent_size % self.dit.patch:
                raise ValueError("latent_size must be divisible by dit.patch")
            return self
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
    """A network that removes noise from latents, told by one vector what the patch is.

    That vector is Linear(e / |e|): the UNet's one cross-attention token, or what the DiT adds to
    the code of the time. "No condition" is the zero vector in place of e / |e|, so the Linear's
    bias is what the unconditional model is told. (e / |e| times `condition_length`, which is 1.)
    """

    def __init__(self, config: LDMConfig) -> None:
        super().__init__()
        self.config = config
        # The attribute's name is the first word of every saved weight's.
        if config.kind == "unet":
            self.unet = _unet(config)
        else:
            self.dit = DiT(
                config.dit, channels=config.latent_channels, size=config.latent_size,
                condition_dim=config.embedding_dim,
            )  # fmt: skip
        self.process = Process(config)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        size = self.config.latent_size
        return self.config.latent_channels, size, size

    def condition(self, embeddings: Tensor) -> Tensor:
        """Embeddings taken to `condition_length`: (B, D) -> (B, D). Zeros, the null one, stay."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.config.embedding_dim:
            raise ConfigError(
                "embeddings do not fit the diffusion model",
                where="ldm.model.embedding_dim",
                why=f"expected (B, {self.config.embedding_dim}), got {tuple(embeddings.shape)}",
            )
        return F.normalize(embeddings.float(), dim=1) * self.config.condition_length

    def denoise(self, latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """The network alone: noisy latents (B, C, h, w), times (B,), condition (B, D)."""
        if self.config.kind == "dit":
            return cast(Tensor, self.dit(latents, times, condition))
        token = condition.unsqueeze(1)  # (B, D) -> (B, 1, D); the UNet's Linear makes it (B, 1, K)
        return cast(Tensor, self.unet(latents, times, encoder_hidden_states=token).sample)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """What `loss` needs of chance for `count` latents, on the generator's device."""
        return self.process.draw((count, *self.latent_shape), generator)

    def loss(self, latents: Tensor, embeddings: Tensor, draws: Draws) -> Tensor:
        """Squared error of the prediction, weighted by `min_snr`, mean over all: a scalar.

        latents float32 (B, C, h, w), embeddings (B, D), and draws of the same B patches, all on
        the model's device. Nothing else is drawn.
        """
        noisy = self.process.add_noise(latents, draws.noise, draws.times)
        kept = (draws.chances >= self.config.condition_dropout).unsqueeze(1)
        predicted = self.denoise(noisy, draws.times, self.condition(embeddings) * kept)
        target = self.process.target(latents, draws.noise, draws.times)
        errors = F.mse_loss(predicted.float(), target, reduction="none").flatten(1).mean(1)
        return (errors * self.process.weights(draws.times)).mean()

    @torch.no_grad()
    def sample(
        self,
        embeddings: Tensor,
        *,
        steps: int = 50,
        guidance: float = 2.0,
        seeds: Sequence[int],
        sampler: Sampler = "ddim",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        precision: Precision = "fp32",
    ) -> Tensor:
        """Latents (B, C, h, w) drawn from embeddings (B, D), in float32.

        Image i starts from noise made on the CPU from `seeds[i]` alone, and nothing random
        follows: it is the same in any batch and on any device, up to the rounding of the
        network's arithmetic there.

        Args:
            steps: network evaluations for each image, of 1 to `train_steps`.
            guidance: prediction = null + guidance * (conditional - null). 1 is the conditional
                prediction itself, and the null one is then not computed.
            sampler: ddim and euler, of first order, are the same; dpm is of second order. See
                `pathgen.models.sampling.Solver`.
            guidance_interval: guide only while time / train_steps lies within, else take the
                conditional prediction (arXiv 2404.07724).
            precision: what the network computes in; the steps themselves are float32.
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
        device = next(self.parameters()).device
        condition = self.condition(embeddings.to(device))
        latents = starting_noise(seeds, self.latent_shape).to(device)
        solver = Solver(self.config, sampling_times(self.config, steps), sampler)
        low, high = guidance_interval
        lower = torch.float16 if precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, dtype=lower, enabled=precision != "fp32"):
            for index, time in enumerate(solver.times):
                inside = low <= time / self.config.train_steps <= high
                predicted = self._guided(latents, time, condition, guidance if inside else 1.0)
                latents = solver.step(index, latents, predicted)
        return latents

    def _guided(self, latents: Tensor, time: float, condition: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598), both predictions in one pass; float32."""
        if math.isclose(guidance, 1.0):
            times = torch.full((len(latents),), time, device=latents.device)
            return self.denoise(latents, times, condition).float()
        times = torch.full((2 * len(latents),), time, device=latents.device)
        both = torch.cat([condition, torch.zeros_like(condition)])
        given, null = self.denoise(torch.cat([latents, latents]), times, both).float().chunk(2)
        return null + guidance * (given - null)


def _unet(config: LDMConfig) -> Any:
    down = ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in config.attention]
    up = ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in config.attention]
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
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
