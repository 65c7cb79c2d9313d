"""Glands by Gleason-like pattern: their shapes, and painting them into the maps of a scene.

Benign glands are large, with a folded wall and an open lumen; pattern 3 is small round separate
glands; pattern 4 is cribriform masses and fused glands; pattern 5 (sheets, cords, single cells)
is not made of glands and lives in `tissue`. Sizes overlap between classes on purpose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathgen.synthetic.noise import Field
from pathgen.synthetic.spec import BENIGN, PATTERN3, PATTERN4

FAR = 40.0  # um: signed distances are kept within this
MARGIN = 20.0  # um of stroma around a gland that carries the gland's class


@dataclass(frozen=True)
class Habit:
    """How the glands of one class look. Lengths in um."""

    radius: float  # median of a log-normal
    spread: float  # its sigma
    gap: float
    wall: tuple[float, float]  # share of the radius
    lobes: float  # how far the outline strays from a circle
    folds: float  # how far the wall thickness strays
    stretch: float


HABITS: dict[int, Habit] = {
    BENIGN: Habit(56, 0.30, 15, (0.26, 0.48), 0.11, 0.40, 0.60),
    PATTERN3: Habit(29, 0.25, 7, (0.36, 0.60), 0.06, 0.15, 0.40),
    PATTERN4: Habit(80, 0.28, 9, (0.2, 0.3), 0.14, 0.10, 0.50),
}


@dataclass
class Maps:
    """The scene's maps while they are painted: (rows, columns), lengths in um."""

    mpp: float
    outer: Field  # signed distance to the nearest gland outline, negative inside
    lumen: Field  # signed distance to the nearest empty space, negative inside
    classes: NDArray[np.uint8]
    hematoxylin: Field  # of the cytoplasm
    eosin: Field
    fill: Field  # eosin of what lies in a lumen


@dataclass(frozen=True)
class Gland:
    """One gland: center in um from the slide's corner, radius in um."""

    kind: int
    x: float
    y: float
    radius: float


