"""DINO. Given self-augmentations it is Gen-DINO; given none it is DINO to the bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pathgen.commit import lock
from pathgen.config import Config
from pathgen.data.views import Blend, ViewConfig, Views, steps_per_epoch, view_loader
from pathgen.errors import ConfigError, NoInputError
from pathgen.models.dino import DinoHeadConfig, StudentTeacher
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.losses import DinoLoss, Target, entropy
from pathgen.progress import Progress, Silent
from pathgen.runs import Run, RunConfig, Stateful, load_model, save_model
from pathgen.train.engine import Engine, StopRequest, checkpoint
from pathgen.train.optimize import (
    OptimConfig,
    Optimizer,
    cosine,
    ramp,
    total_steps,
)

if TYPE_CHECKING:
    from pathgen.data.sources import PatchSource
    from pathgen.stores.augmentations import SelfAugmentationStore


class DinoConfig(Config):
    """DINO (arXiv 2104.14294) with the addition of Gen-SIS (arXiv 2412.01672).

    The defaults are DINO's published recipe for ViT-S/16 over 100 epochs. `disentangle_weight`
    and `target` matter only when there are self-augmentations.
    """

    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    head: DinoHeadConfig = Field(default_factory=DinoHeadConfig)
    views: ViewConfig = Field(default_factory=ViewConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    teacher_momentum: float = Field(default=0.996, ge=0, le=1)
    """rises to 1 along half a cosine"""
    student_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: float = Field(default=0.04, gt=0)
    warmup_teacher_temperature: float = Field(default=0.04, gt=0)
    warmup_teacher_epochs: int = Field(default=0, ge=0)
    center_momentum: float = Field(default=0.9, ge=0, le=1)
    center_start: Literal["zero", "first_batch"] = "zero"
    """zero, as published; first_batch spares short runs the steps until the center has caught up"""
    freeze_last_layer_epochs: float = Field(default=1, ge=0)
    disentangle_weight: float = Field(default=1.0, ge=0)
    """lambda in L_DINO + lambda * L_disentangle"""
    target: Target = "geometric"
    run: RunConfig = Field(default_factory=RunConfig)


class DinoTerms(NamedTuple):
    """What one batch gave, scalars: the loss to minimize and its parts."""

    total: Tensor
    dino: Tensor
    disentangle: Tensor | None
    teacher_entropy: Tensor


def dino_loss(
    pair: StudentTeacher, loss: DinoLoss, views: Views, temperature: float, weight: float
) -> DinoTerms:
    """One batch through both networks: the whole method, and nothing about training.

    The teacher sees the ordinary global views and the blend's second source, never the blend.
    The blend's primary is the first global view of the same sample, real or synthetic.
    `loss.center` moves once, from the ordinary global views.
    """
    teacher = pair.teacher(views.global_crops)
    dino = loss(pair.student([*views.global_crops, *views.local_crops]), teacher, temperature)
    total, disentangle = dino, None
    if views.blend is not None:
        (student,) = pair.student([views.blend.image])
        (secondary,) = pair.teacher([views.blend.secondary])
        primary = teacher[0][views.blend.rows]
        disentangle = loss.disentangle(student, primary, secondary, views.blend.alpha, temperature)
        total = dino + weight * disentangle
    with torch.no_grad():
        sharpness = torch.stack([entropy(loss.target(t, temperature)) for t in teacher]).mean()
    loss.update_center(teacher)
    return DinoTerms(total, dino, disentangle, sharpness)


def train_dino(
    config: DinoConfig,
    sources: Sequence[PatchSource],
    run: Run,
    augmentations: Sequence[SelfAugmentationStore] = (),
    progress: Progress | None = None,
) -> Encoder:
    """Train to the end, or on from where the run stopped; the teacher's encoder, in eval mode.

    The untrained teacher is kept in the run's `initial/`. On the CPU the weights after N steps
    do not depend on stops in between.

    Raises:
        NoInputError: no patches. ConfigError: a view's side does not fit the encoder.
        RunError: PG-T03, the loss or a gradient is not finite; PG-T04, checkpoints do not fit.
        Stopped: asked to stop by a signal, after a checkpoint.
    """
    if run.finished:
        return load_model(run.path, Encoder)
    images = sum(len(source) for source in sources)
    if not images:
        raise NoInputError("no patches to train on", hint="run `pathgen tile` first")
    optim = config.optim
    steps, epoch = total_steps(optim, images), steps_per_epoch(images, optim.batch_size)
    warmup = warmup_steps(config, epoch, steps)
    lr = optim.lr * optim.batch_size / 256

    engine = Engine(config.run)
    pair = StudentTeacher(config.encoder, config.head).to(engine.device)
    _check_views(config.views, pair.encoder())
    loss = DinoLoss(
        config.head.prototypes,
        student_temperature=config.student_temperature,
        center_momentum=config.center_momentum,
        target=config.target,
    ).to(engine.device)
    optimizer = Optimizer(pair.trained, engine, clip_norm=optim.clip_norm)
    parts: dict[str, Stateful] = {"pair": pair, "loss": loss, "optimizer": optimizer}

    with lock(run.path), StopRequest() as stop:
        start = done = run.restore(**parts)
        if start == 0:
            save_model(run.path / "initial", pair.encoder())
        loader = view_loader(
            config.views, sources, augmentations, batch_size=optim.batch_size,
            seed=config.run.seed, workers=config.run.workers, start_step=start, steps=steps,
        )  # fmt: skip
        clock = _Clock(start)
        with (progress or Silent()).task(run.provenance.stage, steps, start) as task:
            for step, views in enumerate(stop.batches(loader), start):
                rate = cosine(lr, optim.min_lr, step, steps, warmup=warmup)
                decay = cosine(optim.weight_decay, optim.weight_decay_end, step, steps)
                momentum = cosine(config.teacher_momentum, 1.0, step, steps)
                temperature = ramp(
                    config.warmup_teacher_temperature, config.teacher_temperature,
                    step // epoch, config.warmup_teacher_epochs,
                )  # fmt: skip
                frozen = pair.last_layer if step < config.freeze_last_layer_epochs * epoch else []

                engine.at_step(step)
                if step == 0 and config.center_start == "first_batch":
                    with engine.autocast():
                        loss.start_center(pair.teacher(_to(views, engine.device).global_crops))
                with engine.autocast():
                    terms = dino_loss(
                        pair, loss, _to(views, engine.device), temperature,
                        config.disentangle_weight,
                    )  # fmt: skip
                value = engine.finite(terms.total, step, run)
                optimizer.set(lr=rate, weight_decay=decay)
                norm = optimizer.step(terms.total, frozen=frozen)
                pair.follow(momentum)

                done = step + 1
                if step % config.run.log_every == 0 or done == steps:
                    run.log(
                        step, loss=value, loss_dino=float(terms.dino.detach()),
                        **_extra(terms, views, bool(augmentations)), lr=rate, weight_decay=decay,
                        momentum=momentum,
                        teacher_entropy=float(terms.teacher_entropy), gradient_norm=norm,
                        images_per_second=clock.rate(done, optim.batch_size),
                    )  # fmt: skip
                task.advance(note=f"loss {value:.3f}")
                checkpoint(run, done, steps, stop, config.run.save_every, **parts)
        if done < steps:  # asked to stop while waiting for a batch
            checkpoint(run, done, steps, stop, config.run.save_every, **parts)
        encoder = pair.encoder().eval()
        seen = {"steps": steps, "images_seen": steps * optim.batch_size}
        run.finish(encoder, {**run.loss_summary(), **seen})
    return encoder


def warmup_steps(config: DinoConfig, epoch: int, steps: int) -> int:
    """Steps until the learning rate is up.

    Raises ConfigError (PG-C01) where warm-up or the frozen last layer would take all `steps`:
    with `steps` given, an epoch of many patches can be longer than the training.
    """
    optim = config.optim
    warmup = optim.warmup_steps
    if warmup is None:
        warmup = int(optim.warmup_epochs * epoch)
    for name, taken in (
        ("warm-up", warmup), ("frozen last layer", int(config.freeze_last_layer_epochs * epoch))
    ):  # fmt: skip
        if taken >= steps > 1:
            raise ConfigError(
                "training ends before it begins", where="optim",
                why=f"the {name} takes {taken:,} steps of {steps:,}; an epoch has {epoch:,}",
                hint="set optim.warmup_steps and freeze_last_layer_epochs, or train longer",
            )  # fmt: skip
    return warmup


class _Clock:
    """Images a second since the start or resume of a run."""

    def __init__(self, start: int) -> None:
        self.start, self.time = start, time.monotonic()

    def rate(self, done: int, batch_size: int) -> float:
        return (done - self.start) * batch_size / max(time.monotonic() - self.time, 1e-9)


def _check_views(views: ViewConfig, encoder: Encoder) -> None:
    sides = {"global_size": views.global_size}
    if views.local_crops:
        sides["local_size"] = views.local_size
    for name, side in sides.items():
        if side % encoder.patch_size:
            raise ConfigError(
                "view does not fit the encoder", where=f"views.{name}",
                why=f"{side} is not a multiple of the encoder's patch of {encoder.patch_size}",
            )  # fmt: skip


def _extra(terms: DinoTerms, views: Views, synthetic: bool) -> dict[str, float]:
    """What Gen-DINO logs besides: its second loss, and samples without a synthetic image."""
    extra = {"without_synthetic": float(views.missing)} if synthetic else {}
    if terms.disentangle is not None:
        extra["loss_disentangle"] = float(terms.disentangle.detach())
    return extra


def _to(views: Views, device: torch.device) -> Views:
    blend = views.blend
    return views._replace(
        global_crops=[crop.to(device, non_blocking=True) for crop in views.global_crops],
        local_crops=[crop.to(device, non_blocking=True) for crop in views.local_crops],
        blend=None if blend is None else Blend(*(part.to(device) for part in blend)),
    )
