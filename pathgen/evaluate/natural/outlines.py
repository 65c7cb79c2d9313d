"""How well one mask is another: by region and by contour (Perazzi et al. 2016, DAVIS)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Mask = NDArray[np.bool_]
#: Contours agree within this share of the image's diagonal.
TOLERANCE = 0.008


def region_similarity(found: Mask, truth: Mask) -> float:
    """J: intersection over union of two (H, W) masks; 1 where both are empty."""
    union = np.count_nonzero(found | truth)
    return np.count_nonzero(found & truth) / union if union else 1.0


def contour_accuracy(found: Mask, truth: Mask) -> float:
    """F: harmonic mean of the shares of each contour that lie near the other one."""
    distance = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    own, other = contour(found), contour(truth)
    if not own.any() or not other.any():
        return float(own.any() == other.any())
    precision = float((_distance_to(other)[own] <= distance).mean())
    recall = float((_distance_to(own)[other] <= distance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Mask) -> Mask:
    """Pixels that differ from the one to the right, below, or both: (H, W) -> (H, W)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, both = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    edge: Mask = (mask != right) | (mask != below) | (mask != both)
    return edge


def _distance_to(edge: Mask) -> NDArray[np.float64]:
    distance: NDArray[np.float64] = distance_transform_edt(~edge)
    return distance
