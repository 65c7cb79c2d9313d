"""Nuclei: where they lie by class, and a bank of hematoxylin stamps to draw them with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.synthetic.glands import Maps
from pathgen.synthetic.noise import Field, ramp, smooth
from pathgen.synthetic.spec import BENIGN, FAT, PATTERN3, PATTERN4, PATTERN5

KINDS: tuple[str, ...] = (
    "benign epithelium",
    "tumor, pattern 3",
    "tumor, pattern 4",
    "tumor, pattern 5",
    "fibroblast",
    "lymphocyte",
)
BENIGN_CELL, TUMOR3, TUMOR4, TUMOR5, FIBROBLAST, LYMPHOCYTE = range(len(KINDS))
KIND_OF_CLASS = {BENIGN: BENIGN_CELL, PATTERN3: TUMOR3, PATTERN4: TUMOR4, PATTERN5: TUMOR5}

TURNS = 16  # orientations over half a circle
VARIANTS = 6


@dataclass(frozen=True)
class NucleusHabit:
    """Diameter in um (median and log sigma), elongation, OD, and how it varies."""

    diameter: float
    spread: float
    elongation: float
    density: float
    density_spread: float
    nucleolus: float  # how often there is one
    ragged: float


HABITS: tuple[NucleusHabit, ...] = (
    NucleusHabit(7.3, 0.10, 1.25, 0.70, 0.12, 0.08, 0.05),
    NucleusHabit(7.9, 0.13, 1.15, 0.68, 0.14, 0.40, 0.06),
    NucleusHabit(8.3, 0.15, 1.15, 0.68, 0.16, 0.55, 0.07),
    NucleusHabit(8.8, 0.22, 1.22, 0.74, 0.22, 0.50, 0.11),
    NucleusHabit(6.2, 0.18, 2.90, 0.60, 0.14, 0.00, 0.04),
    NucleusHabit(6.0, 0.08, 1.05, 0.92, 0.08, 0.00, 0.03),
)


@dataclass(frozen=True)
class Nuclei:
    """Centers (n, 2) in level-0 pixels, whole numbers; kind, turn and variant of each, (n,)."""

    centers: NDArray[np.int64]
    kind: NDArray[np.uint8]
    turn: NDArray[np.uint8]
    variant: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.centers)


def gather(
    rng: np.random.Generator, parts: list[tuple[NDArray[np.float64], int]], mpp: float
) -> Nuclei:
    """One set from (rows of x um, y um, angle; kind) parts, sorted by row of pixels."""
    rows = np.concatenate([part for part, _ in parts] or [np.empty((0, 3))])
    counts = [len(part) for part, _ in parts]
    kind = np.repeat(np.array([kind for _, kind in parts], np.uint8), counts)
    centers = np.rint(rows[:, :2] / mpp).astype(np.int64)
    turn = (np.rint(rows[:, 2] / math.pi * TURNS) % TURNS).astype(np.uint8)
    variant = rng.integers(0, VARIANTS, len(rows)).astype(np.uint8)
    order = np.lexsort((centers[:, 0], centers[:, 1]))
    return Nuclei(centers[order], kind[order], turn[order], variant[order])


def scatter(
    rng: np.random.Generator, shape: tuple[int, int], mpp: float, spacing: float, jitter: float
) -> NDArray[np.float64]:
    """Points about `spacing` um apart over a (rows, columns) map: a hexagonal grid, shaken."""
    height, width = shape[0] * mpp, shape[1] * mpp
    rows, columns = int(height / (spacing * 0.866)) + 1, int(width / spacing) + 1
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    x += 0.5 * (y % 2)
    x, y = x * spacing, y * spacing * 0.866
    x += rng.uniform(-jitter, jitter, x.shape) * spacing
    y += rng.uniform(-jitter, jitter, y.shape) * spacing
    points = np.stack([x.ravel(), y.ravel(), rng.uniform(0, math.pi, x.size)], axis=1)
    inside = (points[:, 0] >= 0) & (points[:, 1] >= 0)
    inside &= (points[:, 0] < width) & (points[:, 1] < height)
    return points[inside]


def populate(
    rng: np.random.Generator,
    maps: Maps,
    depth: Field,
    across: Field,
    rings: list[tuple[NDArray[np.float64], int]],
) -> list[tuple[NDArray[np.float64], int]]:
    """Rings of glands, cells that fill patterns 4 and 5, fibroblasts, lymphocytes."""
    shape, mpp = depth.shape, maps.mpp

    def at(points: NDArray[np.float64], field: NDArray[Any]) -> NDArray[Any]:
        rows = np.clip((points[:, 1] / mpp).astype(np.int64), 0, shape[0] - 1)
        columns = np.clip((points[:, 0] / mpp).astype(np.int64), 0, shape[1] - 1)
        return field[rows, columns]

    parts = []
    for ring, kind in rings:
        keep = (at(ring, depth) > 4) & (at(ring, maps.lumen) > 0.5)
        parts.append((ring[keep], kind))
    spacing = {PATTERN4: float(rng.uniform(10.2, 12.2)), PATTERN5: float(rng.uniform(10.6, 14.0))}
    for kind, step in spacing.items():
        if not (maps.classes == kind).any():
            continue
        points = scatter(rng, shape, mpp, step, 0.22)
        keep = (at(points, maps.classes) == kind) & (at(points, maps.outer) < -2.5)
        keep &= (at(points, maps.lumen) > 3.0) & (at(points, depth) > 4)
        keep &= rng.random(len(points)) < 0.9
        parts.append((points[keep], KIND_OF_CLASS[kind]))
        if kind == PATTERN5:  # single cells between the sheets
            points = scatter(rng, shape, mpp, 19.0, 0.4)
            keep = (at(points, maps.classes) == kind) & (at(points, maps.outer) > 6)
            keep &= (at(points, depth) > 4) & (rng.random(len(points)) < 0.7)
            parts.append((points[keep], KIND_OF_CLASS[kind]))
    parts += _stroma_cells(rng, maps, depth, across, at)
    return parts


def _stroma_cells(
    rng: np.random.Generator,
    maps: Maps,
    depth: Field,
    across: Field,
    at: Callable[..., NDArray[Any]],
) -> list[tuple[NDArray[np.float64], int]]:
    shape, mpp = depth.shape, maps.mpp
    points = scatter(rng, shape, mpp, float(rng.uniform(16, 21)), 0.42)
    cellular = 0.5 + 0.22 * smooth(rng, shape, 160 / mpp)
    keep = (at(points, maps.outer) > 4) & (at(points, maps.lumen) > 3) & (at(points, depth) > 4)
    keep &= rng.random(len(points)) < at(points, cellular)
    keep &= (at(points, maps.classes) != FAT) | (rng.random(len(points)) < 0.25)
    spindle = points[keep]
    down, right = np.gradient(across[::2, ::2])
    direction = np.arctan2(right, -down)  # along the contours, which are the fibers
    rows = np.clip((spindle[:, 1] / mpp / 2).astype(np.int64), 0, direction.shape[0] - 1)
    columns = np.clip((spindle[:, 0] / mpp / 2).astype(np.int64), 0, direction.shape[1] - 1)
    spindle[:, 2] = direction[rows, columns] + rng.normal(0, 0.2, len(spindle))
    # Inflammation comes and goes from slide to slide, whatever the grade.
    level = float(rng.choice((2.2, 1.7, 1.35)))
    inflamed = smooth(rng, shape, 170 / mpp)
    points = scatter(rng, shape, mpp, 8.5, 0.4)
    keep = (at(points, maps.outer) > 3) & (at(points, maps.lumen) > 3) & (at(points, depth) > 4)
    keep &= rng.random(len(points)) < 0.35 * np.clip(at(points, inflamed) - level + 0.6, 0, 1.6)
    keep &= at(points, maps.classes) != FAT
    return [(spindle, FIBROBLAST), (points[keep], LYMPHOCYTE)]


class StampBank:
    """Hematoxylin OD of nuclei, ready to lay down: stamps[kind][turn][variant] -> (side, side)."""

    def __init__(
        self, rng: np.random.Generator, mpp: float, blur: float, size: float, chromatin: Field
    ) -> None:
        """`blur` is the scanner's point spread in um, `size` a factor on every diameter,
        `chromatin` a periodic texture of unit variance."""
        self.stamps: list[list[list[Field]]] = []
        for habit in HABITS:
            self.stamps.append(
                [
                    [
                        _stamp(rng, habit, math.pi * turn / TURNS, mpp, blur, size, chromatin)
                        for _ in range(VARIANTS)
                    ]
                    for turn in range(TURNS)
                ]
            )
        largest = max(s.shape[0] for kind in self.stamps for turn in kind for s in turn)
        self.reach = largest // 2 + 1  # level-0 pixels

    def draw(self, nuclei: Nuclei, x: int, y: int, width: int, height: int) -> Field:
        """Hematoxylin OD of the nuclei in one level-0 block, (height, width)."""
        canvas = np.zeros((height, width), np.float32)
        rows = nuclei.centers[:, 1]
        first, last = np.searchsorted(rows, (y - self.reach, y + height + self.reach))
        across = nuclei.centers[first:last, 0]
        near = np.flatnonzero((across > x - self.reach) & (across < x + width + self.reach))
        for i in (near + first).tolist():
            stamp = self.stamps[nuclei.kind[i]][nuclei.turn[i]][nuclei.variant[i]]
            half = stamp.shape[0] // 2
            left, top = int(nuclei.centers[i, 0]) - half - x, int(nuclei.centers[i, 1]) - half - y
            x0, y0 = max(left, 0), max(top, 0)
            x1, y1 = min(left + 2 * half, width), min(top + 2 * half, height)
            if x0 >= x1 or y0 >= y1:
                continue
            place = canvas[y0:y1, x0:x1]
            np.maximum(place, stamp[y0 - top : y1 - top, x0 - left : x1 - left], out=place)
        return canvas


def _stamp(
    rng: np.random.Generator,
    habit: NucleusHabit,
    angle: float,
    mpp: float,
    blur: float,
    size: float,
    chromatin: Field,
) -> Field:
    diameter = size * habit.diameter * math.exp(habit.spread * rng.standard_normal())
    elongation = 1 + (habit.elongation - 1) * float(rng.uniform(0.5, 1.5))
    long, short = 0.5 * diameter * math.sqrt(elongation), 0.5 * diameter / math.sqrt(elongation)
    half = math.ceil((long * 1.25 + 2 * blur) / mpp) + 1
    axis = ((np.arange(2 * half) - half + 0.5) * mpp).astype(np.float32)
    u = axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)
    v = axis[:, None] * math.cos(angle) - axis[None, :] * math.sin(angle)
    turn = np.arctan2(v / short, u / long)
    edge = np.ones_like(turn)
    for order in (2, 3, 4, 5):
        edge += (
            habit.ragged
            * rng.standard_normal()
            * np.cos(order * turn + rng.uniform(0, 2 * math.pi))
            / (order - 1)
        )
    depth = (edge - np.hypot(u / long, v / short)) * short  # um from the outline, inside positive
    body = ramp(depth.astype(np.float32), max(0.35, blur) + 0.15)
    density = habit.density * math.exp(habit.density_spread * rng.standard_normal())
    row, column = rng.integers(0, chromatin.shape[0] - 2 * half, 2)
    grain = chromatin[row : row + 2 * half, column : column + 2 * half]
    inside = density * (1 + 0.21 * grain)
    vesicular = rng.random() < habit.nucleolus
    if vesicular:  # pale inside, a dark rim and a nucleolus
        inside *= 0.72
        inside += 0.26 * density * np.exp(-(((depth - 0.5) / 0.6) ** 2))
        x, y = rng.uniform(-0.25, 0.25, 2) * diameter
        spot = np.hypot(axis[None, :] - x, axis[:, None] - y)
        inside += 0.55 * density * np.exp(-((spot / (0.9 + blur)) ** 2))
    else:
        inside += 0.12 * density * np.exp(-(((depth - 0.5) / 0.6) ** 2))
    return np.maximum(body * inside, 0).astype(np.float32)
