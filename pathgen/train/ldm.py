"""The training of the embedding-conditioned latent diffusion model, stage 2 of Gen-SIS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pathgen.commit import lock
from pathgen.config import Config
from pathgen.data.loading import FLIPS, Order, generator, image_loader
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.errors import ConfigError, NoInputError, RunError
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.ldm import EmbeddingConditionedLDM, LDMConfig
from pathgen.models.weights import weights_id
from pathgen.progress import Progress, Silent
from pathgen.runs import Run, RunConfig, load_model
from pathgen.stores.features import FeatureStore
from pathgen.train.autoencoder import FlatOptimConfig, learning_rate, load_images
from pathgen.train.engine import Engine, StopRequest, checkpoint
from pathgen.train.optimize import Optimizer, total_steps

#: Images encoded at once when latents are made beforehand.
ENCODED = 32


class LDMTrainConfig(Config):
    """Stage 2 of Gen-SIS (arXiv 2412.01672) on patches and their frozen embeddings."""

    model: LDMConfig = Field(default_factory=LDMConfig)
    optim: FlatOptimConfig = Field(default_factory=FlatOptimConfig)
    ema: float = Field(default=0.9999, ge=0, lt=1)
    """Decay of the averaged weights; min(ema, (1 + step) / (10 + step)), so short runs count."""
    flips: bool = True
    """Mirror the target at random, both ways; its embedding stays that of the plain patch."""
    cache_gib: float = Field(default=4.0, ge=0)
    """Latents are made once and kept in memory up to this size, else anew at every step."""
    run: RunConfig = Field(default_factory=RunConfig)


class Average:
    """Exponential moving average of a model's parameters, in float32; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: _average_of(t) for name, t in model.state_dict().items()}

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """After `step` (from 0): average <- d average + (1 - d) model, d = `decay_at(step)`."""
        decay = self.decay_at(step)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor.float(), 1 - decay)
            else:
                self.values[name].copy_(tensor)

    def decay_at(self, step: int) -> float:
        """The decay after `step`: rises from 0.1, so that the first weights are soon forgotten."""
        return min(self.decay, (1 + step) / (10 + step))

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.values)

    def state_dict(self) -> dict[str, Tensor]:
        return self.values

    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> None:
        for name, tensor in state_dict.items():
            self.values[name].copy_(tensor)


def train_ldm(
    config: LDMTrainConfig,
    sources: Sequence[PatchSource],
    features: Sequence[FeatureStore],
    autoencoder: Autoencoder,
    run: Run,
    progress: Progress | None = None,
) -> EmbeddingConditionedLDM:
    """Train to the end, or on from where the run stopped; averaged weights, in eval mode.

    Row r of `features[i]` is the embedding of row r of `sources[i]`, plain and unmirrored. With
    `flips` the target is one of its four mirror images; all four are encoded beforehand when
    they fit `cache_gib`, as mirroring a latent is not the latent of a mirrored image. On the CPU
    the weights after N steps do not depend on stops in between.

    The id of the encoder that made the embeddings is kept in the model's config.

    Raises:
        NoInputError: no patches. ConfigError: the model's sizes do not fit features or latents.
        RunError: PG-T04, features are of other patches or of several encoders, or checkpoints
            do not fit; PG-T03, the loss or a gradient is not finite.
        Stopped: asked to stop by a signal, after a checkpoint.
    """
    if run.finished:
        return load_model(run.path, EmbeddingConditionedLDM)
    encoder_id = check_alignment(sources, features)
    known = {"encoder_id": encoder_id, "autoencoder_id": weights_id(autoencoder)}
    model_config = config.model.model_copy(update=known)
    check_sizes(model_config, autoencoder, features)
    optim = config.optim
    patches = PatchDataset(list(sources))
    steps = total_steps(optim, len(patches))

    engine = Engine(config.run)
    autoencoder = autoencoder.to(engine.device).eval().requires_grad_(False)
    embeddings = torch.from_numpy(np.concatenate([s.features() for s in features])).float()
    model = EmbeddingConditionedLDM(model_config).to(engine.device)
    average = Average(model, config.ema)
    optimizer = Optimizer(
        model, engine, weight_decay=optim.weight_decay, betas=optim.betas,
        clip_norm=optim.clip_norm, clip="global",
    )  # fmt: skip
    parts: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer}

    progress = progress or Silent()
    with lock(run.path), StopRequest() as stop:
        start = done = run.restore(**parts)
        loader = latent_loader(config, sources, autoencoder, engine, start, steps, progress)
        with progress.task(run.provenance.stage, steps, start) as task:
            for step, (latents, rows) in enumerate(stop.batches(loader), start):
                engine.at_step(step)
                with engine.autocast():
                    loss = model.loss(latents, embeddings[rows].to(engine.device))
                value = engine.finite(loss, step, run)
                optimizer.set(lr=learning_rate(optim, step, steps))
                norm = optimizer.step(loss)
                average.follow(model, step)

                done = step + 1
                if step % config.run.log_every == 0 or done == steps:
                    run.log(
                        step, loss=value, gradient_norm=norm,
                        lr=learning_rate(optim, step, steps), ema=average.decay_at(step),
                    )  # fmt: skip
                task.advance(note=f"loss {value:.3f}")
                checkpoint(run, done, steps, stop, config.run.save_every, **parts)
        if done < steps:  # asked to stop while waiting for a batch
            checkpoint(run, done, steps, stop, config.run.save_every, **parts)
        average.copy_to(model)
        model.eval()
        images_seen = steps * optim.batch_size
        run.finish(model, run.loss_summary() | {"steps": steps, "images_seen": images_seen})
    return model


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


