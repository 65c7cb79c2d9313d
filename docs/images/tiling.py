"""Draws the pictures of tiling.md from slides it synthesizes: python docs/images/tiling.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import pathgen
from pathgen.synthetic import CohortConfig, make_slides
from pathgen.tiling import TileConfig

HERE = Path(__file__).parent
COUNT = 6


def rows(slide: Path, folder: Path, **settings: object) -> Image.Image:
    """The first patches of a slide that hold enough nuclei, side by side."""
    config = TileConfig(min_hematoxylin=0.2, patch_size=160, **settings)  # type: ignore[arg-type]
    report = pathgen.tile(slide, folder, config, workers=0)
    with pathgen.open_store(report.stores[0]) as store:
        images = store.images(np.linspace(0, len(store) - 1, COUNT).astype(int))
    return Image.fromarray(np.concatenate(list(images), axis=1))


def normalized(folder: Path) -> None:
    """tile-normalize.jpg: as drawn, Macenko, Reinhard; two slides of different stain."""
    slides = folder / "slides"
    make_slides(slides, 2, 7, CohortConfig(width=2048, height=2048, stain_variation=2.0), workers=0)
    parts = [
        rows(slide, folder / f"{slide.stem}-{method}", normalize={"method": method})
        for slide in sorted(slides.glob("*.svs"))
        for method in ("none", "macenko", "reinhard")
    ]
    canvas = Image.new("RGB", (parts[0].width, sum(part.height for part in parts) + 12), "white")
    for i, part in enumerate(parts):
        canvas.paste(part, (0, i * part.height + (12 if i > 2 else 0)))
    canvas.save(HERE / "tile-normalize.jpg", quality=88)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        normalized(Path(folder))


if __name__ == "__main__":
    main()
