"""The scene: tissue on glass, zones by pattern, glands, nuclei, fibers, fat, folds.

A `Scene` is drawn without any color: maps at about 2 um per pixel of signed distances in um,
from which `optics` renders any block at level 0, and from which the truth is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial import cKDTree

from pathgen.errors import ConfigError
from pathgen.synthetic.artifacts import draw_blur, draw_pen, draw_points, draw_thickness
from pathgen.synthetic.glands import FAR, HABITS, Gland, Maps, paint, throw
from pathgen.synthetic.noise import Field, smooth
from pathgen.synthetic.nuclei import KIND_OF_CLASS, Nuclei, gather, populate, scatter
from pathgen.synthetic.spec import (
    BACKGROUND,
    BENIGN,
    FAT,
    PATTERN3,
    PATTERN4,
    PATTERN5,
    PATTERN_CLASS,
    STROMA,
    SlideSpec,
    draw_patterns,
    isup,
)

ATTEMPTS = 8
REACH = {kind: habit.radius for kind, habit in HABITS.items()}  # um


@dataclass(frozen=True)
class Scene:
    """Maps (rows, columns) at `mpp`, covering whole tiles; lengths in um, negative is inside.

    `depth` is the distance from the tissue's edge, positive in tissue; `along` and `across` are
    the fibers' coordinates; `thickness` is relative; `pen` and `blur` are weights 0..1 or None.
    """

    spec: SlideSpec
    grade: int
    mpp: float
    scale: int
    depth: Field
    outer: Field
    lumen: Field
    classes: NDArray[np.uint8]
    hematoxylin: Field
    eosin: Field
    fill: Field
    along: Field
    across: Field
    thickness: Field
    fold: NDArray[np.bool_] | None
    pen: Field | None
    blur: Field | None
    nuclei: Nuclei
    points: NDArray[np.int64]

    @property
    def shares(self) -> dict[int, float]:
        """Share of the tissue in each Gleason-like pattern."""
        return pattern_shares(self.classes)


def pattern_shares(classes: NDArray[np.uint8]) -> dict[int, float]:
    counts = np.bincount(classes.ravel(), minlength=len(PATTERN_CLASS) + 4)
    tissue = max(int(counts[STROMA:].sum()), 1)
    return {pattern: float(counts[c] / tissue) for pattern, c in PATTERN_CLASS.items()}


def draw_scene(spec: SlideSpec) -> Scene:
    """The scene of a spec. Raises ConfigError (PG-C01) where the grade does not fit the area."""
    grade = 0 if spec.empty else spec.grade
    if grade is None:
        grade = int(spec.rng("grade").integers(6))
    tiles = (math.ceil(side / spec.tile) for side in (spec.height, spec.width))
    shape_rows, shape_columns = (math.ceil(n * spec.tile / spec.scene_scale) for n in tiles)
    shape = (shape_rows, shape_columns)
    depth = _tissue(spec, shape)
    for attempt in range(ATTEMPTS):
        maps, rings = _layout(spec, grade, depth, attempt)
        if isup(pattern_shares(maps.classes)) == grade:
            break
    else:
        raise ConfigError(
            "grade does not fit the slide", where=f"grade={grade}",
            why=f"{spec.width} x {spec.height} at {spec.mpp} um/px holds too few glands",
            hint="make the slide larger or raise tissue_share",
        )  # fmt: skip
    along, across = _fibers(spec, shape, maps.outer)
    thickness, fold = draw_thickness(spec, shape, depth)
    rng = spec.rng("nuclei")
    parts = [] if spec.empty else populate(rng, maps, depth, across, rings)
    return Scene(
        spec=spec, grade=grade, mpp=maps.mpp, scale=spec.scene_scale, depth=depth,
        outer=maps.outer, lumen=maps.lumen, classes=maps.classes, hematoxylin=maps.hematoxylin,
        eosin=maps.eosin, fill=maps.fill, along=along, across=across, thickness=thickness,
        fold=fold, pen=draw_pen(spec, shape, depth), blur=draw_blur(spec, shape),
        nuclei=gather(rng, parts, spec.mpp), points=draw_points(spec),
    )  # fmt: skip


def _tissue(spec: SlideSpec, shape: tuple[int, int]) -> Field:
    """Signed distance in um from the tissue's edge, positive inside."""
    if spec.empty:
        return np.full(shape, -FAR, np.float32)
    rng, coarse, mpp = spec.rng("tissue"), 4, spec.scene_mpp
    rows, columns = (math.ceil(side / coarse) for side in shape)
    height = spec.height / spec.scene_scale / coarse  # of the slide within its whole tiles
    width = spec.width / spec.scene_scale / coarse
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) + 0.5
    small = min(height, width)
    if spec.style == "biopsy":
        field = _cores(rng, x, y, width, height)
    else:
        turn = rng.uniform(0, math.pi)
        cx, cy = (side * rng.uniform(0.46, 0.54) for side in (width, height))
        u = (x - cx) / width * math.cos(turn) + (y - cy) / height * math.sin(turn)
        v = (y - cy) / height * math.cos(turn) - (x - cx) / width * math.sin(turn)
        squeeze = rng.uniform(0.8, 1.25)
        field = 0.5 - np.hypot(u * squeeze, v / squeeze)
        field += 0.065 * smooth(rng, field.shape, small / 3.5)
        field += 0.022 * smooth(rng, field.shape, small / 11)
    border = np.minimum(np.minimum(x, width - x), np.minimum(y, height - y)) / small
    margin = 0.05 + 0.012 * smooth(rng, field.shape, small / 6)
    field -= 0.3 * np.maximum(margin - border, 0) / 0.05
    field[border < 0.008] = field.min()
    flat = field[: int(height), : int(width)]
    threshold = np.quantile(flat, 1 - spec.tissue_share)
    inside = np.pad(field > threshold, 1)  # the pad keeps an edge even where tissue fills all
    step = mpp * coarse
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    distance = gaussian_filter(distance[1:-1, 1:-1].astype(np.float32) * np.float32(step), 0.8)
    box = (0.0, 0.0, shape[1] / coarse, shape[0] / coarse)
    enlarged = Image.fromarray(distance).resize(
        (shape[1], shape[0]), Image.Resampling.BICUBIC, box=box
    )
    depth = np.asarray(enlarged) + 4.0 * smooth(rng, shape, 25 / mpp)
    depth += 1.5 * smooth(rng, shape, 6 / mpp)
    return np.asarray(np.clip(depth, -200, 2000), np.float32)


