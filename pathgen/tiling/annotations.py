"""Outlines that people and other tools drew: GeoJSON of QuPath and TRIDENT, XML of ASAP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.tiling.outlines import Polygon

#: Of outlines without a class.
UNCLASSIFIED = "unclassified"
#: No slide is as large; a number beyond is no position.
FARTHEST = 2.0**31

Frame = Literal["bounds", "canvas"]


@dataclass
class Annotations:
    """Polygons by class, in the pixels of `frame`."""

    frame: Frame
    """``bounds``: counted from the corner of the scanned part, as QuPath shows a slide;
    ``canvas``: level-0 pixels as OpenSlide counts them"""
    polygons: dict[str, list[Polygon]] = field(default_factory=dict)
    left_out: int = 0
    """points, lines and rings of less than three corners: they have no area"""

    def add(self, name: str, exterior: Any, holes: Any = (), *, where: str) -> None:
        rings = [_ring(ring, where) for ring in (exterior, *holes)]
        if len(rings[0]) < 3:
            self.left_out += 1
            return
        polygon = Polygon(rings[0], tuple(ring for ring in rings[1:] if len(ring) >= 3))
        self.polygons.setdefault(name, []).append(polygon)


def bad_mask(name: str, why: str, hint: str = "check how the file was made") -> SlideError:
    """PG-M02."""
    return SlideError("mask cannot be understood", code="PG-M02", where=name, why=why, hint=hint)


def _ring(points: Any, where: str) -> NDArray[np.float64]:
    """Corners (n, 2); a third number, as GeoJSON allows, is left out."""
    try:
        ring = np.asarray([(point[0], point[1]) for point in points], np.float64).reshape(-1, 2)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise bad_mask(where, f"a ring is no list of positions: {error}") from error
    if not (np.isfinite(ring).all() and (np.abs(ring) < FARTHEST).all()):
        raise bad_mask(where, "a position is not finite, or beyond any slide")
    return ring


# GeoJSON


def parse_geojson(data: bytes, name: str, faults: list[SlideError] | None = None) -> Annotations:
    """A FeatureCollection, a bare array of features, one feature or one geometry.

    Positions are of the frame ``bounds``, as QuPath writes them; files with the marks of TRIDENT
    or geopandas (`crs`, `tissue_id`) are of the frame ``canvas``.

    Args:
        faults: takes what is wrong with a single feature, which is then left out.

    Raises:
        SlideError: PG-M02, it is something else, or a feature is and `faults` is not given.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise bad_mask(name, f"not valid JSON: {str(error)[:200]}") from error
    features = _features(value, name)
    found = Annotations(_frame(value, features))
    for number, feature in enumerate(features):
        try:
            _add_feature(found, feature, f"{name}, feature {number}")
        except SlideError as error:
            if faults is None:
                raise
            faults.append(error)
    return found


def _add_feature(found: Annotations, feature: Any, where: str) -> None:
    if not isinstance(feature, Mapping):
        raise bad_mask(where, "it is no object")
    properties = feature.get("properties") or {}
    if not isinstance(properties, Mapping):
        raise bad_mask(where, "its properties are no object")
    if properties.get("objectType") == "root":
        return
    geometry = feature if "coordinates" in feature else feature.get("geometry")
    for exterior, holes in _polygons(geometry, found, where):
        found.add(_class(properties, where), exterior, holes, where=where)


def _features(value: Any, name: str) -> list[Any]:
    if isinstance(value, list):
        return value
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "FeatureCollection" and isinstance(value.get("features"), list):
        return list(value["features"])
    if kind in ("Feature", "Polygon", "MultiPolygon"):
        return [value]
    raise bad_mask(
        name, "JSON, but no GeoJSON of features", "export it from QuPath as GeoJSON"
    )  # fmt: skip


def _frame(value: Any, features: list[Any]) -> Frame:
    listed = [feature.get("properties") for feature in features if isinstance(feature, Mapping)]
    marked = any(isinstance(p, Mapping) and "tissue_id" in p for p in listed)
    return "canvas" if marked or (isinstance(value, Mapping) and "crs" in value) else "bounds"