def throw(
    rng: np.random.Generator,
    kind: int,
    zone: NDArray[np.bool_],
    mpp: float,
    taken: list[Gland],
    limit: float,
) -> list[Gland]:
    """Glands of one class at random places of `zone` that touch no other gland (dart throwing)."""
    habit = HABITS[kind]
    flat = np.flatnonzero(zone)
    if not len(flat):
        return []
    area = len(flat) * mpp * mpp
    tries = int(20 * area / (math.pi * habit.radius**2)) + 60
    radii = habit.radius * np.exp(habit.spread * rng.standard_normal(tries))
    radii = np.sort(np.minimum(radii, limit))[::-1]  # large first packs closer
    places = rng.choice(flat, tries)
    xs = (places % zone.shape[1] + rng.random(tries)) * mpp
    ys = (places // zone.shape[1] + rng.random(tries)) * mpp
    room = tries + len(taken)
    placed = np.empty((room, 3))
    for row, gland in enumerate(taken):
        placed[row] = gland.x, gland.y, gland.radius
    count, found = len(taken), []
    for x, y, radius in zip(xs, ys, radii, strict=True):
        near = placed[:count]
        apart = np.hypot(near[:, 0] - x, near[:, 1] - y) - near[:, 2]
        if count and apart.min() < radius + habit.gap:
            continue
        placed[count] = x, y, radius
        count += 1
        found.append(Gland(kind, float(x), float(y), float(radius)))
    return found


@dataclass(frozen=True)
class Outline:
    """Radius of an outline by angle: a stretched circle with a few harmonics."""

    radius: float
    orders: NDArray[np.float32]
    sizes: NDArray[np.float32]
    phases: NDArray[np.float32]
    stretch: float
    turn: float

    def at(self, angle: NDArray[np.float32]) -> NDArray[np.float32]:
        waves = np.ones_like(angle)
        for order, size, phase in zip(self.orders, self.sizes, self.phases, strict=True):
            waves += size * np.cos(order * angle + phase)
        along = np.cos(2 * (angle - self.turn))
        return np.asarray(self.radius * waves * (1 + 0.5 * self.stretch * along), np.float32)


def outline(rng: np.random.Generator, radius: float, habit: Habit) -> Outline:
    orders = np.arange(2, 7, dtype=np.float32)
    sizes = (habit.lobes * rng.standard_normal(5) * (2 / orders)).astype(np.float32)
    phases = rng.uniform(0, 2 * math.pi, 5).astype(np.float32)
    stretch = habit.stretch * float(rng.beta(1.4, 2.2))
    return Outline(radius, orders, sizes, phases, stretch, float(rng.uniform(0, math.pi)))


def paint(rng: np.random.Generator, maps: Maps, gland: Gland) -> NDArray[np.float64]:
    """Paint one gland; returns its ring of nuclei as rows of x um, y um, angle of the long axis."""
    habit = HABITS[gland.kind]
    reach = gland.radius * 1.6 + FAR / 2
    left, right = _span(gland.x, reach, maps.mpp, maps.outer.shape[1])
    top, bottom = _span(gland.y, reach, maps.mpp, maps.outer.shape[0])
    dx = ((np.arange(left, right) + 0.5) * maps.mpp - gland.x).astype(np.float32)[None, :]
    dy = ((np.arange(top, bottom) + 0.5) * maps.mpp - gland.y).astype(np.float32)[:, None]
    rho, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    window = (slice(top, bottom), slice(left, right))
    if gland.kind == PATTERN4:
        if rng.random() < 0.55:
            outer, lumen, ring = _cribriform(rng, gland, habit, dx, dy, rho, angle)
        else:
            outer, lumen, ring = _fused(rng, gland, dx, dy)
    else:
        outer, lumen, ring = _single(rng, gland, habit, rho, angle)
    closer = outer < maps.outer[window]
    maps.classes[window][closer & (outer < MARGIN)] = gland.kind
    # Cytoplasm varies from gland to gland more than from class to class.
    amphophilic = 0.03 if gland.kind != BENIGN else 0.0
    values = (
        (maps.hematoxylin, max(0.02, 0.08 + amphophilic + 0.035 * rng.standard_normal())),
        (maps.eosin, max(0.10, 0.27 + 0.5 * amphophilic + 0.06 * rng.standard_normal())),
        (maps.fill, _secretion(rng, gland.kind)),
    )
    for field, value in values:
        field[window][closer] = value
    np.minimum(maps.outer[window], outer, out=maps.outer[window])
    np.minimum(maps.lumen[window], lumen, out=maps.lumen[window])
    return ring


def _span(center: float, reach: float, mpp: float, size: int) -> tuple[int, int]:
    return max(int((center - reach) / mpp), 0), min(int((center + reach) / mpp) + 2, size)


def _secretion(rng: np.random.Generator, kind: int) -> float:
    return float(rng.uniform(0.03, 0.20)) if rng.random() < 0.18 else float(rng.uniform(0, 0.012))


def _single(
    rng: np.random.Generator, gland: Gland, habit: Habit, rho: Field, angle: Field
) -> tuple[Field, Field, NDArray[np.float64]]:
    """One gland with one lumen: the wall is folded in benign ones, plain in pattern 3."""
    shape = outline(rng, gland.radius, habit)
    edge = shape.at(angle)
    thick = float(np.clip(gland.radius * rng.uniform(*habit.wall), 10, 40))
    order = int(rng.integers(4, 9)) if gland.kind == BENIGN else int(rng.integers(2, 4))
    phase, second = rng.uniform(0, 2 * math.pi, 2)
    wave = np.cos(order * angle + phase) + 0.6 * np.cos((2 * order - 1) * angle + second)
    wall = thick * (1 + habit.folds * (0.3 + wave))
    lumen = rho - np.maximum(edge - np.maximum(wall, 8.0), 0.06 * gland.radius)
    ring = _ring(rng, gland, shape, inset=4.5, spacing=6.0 if gland.kind == BENIGN else 7.2)
    if gland.kind == BENIGN and rng.random() < 0.8:  # luminal cells above the basal ones
        upper = [
            _ring(rng, gland, shape, inset=float(inset), spacing=8.5)
            for inset in np.arange(12.0, max(thick - 3, 12.5), 8.0)
        ]
        rows = np.concatenate(upper)
        ring = np.concatenate([ring, rows[rng.random(len(rows)) < 0.6]])
    return (rho - edge).astype(np.float32), lumen.astype(np.float32), ring


def _ring(
    rng: np.random.Generator, gland: Gland, shape: Outline, inset: float, spacing: float
) -> NDArray[np.float64]:
    count = max(int(2 * math.pi * max(gland.radius - inset, 4.0) / spacing), 5)
    angle = np.linspace(0, 2 * math.pi, count, endpoint=False)
    angle += rng.uniform(-0.3, 0.3, count) * (2 * math.pi / count)
    radius = shape.at(angle.astype(np.float32)) - inset + rng.normal(0, 0.9, count)
    return np.stack(
        [gland.x + radius * np.cos(angle), gland.y + radius * np.sin(angle), angle], axis=1
    )


def _cribriform(
    rng: np.random.Generator,
    gland: Gland,
    habit: Habit,
    dx: Field,
    dy: Field,
    rho: Field,
    angle: Field,
) -> tuple[Field, Field, NDArray[np.float64]]:
    """A large mass with punched-out round lumens."""
    shape = outline(rng, gland.radius, habit)
    outer = rho - shape.at(angle)
    step = float(rng.uniform(27, 40))
    side = np.arange(-gland.radius, gland.radius + step, step)
    hx, hy = (axis.ravel() + rng.uniform(-0.3, 0.3, axis.size) * step
              for axis in np.meshgrid(side, side))  # fmt: skip
    inside = np.hypot(hx, hy) < shape.at(np.arctan2(hy, hx).astype(np.float32)) - 17
    inside &= rng.random(hx.size) < 0.85
    lumen = np.full_like(rho, FAR)
    for x, y in zip(hx[inside], hy[inside], strict=True):
        hole = float(rng.uniform(4.5, 10.5))
        squeeze = float(rng.uniform(0.75, 1.3))
        np.minimum(lumen, np.hypot((dx - x) * squeeze, (dy - y) / squeeze) - hole, out=lumen)
    return outer.astype(np.float32), lumen, np.empty((0, 3))


def _fused(
    rng: np.random.Generator, gland: Gland, dx: Field, dy: Field
) -> tuple[Field, Field, NDArray[np.float64]]:
    """Small glands grown into each other, with slit-like or no lumens."""
    outer, lumen = (np.full(np.broadcast_shapes(dx.shape, dy.shape), FAR, np.float32)
                    for _ in range(2))  # fmt: skip
    unit = float(rng.uniform(19, 27))
    spots = [(0.0, 0.0)]
    for _ in range(int(2.2 * (gland.radius / unit) ** 2)):
        x, y = spots[int(rng.integers(len(spots)))]
        turn = rng.uniform(0, 2 * math.pi)
        x, y = x + 1.5 * unit * math.cos(turn), y + 1.5 * unit * math.sin(turn)
        if math.hypot(x, y) < gland.radius - 0.6 * unit and all(
            math.hypot(x - a, y - b) > 1.35 * unit for a, b in spots
        ):
            spots.append((x, y))
    for x, y in spots:
        size = unit * float(rng.uniform(0.85, 1.15))
        away = np.hypot(dx - x, dy - y)
        np.minimum(outer, away - size, out=outer)
        turn = rng.uniform(0, math.pi)
        u = (dx - x) * math.cos(turn) + (dy - y) * math.sin(turn)
        v = (dy - y) * math.cos(turn) - (dx - x) * math.sin(turn)
        if rng.random() < 0.7:
            slit = np.hypot(u / 1.5, v * 1.4) - float(rng.uniform(2.0, 7.0))
            np.minimum(lumen, slit, out=lumen)
    return outer, lumen, np.empty((0, 3))