def latent_loader(
    config: LDMTrainConfig,
    sources: Sequence[PatchSource],
    autoencoder: Autoencoder,
    engine: Engine,
    start: int,
    steps: int,
    progress: Progress,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of latents (B, C, h, w) on the device and patch numbers (B,), from step `start` on.

    Which patches and mirrorings a step has depends on (seed, step) only, and is the same whether
    or not latents are kept in memory.
    """
    patches = PatchDataset(list(sources))
    size, batch_size = autoencoder.config.image_size, config.optim.batch_size
    mirrors = 4 if config.flips else 1
    need = len(patches) * mirrors * int(np.prod(autoencoder.latent_shape)) * 2  # float16
    if need <= config.cache_gib * 2**30:
        cache = encode_all(patches, autoencoder, engine, mirrors, progress)
        order = Order(len(patches), batch_size, config.run.seed)
        for step in range(start, steps):
            rows = torch.from_numpy(order(step).copy())
            mirror = torch.zeros_like(rows)
            if config.flips:
                mirror = drawn_mirrors(config.run.seed, step, batch_size)
            yield cache[mirror, rows].to(engine.device).float(), rows
        return
    loader = image_loader(
        sources, size, batch_size=batch_size, seed=config.run.seed, workers=config.run.workers,
        start_step=start, steps=steps, flips=config.flips,
    )  # fmt: skip
    for images, rows in loader:
        with torch.no_grad(), engine.autocast():
            latents = autoencoder.encode(images.to(engine.device, non_blocking=True))
        yield latents.float(), rows


@torch.no_grad()
def encode_all(
    patches: PatchDataset,
    autoencoder: Autoencoder,
    engine: Engine,
    mirrors: int,
    progress: Progress,
) -> Tensor:
    """Latents of all patches, float16 (mirrors, n, C, h, w) in main memory.

    Encoded in a fixed order and in batches of a fixed size: equal bits after every resume.
    """
    count, size = len(patches), autoencoder.config.image_size
    cache = torch.empty((mirrors, count, *autoencoder.latent_shape), dtype=torch.float16)
    with progress.task("latents", count) as task:
        for first in range(0, count, ENCODED):
            rows = list(range(first, min(first + ENCODED, count)))
            images = load_images(patches, rows, size).to(engine.device)
            for mirror in range(mirrors):
                with engine.autocast():
                    latents = autoencoder.encode(mirrored(images, mirror))
                cache[mirror, first : first + len(rows)] = latents.half().cpu()
            task.advance(len(rows))
    return cache


def mirrored(images: Tensor, mirror: int) -> Tensor:
    """(..., H, W) as it is (0), left-right (1), upside down (2) or both (3)."""
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if mirror & bit]
    return images.flip(axes) if axes else images


def drawn_mirrors(seed: int, step: int, count: int) -> Tensor:
    """How `image_loader` mirrors the images of a step, as numbers for `mirrored`: (count,)."""
    flags = generator(seed, FLIPS, step).random((count, 2)) < 0.5
    return torch.from_numpy(flags @ np.array([1, 2]))


def _average_of(tensor: Tensor) -> Any:
    return tensor.detach().float().clone() if tensor.is_floating_point() else tensor.clone()
