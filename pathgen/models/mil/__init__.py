"""A bag of vectors to one answer: multiple-instance learning heads.

All take padded bags and a mask and give logits, attention and, where they can, each patch's
evidence; `build_head` makes one from a `MILConfig`.
"""

from __future__ import annotations

from pathgen.models.mil.base import BagOutput, MILHead
from pathgen.models.mil.config import HeadName, MILConfig, PoolingConfig
from pathgen.models.mil.registry import HEADS, build_head
from pathgen.models.mil.targets import Criterion, Target, Truth

__all__ = [
    "HEADS",
    "BagOutput",
    "Criterion",
    "HeadName",
    "MILConfig",
    "MILHead",
    "PoolingConfig",
    "Target",
    "Truth",
    "build_head",
]
