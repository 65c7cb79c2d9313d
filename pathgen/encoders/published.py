"""A public encoder with its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pathgen.encoders.conversion import fill
from pathgen.encoders.network import Network
from pathgen.encoders.pixels import normalized, prepared
from pathgen.encoders.weights import read_weights
from pathgen.encoders.zoo import Published
from pathgen.models.precision import Precision, autocast
from pathgen.models.weights import weights_id


class PublishedEncoder(nn.Module):
    """A network of the table, in inference mode, with the pixels its authors showed it.

    Attributes:
        row: the line of the table.
        dim: length of the vectors.
        card: what feature stores say of it.
        precision: in what `encode` computes; its vectors are float32 all the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, row: Published, network: Network) -> None:
        super().__init__()
        self.row, self.network, self.dim = row, network, row.dim
        self.precision: Precision = "fp32"
        for name, values in (("mean", row.mean), ("std", row.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, row: Published, path: Path) -> PublishedEncoder:
        """With the weights of a file as the hub has it.

        Raises RunError (PG-T04): the file cannot be read or is of another architecture.
        """
        with torch.device("meta"):  # no time is spent on weights that are replaced
            network = Network(row)
        fill(network, read_weights(path), path)
        return cls(row, network)

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def card(self) -> Mapping[str, Any]:
        return self.row.card

    @cached_property
    def id(self) -> str:
        """16 hex digits of the weights and of what is done before and after them."""
        rule = self.row.model_dump(
            mode="json", include={"vector", "image_size", "resize", "mean", "std", "interpolation"}
        )
        text = f"{weights_id(self.network)} {json.dumps(rule, sort_keys=True)}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, side, side) in [0, 1] -> (B, dim)."""
        return cast(Tensor, self.network(normalized(images, self.mean, self.std)))

    @torch.inference_mode()
    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim) float32, on whatever device the weights are."""
        device = self.mean.device
        images = torch.from_numpy(np.ascontiguousarray(patches)).to(device).permute(0, 3, 1, 2)
        row = self.row
        pixels = prepared(images, cast(int, row.resize), row.image_size, row.interpolation)
        with autocast(self.precision, device):
            vectors = self(pixels)
        return cast("NDArray[np.float32]", vectors.float().cpu().numpy())
