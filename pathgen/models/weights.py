"""What identifies a network: its weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_id(model: nn.Module) -> str:
    """16 hex digits of the name, shape, type and bytes of every parameter and saved buffer."""
    hashed = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {tuple(plain.shape)} {plain.dtype};".encode())
        hashed.update(plain.reshape(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()
