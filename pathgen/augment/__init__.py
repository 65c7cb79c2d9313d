"""Self-augmentation: new patches drawn from the embeddings of real ones (Gen-SIS).

The whole plan is made first; then each feature store's share of it is drawn into one store, all
of it or nothing. Only embeddings go in, never real pixels; the sheet alone shows some of those.
"""

from __future__ import annotations

from pathgen.augment.draw import augment
from pathgen.augment.judge import draw_sheet, likeness_metrics
from pathgen.augment.paint import Conditions, Painter
from pathgen.augment.plan import AugmentConfig, plan_recipes

__all__ = [
    "AugmentConfig",
    "Conditions",
    "Painter",
    "augment",
    "draw_sheet",
    "likeness_metrics",
    "plan_recipes",
]
