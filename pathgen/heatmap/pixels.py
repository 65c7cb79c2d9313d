"""What lies below a map: the slide, its stored patches, or nothing. Never a label or macro."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen.heatmap.place import Place
from pathgen.heatmap.raster import raster_size
from pathgen.stores.patches import PatchStore
from pathgen.tiling.inputs import SlideInput
from pathgen.tiling.overview import best_level, best_shrink, read_area, read_overview, resized
from pathgen.tiling.readers import open_with
from pathgen.tiling.slide import Scale, SlideReader

#: Patches decoded at a time.
BATCH = 256


class Pixels(Protocol):
    """Where pictures get their tissue from. Files are open only while they are read."""

    kind: str
    """in words, for the picture"""

    def overview(self, place: Place, scale: float) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of ``place.frame`` at `scale` level-0 pixels per pixel."""
        ...

    def patches(self, place: Place, rows: Sequence[int]) -> NDArray[np.uint8] | None:
        """RGB (n, size, size, 3); None where there are no pixels."""
        ...


class SlidePixels:
    """From the slide: its pyramid alone, whatever else is in the file."""

    kind = "the slide"

    def __init__(self, slide: SlideReader) -> None:
        self.slide = slide

    def overview(self, place: Place, scale: float) -> NDArray[np.uint8]:
        with self.slide as slide:
            found = read_overview(slide, scale)
        # Another reader than the one that tiled may know other bounds.
        left, top = (
            round((own - at) / scale) for own, at in zip(found.origin, place.frame, strict=False)
        )
        return fitted(found.pixels, raster_size(place.frame, scale), (left, top))

    def patches(self, place: Place, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Cut anew at the scale of the patches, by area averaging."""
        size, (width, height) = place.size, place.side
        step = (width / size, height / size)
        images = np.empty((len(rows), size, size, 3), np.uint8)
        with self.slide as slide:
            level = best_level(slide, step)
            shrink = best_shrink(slide, level, min(step) / slide.downsamples[level])
            for image, (x, y) in zip(images, place.coords[list(rows)].tolist(), strict=True):
                area, inner = read_area(
                    slide, level, (x, y, x + width, y + height), shrink=shrink, read=slide.look
                )
                image[:] = resized(area, inner, (size, size), Image.Resampling.BOX)
        return images


class StorePixels:
    """From the patches that were stored: glass and what was left out are white."""

    kind = "the stored patches"

    def __init__(self, path: Path) -> None:
        self.path = path

    def overview(self, place: Place, scale: float) -> NDArray[np.uint8]:
        width, height = raster_size(place.frame, scale)
        canvas = np.full((height, width, 3), 255, np.uint8)
        start = (place.coords - place.frame[:2]) / scale
        ends = np.rint(start + np.array(place.side) / scale).astype(int)
        corners = np.rint(start).astype(int)
        with PatchStore.open(self.path) as store:
            for first in range(0, len(place), BATCH):
                rows = np.arange(first, min(first + BATCH, len(place)))
                for image, (x0, y0), (x1, y1) in zip(
                    store.images(rows), corners[rows], ends[rows], strict=True
                ):
                    left, top, right, low = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
                    if right > left and low > top:
                        size = (x1 - x0, y1 - y0)
                        small = np.asarray(
                            Image.fromarray(image).resize(size, Image.Resampling.BOX)
                        )
                        canvas[top:low, left:right] = small[
                            top - y0 : low - y0, left - x0 : right - x0
                        ]
        return canvas

    def patches(self, place: Place, rows: Sequence[int]) -> NDArray[np.uint8]:
        with PatchStore.open(self.path) as store:
            return store.images(np.asarray(rows, np.int64))


class NoPixels:
    """Features alone: the map is drawn on white."""

    kind = "no pixels"

    def overview(self, place: Place, scale: float) -> NDArray[np.uint8]:
        width, height = raster_size(place.frame, scale)
        return np.full((height, width, 3), 255, np.uint8)

    def patches(self, place: Place, rows: Sequence[int]) -> None:
        return None


def opened(slide: SlideInput) -> SlideReader:
    """A slide of a list or folder, with the pixel size that a list gave it."""
    return open_with(
        slide.path, "auto", None if slide.mpp is None else Scale(slide.mpp, slide.mpp, "csv")
    )


def fitted(
    pixels: NDArray[np.uint8], size: tuple[int, int], corner: tuple[int, int] = (0, 0)
) -> NDArray[np.uint8]:
    """Cut, or filled up with white, to `size` = (width, height); their corner comes to `corner`."""
    (width, height), (left, top) = size, corner
    if pixels.shape[:2] == (height, width) and corner == (0, 0):
        return pixels
    canvas = np.full((height, width, 3), 255, np.uint8)
    part = pixels[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    x, y = max(left, 0), max(top, 0)
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    return canvas
