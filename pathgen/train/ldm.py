"""The training of the embedding-conditioned latent diffusion model, stage 2 of Gen-SIS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pathgen import parallel
from pathgen.config import Config
from pathgen.data.latents import Latents, latent_loader
from pathgen.data.loading import image_loader
from pathgen.data.sources import PatchSource
from pathgen.errors import ConfigError, NoInputError, RunError
from pathgen.models.alignment import Alignment
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.encoder import Encoder
from pathgen.models.ldm import EmbeddingConditionedLDM, LDMConfig
from pathgen.models.weights import weights_id
from pathgen.parallel import Share
from pathgen.progress import Progress, Silent
from pathgen.runs import Run, RunConfig, load_model
from pathgen.stores.features import FeatureStore
from pathgen.train.autoencoder import FlatOptimConfig, learning_rate
from pathgen.train.average import Average
from pathgen.train.engine import Engine, seed_everything
from pathgen.train.latents import prepare_latents
from pathgen.train.loop import Objective, Stage, Terms, train
from pathgen.train.optimize import Optimizer, total_steps
from pathgen.train.sheets import Picture, to_pixels

#: Patches in the pictures of a training, and drawings of each.
SHOWN, DRAWN = 4, 2


class LDMTrainConfig(Config):
    """Stage 2 of Gen-SIS (arXiv 2412.01672) on patches and their frozen embeddings."""

    model: LDMConfig = Field(default_factory=LDMConfig)
    optim: FlatOptimConfig = Field(default_factory=FlatOptimConfig)
    ema: float = Field(default=0.9999, ge=0, lt=1)
    """Decay of the averaged weights; min(ema, (1 + step) / (10 + step)), so short runs count."""
    flips: bool = True
    """Mirror the target at random, both ways; its embedding stays that of the plain patch."""
    cache_gib: float = Field(default=4.0, ge=0)
    """Latents are held in memory up to this size, else read from their stores."""
    align_weight: float = Field(default=0.0, ge=0)
    """Of the alignment of hidden tokens to the encoder's patch tokens (REPA, arXiv 2410.06940);
    0.5 is usual, 0 off. Each step then decodes its patches and passes them through the encoder."""
    align_layer: int = Field(default=0, ge=0)
    """Block of the DiT, or of the UNet's way up, from 1; 0: after a third, or the middle block."""
    align_width: int = Field(default=2048, ge=1)
    """Of the projector, which is not saved with the model."""
    run: RunConfig = Field(default_factory=RunConfig)


class DiffusionBatch(NamedTuple):
    """What one step is about, on the device."""

    latents: Tensor
    """float32 (B, C, h, w)"""
    embeddings: Tensor
    """float32 (B, D), of the same patches, plain and unmirrored"""
    tokens: Tensor | None = None
    """(B, N, D) of the encoder, of the images that the latents are of; with alignment only"""


def train_ldm(
    config: LDMTrainConfig,
    sources: Sequence[PatchSource],
    features: Sequence[FeatureStore],
    autoencoder: Autoencoder,
    run: Run,
    progress: Progress | None = None,
    *,
    latents: Path | None = None,
    encoder: Encoder | None = None,
) -> EmbeddingConditionedLDM:
    """Train to the end, or on from where the run stopped; averaged weights, in eval mode.

    Row r of `features[i]` is the embedding of row r of `sources[i]`, plain and unmirrored. With
    `flips` the target is one of its four mirror images, all of which are encoded once, as
    mirroring a latent is not the latent of a mirrored image. On the CPU the weights after N steps
    do not depend on stops in between.

    The id of the encoder that made the embeddings is kept in the model's config.

    Args:
        latents: folder of the latents, made or used again; by default ``latents/`` of the run.
        encoder: who made the features; needed with `align_weight`.

    Raises:
        NoInputError: no patches. ConfigError: the model's sizes do not fit features or latents,
            or alignment lacks its encoder.
        RunError: PG-T04, features are of other patches or of several encoders, or checkpoints
            do not fit; PG-T03, the loss or a gradient is not finite.
        Stopped: asked to stop by a signal, after a checkpoint.
    """
    if run.finished:
        return load_model(run.path, EmbeddingConditionedLDM)
    encoder_id = check_alignment(sources, features)
    if config.align_weight:
        check_encoder(encoder, encoder_id)
    known = {"encoder_id": encoder_id, "autoencoder_id": weights_id(autoencoder)}
    model_config = config.model.model_copy(update=known)
    check_sizes(model_config, autoencoder, features)
    engine = Engine(config.run)
    autoencoder = autoencoder.to(engine.device).eval().requires_grad_(False)
    with run.hold():
        folder = latents or run.path / "latents"
        kept = _latents(config, sources, autoencoder, folder, engine, progress)
        seed_everything(config.run.seed)  # whether or not there were latents to be made
        stage = _Diffusion(config, model_config, kept, features, autoencoder, engine)
        if encoder is not None and config.align_weight:
            stage.align(encoder, sources)
        train(stage, run, progress)
        model = stage.model
        stage.average.copy_to(model)
        model.eval()
        seen = {"steps": stage.steps, "images_seen": stage.steps * stage.batch_size}
        run.finish(model, run.loss_summary() | seen)
    return model


