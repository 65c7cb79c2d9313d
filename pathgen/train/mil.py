"""A slide classifier on frozen features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pathgen.config import Config
from pathgen.data.bags import Bags
from pathgen.errors import DataError, RunError
from pathgen.models.mil import MILConfig, MILHead, PoolingConfig
from pathgen.progress import Progress, Silent
from pathgen.train.engine import find_device


class MILTrainConfig(Config):
    """How a head is trained, and how a cross-validation divides its slides.

    `device` changes nothing that is written; `fit_mil` reads neither `folds` nor `valid_share`.
    """

    model: PoolingConfig = Field(default_factory=PoolingConfig)
    lr: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    epochs: int = Field(default=100, ge=1)
    patience: int = Field(default=20, ge=1)
    """epochs without a lower validation loss before stopping"""
    batch_size: int = Field(default=1, ge=1)
    """bags a step, padded to the longest"""
    max_instances: int = Field(default=4096, ge=1)
    """patches drawn from a bag in each training step, when it has more; all are used otherwise"""
    instance_dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of a bag's patches left out of a training step"""
    class_weights: Literal["none", "balanced"] = "balanced"
    """balanced: each class counts the same in the loss, however rare"""
    standardize: bool = True
    """to mean 0 and deviation 1 over the training slides, each slide counting the same"""
    folds: int = Field(default=5, ge=2)
    valid_share: float = Field(default=0.2, ge=0, lt=1)
    """of the slides that do not test; 0 trains for all epochs"""
    seed: int = Field(default=0, ge=0)
    device: str = "auto"


class Epoch(NamedTuple):
    """One line of a training's history; `valid_loss` is None without a validation part."""

    epoch: int
    loss: float
    valid_loss: float | None


class BagPrediction(NamedTuple):
    """What a head says of N bags."""

    probabilities: NDArray[np.float64]  # (N, classes)
    attention: list[NDArray[np.float32]]  # (n,) per bag, sums to one


def fit_mil(
    config: MILTrainConfig,
    train: Bags,
    valid: Bags,
    progress: Progress | None = None,
    *,
    on_epoch: Callable[[Epoch], None] | None = None,
    title: str = "MIL head",
) -> tuple[MILHead, list[Epoch]]:
    """The head with the lowest validation loss, and every epoch's losses.

    With an empty `valid` the head of the last epoch is returned. The same bags, config and seed
    give the same weights on one machine; the caller's random state is left as it was.

    Returns:
        The head, on the CPU in eval mode, and the history.

    Raises:
        DataError: PG-N07, `train` has fewer than two classes or a bag without patches.
        RunError: PG-T03, the loss is not finite.
        ConfigError: PG-C05, no such device.
    """
    _check(train)
    device, progress = find_device(config.device), progress or Silent()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), progress.task(title, config.epochs) as task:
        torch.manual_seed(config.seed)
        head = _new_head(config, train).to(device)
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        weight = _class_weights(config, train).to(device)
        history: list[Epoch] = []
        best, best_state = float("inf"), _copy(head)
        since_best = 0
        for epoch in range(config.epochs):
            loss = _one_epoch(config, head, optimizer, weight, train, epoch)
            valid_loss = _loss(head, valid, weight) if len(valid) else None
            history.append(Epoch(epoch, loss, valid_loss))
            if on_epoch:
                on_epoch(history[-1])
            task.advance(note=f"loss {loss:.3f}")
            # Without a validation part the last epoch is the one to keep.
            better = valid_loss is None or valid_loss < best
            since_best = 0 if better else since_best + 1
            if better:
                best, best_state = valid_loss if valid_loss is not None else best, _copy(head)
            if since_best >= config.patience:
                task.advance(config.epochs - epoch - 1, note=f"stopped after epoch {epoch + 1}")
                break
        head.load_state_dict(best_state)
    return head.cpu().eval(), history


@torch.no_grad()
def predict(head: MILHead, bags: Bags) -> BagPrediction:
    """Probabilities and attention of every bag, all of its patches used, one bag at a time."""
    head.eval()
    device = head.center.device
    probabilities = np.zeros((len(bags), head.config.classes))
    attention = []
    for i, vectors in enumerate(bags.features):
        output = head(*_padded([torch.from_numpy(np.asarray(vectors, np.float32))], device))
        probabilities[i] = output.logits[0].cpu().double().softmax(-1).cpu().numpy()
        attention.append(output.attention[0].cpu().numpy())
    return BagPrediction(probabilities, attention)


