"""QuPath: patches as tiles and tissue as annotations, in GeoJSON.

QuPath crops a slide to its scanned bounds, so positions count from their corner, not from that
of the canvas.
"""

from __future__ import annotations

import gzip
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathgen.errors import DataError
from pathgen.exchange.contours import mask_of
from pathgen.exchange.entries import Entry
from pathgen.exchange.export import ExportConfig, Log
from pathgen.exchange.files import spans
from pathgen.exchange.findings import Finding, over
from pathgen.stores.patches import PatchStore
from pathgen.tiling.contours import NAMESPACE, tissue_features, whole
from pathgen.tiling.tracing import Ring

CONSUMER = "QuPath"
#: More tiles than this are compressed.
GZIP_ABOVE = 50_000
#: Of the classes of patches, in their order, then from the start.
COLORS = (
    (31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14), (148, 103, 189), (140, 86, 75),
    (227, 119, 194), (188, 189, 34), (23, 190, 207), (127, 127, 127),
)  # fmt: skip
PATCH = {"name": "Patch", "color": [0, 130, 50]}


def write(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """``<slide>.geojson``, or ``.geojson.gz`` above 50,000 tiles, for drag and drop."""
    for entry in log.each(entries):
        if mask_of(entry) is None:
            log.note("the stores hold no tissue contours, so only tiles are written")
        packed = ".gz" if len(entry) > GZIP_ABOVE else ""
        write_collection(folder / f"{entry.id}.geojson{packed}", _features(entry))


def write_collection(path: Path, features: Iterable[Mapping[str, Any]]) -> None:
    """Write a FeatureCollection, a feature a line; compressed where `path` ends in ``.gz``."""
    if path.suffix == ".gz":
        with (
            path.open("wb") as raw,
            # No name and no time in it, so that equal content gives equal bytes.
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as out,
        ):
            out.writelines(line.encode() for line in _lines(features))
    else:
        with path.open("w", encoding="utf-8", newline="\n") as text:
            text.writelines(_lines(features))


def shift_of(entry: Entry) -> tuple[int, int]:
    """Level-0 corner of what QuPath shows. Raises DataError (PG-F02) when it is not known."""
    slide = entry.geometry.slide
    if slide is None:
        raise DataError(
            "bounds of the slide are not known", code="PG-F02", where=entry.name,
            why="QuPath counts from their corner", hint="give the patch stores too",
        )  # fmt: skip
    return (slide.bounds[0], slide.bounds[1]) if slide.bounds else (0, 0)


def _lines(features: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield '{"type":"FeatureCollection","features":[\n'
    first = True
    for feature in features:
        text = json.dumps(feature, separators=(",", ":"), allow_nan=False)
        yield text if first else f",\n{text}"
        first = False
    yield "\n]}\n"


def _features(entry: Entry) -> Iterator[dict[str, Any]]:
    shift = shift_of(entry)
    store = entry.stores[0].id
    mask = mask_of(entry)
    if mask is not None and entry.patches is not None:
        yield from tissue_features(mask, shift, entry.patches.slide.identity, locked=True)
    labels, classes = entry.patch_labels, _classes(entry.classes)
    width, height = entry.geometry.side
    for rows in spans(len(entry)):
        measures = _measures(entry.patches, rows) if entry.patches is not None else {}
        corners = (entry.coords[rows] - np.asarray(shift)).tolist()
        for i, (x, y) in enumerate(corners):
            row = rows.start + i
            known = classes[int(labels[row])] if labels is not None and labels[row] >= 0 else PATCH
            values = {name: number(column[i]) for name, column in measures.items()}
            ring = square(x, y, width, height)
            yield tile_feature(f"{store}/{row}", ring, known, values)


def tile_feature(
    key: str, ring: Ring, classification: Any, measurements: Mapping[str, float | str]
) -> dict[str, Any]:
    """A patch as QuPath's tile; equal keys give equal ids.

    Args:
        key: as ``store id/row``.
        ring: its outline, closed, in pixels as QuPath counts them.
        classification: a name, or a name and a color.
        measurements: numbers, see `number`.
    """
    return {
        "type": "Feature", "id": str(uuid.uuid5(NAMESPACE, key)), "geometry": _polygon([ring]),
        "properties": {
            "objectType": "tile", "classification": classification,
            "measurements": dict(measurements),
        },
    }  # fmt: skip


def _classes(names: Iterable[str]) -> list[Mapping[str, Any]]:
    return [
        {"name": name, "color": list(COLORS[i % len(COLORS)])} for i, name in enumerate(names)
    ]  # fmt: skip


def _measures(patches: PatchStore, rows: slice) -> dict[str, list[float]]:
    found = {name: patches.measure(name, rows).tolist() for name in patches.measures}
    if patches.class_names:
        shares = patches.class_shares(rows)
        found |= {f"class: {n}": shares[:, i].tolist() for i, n in enumerate(patches.class_names)}
    return found


def number(value: float) -> float | str:
    """To six digits; GeoJSON has no nan, and QuPath reads the word."""
    return float(f"{value:.6g}") if math.isfinite(value) else "NaN"


def square(x: float, y: float, width: float, height: float) -> Ring:
    """The outline of a patch with this corner."""
    right, low = whole(x + width), whole(y + height)
    return [[x, y], [right, y], [right, low], [x, low], [x, y]]


def _polygon(rings: list[Ring]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": rings}


def read(path: Path) -> Any:
    """The JSON in a `.geojson` or `.geojson.gz`. Raises OSError or ValueError."""
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def check(folder: Path) -> Iterator[Finding]:
    """Every file by the rules of QuPath's reader."""
    paths = sorted([*folder.glob("*.geojson"), *folder.glob("*.geojson.gz")])
    yield from over(paths, CONSUMER, _check)


def _check(path: Path) -> Iterator[Finding]:
    value = read(path)
    features = value.get("features", [value]) if isinstance(value, dict) else value
    tiles = 0
    for number, feature in enumerate(features):
        problem = _problem(feature)
        if problem:
            yield Finding.error(path, CONSUMER, f"feature {number}: {problem}")
            return
        tiles += feature["properties"].get("objectType") == "tile"
    yield Finding.good(path, CONSUMER, f"{tiles} tiles, {len(features) - tiles} annotations")


def _problem(feature: Any) -> str:
    """What QuPath would refuse or drop, in words; empty when it reads all of it."""
    if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
        return "it has no geometry"
    properties = feature.get("properties")
    if not isinstance(properties, dict):
        return "it has no properties"
    try:
        uuid.UUID(str(feature.get("id")))
    except ValueError:
        return f"its id {feature.get('id')!r} is no UUID and would be dropped"
    kind = properties.get("objectType", "annotation")
    if kind not in ("annotation", "detection", "tile", "cell", "tmaCore", "root"):
        return f"its objectType {kind!r} is not known"
    said = properties.get("classification")
    if isinstance(said, dict) and not ({"color", "colorRGB"} & said.keys()):
        return "its classification has a name and no color, which QuPath refuses"
    measures = properties.get("measurements", {})
    if isinstance(measures, dict) and not all(
        value == "NaN" or isinstance(value, int | float) for value in measures.values()
    ):
        return "a measurement is no number"
    return ""
