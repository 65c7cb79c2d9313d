"""The autoencoder's training: the only thing the diffusion model takes over from pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pathgen import parallel
from pathgen.config import Config
from pathgen.data.loading import ImageBatch, image_loader
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.data.subsets import hold_out
from pathgen.errors import ConfigError, NoInputError
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    critic_loss,
    fooling_loss,
)
from pathgen.models.encoder import Encoder
from pathgen.models.perceptual import Perceptual
from pathgen.models.quality import psnr, ssim
from pathgen.parallel import Share
from pathgen.progress import Progress
from pathgen.runs import Run, RunConfig, load_model
from pathgen.train.engine import Engine
from pathgen.train.loop import Objective, Stage, Terms, train
from pathgen.train.optimize import Optimizer, cosine, total_steps
from pathgen.train.reconstructions import (
    load_images,
    measure_quality,
    reconstruction_sheet,
    some_images,
)
from pathgen.train.sheets import Picture, write_sheet

__all__ = [
    "AutoencoderTrainConfig", "FlatOptimConfig", "learning_rate", "load_images",
    "train_autoencoder",
]  # fmt: skip

#: Images that the latent scale is measured on, evenly spaced over all, and the quality.
MEASURED, JUDGED = 1024, 256
#: Held-out images that are looked at whenever something is logged.
WATCHED = 8


class FlatOptimConfig(Config):
    """AdamW as latent diffusion uses it: a rate that does not depend on the batch size."""

    epochs: float = Field(default=40, gt=0)
    steps: int | None = Field(default=None, ge=1)
    """when given, it counts instead of `epochs`"""
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    """after the warm-up; cosine ends at zero"""
    warmup_steps: int = Field(default=1000, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = Field(default=1.0, ge=0)
    """largest norm of all gradients together; 0: no clipping"""


def learning_rate(optim: FlatOptimConfig, step: int, steps: int) -> float:
    """Linear warm-up from above zero to `lr`, reached at step `warmup_steps`; then the schedule."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / (optim.warmup_steps + 1)
    if optim.schedule == "constant":
        return optim.lr
    return cosine(optim.lr, 0.0, step - optim.warmup_steps, max(1, steps - optim.warmup_steps))


class AutoencoderTrainConfig(Config):
    """With `model.pretrained` nothing is trained: the weights are loaded, checked and scaled."""

    model: AutoencoderConfig = Field(default_factory=AutoencoderConfig)
    optim: FlatOptimConfig = Field(default_factory=FlatOptimConfig)
    flips: bool = True
    """mirror images at random, both ways: tissue has no up or down"""
    held_out: int = Field(default=0, ge=0)
    """patches, evenly spaced, that training leaves out and the quality is measured on, at most
    half of all; 0: it is measured on patches of the training"""
    perceptual_weight: float = Field(default=0.0, ge=0)
    """of the distance between the patch tokens that the frozen DINO encoder of the stage before
    gives an image and its reconstruction; 1 is a good weight"""
    perceptual_blocks: tuple[int, ...] = ()
    """blocks whose tokens are compared, from 0, or from the end below 0; none: four, evenly
    spaced, with the last"""
    discriminator_weight: float = Field(default=0.0, ge=0)
    """of a patch discriminator, on top of VQGAN's adaptive weight, which makes its gradient as
    long as that of the rest; 0: none. 0.5 to 0.8 is usual"""
    discriminator_start: int = Field(default=10_000, ge=0)
    """step from which it is trained and counts"""
    discriminator_width: int = Field(default=64, ge=8, multiple_of=8)
    discriminator_layers: int = Field(default=3, ge=1)
    run: RunConfig = Field(default_factory=RunConfig)


