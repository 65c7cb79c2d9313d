"""What goes wrong with a slide: folds, pen marks, lost focus; and crosses to check geometry by."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from pathgen.synthetic.noise import Field, smooth
from pathgen.synthetic.spec import SlideSpec

POINT_PITCH = 512  # level-0 pixels between grid points, about


def draw_thickness(
    spec: SlideSpec, shape: tuple[int, int], depth: Field
) -> tuple[Field, NDArray[np.bool_] | None]:
    """Relative thickness of the section; folds double it along a band."""
    rng, mpp = spec.rng("thickness"), spec.scene_mpp
    thickness = 1 + 0.06 * smooth(rng, shape, 500 / mpp)
    fold = None
    if spec.folds and not spec.empty:
        lines = np.zeros(shape, np.float32)
        for _ in range(int(rng.integers(1, 4))):
            np.maximum(lines, _stroke(rng, shape, depth, float(rng.uniform(18, 55)) / mpp, 0.35),
                       out=lines)  # fmt: skip
        fold = (lines > 0.5) & (depth > 0)
        thickness += lines * float(rng.uniform(0.7, 1.2))
    return thickness.astype(np.float32), fold


def _stroke(
    rng: np.random.Generator, shape: tuple[int, int], depth: Field, width: float, reach: float
) -> Field:
    """One curved stroke through tissue, as weights 0..1; `reach` is its length by the slide's."""
    coarse = depth[::8, ::8]
    columns = coarse.shape[1]
    deep = np.flatnonzero(coarse > max(0.0, 0.3 * float(coarse.max())))
    middle = int(rng.choice(deep)) if len(deep) else int(rng.integers(coarse.size))
    heading, step = rng.uniform(0, 2 * math.pi), reach * min(shape) / 24
    points: list[tuple[float, float]] = []
    for way in (math.pi, 0.0):  # from the middle to one end, then to the other
        points.reverse()
        x, y, turn = 8.0 * (middle % columns), 8.0 * (middle // columns), heading + way
        for _ in range(12):
            points.append((x, y))
            turn += rng.normal(0, 0.22)
            x, y = x + step * math.cos(turn), y + step * math.sin(turn)
    image = Image.new("L", (shape[1], shape[0]))
    draw = ImageDraw.Draw(image)
    draw.line(points, fill=255, width=max(int(width), 2), joint="curve")
    for cx, cy in (points[0], points[-1]):
        r = width / 2
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
    weights = np.asarray(image, np.float32) / 255
    return np.asarray(gaussian_filter(weights, min(width / 10, 1.0)), np.float32)


def draw_pen(spec: SlideSpec, shape: tuple[int, int], depth: Field) -> Field | None:
    """Felt-pen strokes, near or across the tissue, with streaks along their ink."""
    if not spec.pen:
        return None
    rng, mpp = spec.rng("pen"), spec.scene_mpp
    width = min(180.0, 0.03 * min(shape) * mpp) / mpp
    strokes = [_stroke(rng, shape, depth, width, float(rng.uniform(0.5, 0.9)))
               for _ in range(int(rng.integers(1, 4)))]  # fmt: skip
    weights = np.max(strokes, axis=0) * (1 + 0.10 * smooth(rng, shape, 30 / mpp))
    return np.asarray(np.clip(weights, 0, 1.3), np.float32)


def draw_blur(spec: SlideSpec, shape: tuple[int, int]) -> Field | None:
    """Where the focus is lost: a fifth of the slide in soft patches."""
    if not spec.blur:
        return None
    field = smooth(spec.rng("blur"), shape, min(shape) / 4)
    edge = np.quantile(field, 0.8)
    return np.asarray(np.clip((field - edge) / 0.25, 0, 1), np.float32)


def draw_points(spec: SlideSpec) -> NDArray[np.int64]:
    """Grid points (n, 2) in level-0 pixels: whole numbers, off any regular grid."""
    if not spec.grid_points:
        return np.empty((0, 2), np.int64)
    rng = spec.rng("points")
    pitch = min(POINT_PITCH, spec.width // 2, spec.height // 2)
    grid = np.array(
        [
            (x, y)
            for y in range(pitch // 2, spec.height - pitch // 3, pitch)
            for x in range(pitch // 2, spec.width - pitch // 3, pitch)
        ]
    )
    return np.asarray(grid + rng.integers(-pitch // 8, pitch // 8, grid.shape), np.int64)
