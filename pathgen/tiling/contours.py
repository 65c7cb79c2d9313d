"""The tissue's outline as GeoJSON that QuPath opens, to be corrected there and given back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.provenance import digest
from pathgen.stores.patches import PatchStore, SlideFacts
from pathgen.tiling.maskattr import read_mask
from pathgen.tiling.tissue import TissueMask

#: Names pathgen's annotations: equal tissue of an equal slide has equal ids.
NAMESPACE = UUID("5d0f6f0e-4d0a-5f3b-9a53-2f0c5b8c7a11")
COLOR = (0, 90, 200)


def outlines_of(mask: TissueMask) -> list[list[NDArray[np.float64]]]:
    """Each piece of tissue as its rings, exterior first; level-0 x, y (n, 2), closed.

    The rings pass between the centers of tissue and of glass, so that filling them gives the same
    mask again.
    """
    from scipy.ndimage import label
    from skimage.measure import find_contours

    pixels = np.pad(mask.pixels, 1)
    pieces, count = label(pixels, np.ones((3, 3)))
    exteriors: list[list[NDArray[np.float64]]] = [[] for _ in range(count)]
    holes: list[list[NDArray[np.float64]]] = [[] for _ in range(count)]
    contours = find_contours(  # type: ignore[no-untyped-call]
        pixels.astype(np.uint8), 0.5, fully_connected="high"
    )
    for contour in contours:
        low, high = np.floor(contour[0]).astype(int), np.ceil(contour[0]).astype(int)
        piece = int(max(pieces[tuple(low)], pieces[tuple(high)])) - 1
        ring = (contour[:, ::-1] - 0.5) * mask.scale + mask.origin
        x, y = (ring - ring[0]).T
        outer = float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) > 0
        (exteriors if outer else holes)[piece].append(_straightened(ring))
    return [[*exteriors[i], *holes[i]] for i in range(count)]


def _straightened(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the points on straight lines."""
    open_ring = ring[:-1]
    before, after = np.roll(open_ring, 1, axis=0), np.roll(open_ring, -1, axis=0)
    (ax, ay), (bx, by) = (open_ring - before).T, (after - open_ring).T
    corner = np.abs(ax * by - ay * bx) > 1e-6 * (np.hypot(ax, ay) * np.hypot(bx, by))
    kept = open_ring[corner]
    return np.concatenate([kept, kept[:1]])


def tissue_geojson(mask: TissueMask, bounds: tuple[int, int, int, int], identity: str) -> str:
    """One annotation a piece of tissue, of class Tissue, counted from the scanned part.

    Args:
        bounds: x, y, width, height of what was scanned; QuPath shows only that.
        identity: digest of the slide, of which the ids are made.
    """
    features = []
    for number, rings in enumerate(outlines_of(mask)):
        coordinates = [np.round(ring - bounds[:2], 2).tolist() for ring in rings]
        features.append(_feature(coordinates, uuid5(NAMESPACE, f"{identity}/{number}/{rings[0]}")))
    mark = {"digest": digest(features, 32)}
    return json.dumps({"type": "FeatureCollection", "features": features, "pathgen": mark}) + "\n"


def _feature(coordinates: list[Any], name: UUID) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": str(name),
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": "Tissue", "color": list(COLOR)},
        },
    }


def tissue_path(out: Path, slide: str) -> Path:
    return out / "tissue" / f"{slide}.geojson"


def write_tissue(path: Path, mask: TissueMask, facts: SlideFacts) -> None:
    """Write `tissue_geojson`, unless someone has changed what is there."""
    if path.exists() and not _untouched(path):
        return
    bounds = facts.bounds or (0, 0, facts.width, facts.height)
    commit.write_text(path, tissue_geojson(mask, bounds, facts.identity))


def write_missing(out: Path, stores: Sequence[Path]) -> None:
    """The outlines of stores that an earlier run made without them.

    Raises:
        StoreError: a store has no tissue mask, or a damaged one.
    """
    for path in stores:
        name = path.relative_to(out).as_posix().removesuffix(path.suffix)
        if not tissue_path(out, name).exists():
            with PatchStore.open(path) as store:
                mask = read_mask(store.attrs.get("tissue_mask", {}))
                write_tissue(tissue_path(out, name), mask, store.slide)


def _untouched(path: Path) -> bool:
    """Whether a file is as `write_tissue` left it; QuPath and people drop the mark."""
    try:
        value = json.loads(path.read_bytes())
        return bool(value["pathgen"]["digest"] == digest(value["features"], 32))
    except (OSError, ValueError, KeyError, TypeError):
        return False
