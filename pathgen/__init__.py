"""pathgen: from a folder of whole-slide images to a slide-level answer.

The names below are the public Python interface. They load on first use, so that
``import pathgen`` costs nothing and works without torch.
"""

# No `from __future__ import annotations`: its name would stand for the function of that name.
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathgen.data.patches import PatchDataset
    from pathgen.errors import PathgenError
    from pathgen.evaluate.mil import train_mil
    from pathgen.exchange import export_stores, import_files, verify
    from pathgen.extract import extract_features, load_encoder
    from pathgen.heatmap import load_model, similar
    from pathgen.pretraining import pretrain
    from pathgen.publishing import publish
    from pathgen.session import pl
    from pathgen.session.drawn import read_drawn as annotations
    from pathgen.session.featuresets import features
    from pathgen.session.judged import cross_validate
    from pathgen.session.opening import open_anything as open
    from pathgen.session.tables import labels
    from pathgen.session.tiles import tile
    from pathgen.session.tilingplan import plan_tiles
    from pathgen.stores import open_store
    from pathgen.synthetic import make_slides
    from pathgen.tiling import open_slide

#: Where each is, and as what. A module of the same name would take its place once imported.
_HOME = {
    "PatchDataset": "pathgen.data.patches",
    "PathgenError": "pathgen.errors",
    "annotations": "pathgen.session.drawn:read_drawn",
    "cross_validate": "pathgen.session.judged",
    "export_stores": "pathgen.exchange",
    "extract_features": "pathgen.extract",
    "features": "pathgen.session.featuresets",
    "import_files": "pathgen.exchange",
    "labels": "pathgen.session.tables",
    "load_encoder": "pathgen.extract",
    "load_model": "pathgen.heatmap",
    "make_slides": "pathgen.synthetic",
    "open": "pathgen.session.opening:open_anything",
    "open_slide": "pathgen.tiling",
    "open_store": "pathgen.stores",
    "pl": "pathgen.session",
    "plan_tiles": "pathgen.session.tilingplan",
    "pretrain": "pathgen.pretraining",
    "publish": "pathgen.publishing",
    "similar": "pathgen.heatmap",
    "tile": "pathgen.session.tiles",
    "train_mil": "pathgen.evaluate.mil",
    "verify": "pathgen.exchange",
}

#: Without `open`: a star import is not to hide the one that opens files.
__all__ = ["__version__", *sorted(set(_HOME) - {"open"})]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pathgen' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return [*__all__, "open"]
