"""Slides in, stores of patches out. Everything loads on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathgen.tiling.batch import tile
    from pathgen.tiling.inputs import SlideInput, find_slides
    from pathgen.tiling.ledger import LedgerRow, TileReport
    from pathgen.tiling.masks import MaskConfig
    from pathgen.tiling.presets import preset
    from pathgen.tiling.refiltering import refilter
    from pathgen.tiling.selection import Selection
    from pathgen.tiling.slide import SlideReader, open_slide, slide_info
    from pathgen.tiling.task import TileConfig
    from pathgen.tiling.tissue import TissueConfig, TissueMask, find_tissue

_HOMES = {
    "LedgerRow": "ledger",
    "MaskConfig": "masks",
    "Selection": "selection",
    "SlideInput": "inputs",
    "SlideReader": "slide",
    "TileConfig": "task",
    "TileReport": "ledger",
    "TissueConfig": "tissue",
    "TissueMask": "tissue",
    "find_slides": "inputs",
    "find_tissue": "tissue",
    "open_slide": "slide",
    "preset": "presets",
    "refilter": "refiltering",
    "slide_info": "slide",
    "tile": "batch",
}

__all__ = [
    "LedgerRow",
    "MaskConfig",
    "Selection",
    "SlideInput",
    "SlideReader",
    "TileConfig",
    "TileReport",
    "TissueConfig",
    "TissueMask",
    "find_slides",
    "find_tissue",
    "open_slide",
    "preset",
    "refilter",
    "slide_info",
    "tile",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
