"""pathgen: from a folder of whole-slide images to a slide-level answer.

The names below are the public Python interface. They load on first use, so that
``import pathgen`` costs nothing and works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathgen.data.patches import PatchDataset
    from pathgen.errors import PathgenError
    from pathgen.evaluate.mil import train_mil
    from pathgen.exchange import export_stores, import_files, verify
    from pathgen.extract import extract_features, load_encoder
    from pathgen.pretraining import pretrain
    from pathgen.publishing import publish
    from pathgen.stores import open_store
    from pathgen.synthetic import make_slides
    from pathgen.tiling import open_slide, tile

_HOME = {
    "PatchDataset": "pathgen.data.patches",
    "PathgenError": "pathgen.errors",
    "export_stores": "pathgen.exchange",
    "extract_features": "pathgen.extract",
    "import_files": "pathgen.exchange",
    "load_encoder": "pathgen.extract",
    "make_slides": "pathgen.synthetic",
    "open_slide": "pathgen.tiling",
    "open_store": "pathgen.stores",
    "pretrain": "pathgen.pretraining",
    "publish": "pathgen.publishing",
    "tile": "pathgen.tiling",
    "train_mil": "pathgen.evaluate.mil",
    "verify": "pathgen.exchange",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pathgen' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
