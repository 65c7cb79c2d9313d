"""The frozen first stage of latent diffusion: images to small latents and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.config import Config
from pathgen.errors import ConfigError
from pathgen.models.chance import drawn
from pathgen.models.pretrained import NETWORKS, Kind, depth, latent_channels, load_pretrained


class AutoencoderConfig(Config):
    """One of diffusers' autoencoders. With n widths the latent is fold * 2**(n-1) times smaller."""

    kind: Kind = "kl"
    """kl: variational, smooth latents. vq: a codebook, the paper's VQ-f4. tiny: plain and fast.
    dc: plain and deep, for latents 32 or 64 times smaller."""
    image_size: int = Field(default=256, ge=8)
    latent_channels: int = Field(default=4, ge=1)
    block_out_channels: tuple[int, ...] = (64, 128, 256)
    fold: int = Field(default=1, ge=1)
    """Squares of fold x fold pixels enter as channels: no convolution at full size, and so much
    less work, for somewhat coarser pictures."""
    layers_per_block: int = Field(default=1, ge=1)
    norm_groups: int = Field(default=32, ge=1)
    mid_attention: bool = False
    codebook: int = Field(default=8192, ge=2)
    """Entries of the vq codebook."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Per latent value, beside an L1 loss per pixel value."""
    pretrained: str | None = None
    """Folder or hub name of diffusers weights: of an autoencoder (AutoencoderKL, VQModel,
    AutoencoderTiny, AutoencoderDC), or of a pipeline with one in vae or vqvae. They may have seen
    labels or other data: without them the method uses nothing but the given unlabelled patches."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The diffusers class's own settings; filled in from pretrained weights."""

    @model_validator(mode="after")
    def _fits(self) -> AutoencoderConfig:
        if not self.block_out_channels or min(self.block_out_channels) < 1:
            raise ValueError("block_out_channels needs at least one positive width")
        if self.settings or self.pretrained:
            return self
        if self.kind == "tiny" and len(set(self.block_out_channels)) > 1:
            raise ValueError("a tiny autoencoder has one width: make block_out_channels equal")
        grouped = self.kind in ("kl", "vq")
        if grouped and any(c % self.norm_groups for c in self.block_out_channels):
            raise ValueError("norm_groups must divide every one of block_out_channels")
        if self.kind == "dc" and self.block_out_channels[-1] % self.latent_channels:
            raise ValueError("of a dc autoencoder latent_channels must divide the last width")
        if self.image_size % (self.fold * 2 ** (len(self.block_out_channels) - 1)):
            raise ValueError("image_size must be a multiple of fold * 2 ** (widths - 1)")
        return self