def _latents(
    config: LDMTrainConfig,
    sources: Sequence[PatchSource],
    autoencoder: Autoencoder,
    folder: Path,
    engine: Engine,
    progress: Progress | None,
) -> Latents:
    """All latents of the sources, made by one process where they are not there yet."""

    def prepare() -> Any:
        return prepare_latents(
            autoencoder, sources, folder, mirrors=4 if config.flips else 1,
            autocast=engine.autocast, precision=config.run.precision, workers=config.run.workers,
            progress=progress or Silent(),
        )  # fmt: skip

    if parallel.count() > 1:
        parallel.first(lambda: len(prepare()))  # open files do not travel between processes
    return Latents(prepare(), config.cache_gib)


class _Diffusion(Stage[DiffusionBatch]):
    """The diffusion model's loss and its averaged weights, for `train`."""

    def __init__(
        self,
        config: LDMTrainConfig,
        model_config: LDMConfig,
        latents: Latents,
        features: Sequence[FeatureStore],
        autoencoder: Autoencoder,
        engine: Engine,
    ) -> None:
        self.config, self.engine = config, engine
        self.latents, self.autoencoder = latents, autoencoder
        self.batch_size = config.optim.batch_size
        self.steps = total_steps(config.optim, len(latents))
        vectors = np.concatenate([store.features() for store in features])
        self.embeddings = torch.from_numpy(vectors).float()
        self.model = engine.place(EmbeddingConditionedLDM(model_config))
        self.average = Average(self.model, config.ema)
        self.alignment: Alignment | None = None
        self._optimize(self.model)

    def _optimize(self, trained: nn.Module) -> None:
        optim = self.config.optim
        self.optimizer = Optimizer(
            trained, self.engine, weight_decay=optim.weight_decay, betas=optim.betas,
            clip_norm=optim.clip_norm, clip="global",
        )  # fmt: skip
        self.parts = {
            "model": self.model, "average": self.average, "optimizer": self.optimizer
        }  # fmt: skip

    def align(self, encoder: Encoder, sources: Sequence[PatchSource]) -> None:
        """Train a projector too, towards the tokens that `encoder` has for the patches."""
        config, device = self.config, self.engine.device
        self.encoder, self.sources = encoder.to(device).eval().requires_grad_(False), sources
        self.alignment = Alignment(
            self.model, encoder.dim, layer=config.align_layer, width=config.align_width
        ).to(device)
        self._optimize(nn.ModuleList([self.model, self.alignment]))
        self.parts["alignment"] = self.alignment

    @property
    def objectives(self) -> Sequence[Objective[DiffusionBatch]]:
        return [Objective(self.optimizer, self.terms)]

    @property
    def networks(self) -> Sequence[nn.Module]:
        return [self.model.unet if self.model.config.kind == "unet" else self.model.dit]

    def batches(self, start: int, share: Share) -> Iterator[DiffusionBatch]:
        run = self.config.run
        loader = latent_loader(
            self.latents, batch_size=self.batch_size, seed=run.seed, flips=self.config.flips,
            start_step=start, steps=self.steps, workers=run.workers, rows=share.rows,
        )  # fmt: skip
        tokens = self._tokens(start, share)
        for latents, indices in loader:
            embeddings = self._there(self.embeddings[indices])
            yield DiffusionBatch(self._there(latents).float(), embeddings, next(tokens))

    def _there(self, tensor: Tensor) -> Tensor:
        """On the device. From pinned memory a copy waits for no step that is still under way."""
        if self.engine.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.engine.device, non_blocking=True)

    def _tokens(self, start: int, share: Share) -> Iterator[Tensor | None]:
        """The encoder's tokens of the very squares, mirrored alike, that the latents are of."""
        if self.alignment is None:
            while True:
                yield None
        run = self.config.run
        loader = image_loader(
            self.sources, self.encoder.config.image_size, batch_size=self.batch_size,
            seed=run.seed, workers=run.workers, start_step=start, steps=self.steps,
            flips=self.config.flips, rows=share.rows,
        )  # fmt: skip
        for images, _ in loader:
            with torch.no_grad(), self.engine.autocast():
                tokens = self.encoder.tokens(self._there(images))
            yield tokens.float()

    def part(self, batch: DiffusionBatch, rows: slice) -> DiffusionBatch:
        return DiffusionBatch(*(None if x is None else x[rows] for x in batch))  # type: ignore[arg-type]

    def schedule(self, step: int) -> dict[str, float]:
        lr = learning_rate(self.config.optim, step, self.steps)
        self.optimizer.set(lr=lr)
        return {"lr": lr, "ema": self.average.decay_at(step)}

    def terms(self, batch: DiffusionBatch, step: int, share: Share) -> Terms:
        chance = torch.Generator(self.engine.device)
        chance.manual_seed((self.config.run.seed * 1_000_003 + step + 1) % 2**63)
        # For all, so that it does not matter how the batch is shared out.
        draws = self.model.draw(share.total, chance).rows(share.rows)
        loss = self.model.loss(batch.latents, batch.embeddings, draws)
        if self.alignment is None or batch.tokens is None:
            return {"loss": loss}
        aligned = self.alignment.loss(batch.tokens)
        total = loss + self.config.align_weight * aligned
        return {"loss": total, "loss_diffusion": loss, "loss_align": aligned}

    def after(self, step: int) -> None:
        self.average.follow(step)

    @torch.no_grad()
    def pictures(
        self, batch: DiffusionBatch, step: int
    ) -> Mapping[str, Sequence[Sequence[Picture]]]:
        """The same patches and the same noise every time: as the latent has them, and drawn."""
        rows = np.linspace(0, len(self.latents) - 1, min(SHOWN, len(self.latents))).astype(np.int64)
        device, count = self.engine.device, len(rows)
        latents = [self.latents.batch(rows).to(device).float()]
        given, steps = self.embeddings[rows], min(10, self.model.config.train_steps)
        was_training = self.model.training
        with self.average.shown():
            self.model.eval()
            latents += [
                self.model.sample(
                    given, steps=steps, guidance=1.0, sampler="dpm",
                    precision=self.engine.precision,
                    seeds=range(first * count, (first + 1) * count),
                )
                for first in range(DRAWN)
            ]  # fmt: skip
            self.model.train(was_training)
        columns = [to_pixels(self.autoencoder.decode(each)) for each in latents]
        captions = ["patch", *(f"drawn {number}" for number in range(1, DRAWN + 1))]
        return {
            "drawn": [
                [Picture(name, column[i]) for name, column in zip(captions, columns, strict=True)]
                for i in range(count)
            ]
        }


