"""Dividing large bags into equal parts, the same whatever the order of their patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Rows hashed at a time: 25 MB of integers at 384 columns.
ROWS = 8192


class Division(NamedTuple):
    """T patches of B bags in G parts."""

    order: Tensor
    """(T,) int64: patches part after part, and parts bag after bag"""
    sizes: Sequence[int]
    """(G,) patches of each part, which differ by one at most within a bag"""
    counts: Sequence[int]
    """(B,) parts of each bag"""


def divide(keys: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Division:
    """Deal each bag's patches, in order of their keys (T,), to its parts in turn."""
    order, sizes, start = [], [], 0
    for length, count in zip(lengths, counts, strict=True):
        dealt = keys[start : start + length].argsort(stable=True) + start
        order += [dealt[part::count] for part in range(count)]
        sizes += [len(range(part, length, count)) for part in range(count)]
        start += length
    return Division(torch.cat(order) if order else keys.long(), sizes, list(counts))


def content_keys(stored: Tensor) -> Tensor:
    """A number for each row (T, dim) that its content alone decides: -> (T,) int64.

    A sum of the bits of its float32 values times odd 64-bit constants, modulo 2^64. Integers add
    up the same in any order, so the keys do not depend on where a row stands or on the device.
    """
    factors = torch.tensor([_mixed(i) for i in range(stored.shape[1])], device=stored.device)
    keys = [
        (rows.float().contiguous().view(torch.int32).long() * factors).sum(1)
        for rows in torch.split(stored, ROWS)
    ]
    return torch.cat(keys)


def _mixed(i: int) -> int:
    """The i-th number of SplitMix64, made odd, as a signed 64-bit integer."""
    whole = (1 << 64) - 1
    z = (i + 1) * 0x9E3779B97F4A7C15 & whole
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & whole
    z = (z ^ z >> 27) * 0x94D049BB133111EB & whole
    z = (z ^ z >> 31) | 1
    return z - (1 << 64) if z >> 63 else z
