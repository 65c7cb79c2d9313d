"""DINO's linear evaluation (arXiv 2104.14294): one layer on frozen features of augmented images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pathgen import parallel
from pathgen.config import Config
from pathgen.data import loading
from pathgen.data.augmentation import crop, draw_boxes, turn
from pathgen.data.loading import Order, Steps, steps_per_epoch, stream
from pathgen.data.patches import PatchDataset, as_tensor
from pathgen.data.sources import PatchSource
from pathgen.errors import DataError
from pathgen.models.encoder import Encoder, resize
from pathgen.models.probe import LinearHead, LinearHeadConfig
from pathgen.parallel import Share
from pathgen.progress import Progress
from pathgen.runs import Run, RunConfig, load_model
from pathgen.train.engine import Engine
from pathgen.train.loop import Objective, Stage, Terms, train
from pathgen.train.optimize import Optimizer, cosine, total_steps

#: Uniform numbers that one image takes: its box and its flip.
_DRAWN = 2 * 10 + 2 + 1


class ProbeOptim(Config):
    """SGD without weight decay; the rate falls along half a cosine, by whole epochs."""

    epochs: float = Field(default=100, gt=0)
    steps: int | None = Field(default=None, ge=1)
    """when given, it counts instead of `epochs`"""
    batch_size: int = Field(default=1024, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    """for a batch of 256; scaled by batch_size / 256"""
    momentum: float = Field(default=0.9, ge=0, lt=1)


class ProbeConfig(Config):
    """The published protocol of ViT-S/16: 1,536 numbers, the class tokens of four blocks."""

    blocks: int = Field(default=4, ge=1)
    """how many of the last blocks give their class tokens"""
    image_size: int = Field(default=224, ge=8)
    resize: int = Field(default=256, ge=8)
    """shorter side of the images that are judged, before the central `image_size` is taken"""
    scale: tuple[float, float] = (0.08, 1.0)
    """area of a random crop in training, as a share of the image"""
    optim: ProbeOptim = Field(default_factory=ProbeOptim)
    judge_every: int = Field(default=1, ge=1)
    """epochs between two looks at the images that are judged"""
    run: RunConfig = Field(default_factory=RunConfig)

    @model_validator(mode="after")
    def _center_fits(self) -> ProbeConfig:
        if self.resize < self.image_size:
            raise ValueError("resize must not be less than image_size, which is cut out of it")
        return self


class LabelledBatch(NamedTuple):
    """Images float32 (B, 3, S, S) in [0, 1], and their classes int64 (B,)."""

    images: Tensor
    labels: Tensor


class History:
    """Accuracy by epoch; it is part of the checkpoints, so that the best epoch survives a stop."""

    def __init__(self) -> None:
        self.accuracy: dict[int, float] = {}

    def state_dict(self) -> Mapping[str, Any]:
        return {"epochs": list(self.accuracy), "accuracy": list(self.accuracy.values())}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        pairs = zip(state_dict["epochs"], state_dict["accuracy"], strict=True)
        self.accuracy = {int(epoch): float(value) for epoch, value in pairs}


def train_probe(
    config: ProbeConfig,
    encoder: Encoder,
    learn: Sequence[PatchSource],
    judge: Sequence[PatchSource],
    run: Run,
    progress: Progress | None = None,
) -> LinearHead:
    """Train a head on `learn` to the end, or on from where the run stopped; judged on `judge`.

    The run's metrics hold `accuracy_last` and `accuracy_best` (of the epochs that were judged).
    The best epoch is chosen on the images it is judged on, and so is optimistic; it is kept
    since published figures are that one.

    Raises:
        NoInputError: no images. DataError: PG-D07, images without a class, or classes in
        `judge` that `learn` lacks. ConfigError: PG-C04, the encoder has no such class tokens.
        RunError, Stopped: see `pathgen.train.loop.train`.
    """
    if run.finished:
        return load_model(run.path, LinearHead)
    stage = _Probe(config, encoder, loading.numbered(learn), loading.numbered(judge))
    with run.hold():
        train(stage, run, progress)
        seen = stage.history.accuracy
        last = max(seen)
        metrics = {
            "accuracy_last": seen[last], "accuracy_best": max(seen.values()),
            "epoch_best": max(seen, key=lambda epoch: seen[epoch]), "epochs_judged": len(seen),
            "n_train": len(stage.learn), "n_test": len(stage.judge), "steps": stage.steps,
        }  # fmt: skip
        run.finish(stage.head, metrics | run.loss_summary())
    return stage.head.eval()


class _Probe(Stage[LabelledBatch]):
    def __init__(
        self, config: ProbeConfig, encoder: Encoder, learn: PatchDataset, judge: PatchDataset
    ) -> None:
        self.config, self.learn, self.judge = config, learn, judge
        self.engine = Engine(config.run)
        self.encoder = encoder.to(self.engine.device).eval().requires_grad_(False)
        side = config.image_size
        encoder.class_tokens(
            torch.zeros(1, 3, side, side, device=self.engine.device), config.blocks
        )
        self.truth = _truth(learn, judge)
        self.batch_size = config.optim.batch_size
        self.epoch = steps_per_epoch(len(learn), self.batch_size)
        self.steps = total_steps(config.optim, len(learn))
        self.head = LinearHead(
            LinearHeadConfig(
                dim=encoder.dim * config.blocks,
                classes=learn.classes,
                blocks=config.blocks,
                encoder_id=encoder.id,
            )
        ).to(self.engine.device)
        self.optimizer = Optimizer(
            self.head, self.engine, rule="sgd", momentum=config.optim.momentum
        )
        self.history = History()
        self.parts = {"head": self.head, "optimizer": self.optimizer, "history": self.history}

    @property
    def objectives(self) -> Sequence[Objective[LabelledBatch]]:
        return [Objective(self.optimizer, self.terms)]

    def batches(self, start: int, share: Share) -> Iterator[LabelledBatch]:
        made = _Crops(self.learn, self.config, share.rows)
        device = self.engine.device
        for batch in stream(
            made, workers=self.config.run.workers, start_step=start, steps=self.steps,
            pin_memory=device.type == "cuda",
        ):  # fmt: skip
            images = batch.images.to(device, non_blocking=True).float() / 255
            yield LabelledBatch(images, batch.labels.to(device, non_blocking=True))

    def schedule(self, step: int) -> dict[str, float]:
        optim, whole = self.config.optim, self.epoch
        epochs = -(-self.steps // whole)
        lr = cosine(optim.lr * optim.batch_size / 256, 0.0, step // whole, epochs)
        self.optimizer.set(lr=lr)
        return {"lr": lr}

    def terms(self, batch: LabelledBatch, step: int, share: Share) -> Terms:
        with torch.no_grad():
            features = self.encoder.class_tokens(batch.images, self.config.blocks)
        return {"loss": F.cross_entropy(self.head(features).float(), batch.labels)}

    def after(self, step: int) -> None:
        epoch, place = divmod(step, self.epoch)
        epoch, is_over = epoch + 1, place + 1 == self.epoch
        if step + 1 == self.steps or (is_over and epoch % self.config.judge_every == 0):
            self.history.accuracy[epoch] = self._accuracy()

    @torch.no_grad()
    def _accuracy(self) -> float:
        """Share of the judged images whose class is found."""
        made = _Centers(self.judge, self.truth, self.config)
        device = self.engine.device
        right = torch.zeros((), device=device)
        for batch in stream(
            made, workers=self.config.run.workers, start_step=0, steps=made.steps,
            pin_memory=device.type == "cuda",
        ):  # fmt: skip
            images = batch.images.to(device, non_blocking=True).float() / 255
            with self.engine.autocast():
                logits = self.head(self.encoder.class_tokens(images, self.config.blocks))
            right += (logits.argmax(1) == batch.labels.to(device, non_blocking=True)).sum()
        return float(parallel.mean(right)) * parallel.count() / len(self.judge)


class _Centers(Steps[LabelledBatch]):
    """This process's part of the images that are judged: resized, then the middle, uint8."""

    def __init__(self, patches: PatchDataset, truth: Any, config: ProbeConfig) -> None:
        self.patches, self.truth, self.config = patches, truth, config
        self.rows = np.arange(parallel.rank(), len(patches), parallel.count())
        self.size = max(1, min(config.optim.batch_size, 256))
        self.steps = -(-len(self.rows) // self.size)

    def batch(self, step: int) -> LabelledBatch:
        rows = self.rows[step * self.size : (step + 1) * self.size]
        images = torch.cat([self._middle(as_tensor(i)) for i in self.patches.images(rows)])
        return LabelledBatch(images, torch.from_numpy(self.truth[rows].copy()))

    def _middle(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (1, 3, S, S): shorter side resized, then the center."""
        side, middle = self.config.resize, self.config.image_size
        large = resize(image[None].float() / 255, side)
        start = (side - middle) // 2
        part = large[..., start : start + middle, start : start + middle]
        return (part * 255).round().to(torch.uint8)


class _Crops(Steps[LabelledBatch]):
    """Random resized crops, mirrored at random; images stay uint8 until they are on the device."""

    def __init__(self, patches: PatchDataset, config: ProbeConfig, rows: slice) -> None:
        self.patches, self.config, self.rows = patches, config, rows
        self.labels = patches.labels
        self.order = Order(len(patches), config.optim.batch_size, config.run.seed)

    def batch(self, step: int) -> LabelledBatch:
        items = self.order(step)
        chance = loading.generator(self.config.run.seed, loading.VIEWS, step)
        uniform = chance.random((len(items), _DRAWN))[self.rows]
        items, size = items[self.rows], self.config.image_size
        images = self.patches.images(items)
        sides = np.array([image.shape[:2] for image in images], np.int64)
        boxes = draw_boxes(uniform[:, :-1], sides[:, 0], sides[:, 1], self.config.scale)
        crops = torch.stack(
            [
                crop(as_tensor(image), top, left, height, width, size)
                for image, top, left, height, width in zip(
                    images, *(side.tolist() for side in boxes), strict=True
                )
            ]
        )
        mirrored = torch.from_numpy(uniform[:, -1] < 0.5)
        still = torch.zeros(len(items))
        crops = turn(crops, mirrored, still.bool(), still)
        return LabelledBatch(crops, torch.from_numpy(self.labels[items].copy()))


def _truth(learn: PatchDataset, judge: PatchDataset) -> Any:
    """Classes of the judged images as `learn` numbers them. Raises DataError PG-D07."""
    unknown = sorted(set(judge.classes) - set(learn.classes))
    lacking = int((learn.labels < 0).sum() + (judge.labels < 0).sum())
    if unknown or lacking or len(learn.classes) < 2:
        raise DataError(
            "images cannot be classified", code="PG-D07",
            why=f"classes not learned: {', '.join(unknown[:3]) or 'none'}; images without a "
            f"class: {lacking}; classes to learn: {len(learn.classes)}",
            hint="give image folders with one sub-folder a class, the same in both",
        )  # fmt: skip
    table = np.array([learn.classes.index(name) for name in judge.classes], np.int64)
    return table[judge.labels]
