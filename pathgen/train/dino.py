"""DINO. Given self-augmentations it is Gen-DINO; given none it is DINO to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pathgen import parallel
from pathgen.config import Config
from pathgen.data.views import ViewConfig, Views, steps_per_epoch, view_loader
from pathgen.errors import ConfigError, NoInputError
from pathgen.models.dino import DinoHeadConfig, StudentTeacher
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.losses import DinoLoss, Target
from pathgen.parallel import Share
from pathgen.progress import Progress
from pathgen.runs import Run, RunConfig, load_model, save_model
from pathgen.train.dinopictures import Sheet, attention_sheet, crop_sheet
from pathgen.train.distill import BlendAs, DinoTerms, dino_loss
from pathgen.train.engine import Engine
from pathgen.train.loop import Objective, Stage, Terms, train
from pathgen.train.optimize import (
    OptimConfig,
    Optimizer,
    cosine,
    ramp,
    total_steps,
)
from pathgen.train.weighting import PairWeights

if TYPE_CHECKING:
    from pathgen.data.sources import PatchSource
    from pathgen.stores.augmentations import SelfAugmentationStore


__all__ = ["DinoConfig", "DinoTerms", "check_views", "dino_loss", "train_dino", "warmup_steps"]


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
    """lambda in L_DINO + lambda * L_disentangle; at 0 no blend is read or seen"""
    target: Target = "geometric"
    """of a blend: its sources' logits mixed before centering (Gen-SIS), or their distributions
    mixed after it (mixup), for ablation"""
    blend_as: BlendAs = "disentangle"
    """the blend's target: what its sources give together (Gen-SIS), or, for ablation, the primary
    alone: one more view of it among the others"""
    quality_weight: float = Field(default=0.0, ge=0)
    """gamma of GenView's loss weights (arXiv 2403.12003), from the teacher's tokens of the two
    global views; 0: every sample counts the same"""
    run: RunConfig = Field(default_factory=RunConfig)


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
    stage = _Dino(config, sources, augmentations)
    with run.hold():
        if not run.checkpoints() and parallel.leads():
            save_model(run.path / "initial", stage.pair.encoder())
        train(stage, run, progress)
        encoder = stage.pair.encoder().eval()
        seen = {"steps": stage.steps, "images_seen": stage.steps * stage.batch_size}
        run.finish(encoder, {**run.loss_summary(), **seen})
    return encoder


class _Dino(Stage[Views]):
    """`dino_loss` with DINO's schedules, for `train`."""

    def __init__(
        self,
        config: DinoConfig,
        sources: Sequence[PatchSource],
        augmentations: Sequence[SelfAugmentationStore],
    ) -> None:
        images = sum(len(source) for source in sources)
        if not images:
            raise NoInputError("no patches to train on", hint="run `pathgen tile` first")
        self.config, self.sources, self.augmentations = config, sources, augmentations
        optim = config.optim
        self.batch_size, self.steps = optim.batch_size, total_steps(optim, images)
        self.epoch = steps_per_epoch(images, optim.batch_size)
        self.warmup = warmup_steps(config, self.epoch, self.steps)

        self.engine = Engine(config.run)
        self.pair = self.engine.place(StudentTeacher(config.encoder, config.head))
        check_views(config.views, self.pair.encoder())
        self.loss = DinoLoss(
            config.head.prototypes,
            student_temperature=config.student_temperature,
            center_momentum=config.center_momentum,
            target=config.target,
        ).to(self.engine.device)
        self.optimizer = Optimizer(self.pair.trained, self.engine, clip_norm=optim.clip_norm)
        self.parts = {"pair": self.pair, "loss": self.loss, "optimizer": self.optimizer}
        self.means: list[Tensor] = []
        self.quality = _quality(config, self.pair.encoder())
        if self.quality is not None:
            self.parts["quality"] = self.quality.to(self.engine.device)

    @property
    def objectives(self) -> Sequence[Objective[Views]]:
        return [Objective(self.optimizer, self.terms)]

    @property
    def networks(self) -> Sequence[nn.Module]:
        return self.pair.networks

    def batches(self, start: int, share: Share) -> Iterator[Views]:
        config, views = self.config, self.config.views
        if not (config.disentangle_weight or config.blend_as == "positive"):
            views = views.model_copy(update={"blend": "off"})
        loader = view_loader(
            views, self.sources, self.augmentations, batch_size=self.batch_size,
            seed=config.run.seed, workers=config.run.workers, start_step=start, steps=self.steps,
            rows=share.rows, device=self.engine.device,
        )  # fmt: skip
        return (views.to(self.engine.device) for views in loader)

    def schedule(self, step: int) -> dict[str, float]:
        config, optim, steps = self.config, self.config.optim, self.steps
        peak = optim.lr * optim.batch_size / 256
        lr = cosine(peak, optim.min_lr, step, steps, warmup=self.warmup)
        decay = cosine(optim.weight_decay, optim.weight_decay_end, step, steps)
        self.optimizer.set(lr=lr, weight_decay=decay)
        self.momentum = cosine(config.teacher_momentum, 1.0, step, steps)
        self.temperature = ramp(
            config.warmup_teacher_temperature, config.teacher_temperature,
            step // self.epoch, config.warmup_teacher_epochs,
        )  # fmt: skip
        return {"lr": lr, "weight_decay": decay, "momentum": self.momentum}

    def before(self, batch: Views, step: int) -> None:
        if step == 0 and self.config.center_start == "first_batch":
            self.loss.start_center(self.pair.teacher(batch.global_crops))
            parallel.mean(self.loss.center)
        if self.quality is not None:
            self.weights = self.quality(self.pair.encoder(), *batch.global_crops)

    def terms(self, batch: Views, step: int, share: Share) -> Terms:
        config, weights = self.config, None
        if self.quality is not None:
            first = share.first - parallel.share_of(self.batch_size).first
            weights = self.weights[first : first + share.size]
        found = dino_loss(
            self.pair, self.loss, batch, self.temperature, config.disentangle_weight,
            blend_as=config.blend_as, weights=weights,
        )  # fmt: skip
        self.means.append(found.teacher_mean)
        terms = {
            "loss": found.total, "loss_dino": found.dino, "teacher_entropy": found.teacher_entropy
        }  # fmt: skip
        if found.blend is not None:
            terms[f"loss_{config.blend_as}"] = found.blend
        return terms

    def frozen(self, step: int) -> Iterable[nn.Parameter]:
        waits = step < self.config.freeze_last_layer_epochs * self.epoch
        return self.pair.last_layer if waits else ()

    def after(self, step: int) -> None:
        self.loss.move_center(parallel.mean(torch.stack(self.means).mean(0)))
        self.means.clear()
        self.pair.follow(self.momentum)

    def pictures(self, batch: Views, step: int) -> Mapping[str, Sheet]:
        attention = attention_sheet(self.pair.encoder(), batch.global_crops[0])
        sheets = {"crops": crop_sheet(batch)}
        return sheets if attention is None else sheets | {"attention": attention}

    def part(self, batch: Views, rows: slice) -> Views:
        return batch.part(rows)

    def facts(self, batch: Views) -> dict[str, float]:
        """Samples of the global batch without a synthetic image: worth knowing of."""
        if not self.augmentations:
            return {}
        return {"without_synthetic": float(batch.missing * parallel.count())}


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


def _quality(config: DinoConfig, encoder: Encoder) -> PairWeights | None:
    """Raises ConfigError (PG-C04) for a backbone whose tokens are no grid over the view."""
    if not config.quality_weight:
        return None
    if encoder.patch_size == 1:
        raise ConfigError(
            "pairs cannot be weighted by this backbone", code="PG-C04", where=config.encoder.name,
            why="quality_weight reads the foreground off patch tokens",
            hint="use a vision transformer or set quality_weight=0",
        )  # fmt: skip
    guide = "saturation" if config.views.preset == "pathology" else "inside"
    return PairWeights(encoder.dim, config.quality_weight, guide)


def check_views(views: ViewConfig, encoder: Encoder) -> None:
    """Raise ConfigError (PG-C01) unless every view is cut into whole tokens."""
    sides = {"global_size": views.global_size}
    if views.local_crops:
        sides["local_size"] = views.local_size
    for name, side in sides.items():
        if side % encoder.patch_size:
            raise ConfigError(
                "view does not fit the encoder", where=f"views.{name}",
                why=f"{side} is not a multiple of the encoder's patch of {encoder.patch_size}",
            )  # fmt: skip
