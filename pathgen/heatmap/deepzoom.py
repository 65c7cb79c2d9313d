"""A heatmap as Deep Zoom tiles, the plain layout that OpenSeadragon and others open.

``NAME.dzi`` (XML) and ``NAME_files/<level>/<column>_<row>.jpg``: level 0 is one pixel, each
further one twice as large, the last the whole picture; tiles of 254 pixels share 1 with each
neighbor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen import commit
from pathgen.heatmap.pyramid import QUALITY, halved, map_scale
from pathgen.heatmap.result import ATTENTION, Heatmap

TILE, OVERLAP = 254, 1


def write_deepzoom(heatmap: Heatmap, path: Path) -> Path:
    """`path` ends in ``.dzi``; the tiles come first, so that what it names is there."""
    pixels = heatmap.overlay(ATTENTION, map_scale(heatmap))
    height, width = pixels.shape[:2]
    with commit.draft(path.with_name(f"{path.stem}_files")) as folder:
        for level in range(int(np.ceil(np.log2(max(width, height)))), -1, -1):
            _write_level(folder / str(level), pixels)
            pixels = halved(pixels)
    commit.write_text(
        path,
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpg" '
        f'Overlap="{OVERLAP}" TileSize="{TILE}">'
        f'<Size Width="{width}" Height="{height}"/></Image>\n',
    )
    return path


def _write_level(folder: Path, pixels: NDArray[np.uint8]) -> None:
    folder.mkdir(parents=True)
    height, width = pixels.shape[:2]
    for row in range(-(-height // TILE)):
        for column in range(-(-width // TILE)):
            left, top = max(0, column * TILE - OVERLAP), max(0, row * TILE - OVERLAP)
            right, low = (column + 1) * TILE + OVERLAP, (row + 1) * TILE + OVERLAP
            tile = Image.fromarray(np.ascontiguousarray(pixels[top:low, left:right]))
            tile.save(folder / f"{column}_{row}.jpg", quality=QUALITY)