class Autoencoder(nn.Module):
    """Images in [0, 1] to latents of zero mean and unit variance per channel, and back.

    Mean and scale are measured once on training images (`measure`), held as buffers, and saved
    with the weights: the diffusion model's noise schedule presumes unit variance (latent
    diffusion, arXiv 2112.10752, appendix G, does so with one number for all channels). The
    scaling and shift factors that pretrained weights come with are therefore not used.

    Raises ConfigError when `config.pretrained` cannot be loaded, or does not fit the image size.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        if config.pretrained is not None:
            config, self.network = _pretrained(config)
        else:
            settings = config.settings or _settings(config)
            self.network = NETWORKS[config.kind](**settings)
            if config.kind == "kl":
                _start_certain(self.network)
        self.config = config
        channels = latent_channels(config.kind, self.network.config)
        self.latent_mean: Tensor
        self.latent_scale: Tensor
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_scale", torch.ones(channels, 1, 1))

    @property
    def downsample(self) -> int:
        """Image pixels along one side of a latent pixel."""
        return cast(int, self.config.fold * 2 ** (depth(self.config.kind, self.network.config) - 1))

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the convolution that gives the pixels."""
        decoder = self.network.decoder
        layer = decoder.layers[-1] if self.config.kind == "tiny" else decoder.conv_out
        return cast(nn.Parameter, getattr(layer, "conv", layer).weight)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        side = self.config.image_size // self.downsample
        return len(self.latent_mean), side, side

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> latents (B, C, S/f, S/f).

        The posterior's mean, or with a generator a sample of it (kl only; else the same).
        """
        return (self._raw(images, generator) - self.latent_mean) * self.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, S/f, S/f) -> images (B, 3, S, S), clipped to [0, 1]."""
        raw = latents / self.latent_scale + self.latent_mean
        return self._unfold(self.network.decode(raw).sample).clamp(0, 1)

    def loss(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Training loss (scalar) and the reconstructions (B, 3, S, S), not clipped.

        L1 per pixel value in [-1, 1], plus the weighted KL divergence from N(0, 1) per latent
        value (kl) or the codebook's commitment loss (vq). A published perceptual network would
        bring in weights trained on other data; `models.perceptual` has one that does not.
        """
        inputs = self._fold(images)
        if self.config.kind == "kl":
            posterior = self.network.encode(inputs).latent_dist
            outputs = self.network.decode(_draw(posterior, generator)).sample
            extra = self.config.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        elif self.config.kind == "vq":
            decoded = self.network.decode(self._codes(inputs))
            outputs, extra = decoded.sample, decoded.commit_loss.mean()
        else:
            # Not the network's own forward: a tiny one rounds the latents to bytes there, which
            # has no gradient.
            outputs = self.network.decode(self._codes(inputs)).sample
            extra = inputs.new_zeros(())
        return (outputs - inputs).abs().mean() + extra, self._unfold(outputs)

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """Set `latent_mean` and `latent_scale` from images (B, 3, S, S), in [0, 1]."""
        count = 0
        total = torch.zeros(len(self.latent_mean), dtype=torch.double)
        squares = total.clone()
        for images in batches:
            raw = self._raw(images, None).cpu().double()
            count += raw[:, 0].numel()
            total += raw.sum((0, 2, 3)).cpu()
            squares += raw.square().sum((0, 2, 3)).cpu()
        if count < 2:
            raise ConfigError("no images to measure the latent scale on", where="autoencoder")
        mean = total / count
        variance = squares / count - mean.square()
        # A dead channel keeps scale 1 instead of a huge one that would blow up its noise.
        scale = torch.where(variance > 1e-8, variance.clamp_min(1e-8).rsqrt(), 1.0)
        self.latent_mean.copy_(mean.view(-1, 1, 1))
        self.latent_scale.copy_(scale.view(-1, 1, 1))

    def _fold(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> what the network takes, in [-1, 1]."""
        return F.pixel_unshuffle(images * 2 - 1, self.config.fold)

    def _unfold(self, outputs: Tensor) -> Tensor:
        """What the network gives -> (B, 3, S, S), [0, 1] where it is right."""
        return (F.pixel_shuffle(outputs, self.config.fold) + 1) / 2

    def _raw(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        inputs = self._fold(images)
        if self.config.kind == "kl":
            posterior = self.network.encode(inputs).latent_dist
            return posterior.mode() if generator is None else _draw(posterior, generator)
        return self._codes(inputs)

    def _codes(self, inputs: Tensor) -> Tensor:
        """What a network without a posterior encodes to; not yet quantized."""
        encoded = self.network.encode(inputs)
        return cast(Tensor, encoded.latent if self.config.kind == "dc" else encoded.latents)


def _start_certain(network: Any) -> None:
    """Start with a posterior of std exp(-3): with std 1 noise hides the latents for long."""
    layer = network.quant_conv or network.encoder.conv_out
    with torch.no_grad():
        layer.bias[len(layer.bias) // 2 :] -= 6.0  # second half: log variances


def _draw(posterior: Any, generator: torch.Generator | None) -> Tensor:
    noise = _noise_like(posterior.mean, generator)
    return cast(Tensor, posterior.mean + posterior.std * noise)


def _noise_like(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    shape = tensor.shape[1:]
    if generator is None:  # each image's own, however the batch is shared out
        return drawn(lambda n: torch.randn((n, *shape), device=tensor.device), len(tensor)).to(
            tensor
        )
    noise = torch.randn(
        tensor.shape, generator=generator, device=generator.device, dtype=torch.float32
    )
    return noise.to(tensor)


def _settings(config: AutoencoderConfig) -> dict[str, Any]:
    """What the diffusers class is to be called with."""
    widths, levels = config.block_out_channels, len(config.block_out_channels)
    channels = 3 * config.fold**2
    if config.kind == "tiny":
        blocks = config.layers_per_block
        few = 1 if config.fold == 1 else blocks  # at full size a block costs most
        return {
            "in_channels": channels,
            "out_channels": channels,
            "encoder_block_out_channels": widths,
            "decoder_block_out_channels": widths,
            "num_encoder_blocks": (few, *[blocks] * (levels - 1)),
            "num_decoder_blocks": (*[blocks] * (levels - 1), few),
            "latent_channels": config.latent_channels,
        }
    if config.kind == "dc":
        blocks_each = (config.layers_per_block,) * levels
        return {
            "in_channels": channels,
            "latent_channels": config.latent_channels,
            "encoder_block_out_channels": widths,
            "decoder_block_out_channels": widths,
            "encoder_layers_per_block": blocks_each,
            "decoder_layers_per_block": blocks_each,
            "encoder_qkv_multiscales": ((),) * levels,
            "decoder_qkv_multiscales": ((),) * levels,
        }
    common = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": widths,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.mid_attention,
        "sample_size": config.image_size,
        "scaling_factor": 1.0,
    }
    if config.kind == "vq":
        # Quantized on the way into the decoder: the diffusion model sees the latents before that.
        return common | {
            "num_vq_embeddings": config.codebook,
            "vq_embed_dim": config.latent_channels,
        }
    return common


def _pretrained(config: AutoencoderConfig) -> tuple[AutoencoderConfig, Any]:
    """The network, and a config from which the saved model is rebuilt without the original."""
    kind, network, settings = load_pretrained(cast(str, config.pretrained))
    downsample = 2 ** (depth(kind, settings) - 1)
    if config.fold > 1 or settings["in_channels"] != 3:
        raise ConfigError(
            "pretrained autoencoders take plain images", where="autoencoder.model.fold",
            why=f"fold is {config.fold}, the weights take {settings['in_channels']} channels",
            hint="set autoencoder.model.fold=1",
        )  # fmt: skip
    if config.image_size % downsample:
        raise ConfigError(
            "image_size does not fit the pretrained autoencoder",
            where="autoencoder.model.image_size",
            why=f"{config.image_size} is not divisible by {downsample}",
        )
    resolved = {
        "kind": kind,
        "pretrained": None,
        "settings": settings,
        "latent_channels": latent_channels(kind, settings),
    }
    return config.model_copy(update=resolved), network