def _cores(rng: np.random.Generator, x: Field, y: Field, width: float, height: float) -> Field:
    """Needle cores: two to four bent strips side by side."""
    turn = float(rng.normal(0, 0.12)) + (math.pi / 2 if height > width else 0.0)
    u = (x - width / 2) * math.cos(turn) + (y - height / 2) * math.sin(turn)
    v = (y - height / 2) * math.cos(turn) - (x - width / 2) * math.sin(turn)
    long, wide = max(width, height), min(width, height)
    count = int(rng.integers(2, 5))
    field = np.full(x.shape, -1e3, np.float32)
    for core in range(count):
        middle = (core + 0.5) / count * wide - wide / 2 + rng.normal(0, 0.02) * wide
        length = 0.5 * long * rng.uniform(0.75, 0.95)
        bend = rng.uniform(-0.06, 0.06) * wide
        center = middle + bend * np.sin(math.pi * u / length + rng.uniform(0, 2 * math.pi))
        beyond = np.maximum(np.abs(u - rng.normal(0, 0.03) * long) - length, 0)
        np.maximum(field, -np.hypot(v - center, beyond) / wide, out=field)
    field += 0.012 * smooth(rng, x.shape, wide / 12)
    return field


def _layout(
    spec: SlideSpec, grade: int, depth: Field, attempt: int
) -> tuple[Maps, list[tuple[NDArray[np.float64], int]]]:
    """Zones and glands; the maps, and the rings of nuclei the glands bring along."""
    rng, shape, mpp = spec.rng(f"layout-{attempt}"), depth.shape, spec.scene_mpp
    maps = Maps(
        mpp=mpp,
        outer=np.full(shape, FAR, np.float32),
        lumen=np.full(shape, FAR, np.float32),
        classes=np.zeros(shape, np.uint8),
        hematoxylin=np.full(shape, 0.09, np.float32),
        eosin=np.full(shape, 0.28, np.float32),
        fill=np.zeros(shape, np.float32),
    )
    if spec.empty:
        return maps, []
    zones, fat = _zones(spec, rng, grade, depth)
    rings: list[tuple[NDArray[np.float64], int]] = []
    placed: list[Gland] = []
    room = math.sqrt(float((depth > 0).sum()) * mpp * mpp)
    for kind in (BENIGN, PATTERN4, PATTERN3):
        found = throw(rng, kind, (zones == kind) & (depth > 0.6 * REACH[kind]), mpp, placed,
                      limit=0.12 * room)  # fmt: skip
        placed += found
        for gland in found:
            ring = paint(rng, maps, gland)
            if len(ring):
                rings.append((ring, KIND_OF_CLASS[kind]))
    if (zones == PATTERN5).any():
        _sheets(rng, maps, zones == PATTERN5)
    if fat is not None:
        _adipocytes(rng, maps, fat)
    maps.classes[(maps.classes == BACKGROUND) & (depth > 0)] = STROMA
    maps.classes[depth <= 0] = BACKGROUND
    return maps, rings


