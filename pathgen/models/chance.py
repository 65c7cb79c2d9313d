"""Chance for each sample of a batch that several processes or passes share.

Everything random within a forward pass is drawn for the whole global batch, from generators that
are seeded alike everywhere, and each pass keeps its rows. So neither the number of processes nor
gradient accumulation changes what a sample meets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from timm.layers.drop import DropPath as TimmDropPath
from torch import Tensor, nn

from pathgen.parallel import Share


class _Held(NamedTuple):
    """A share as compiled code can read it: it is guarded by every number that it reads, and one
    that changes, as `first` does from pass to pass, would be compiled again and again."""

    share: Share
    sizes: tuple[int, int]
    """rows of the share and of the whole; equal for every whole batch, whatever its size"""
    first: Tensor
    """a scalar, on the CPU"""


def _as_held(share: Share) -> _Held:
    sizes = (0, 0) if share.is_whole else (share.size, share.total)
    return _Held(share, sizes, torch.tensor(share.first))


# Not a context variable: backward, which may run a forward pass again, has threads of its own.
_held = _as_held(Share(0, 0, 0))


@contextmanager
def holding(share: Share) -> Iterator[None]:
    """Inside, samples are `share`'s rows of a global batch."""
    global _held
    before, _held = _held, _as_held(share)
    try:
        yield
    finally:
        _held = before


def held() -> Share:
    """What `holding` said last."""
    return _held.share


def drawn(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """`draw(n)` gives n samples their chance, (n, ...): of all of the global batch, ours.

    `count` may be a multiple of the rows held: several views of a batch one after the other.
    """
    now = _held
    size, total = now.sizes
    if size == total:
        return draw(count)
    if size == 0 or count % size:
        raise ValueError(f"{count} samples are no whole number of views of {size} rows")
    views = count // size
    everyone = draw(views * total)
    rows = torch.arange(size, device=everyone.device) + now.first
    by_view = everyone.view(views, total, *everyone.shape[1:])
    return by_view.index_select(1, rows).flatten(0, 1)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): whole residual branches of a sample left out.

    As timm's, but each sample's chance is the same however the batch is shared out.
    """

    def __init__(self, probability: float, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.probability, self.scale_by_keep = probability, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...); unchanged in eval mode."""
        if self.probability == 0 or not self.training:
            return x
        keep = 1 - self.probability
        mask = drawn(lambda n: x.new_empty((n, *[1] * (x.ndim - 1))).bernoulli_(keep), len(x))
        if keep > 0 and self.scale_by_keep:
            mask.div_(keep)
        return x * mask


def share_drop_path(network: nn.Module) -> None:
    """Put `DropPath` in the place of every one of timm's, in place."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, TimmDropPath):
                setattr(module, name, DropPath(float(child.drop_prob or 0), child.scale_by_keep))
