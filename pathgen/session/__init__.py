"""What one types into a notebook: slides, cohorts, tissue, regions, tables, pictures.

Every object says what it is in one line with numbers and units, shows itself in Jupyter, and gives
plain things back: `pandas` tables, `PIL` images, `matplotlib` figures, files. Ids are strings.
Everything loads on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathgen.session import pl
    from pathgen.session.cohort import Cohort
    from pathgen.session.drawn import Drawn, read_drawn
    from pathgen.session.featuresets import Features, features
    from pathgen.session.judged import CrossValidated, cross_validate
    from pathgen.session.opening import open_anything
    from pathgen.session.slide import Slide
    from pathgen.session.tables import labels
    from pathgen.session.tiles import Tiles, tile
    from pathgen.session.tilingplan import TilingPlan, plan_tiles
    from pathgen.session.tissue import Tissue

_HOMES = {
    "Cohort": "cohort",
    "CrossValidated": "judged",
    "Drawn": "drawn",
    "Features": "featuresets",
    "Slide": "slide",
    "Tiles": "tiles",
    "TilingPlan": "tilingplan",
    "Tissue": "tissue",
    "cross_validate": "judged",
    "features": "featuresets",
    "labels": "tables",
    "open_anything": "opening",
    "plan_tiles": "tilingplan",
    "read_drawn": "drawn",
    "tile": "tiles",
}

__all__ = [
    "Cohort",
    "CrossValidated",
    "Drawn",
    "Features",
    "Slide",
    "Tiles",
    "TilingPlan",
    "Tissue",
    "cross_validate",
    "features",
    "labels",
    "open_anything",
    "pl",
    "plan_tiles",
    "read_drawn",
    "tile",
]


def __getattr__(name: str) -> Any:
    if name == "pl":
        return import_module(f"{__name__}.pl")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
