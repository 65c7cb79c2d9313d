"""The outline of the tissue of an entry, and as TRIDENT writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pathgen.exchange.entries import Entry
from pathgen.tiling.maskattr import read_mask
from pathgen.tiling.tissue import TissueMask
from pathgen.tiling.tracing import Piece


def mask_of(entry: Entry) -> TissueMask | None:
    """The mask in the patch store of a slide; None where there is none."""
    attribute = entry.patches.attrs.get("tissue_mask") if entry.patches is not None else None
    return None if attribute is None else read_mask(attribute)


def trident_geojson(outline: Sequence[Piece]) -> dict[str, Any]:
    """A FeatureCollection as TRIDENT writes it: level-0 pixels, a `tissue_id` each."""
    return {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
        "features": [
            {
                "type": "Feature", "properties": {"tissue_id": number},
                "geometry": {"type": "Polygon", "coordinates": [piece.exterior, *piece.holes]},
            }
            for number, piece in enumerate(outline)
        ],
    }  # fmt: skip
