"""Contact sheets: rows of captioned pictures, for a person to judge a training by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pathgen.commit import draft

SIDE, GAP, CAPTION = 128, 4, 16


class Picture(NamedTuple):
    """One cell of a sheet."""

    caption: str
    pixels: NDArray[np.uint8]
    """RGB, (H, W, 3), shown as a square"""


def write_sheet(path: Path, lines: Sequence[Sequence[Picture]]) -> None:
    """A PNG of rows of pictures on white, each `SIDE` pixels wide and high under its caption."""
    columns, step = max(map(len, lines)), SIDE + GAP
    sheet = Image.new("RGB", (columns * step, len(lines) * (step + CAPTION)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for row, line in enumerate(lines):
        for column, picture in enumerate(line):
            x, y = column * step, row * (step + CAPTION)
            cell = Image.fromarray(picture.pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(cell, (x, y + CAPTION))
            pen.text((x + 2, y + 1), picture.caption, fill="black", font=font)
    with draft(path) as temporary:
        sheet.save(temporary, format="PNG")


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """(B, 3, H, W) in [0, 1] -> uint8 (B, H, W, 3), rounded."""
    rounded = (images.detach().float().clamp(0, 1) * 255).round()
    return np.asarray(rounded.permute(0, 2, 3, 1).cpu().numpy(), np.uint8)
