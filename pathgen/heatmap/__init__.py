"""Where a slide classifier looked, and what spoke for its answer. Everything loads on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathgen.heatmap.batch import HeatmapReport, draw_heatmaps
    from pathgen.heatmap.model import SlideModel, load_model
    from pathgen.heatmap.neighbors import Similar, similar
    from pathgen.heatmap.result import Heatmap
    from pathgen.heatmap.settings import HeatmapConfig
    from pathgen.heatmap.subjects import find_subjects

_HOMES = {
    "Heatmap": "result",
    "HeatmapConfig": "settings",
    "HeatmapReport": "batch",
    "Similar": "neighbors",
    "SlideModel": "model",
    "draw_heatmaps": "batch",
    "find_subjects": "subjects",
    "load_model": "model",
    "similar": "neighbors",
}

__all__ = [
    "Heatmap",
    "HeatmapConfig",
    "HeatmapReport",
    "Similar",
    "SlideModel",
    "draw_heatmaps",
    "find_subjects",
    "load_model",
    "similar",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