# --- one epoch -----------------------------------------------------------------------------


def _one_epoch(
    config: MILTrainConfig,
    head: MILHead,
    optimizer: torch.optim.Optimizer,
    weight: Tensor,
    train: Bags,
    epoch: int,
) -> float:
    head.train()
    total = 0.0
    for bags, mask, labels in _batches(config, train, epoch, weight.device):
        loss = functional.cross_entropy(head(bags, mask).logits, labels, weight, reduction="sum")
        if not torch.isfinite(loss):
            raise RunError(
                f"the loss is not finite in epoch {epoch}", code="PG-T03",
                hint="lower lr, or look for extreme values in the features",
            )  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss / len(labels))
        optimizer.step()
        total += loss.item()
    return total / len(train)


def _batches(
    config: MILTrainConfig, bags: Bags, epoch: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every bag once, in an order and with patches that depend on seed and epoch alone."""
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(len(bags))
    for first in range(0, len(order), config.batch_size):
        rows = order[first : first + config.batch_size]
        drawn = [torch.from_numpy(_draw(bags.features[i], config, rng)) for i in rows]
        yield *_padded(drawn, device), torch.from_numpy(bags.labels[rows]).to(device)


def _draw(
    vectors: NDArray[np.float32], config: MILTrainConfig, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The patches of a bag that one step sees: at least one of them."""
    kept = max(1, round(len(vectors) * (1 - config.instance_dropout)))
    kept = min(kept, config.max_instances)
    vectors = np.ascontiguousarray(vectors, np.float32)
    if kept >= len(vectors):
        return vectors
    return vectors[np.sort(rng.choice(len(vectors), kept, replace=False))]


def _padded(bags: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, n, dim) with zeros, and (B, n) true where there is a patch."""
    lengths = torch.tensor([len(bag) for bag in bags])
    padded = nn.utils.rnn.pad_sequence(bags, batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths.unsqueeze(1)
    return padded.to(device), mask.to(device)


@torch.no_grad()
def _loss(head: MILHead, bags: Bags, weight: Tensor) -> float:
    """Mean weighted cross-entropy of whole bags."""
    truth = bags.labels
    chosen = predict(head, bags).probabilities[np.arange(len(truth)), truth]
    weights = weight.cpu().numpy()[truth]
    return float(-(weights * np.log(np.maximum(chosen, 1e-12))).mean())


# --- before the first epoch ----------------------------------------------------------------


def _check(train: Bags) -> None:
    if len(np.unique(train.labels)) < 2:
        raise DataError(
            "training needs two classes", code="PG-N07",
            why=f"{len(train)} bags of {len(np.unique(train.labels))} class",
        )  # fmt: skip
    empty = [name for name, v in zip(train.names, train.features, strict=True) if not len(v)]
    if empty:
        raise DataError("bag without patches", code="PG-N07", where=empty[0])


def _new_head(config: MILTrainConfig, train: Bags) -> MILHead:
    head = MILHead(
        MILConfig(**config.model.model_dump(), dim=train.dim, classes=len(train.classes))
    )
    if config.standardize:
        center = np.mean([bag.mean(0, dtype=np.float64) for bag in train.features], axis=0)
        spread = np.mean(
            [((bag - center) ** 2).mean(0) for bag in train.features], axis=0, dtype=np.float64
        )
        # A dimension that never varies is only centered.
        scale = np.where(spread > 1e-12, np.sqrt(spread), 1.0)
        head.standardize(
            torch.from_numpy(center.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))
        )
    return head


def _class_weights(config: MILTrainConfig, train: Bags) -> Tensor:
    """(classes,) with mean 1 over the bags; a class without bags has weight 0."""
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if config.class_weights == "none":
        return torch.ones(len(counts))
    weights = np.where(counts > 0, len(train) / ((counts > 0).sum() * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))


def _copy(head: MILHead) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in head.state_dict().items()}
