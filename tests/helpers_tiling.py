"""Small slides for the tests of tiling: SVS-like pyramids, written in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray


def tissue_image(
    width: int = 1536, height: int = 1024, seed: int = 0, glass: int = 242
) -> NDArray[np.uint8]:
    """Pink ellipse with purple nuclei on noisy glass, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), glass, np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    inside = ((x - width / 2) / (width * 0.42)) ** 2 + ((y - height / 2) / (height * 0.42)) ** 2 < 1
    image[inside] = (226, 150, 190)
    for cx, cy in rng.uniform((0, 0), (width, height), (width * height // 1500, 2)):
        x0, y0 = int(cx), int(cy)
        spot = image[max(y0 - 5, 0) : y0 + 6, max(x0 - 5, 0) : x0 + 6]
        where = inside[max(y0 - 5, 0) : y0 + 6, max(x0 - 5, 0) : x0 + 6]
        spot[where] = (90, 55, 140)
    image += rng.normal(0, 1.5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_svs(
    path: Path,
    image: NDArray[np.uint8],
    *,
    mpp: str | float | None = 0.5,
    levels: Sequence[int] = (1, 4),
    tile: int = 256,
    extra: str = "",
    compression: str | None = "jpeg",
) -> Path:
    """A tiled pyramid that OpenSlide opens as Aperio; coarser levels are cut box averages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = image.shape[:2]
    text = f"Aperio Image Library v11.2.1\r\n{width}x{height} ({tile}x{tile}) JPEG/RGB Q=90"
    text += f"|AppMag = 20{extra}" + ("" if mpp is None else f"|MPP = {mpp}")
    with tifffile.TiffWriter(path) as tiff:
        for k in levels:
            small = image[: height // k * k, : width // k * k]
            small = small.reshape(height // k, k, width // k, k, 3).mean((1, 3))
            tiff.write(
                np.asarray(small + 0.5, np.uint8), tile=(tile, tile), photometric="rgb",
                compression=compression, compressionargs={"level": 95} if compression else None,
                description=text, metadata=None, subfiletype=0,
            )  # fmt: skip
            if k == 1:  # the second directory of an SVS is its thumbnail
                tiff.write(
                    np.full((64, 64, 3), 200, np.uint8), photometric="rgb", compression="jpeg",
                    rowsperstrip=16, description=text, metadata=None,
                )  # fmt: skip
    return path


def write_tiff(
    path: Path,
    image: NDArray[np.generic],
    *,
    per_cm: tuple[float, float] | None = None,
    tile: int | None = 256,
    **options: object,
) -> Path:
    """A plain TIFF of one level, tiled or in strips, with resolution tags on request."""
    if per_cm is not None:
        options |= {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
    rgb = image.ndim == 3
    tifffile.imwrite(
        path, image, tile=None if tile is None else (tile, tile),
        photometric="rgb" if rgb else "minisblack", metadata=None, **options,
    )  # fmt: skip
    return path
