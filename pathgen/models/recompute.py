"""Activation checkpointing: memory for time, equal gradients (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.compiler import is_compiling
from torch.utils.checkpoint import checkpoint

from pathgen.errors import ConfigError
from pathgen.models.chance import held, holding


def recompute_activations(network: nn.Module, *beside: nn.Module) -> None:
    """From now on keep what goes into each block, and compute the rest again in backward.

    diffusers' networks do it their way; of others, each child of what is called `blocks`. Those
    `beside`, as a projection head, stay as they are where they have none.

    Raises:
        ConfigError: PG-C04, the network has no blocks, as a ResNet, or diffusers does not do it
            right, as for AutoencoderTiny.
    """
    from diffusers import AutoencoderTiny

    for other in beside:
        if _blocks(other):
            recompute_activations(other)
    if isinstance(network, AutoencoderTiny):
        raise _unable(network, "diffusers then leaves out how it scales its input and output")
    enable = getattr(network, "enable_gradient_checkpointing", None)
    if callable(enable):
        try:
            enable()
        except ValueError as error:
            raise _unable(network, str(error)) from error
        return
    blocks = _blocks(network)
    if not blocks:
        raise _unable(network, "it has no blocks")
    for block in blocks:
        block.forward = _checkpointed(block.forward)


def _blocks(network: nn.Module) -> list[nn.Module]:
    return [
        block
        for name, module in network.named_modules()
        if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.Sequential | nn.ModuleList)
        for block in module
    ]


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any, **settings: Any) -> Any:
        # Compiled code draws no second time, and torch cannot compile a context.
        if is_compiling() or (share := held()).is_whole:
            return checkpoint(forward, *inputs, use_reentrant=False, **settings)
        # Backward comes when another share may be held: it must draw for the same rows again.
        return checkpoint(
            forward, *inputs, use_reentrant=False,
            context_fn=lambda: (nullcontext(), holding(share)), **settings,
        )  # fmt: skip

    return run


def _unable(network: nn.Module, why: str) -> ConfigError:
    return ConfigError(
        "activations of this network cannot be recomputed", code="PG-C04",
        where=type(network).__name__, why=why, hint="set run.recompute=false",
    )  # fmt: skip
