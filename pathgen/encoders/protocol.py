"""What is asked of an encoder."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class PatchEncoder(Protocol):
    """All that extraction asks of an encoder; `models.Encoder` has it, and so can yours.

    Two further attributes are used where an encoder has them. ``card`` is a mapping of plain
    values (name, source, license, citation, image_size, mpp, ...) that every feature store made
    with it repeats. ``precision`` is one of "fp32", "bf16" and "fp16", which extraction sets to
    say in what `encode` is to compute; an encoder without it computes as it likes.
    """

    @property
    def dim(self) -> int: ...
    @property
    def id(self) -> str:
        """Equal ids, equal vectors: a digest of the weights, say."""
        ...

    def encode(self, patches: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim)."""
        ...