def _polygons(geometry: Any, found: Annotations, where: str) -> Iterator[tuple[Any, Any]]:
    """Exterior and holes of each polygon; what has no area is counted as left out."""
    if geometry is None:
        return
    if not isinstance(geometry, Mapping):
        raise bad_mask(where, "its geometry is no object")
    kind, parts = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection":
        for part in geometry.get("geometries") or ():
            if isinstance(part, Mapping) and part.get("type") == "GeometryCollection":
                raise bad_mask(where, "collections within collections")
            yield from _polygons(part, found, where)
        return
    if kind not in ("Polygon", "MultiPolygon"):
        if kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
            raise bad_mask(where, f"unknown geometry {kind!r}")
        found.left_out += 1
        return
    if not isinstance(parts, list):
        raise bad_mask(where, "it has no coordinates")
    for rings in [parts] if kind == "Polygon" else parts:
        if not isinstance(rings, list):
            raise bad_mask(where, "a polygon is no list of rings")
        if rings:
            yield rings[0], rings[1:]


def _class(properties: Mapping[str, Any], where: str) -> str:
    """QuPath's classification, in the forms it has had; TRIDENT's pieces are tissue."""
    value = properties.get("classification")
    if isinstance(value, Mapping):
        names = value.get("names")
        value = ": ".join(map(str, names)) if isinstance(names, list) else value.get("name")
    if value is None or value == "":
        return "tissue" if "tissue_id" in properties else UNCLASSIFIED
    if not isinstance(value, str):
        raise bad_mask(where, f"its classification is {value!r}")
    return value


# ASAP


class _AsapFile:
    """What of an ASAP file counts, collected while it is parsed. No DTD, so no entities."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: str | None = None
        self.found = Annotations("canvas")
        self.current: tuple[str, str] | None = None  # kind, class
        self.points: list[tuple[float, float, float]] = []  # order, x, y

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self.root is None:
            self.root = tag
            if tag != "ASAP_Annotations":
                raise bad_mask(
                    self.name, f"XML of {tag!r}, not of ASAP", "convert it to QuPath GeoJSON"
                )
        elif tag == "Annotation":
            group = attributes.get("PartOfGroup", "None")
            name = UNCLASSIFIED if group in ("", "None") else group
            self.current, self.points = (attributes.get("Type", "Polygon"), name), []
        elif tag == "Coordinate" and self.current:
            self.points.append(self._point(attributes))

    def end(self, tag: str) -> None:
        if tag != "Annotation" or self.current is None:
            return
        kind, name = self.current
        self.current = None
        if kind not in ("Polygon", "Rectangle", "Spline"):
            self.found.left_out += 1
            return
        self.points.sort(key=lambda point: point[0])
        self.found.add(name, [point[1:] for point in self.points], where=self.name)

    def doctype(self, *_: Any) -> None:
        raise bad_mask(self.name, "it has a DOCTYPE, which annotations need not", "remove it")

    def _point(self, attributes: dict[str, str]) -> tuple[float, float, float]:
        try:
            order = float(attributes.get("Order", len(self.points)))
            # ASAP writes decimals as its computer's language does.
            x, y = (float(attributes[key].replace(",", ".")) for key in ("X", "Y"))
        except (KeyError, ValueError) as error:
            raise bad_mask(self.name, f"a coordinate is {attributes}") from error
        return order, x, y


def parse_asap(data: bytes, name: str) -> Annotations:
    """Polygons, rectangles and splines (through their points), by the group they are part of.

    Raises:
        SlideError: PG-M02, not XML, not of ASAP, or with a DOCTYPE.
    """
    file = _AsapFile(name)
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = file.doctype
    parser.StartElementHandler = file.start
    parser.EndElementHandler = file.end
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise bad_mask(name, f"not valid XML: {error}") from error
    return file.found
