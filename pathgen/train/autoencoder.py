"""The autoencoder's training: the only thing the diffusion model takes over from pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pathgen.commit import lock
from pathgen.config import Config
from pathgen.data.loading import center_square, image_loader
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.errors import NoInputError
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig, psnr
from pathgen.progress import Progress, Silent
from pathgen.runs import Run, RunConfig, load_model
from pathgen.train.engine import Engine, StopRequest, checkpoint
from pathgen.train.optimize import Optimizer, cosine, total_steps
from pathgen.train.sheets import Picture, to_pixels, write_sheet

#: Images that the latent scale and the final PSNR are measured on, evenly spaced over all.
MEASURED = 1024
SHEET = 12


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
    run: RunConfig = Field(default_factory=RunConfig)


def train_autoencoder(
    config: AutoencoderTrainConfig,
    sources: Sequence[PatchSource],
    run: Run,
    progress: Progress | None = None,
) -> Autoencoder:
    """Train to the end, or on from where the run stopped; in eval mode, latent scale measured.

    Leaves `reconstructions.png` in the run folder: real patches over their reconstructions.
    On the CPU the weights after N steps do not depend on stops in between.

    Raises:
        NoInputError: no patches. ConfigError: pretrained weights cannot be loaded.
        RunError: PG-T03, the loss or a gradient is not finite; PG-T04, checkpoints do not fit.
        Stopped: asked to stop by a signal, after a checkpoint.
    """
    if run.finished:
        return load_model(run.path, Autoencoder)
    patches = PatchDataset(list(sources))
    if not len(patches):
        raise NoInputError("no patches to train on", hint="run `pathgen tile` first")
    engine = Engine(config.run)
    model = Autoencoder(config.model).to(engine.device)
    with lock(run.path):
        steps = 0
        if config.model.pretrained is None:
            steps = total_steps(config.optim, len(patches))
            _train(config, sources, model, engine, run, steps, progress or Silent())
        model.eval()
        size = model.config.image_size
        model.measure(x.to(engine.device) for x in _some(patches, size, MEASURED))
        quality = _quality(model, patches, engine)
        write_sheet(run.path / "reconstructions.png", _sheet(model, patches, engine))
        run.finish(model, quality | run.loss_summary() | {"steps": steps})
    return model


def _train(
    config: AutoencoderTrainConfig,
    sources: Sequence[PatchSource],
    model: Autoencoder,
    engine: Engine,
    run: Run,
    steps: int,
    progress: Progress,
) -> None:
    optim = config.optim
    optimizer = Optimizer(
        model, engine, weight_decay=optim.weight_decay, betas=optim.betas,
        clip_norm=optim.clip_norm, clip="global",
    )  # fmt: skip
    parts: dict[str, Any] = {"model": model.train(), "optimizer": optimizer}
    with StopRequest() as stop:
        start = done = run.restore(**parts)
        loader = image_loader(
            sources, config.model.image_size, batch_size=optim.batch_size, seed=config.run.seed,
            workers=config.run.workers, start_step=start, steps=steps, flips=config.flips,
        )  # fmt: skip
        with progress.task(run.provenance.stage, steps, start) as task:
            for step, (images, _) in enumerate(stop.batches(loader), start):
                images = images.to(engine.device, non_blocking=True)
                engine.at_step(step)
                with engine.autocast():
                    loss, reconstructions = model.loss(images)
                value = engine.finite(loss, step, run)
                optimizer.set(lr=learning_rate(optim, step, steps))
                norm = optimizer.step(loss)

                done = step + 1
                if step % config.run.log_every == 0 or done == steps:
                    quality = float(psnr(images, reconstructions.detach().float()).mean())
                    run.log(
                        step, loss=value, psnr=quality, gradient_norm=norm,
                        lr=learning_rate(optim, step, steps),
                    )  # fmt: skip
                task.advance(note=f"loss {value:.3f}")
                checkpoint(run, done, steps, stop, config.run.save_every, **parts)
        if done < steps:  # asked to stop while waiting for a batch
            checkpoint(run, done, steps, stop, config.run.save_every, **parts)


def load_images(patches: PatchDataset, indices: Sequence[int], size: int) -> Tensor:
    """Patches by number, as `image_loader` shows them: (n, 3, size, size) in [0, 1]."""
    squares = [center_square(image, size) for image in patches.images(indices)]
    return torch.stack(squares).float().div_(255)


def _some(patches: PatchDataset, size: int, count: int, batch: int = 32) -> Iterator[Tensor]:
    """Batches of up to `count` images, evenly spaced over all patches."""
    count = min(count, len(patches))
    indices = np.linspace(0, len(patches) - 1, count).astype(int).tolist()
    for first in range(0, count, batch):
        yield load_images(patches, indices[first : first + batch], size)


@torch.no_grad()
def _quality(model: Autoencoder, patches: PatchDataset, engine: Engine) -> dict[str, float]:
    """Of the training images: PSNR in dB, and the spread of the scaled latents (near 1)."""
    quality, latents = [], []
    for batch in _some(patches, model.config.image_size, MEASURED // 4):
        images = batch.to(engine.device)
        scaled = model.encode(images)
        quality.append(psnr(images, model.decode(scaled)))
        latents.append(scaled)
    return {"psnr": float(torch.cat(quality).mean()), "latent_std": float(torch.cat(latents).std())}


@torch.no_grad()
def _sheet(model: Autoencoder, patches: PatchDataset, engine: Engine) -> list[list[Picture]]:
    """Real patches in the first row, their reconstructions in the second."""
    images = next(_some(patches, model.config.image_size, SHEET)).to(engine.device)
    rows = {"real": images, "reconstructed": model.decode(model.encode(images))}
    return [[Picture(name, pixels) for pixels in to_pixels(row)] for name, row in rows.items()]