def check_alignment(sources: Sequence[PatchSource], features: Sequence[FeatureStore]) -> str:
    """Id of the one encoder of `features`, once each store is seen to belong to its source.

    Raises NoInputError without patches, RunError PG-T04 when they do not belong together.
    """
    if not sum(len(source) for source in sources):
        raise NoInputError("no patches to train on", hint="run `pathgen tile` first")
    if len(sources) != len(features):
        raise RunError(
            "features and patches do not belong together",
            where="features", why=f"{len(features)} feature stores for {len(sources)} sources",
            hint="extract features of exactly these patches",
        )  # fmt: skip
    for source, store in zip(sources, features, strict=True):
        if len(store) != len(source) or str(store.source["id"]) != source.id:
            raise RunError(
                "features are not those of the patches", where=store.path,
                why=f"{len(store)} rows of source {store.source['id']}; the patches are "
                f"{len(source)} rows of {source.id}",
                hint="extract features of exactly these patches, in this order",
            )  # fmt: skip
    return one_encoder(features)


def one_encoder(features: Sequence[FeatureStore]) -> str:
    """Id of the encoder that made all `features`. Raises RunError PG-T04 when there are several."""
    ids = sorted({str(store.encoder["id"]) for store in features})
    if len(ids) != 1:
        raise RunError(
            "features come from several encoders", where="features", why=f"ids {', '.join(ids)}",
            hint="extract them all with one encoder",
        )  # fmt: skip
    return ids[0]


def check_encoder(encoder: Encoder | None, made_features: str) -> None:
    """Raise unless `encoder` is there and is the one whose id is `made_features`."""
    if encoder is None:
        raise ConfigError(
            "alignment needs the encoder", where="ldm.align_weight",
            hint="give the encoder that made the features, or set ldm.align_weight=0",
        )  # fmt: skip
    if encoder.id != made_features:
        raise RunError(
            "features are not those of the encoder", where="features",
            why=f"made by {made_features}, the encoder is {encoder.id}",
            hint="extract features with this encoder",
        )  # fmt: skip


def check_sizes(
    config: LDMConfig, autoencoder: Autoencoder, features: Sequence[FeatureStore]
) -> None:
    """Raise ConfigError naming the first size of the model that does not fit what it gets."""
    channels, side, _ = autoencoder.latent_shape
    needed = {
        "embedding_dim": (config.embedding_dim, features[0].dim, "the features have"),
        "latent_channels": (config.latent_channels, channels, "the autoencoder gives"),
        "latent_size": (config.latent_size, side, "the autoencoder gives"),
    }
    for name, (have, need, whose) in needed.items():
        if have != need:
            raise ConfigError(
                "diffusion model does not fit", where=f"ldm.model.{name}",
                why=f"it is {have}, but {whose} {need}", hint=f"set ldm.model.{name}={need}",
            )  # fmt: skip
