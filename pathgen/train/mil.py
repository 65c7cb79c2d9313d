"""A slide head on frozen features: one training, and what the head says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from pathgen.config import build
from pathgen.data.bags import Bags
from pathgen.data.vectors import moments_of
from pathgen.errors import DataError, RunError
from pathgen.models.mil import MILConfig, MILHead, build_head
from pathgen.models.mil.links import Centered
from pathgen.models.mil.targets import Criterion, criterion, outputs_of
from pathgen.models.precision import autocast
from pathgen.progress import Progress, Silent
from pathgen.train.engine import choose_precision, find_device
from pathgen.train.milanswers import BagPrediction, answer, predict, prediction, wants_places
from pathgen.train.milbatches import (
    Ahead,
    Batch,
    Draw,
    answering_plan,
    batches,
    pieces,
    training_plan,
    truth_of,
    worth_a_thread,
)
from pathgen.train.milconfig import MILTrainConfig
from pathgen.train.milmonitor import check_monitor, score

__all__ = ["BagPrediction", "Epoch", "MILTrainConfig", "fit_mil", "predict"]


class Epoch(NamedTuple):
    """One line of a training's history; without a validation part `valid_loss` is None."""

    epoch: int
    loss: float
    valid_loss: float | None
    score: float | None = None
    """what `monitor` watches, larger is better; None where that is the loss"""
    seconds: float = 0.0
    waited: float = 0.0
    """of these, for bags"""

    @property
    def rank(self) -> tuple[float, float]:
        """Of two epochs the better one's is larger."""
        loss = -(self.loss if self.valid_loss is None else self.valid_loss)
        return (loss if self.score is None else self.score, loss)


def fit_mil(
    config: MILTrainConfig,
    train: Bags,
    valid: Bags,
    progress: Progress | None = None,
    *,
    on_epoch: Callable[[Epoch], None] | None = None,
    title: str = "MIL head",
) -> tuple[MILHead, list[Epoch]]:
    """The head that was best on the validation bags, and every epoch's losses.

    With an empty `valid` the head of the last epoch is returned. The same bags, config and seed
    give the same weights on one machine; the caller's random state is left as it was.

    Returns:
        The head, on the CPU in eval mode, and the history.

    Raises:
        DataError: PG-N07, there is nothing to learn in `train`: one class, one value, no event,
            or a bag without patches; or `valid` does not define what is monitored.
        RunError: PG-T03, the loss is not finite.
        ConfigError: PG-C05, no such device or precision; PG-C01, `config` does not fit the target.
    """
    config = build(MILTrainConfig, config.model_dump() | {"target": train.target})
    _check(train)
    device, progress = find_device(config.device), progress or Silent()
    if len(valid):
        check_monitor(config.monitor, valid)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), progress.task(title, config.epochs) as task:
        torch.manual_seed(config.seed)
        fit = _Fit(config, train, device)
        history: list[Epoch] = []
        best: Epoch | None = None
        best_state = fit.state()
        for number in range(config.epochs):
            since, waited = time.perf_counter(), fit.waited
            loss = fit.epoch(number)
            valid_loss, found = fit.judge(valid) if len(valid) else (None, None)
            seconds, waited = time.perf_counter() - since, fit.waited - waited
            last = Epoch(number, loss, valid_loss, found, seconds, waited)
            history.append(last)
            if on_epoch:
                on_epoch(last)
            task.advance(note=f"loss {loss:.3f}")
            # Without a validation part the last epoch is the one to keep.
            if best is None or valid_loss is None or last.rank > best.rank:
                best, best_state = last, fit.state()
            if number - best.epoch >= config.patience:
                task.advance(config.epochs - number - 1, note=f"stopped after epoch {number + 1}")
                break
        fit.head.load_state_dict(best_state)
        fit.settle()
    return fit.head.cpu().eval(), history


