"""Schedules, parameter groups and one safe step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from pathgen.config import Config
from pathgen.data.loading import steps_per_epoch
from pathgen.errors import RunError
from pathgen.train.engine import Engine


class OptimConfig(Config):
    """AdamW and its schedules; the defaults are DINO's for ViT-S/16 over 100 epochs."""

    epochs: float = Field(default=100, gt=0)
    steps: int | None = Field(default=None, ge=1)
    """when given, it counts instead of `epochs`"""
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=5e-4, gt=0)
    """for a batch of 256; scaled by batch_size / 256"""
    min_lr: float = Field(default=1e-6, ge=0)
    """where the cosine ends, not scaled"""
    warmup_epochs: float = Field(default=10, ge=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    """when given, it counts instead of `warmup_epochs`"""
    weight_decay: float = Field(default=0.04, ge=0)
    weight_decay_end: float = Field(default=0.4, ge=0)
    clip_norm: float = Field(default=3.0, ge=0)
    """largest gradient norm of a single parameter tensor; 0: no clipping"""


class HasLength(Protocol):
    """The settings that say how long a training is."""

    @property
    def epochs(self) -> float: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def batch_size(self) -> int: ...


def total_steps(optim: HasLength, images: int) -> int:
    """Steps the whole training has."""
    if optim.steps is not None:
        return optim.steps
    return max(1, round(optim.epochs * steps_per_epoch(images, optim.batch_size)))


def cosine(start: float, end: float, step: int, steps: int, *, warmup: int = 0) -> float:
    """Linear from 0 to `start` over `warmup` steps, then half a cosine towards `end`.

    DINO's schedule: the last warm-up step is at `start` already, and step `steps`, which is
    never taken, would be at `end`.
    """
    warmup = min(warmup, steps)
    if step < warmup:
        return start * step / (warmup - 1) if warmup > 1 else 0.0
    turn = math.pi * (step - warmup) / max(1, steps - warmup)
    return end + 0.5 * (start - end) * (1 + math.cos(turn))


def ramp(start: float, end: float, epoch: float, epochs: float) -> float:
    """Linear from `start` in epoch 0 to `end` in the last of `epochs`, and `end` after it."""
    if epoch >= epochs:
        return end
    return start + (end - start) * epoch / (epochs - 1) if epochs > 1 else start


def parameter_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Two AdamW groups of the parameters that train; biases and 1-D ones are not decayed."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = {name for name, p in trained if p.ndim == 1 or name.endswith(".bias")}
    return [
        {"params": [p for name, p in trained if name not in plain], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name in plain], "weight_decay": 0.0},
    ]


class Optimizer:
    """AdamW or SGD with loss scaling, clipping and a check for numbers that are none.

    Args:
        model: what is trained.
        clip_norm: largest gradient norm; 0: no clipping.
        clip: of each parameter tensor on its own, as DINO does, or of all together ("global").
        rule: AdamW, or SGD with `momentum` in place of `betas`.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: Engine,
        *,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        clip_norm: float = 0.0,
        clip: Literal["parameter", "global"] = "parameter",
        rule: Literal["adamw", "sgd"] = "adamw",
        momentum: float = 0.9,
    ) -> None:
        groups = parameter_groups(model, weight_decay)
        fused = engine.device.type == "cuda"
        self.adamw: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=0.0, fused=fused)
            if rule == "adamw"
            else torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=0.0, fused=fused)
        )
        self.model, self.engine = model, engine
        self.clip_norm, self.clip = clip_norm, clip

    def set(self, *, lr: float, weight_decay: float | None = None) -> None:
        """What the schedules say for the step to come; decay concerns the first group only."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        if weight_decay is not None:
            self.adamw.param_groups[0]["weight_decay"] = weight_decay

    def measure(self) -> Tensor:
        """Unscale and clip the gradients in place; their norm before, a scalar on the device."""
        if self.engine.scaler is not None:
            self.engine.scaler.unscale_(self.adamw)
        gradients = [
            p.grad
            for group in self.adamw.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not gradients:
            return torch.zeros((), device=self.engine.device)
        norms = torch.stack(torch._foreach_norm(gradients))
        if self.clip_norm > 0:
            measured = norms if self.clip == "parameter" else norms.norm().expand_as(norms)
            shrink = (self.clip_norm / (measured + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, list(shrink.unbind()))
        return norms.square().sum().sqrt()

    def update(self, frozen: Iterable[nn.Parameter] = ()) -> None:
        """Change the weights, except `frozen` ones, and forget the gradients.

        Under fp16 a step whose gradients are not finite is left out and the loss scale lowered.
        """
        for parameter in frozen:
            parameter.grad = None
        scaler = self.engine.scaler
        if scaler is not None:
            scaler.step(self.adamw)
            scaler.update()
        else:
            self.adamw.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def step(self, loss: Tensor, *, frozen: Iterable[nn.Parameter] = ()) -> float:
        """Backward, `measure`, check, `update`: a whole step by hand; the gradient's norm.

        Raises RunError PG-T03 when a gradient is not finite, before any weight changes.
        """
        self.engine.backward(loss)
        norm = float(self.measure())
        if self.engine.scaler is None and not math.isfinite(norm):
            self.forget()
            raise RunError(
                f"a gradient is not finite at step {self.engine.step}", code="PG-T03",
                why="NaN or infinity in backward; the weights were not changed",
                hint="lower the learning rate or use precision fp32, with another --out",
            )  # fmt: skip
        self.update(frozen)
        return norm

    def state_dict(self) -> dict[str, Any]:
        scaler = self.engine.scaler
        return {
            "adamw": self.adamw.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        # Where the moments belong is for this device to say, not for the checkpoint's.
        fused = self.adamw.param_groups[0]["fused"]
        state = dict(state_dict["adamw"])
        state["param_groups"] = [group | {"fused": fused} for group in state["param_groups"]]
        self.adamw.load_state_dict(state)
        for parameter, moments in self.adamw.state.items():
            for name, value in moments.items():  # fused kernels take equal strides for granted
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    moments[name] = torch.empty_like(parameter).copy_(value)
        if self.engine.scaler is not None and state_dict["scaler"]:
            self.engine.scaler.load_state_dict(state_dict["scaler"])
