"""Self-augmentation: new patches drawn from the embeddings of real ones (Gen-SIS).

The whole plan is made first; then each feature store's share of it is drawn into one store, all
of it or nothing. Only embeddings go in, never real pixels; what is measured afterwards looks at
those too.
"""

from __future__ import annotations

from pathgen.augment.draw import augment
from pathgen.augment.judge import draw_sheet, measure
from pathgen.augment.paint import Conditions, Painter
from pathgen.augment.plan import AugmentConfig, plan_recipes
from pathgen.augment.settings import CheckConfig, FilterConfig

__all__ = [
    "AugmentConfig",
    "CheckConfig",
    "Conditions",
    "FilterConfig",
    "Painter",
    "augment",
    "draw_sheet",
    "measure",
    "plan_recipes",
]