class _Fit:
    """One training under way."""

    def __init__(self, config: MILTrainConfig, train: Bags, device: torch.device) -> None:
        self.config, self.train, self.device = config, train, device
        self.waited = 0.0
        self.draw = Draw(config.max_instances, config.instance_dropout)
        self.precision = choose_precision(config.precision, device)
        self.truth = truth_of(train)
        weight = _class_weights(config, train)
        self.head = _new_head(config, train)
        self.head.expect(self.truth, weight)
        self.head.to(device)
        self.measure: Criterion = criterion(
            config.target, weight=None if weight is None else weight.to(device)
        )
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
        self.optimizer = kind(
            self.head.parameters(), lr=config.lr, weight_decay=config.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

    def state(self) -> dict[str, Any]:
        """A copy of the weights."""
        return {name: value.detach().clone() for name, value in self.head.state_dict().items()}

    def epoch(self, number: int) -> float:
        """Every bag once, in an order and with patches that depend on seed and epoch alone."""
        config, train = self.config, self.train
        rng = np.random.default_rng([config.seed, number])
        sizes = self.draw.kept(train.sizes)
        whole = train.events is not None  # Cox's loss compares all bags of a batch
        steps = training_plan(sizes, config.bags_a_step(len(train)), rng, train.events)
        parts = [[rows] if whole else pieces(rows, sizes, self.device) for rows in steps]
        plan = [piece for part in parts for piece in part]
        groups = [
            [piece for part in parts[i : i + config.accumulate] for piece in part]
            for i in range(0, len(parts), config.accumulate)
        ]
        made = batches(
            train, plan, self.draw, rng, places=wants_places(self.head),
            pinned=self.device.type == "cuda",
        )  # fmt: skip
        self.head.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with Ahead(made, worth_a_thread(train, plan)) as ahead:
            coming = iter(ahead)
            for group in groups:
                bags = sum(map(len, group))
                for _ in group:
                    total += self._gradient(next(coming), bags)
                self._step()
        self.waited += ahead.waited
        loss = float(total) / len(train)
        _require_finite(loss, f"the loss is not finite in epoch {number}")
        return loss

    def _gradient(self, batch: Batch, bags: int) -> torch.Tensor:
        """Add a batch's part of the gradient of a step of so many bags; its summed loss."""
        rows = torch.from_numpy(batch.rows)
        _, vectors, mask, coords = batch.to(self.device)
        truth = self.truth.select(rows).to(self.device)
        with autocast(self.precision, self.device):
            losses = self.head.losses(vectors, mask, truth, self.measure, coords)
        loss = losses.sum()
        torch.autograd.backward(self.scaler.scale(loss / bags))
        return loss.detach().double()

    def _step(self) -> None:
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def settle(self) -> None:
        """Count risks from the mean of the training bags: Cox's loss leaves their zero open."""
        if isinstance(self.head.link, Centered):
            risks = predict(self.head, self.train, precision=self.precision).logits
            self.head.link.center += float(risks.mean())

    @torch.no_grad()
    def judge(self, valid: Bags) -> tuple[float, float | None]:
        """Mean loss of whole bags, of survival over all of them at once; and what is watched."""
        self.head.eval()
        logits = np.zeros((len(valid), self.head.config.outputs))
        plan = answering_plan(valid.sizes)
        made = batches(valid, plan, places=wants_places(self.head))
        with Ahead(made, worth_a_thread(valid, plan)) as ahead:
            answer(self.head, ahead, self.precision, logits, None)
        self.waited += ahead.waited
        truth = truth_of(valid).to(self.device)
        losses = self.measure(torch.from_numpy(logits).float().to(self.device), truth)
        loss = float(losses.double().mean())
        # No epoch is better than nan: the first would be kept.
        _require_finite(loss, "the validation loss is not finite")
        if self.config.monitor == "loss":
            return loss, None
        said = prediction(self.head, logits, [])
        return loss, score(
            self.config.monitor, valid, said.probabilities, said.chosen, logits[:, 0]
        )


def _require_finite(loss: float, what: str) -> None:
    if not np.isfinite(loss):
        raise RunError(
            what, code="PG-T03",
            hint="lower lr, look for extreme values in the features, or use precision=fp32",
        )  # fmt: skip


# --- before the first epoch ----------------------------------------------------------------


def _check(train: Bags) -> None:
    if train.target in ("classes", "ordinal") and len(np.unique(train.labels)) < 2:
        raise DataError(
            "training needs two classes", code="PG-N07",
            why=f"{len(train)} bags of {len(np.unique(train.labels))} class",
        )  # fmt: skip
    if train.target == "regression" and len(np.unique(train.values)) < 2:  # type: ignore[arg-type]
        raise DataError("training needs two values", code="PG-N07", why=f"{len(train)} bags")
    if train.target == "survival" and (train.events is None or not train.events.any()):
        raise DataError(
            "training needs an event", code="PG-N07",
            why=f"in none of {len(train)} bags it was seen",
        )  # fmt: skip
    empty = np.flatnonzero(train.sizes == 0)
    if len(empty):
        raise DataError("bag without patches", code="PG-N07", where=train.names[int(empty[0])])


def _new_head(config: MILTrainConfig, train: Bags) -> MILHead:
    head = build_head(
        MILConfig(
            **config.model.model_dump(), dim=train.dim, target=train.target,
            outputs=outputs_of(train.target, len(train.classes)),
        )
    )  # fmt: skip
    if config.standardize:
        head.standardize(*_center_and_scale(train))
    return head


def _center_and_scale(train: Bags) -> tuple[torch.Tensor, torch.Tensor]:
    """(dim,) of the training vectors, each bag counting the same."""
    parts = list(moments_of(train.features))
    means = np.stack([part.mean for part in parts])
    center = means.mean(0)
    spread = np.mean([part.variance for part in parts], axis=0) + ((means - center) ** 2).mean(0)
    # A dimension that never varies is only centered.
    scale = np.where(spread > 1e-12, np.sqrt(spread), 1.0)
    return torch.from_numpy(center).float(), torch.from_numpy(scale).float()


def _class_weights(config: MILTrainConfig, train: Bags) -> torch.Tensor | None:
    """(classes,) with mean 1 over the bags; a class without bags has weight 0."""
    if not train.classes or config.class_weights == "none":
        return None
    counts = np.bincount(train.labels, minlength=len(train.classes))
    weights = np.where(counts > 0, len(train) / ((counts > 0).sum() * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))
