"""The tissue's outline as GeoJSON that QuPath opens, to be corrected there and given back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_DNS, UUID, uuid5

import numpy as np

from pathgen import commit
from pathgen.provenance import digest
from pathgen.stores.patches import PatchStore, SlideFacts
from pathgen.tiling.maskattr import read_mask
from pathgen.tiling.tissue import TissueMask
from pathgen.tiling.tracing import Ring, pieces

#: Of all ids in GeoJSON of pathgen: equal things of equal slides have equal ids.
NAMESPACE = uuid5(NAMESPACE_DNS, "pathgen")
#: The class of an outline; QuPath refuses one without a color.
TISSUE: Mapping[str, Any] = {"name": "Tissue", "color": [0, 90, 200]}


def tissue_features(
    mask: TissueMask, corner: Sequence[int], identity: str, *, locked: bool = False
) -> Iterator[dict[str, Any]]:
    """One annotation a piece of tissue, of class Tissue.

    Args:
        corner: level-0 x, y of the scanned part, from which QuPath counts.
        identity: digest of the slide, of which the ids are made.
        locked: QuPath then keeps it from being moved by accident.
    """
    for piece in pieces(mask):
        rings = [moved(ring, corner) for ring in (piece.exterior, *piece.holes)]
        yield {
            "type": "Feature",
            "id": str(_id(identity, rings)),
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {
                "objectType": "annotation", "classification": TISSUE,
                **({"isLocked": True} if locked else {}),
            },
        }  # fmt: skip


def moved(ring: Ring, corner: Sequence[int]) -> Ring:
    """Counted from another corner, to a thousandth of a pixel."""
    return [[whole(x - corner[0]), whole(y - corner[1])] for x, y in ring]


def whole(value: float) -> float:
    return int(value) if value == int(value) else round(value, 3)


def _id(identity: str, rings: Sequence[Ring]) -> UUID:
    return uuid5(NAMESPACE, f"{identity}/tissue/{json.dumps(rings)}")


def tissue_geojson(mask: TissueMask, bounds: Sequence[int], identity: str) -> str:
    """`tissue_features` as a file, which says what it was made of, and if it was changed since.

    Args:
        bounds: x, y, width, height of what was scanned.
        identity: digest of the slide.
    """
    features = list(tissue_features(mask, bounds, identity))
    mark = {"digest": digest(features, 32), "mask": _digest(mask, bounds, identity)}
    return json.dumps({"type": "FeatureCollection", "features": features, "pathgen": mark}) + "\n"


def tissue_path(out: Path, slide: str) -> Path:
    return out / "tissue" / f"{slide}.geojson"


def write_tissue(path: Path, mask: TissueMask, facts: SlideFacts) -> None:
    """Write `tissue_geojson`, unless it is there or someone has changed what is there."""
    bounds = facts.bounds or (0, 0, facts.width, facts.height)
    if path.exists():
        mark = _untouched(path)
        if mark is None or mark.get("mask") == _digest(mask, bounds, facts.identity):
            return
    commit.write_text(path, tissue_geojson(mask, bounds, facts.identity))


def write_missing(out: Path, stores: Sequence[Path]) -> None:
    """The outlines of stores that an earlier run made without them, or with other settings.

    Raises:
        StoreError: a store has no tissue mask, or a damaged one.
    """
    for path in stores:
        name = path.relative_to(out).as_posix().removesuffix(path.suffix)
        with PatchStore.open(path) as store:
            mask = read_mask(store.attrs.get("tissue_mask", {}))
            write_tissue(tissue_path(out, name), mask, store.slide)


def _digest(mask: TissueMask, bounds: Sequence[int], identity: str) -> str:
    """Of all that the outline is made from."""
    place = [mask.pixels.shape, mask.origin, mask.scale, list(bounds), identity]
    state = blake2b(json.dumps(place).encode(), digest_size=16)
    state.update(np.packbits(mask.pixels).tobytes())
    return state.hexdigest()


def _untouched(path: Path) -> dict[str, Any] | None:
    """The mark of a file that is as `write_tissue` left it; QuPath and people drop or break it."""
    try:
        value = json.loads(path.read_bytes())
        mark: dict[str, Any] = value["pathgen"]
        return mark if mark["digest"] == digest(value["features"], 32) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