def train_autoencoder(
    config: AutoencoderTrainConfig,
    sources: Sequence[PatchSource],
    run: Run,
    progress: Progress | None = None,
    encoder: Encoder | None = None,
) -> Autoencoder:
    """Train to the end, or on from where the run stopped; in eval mode, latent scale measured.

    Leaves `reconstructions.png` in the run folder: real patches over their reconstructions. On
    the CPU the weights after N steps do not depend on stops in between.

    Args:
        encoder: the frozen judge of the perceptual loss; put its id in the run's inputs when
            there is one. It also says how alike reconstructions are to it (`embedding_cosine`).

    Raises:
        NoInputError: no patches. ConfigError: pretrained weights cannot be loaded; a perceptual
            weight without an encoder, or with one that has no blocks (PG-C04).
        RunError: PG-T03, the loss or a gradient is not finite; PG-T04, checkpoints do not fit.
        Stopped: asked to stop by a signal, after a checkpoint.
    """
    if run.finished:
        return load_model(run.path, Autoencoder)
    if not sum(map(len, sources)):
        raise NoInputError("no patches to train on", hint="run `pathgen tile` first")
    stage = _Reconstruction(config, sources, encoder)
    model, device = stage.model, stage.engine.device
    with run.hold():
        if stage.steps:
            train(stage, run, progress)
        model.eval()
        seen = some_images(stage.patches, model.config.image_size, MEASURED)
        model.measure(images.to(device) for images in seen)
        quality = measure_quality(model, stage.judged, JUDGED, encoder)
        if parallel.leads():
            write_sheet(run.path / "reconstructions.png", reconstruction_sheet(model, stage.judged))
        run.finish(model, quality | run.loss_summary() | {"steps": stage.steps})
    return model


class _Reconstruction(Stage[ImageBatch]):
    """The autoencoder's losses, for `train`; no steps where it comes trained."""

    def __init__(
        self,
        config: AutoencoderTrainConfig,
        sources: Sequence[PatchSource],
        encoder: Encoder | None,
    ) -> None:
        self.config, optim = config, config.optim
        self.sources, held = hold_out(sources, config.held_out)
        self.patches = PatchDataset(self.sources)
        self.judged = PatchDataset(held) if held else self.patches
        self.batch_size = optim.batch_size
        trains = config.model.pretrained is None
        self.steps = total_steps(optim, len(self.patches)) if trains else 0
        self.engine = Engine(config.run)
        self.model = self.engine.place(Autoencoder(config.model)).train()
        self.optimizer = Optimizer(
            self.model, self.engine, weight_decay=optim.weight_decay, betas=optim.betas,
            clip_norm=optim.clip_norm, clip="global",
        )  # fmt: skip
        self.parts = {"model": self.model, "optimizer": self.optimizer}
        self.judge = None if encoder is None else _judge(config, encoder.to(self.engine.device))
        if config.perceptual_weight and encoder is None:
            raise ConfigError(
                "a perceptual loss needs the encoder of the dino stage",
                where="autoencoder.perceptual_weight", why="none was given",
                hint="run the dino stage first, or set autoencoder.perceptual_weight=0",
            )  # fmt: skip
        self.critic: _Critic | None = None
        if config.discriminator_weight and trains:
            self.critic = _Critic(config, self.engine)
            self.parts |= {
                "discriminator": self.critic.network,
                "discriminator_optimizer": self.critic.optimizer,
            }
        self._watched: Tensor | None = None

    @property
    def objectives(self) -> Sequence[Objective[ImageBatch]]:
        own = Objective(self.optimizer, self.terms)
        return [own] if self.critic is None else [own, self.critic.objective]

    @property
    def networks(self) -> Sequence[nn.Module]:
        # With a critic, gradients at the last layer are asked for before backward: a compiled
        # decoder would go all the way back for them, and its graph does not last for a second time.
        network = self.model.network
        return [network] if self.critic is None else [network.encoder]

    def batches(self, start: int, share: Share) -> Iterator[ImageBatch]:
        config = self.config
        loader = image_loader(
            self.sources, config.model.image_size, batch_size=self.batch_size,
            seed=config.run.seed, workers=config.run.workers, start_step=start, steps=self.steps,
            flips=config.flips, rows=share.rows,
        )  # fmt: skip
        for images, indices in loader:
            yield ImageBatch(images.to(self.engine.device, non_blocking=True), indices)

    def schedule(self, step: int) -> dict[str, float]:
        lr = learning_rate(self.config.optim, step, self.steps)
        self.optimizer.set(lr=lr)
        if self.critic is not None:
            self.critic.optimizer.set(lr=lr)
        return {"lr": lr}

    def terms(self, batch: ImageBatch, step: int, share: Share) -> Terms:
        images = batch.images
        loss, made = self.model.loss(images)
        plain = made.detach().float()
        told = {"psnr": psnr(images, plain).mean()}
        if step % self.config.run.log_every == 0 or step + 1 == self.steps:
            told["ssim"] = ssim(images, plain).mean()
        if self.judge is not None or self.critic is not None:
            told["reconstruction"] = loss
        if self.judge is not None:
            told["perceptual"] = self.judge(images, made)
            loss = loss + self.config.perceptual_weight * told["perceptual"]
        if self.critic is not None:
            told |= self.critic.judge(made, loss, self.model.last_layer, step, share)
            loss = loss + told.get("adversarial", 0.0)
        return {"loss": loss, **told}

    def frozen(self, step: int) -> Iterable[nn.Parameter]:
        return () if self.critic is None else self.critic.frozen(step)

    def facts(self, batch: ImageBatch) -> dict[str, float]:
        """PSNR and SSIM of a few held-out patches as the weights are now."""
        if not self.config.held_out:
            return {}
        if self._watched is None:
            shown = next(some_images(self.judged, self.model.config.image_size, WATCHED))
            self._watched = shown.to(self.engine.device)
        with torch.no_grad():
            made = self.model.decode(self.model.encode(self._watched))
            quality = {"psnr": psnr(self._watched, made), "ssim": ssim(self._watched, made)}
        return {f"{name}_held_out": float(values.mean()) for name, values in quality.items()}

    def pictures(self, batch: ImageBatch, step: int) -> Mapping[str, Sequence[Sequence[Picture]]]:
        return {"reconstructions": reconstruction_sheet(self.model, self.judged)}