def _zones(
    spec: SlideSpec, rng: np.random.Generator, grade: int, depth: Field
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Which class of glands grows where (0: none), and where the fat lies."""
    shape, mpp = depth.shape, spec.scene_mpp
    free = depth > 12
    room = math.sqrt(max(float(free.sum()), 1.0)) * mpp  # um
    length = min(700.0, 0.4 * room) / mpp
    fat = None
    if spec.fat:
        pale = smooth(rng, shape, length) - np.minimum(depth, 300) / np.float32(200)
        fat = _top(np.asarray(pale, np.float32), depth > 0, float(rng.uniform(0.08, 0.16)))
        fat &= depth > 0
        free &= ~fat
    zones = np.zeros(shape, np.uint8)
    patterns = draw_patterns(grade, rng)
    tumor = np.zeros(shape, bool)
    if patterns:
        field = smooth(rng, shape, length) + 0.4 * smooth(rng, shape, length / 2.5)
        tumor = _top(field, free, float(rng.uniform(0.35, 0.75)))
        split = smooth(rng, shape, 0.8 * length) + 0.3 * smooth(rng, shape, length / 3)
        rest = tumor
        for pattern, share in sorted(patterns.items(), key=lambda item: item[1]):
            part = _top(split, rest, share * tumor.sum() / max(rest.sum(), 1))
            zones[part] = PATTERN_CLASS[pattern]
            rest = rest & ~part
    glandular = smooth(rng, shape, 0.7 * length)
    zones[_top(glandular, free & ~tumor, float(rng.uniform(0.55, 0.85)))] = BENIGN
    return zones, fat


def _top(field: Field, within: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """The `share` of `within` where `field` is largest."""
    if not within.any():
        return within
    if share >= 1:
        return within.copy()
    return within & (field > np.quantile(field[within], 1 - share))


def _sheets(rng: np.random.Generator, maps: Maps, zone: NDArray[np.bool_]) -> None:
    """Pattern 5: ragged sheets and cords without lumens; the single cells come with the nuclei."""
    shape = zone.shape
    field = smooth(rng, shape, 70 / maps.mpp) + 0.7 * smooth(rng, shape, 24 / maps.mpp)
    outer = ((0.15 - field) * 28).astype(np.float32)  # um, near enough to a distance
    free = zone & (maps.outer > 10)
    closer = free & (outer < maps.outer)
    maps.classes[free] = PATTERN5
    tint = 0.5 * smooth(rng, shape, 120 / maps.mpp)
    maps.hematoxylin[closer] = (0.12 + 0.04 * tint + 0.02 * rng.standard_normal())[closer]
    maps.eosin[closer] = (0.28 + 0.05 * tint + 0.04 * rng.standard_normal())[closer]
    maps.outer[closer] = outer[closer]
    if rng.random() < 0.35:  # comedonecrosis: eosin debris instead of cells
        dead = closer & (outer < -32)
        maps.lumen[dead] = np.maximum(outer[dead] + 32, -6)
        maps.fill[dead] = float(rng.uniform(0.2, 0.4))


def _adipocytes(rng: np.random.Generator, maps: Maps, zone: NDArray[np.bool_]) -> None:
    """Fat: packed empty cells with thin walls, drawn from the two nearest seeds of each pixel."""
    seeds = scatter(rng, zone.shape, maps.mpp, float(rng.uniform(48, 75)), 0.24)[:, :2]
    rows, columns = np.nonzero(zone)
    pixels = np.stack([columns + 0.5, rows + 0.5], axis=1) * maps.mpp
    near, _ = cKDTree(seeds).query(pixels, k=2)
    wall = (near[:, 1] - near[:, 0]) / 2  # um from the boundary between two cells, about
    maps.lumen[zone] = (1.6 - wall).astype(np.float32)
    maps.outer[zone] = np.maximum(maps.outer[zone], 6)
    maps.classes[zone] = FAT
    maps.fill[zone] = 0.0


def _fibers(spec: SlideSpec, shape: tuple[int, int], outer: Field) -> tuple[Field, Field]:
    """Coordinates (um) along and across the fibers: wavy, and bent around glands."""
    rng, mpp = spec.rng("fibers"), spec.scene_mpp
    turn = rng.uniform(0, math.pi)
    y, x = (np.arange(side, dtype=np.float32) * np.float32(mpp) for side in shape)
    along = x[None, :] * math.cos(turn) + y[:, None] * math.sin(turn)
    across = y[:, None] * math.cos(turn) - x[None, :] * math.sin(turn)
    along = along + 90 * smooth(rng, shape, 350 / mpp)
    across = across + 170 * smooth(rng, shape, 420 / mpp) + 7 * smooth(rng, shape, 45 / mpp)
    across -= 0.8 * gaussian_filter(FAR - np.maximum(outer, 0), 9 / mpp)
    return along.astype(np.float32), across.astype(np.float32)
