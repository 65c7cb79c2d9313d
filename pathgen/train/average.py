"""Averaged weights: what a diffusion model is sampled with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of a model's parameters, in float32; saved buffers are copied.

    The model must be where it is trained already; its tensors are remembered, not their names.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = dict(model.named_parameters())
        state = model.state_dict(keep_vars=True)
        self.values = {name: _average_of(tensor) for name, tensor in state.items()}
        parameters = [name for name in state if name in trained]
        buffers = [name for name in state if name not in trained]
        self._parameters = [state[name].data for name in parameters]
        self._buffers = [state[name].data for name in buffers]
        self._averages = [self.values[name] for name in parameters]
        self._copies = [self.values[name] for name in buffers]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After `step` (from 0): average <- d average + (1 - d) model, d = `decay_at(step)`.

        A few fused operations for all tensors; nothing waits for the device.
        """
        torch._foreach_lerp_(self._averages, self._parameters, 1 - self.decay_at(step))
        if self._copies:
            torch._foreach_copy_(self._copies, self._buffers)

    def decay_at(self, step: int) -> float:
        """The decay after `step`: rises from 0.1, so that the first weights are soon forgotten."""
        return min(self.decay, (1 + step) / (10 + step))

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.values)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the model has its averaged weights; afterwards its own again, to the bit."""
        own = [tensor.clone() for tensor in self._parameters]
        torch._foreach_copy_(self._parameters, self._averages)
        try:
            yield
        finally:
            torch._foreach_copy_(self._parameters, own)

    def state_dict(self) -> dict[str, Tensor]:
        return self.values

    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> None:
        for name, tensor in state_dict.items():
            self.values[name].copy_(tensor)


def _average_of(tensor: Tensor) -> Any:
    return tensor.detach().float().clone() if tensor.is_floating_point() else tensor.clone()
