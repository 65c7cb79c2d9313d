"""Draws overview.jpg from the output of `pathgen demo`: python docs/images/overview.py demo/"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

HEIGHT, GAP = 600, 16


def scaled(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        size = (round(picture.width * HEIGHT / picture.height), HEIGHT)
        return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def main(demo: Path) -> None:
    slide = min((demo / "tiles" / "thumbnails").glob("*.jpg"))
    left, right = scaled(slide), scaled(demo / "runs/tiny/augment/sheet.png")
    canvas = Image.new("RGB", (left.width + GAP + right.width, HEIGHT), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + GAP, 0))
    canvas.save(Path(__file__).with_name("overview.jpg"), quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
