"""Every head by its name."""

from __future__ import annotations

from collections.abc import Mapping

from pathgen.models.mil.attention import ABMIL
from pathgen.models.mil.base import MILHead
from pathgen.models.mil.clam import CLAM
from pathgen.models.mil.config import HeadName, MILConfig
from pathgen.models.mil.dsmil import DSMIL
from pathgen.models.mil.dtfd import DTFD
from pathgen.models.mil.pooling import InstanceMaxHead, MaxHead, MeanHead
from pathgen.models.mil.transformer import TransformerHead
from pathgen.models.mil.transmil import TransMIL

HEADS: Mapping[HeadName, type[MILHead]] = {
    "abmil": ABMIL,
    "abmil-plain": ABMIL,
    "mean": MeanHead,
    "max": MaxHead,
    "instance-max": InstanceMaxHead,
    "clam-sb": CLAM,
    "clam-mb": CLAM,
    "transmil": TransMIL,
    "dsmil": DSMIL,
    "dtfd": DTFD,
    "transformer": TransformerHead,
}


def build_head(config: MILConfig) -> MILHead:
    """The head that `config.head` names, with fresh weights."""
    return HEADS[config.head](config)