class _Critic:
    """The patch discriminator beside an autoencoder: its own optimizer, its own loss."""

    def __init__(self, config: AutoencoderTrainConfig, engine: Engine) -> None:
        self.config = config
        network = PatchDiscriminator(config.discriminator_width, config.discriminator_layers)
        self.network = network.to(engine.device).train()
        # As VQGAN's: a short memory, as what is to be told apart changes all the time.
        self.optimizer = Optimizer(
            self.network, engine, betas=(0.5, 0.9), clip_norm=config.optim.clip_norm, clip="global"
        )
        self.objective: Objective[ImageBatch] = Objective(self.optimizer, self.terms)
        self._made: dict[int, Tensor] = {}

    def judge(
        self, made: Tensor, loss: Tensor, last_layer: Tensor, step: int, share: Share
    ) -> dict[str, Tensor]:
        """What the autoencoder is told of its reconstructions, which are kept for `terms`.

        With accumulation each part has an adaptive weight of its own, not one of the whole batch.
        """
        if step < self.config.discriminator_start:
            return {}
        self._made[share.first] = made.detach()
        self.network.requires_grad_(False)
        fooling = fooling_loss(self.network(made))
        self.network.requires_grad_(True)
        weight = adaptive_weight(loss, fooling, last_layer, parallel.mean)
        told = self.config.discriminator_weight * weight * fooling
        return {"adversarial": told, "adversarial_weight": weight}

    def terms(self, batch: ImageBatch, step: int, share: Share) -> Terms:
        if step < self.config.discriminator_start:  # a loss of nothing; see `frozen`
            nothing = torch.stack([p.sum() for p in self.network.parameters()]).sum() * 0
            return {"loss": nothing}
        real, made = self.network(batch.images), self.network(self._made.pop(share.first))
        loss = critic_loss(real, made)
        return {"loss": loss, "loss_discriminator": loss}

    def frozen(self, step: int) -> Iterable[nn.Parameter]:
        return self.network.parameters() if step < self.config.discriminator_start else ()


def _judge(config: AutoencoderTrainConfig, encoder: Encoder) -> Perceptual | None:
    return Perceptual(encoder, config.perceptual_blocks) if config.perceptual_weight else None
