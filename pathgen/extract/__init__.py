"""Patches through encoders into feature stores. Everything loads on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathgen.encoders import PatchEncoder, load_encoder
    from pathgen.extract.config import ExtractConfig
    from pathgen.extract.encoding import encoder_facts
    from pathgen.extract.flow import extract, extract_features
    from pathgen.extract.report import ExtractReport

_HOMES = {
    "ExtractConfig": "pathgen.extract.config",
    "ExtractReport": "pathgen.extract.report",
    "PatchEncoder": "pathgen.encoders",
    "encoder_facts": "pathgen.extract.encoding",
    "extract": "pathgen.extract.flow",
    "extract_features": "pathgen.extract.flow",
    "load_encoder": "pathgen.encoders",
}

__all__ = [
    "ExtractConfig",
    "ExtractReport",
    "PatchEncoder",
    "encoder_facts",
    "extract",
    "extract_features",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
