"""The script most people write: thumbnail, Otsu, read_region, rgb2hed, Pillow, h5py; one process.

    python benchmarks/plain.py SLIDE OUT.h5 --reader openslide --patch-size 256

A baseline for benchmarks/peers.py; needs none of pathgen. Patches are read from level 0.
"""

from __future__ import annotations

import argparse
import io
from typing import Any

import h5py
import numpy as np
from PIL import Image
from skimage.color import rgb2hed, rgb2hsv
from skimage.filters import threshold_otsu

THUMBNAIL, QUALITY = 2048, 90
LEAST_TISSUE = 0.5
STAINED, LEAST_STAINED = 0.01, 0.01  # hematoxylin, as scikit-image scales it; share of pixels


class FastSlide:
    """fastslide under the names of OpenSlide."""

    def __init__(self, path: str) -> None:
        import fastslide

        self.slide = fastslide.FastSlide.from_file_path(path)
        self.dimensions = self.slide.dimensions

    def read_region(self, at: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        return Image.fromarray(self.slide.read_region(at, level, size).numpy())

    def get_thumbnail(self, size: tuple[int, int]) -> Image.Image:
        wanted = max(self.dimensions) / max(size)
        level = max(sum(each <= wanted for each in self.slide.level_downsamples) - 1, 0)
        image = self.read_region((0, 0), level, self.slide.level_dimensions[level])
        image.thumbnail(size)
        return image


def open_slide(path: str, reader: str) -> Any:
    if reader == "openslide":
        import openslide

        return openslide.OpenSlide(path)
    if reader == "tiffslide":
        import tiffslide

        return tiffslide.TiffSlide(path)
    return FastSlide(path)


def tile(path: str, out: str, reader: str, side: int) -> int:
    """The number of patches written to `out`."""
    slide = open_slide(path, reader)
    thumbnail = np.asarray(slide.get_thumbnail((THUMBNAIL, THUMBNAIL)).convert("RGB"))
    saturation = rgb2hsv(thumbnail)[..., 1]
    tissue = saturation > threshold_otsu(saturation)
    width, height = slide.dimensions
    across, down = thumbnail.shape[1] / width, thumbnail.shape[0] / height
    kept: list[tuple[int, int]] = []
    with h5py.File(out, "w") as file:
        patches = file.create_dataset(
            "patches", (0,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(64,)
        )
        for y in range(0, height - side + 1, side):
            rows = slice(int(y * down), int((y + side) * down) + 1)
            for x in range(0, width - side + 1, side):
                columns = slice(int(x * across), int((x + side) * across) + 1)
                if tissue[rows, columns].mean() < LEAST_TISSUE:
                    continue
                patch = slide.read_region((x, y), 0, (side, side)).convert("RGB")
                if (rgb2hed(np.asarray(patch))[..., 0] > STAINED).mean() < LEAST_STAINED:
                    continue
                buffer = io.BytesIO()
                patch.save(buffer, "JPEG", quality=QUALITY)
                patches.resize(len(kept) + 1, axis=0)
                patches[len(kept)] = np.frombuffer(buffer.getvalue(), np.uint8)
                kept.append((x, y))
        file["coords"] = np.asarray(kept, np.int64).reshape(-1, 2)
    return len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide")
    parser.add_argument("out")
    parser.add_argument(
        "--reader", choices=["openslide", "tiffslide", "fastslide"], default="openslide"
    )
    parser.add_argument("--patch-size", type=int, default=256)
    arguments = parser.parse_args()
    print(tile(arguments.slide, arguments.out, arguments.reader, arguments.patch_size))


if __name__ == "__main__":
    main()
