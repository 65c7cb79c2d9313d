"""Contact sheets: the patches themselves, so that a person sees what weighed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pathgen.errors import DataError
from pathgen.heatmap.drawing import GRAY, INK, font

if TYPE_CHECKING:
    from pathgen.heatmap.result import Heatmap

SIDE, GAP, LINE, MARGIN = 160, 10, 16, 16


def contact_sheet(
    heatmap: Heatmap, rows: Sequence[int] | NDArray[np.integer], columns: int = 8, title: str = ""
) -> Image.Image:
    """The patches of these rows in that order.

    Below each: its weight as a multiple of the mean one, and its level-0 corner.

    Raises:
        DataError: PG-H04, the patches have no pixels here.
    """
    rows = [int(row) for row in rows]
    images = heatmap.pixels.patches(heatmap.place, rows)
    if images is None:
        raise DataError(
            "patches without pixels", code="PG-H04", where=heatmap.slide,
            why="only features of the slide were given",
            hint="give the slide, or patch stores with --patches",
        )  # fmt: skip
    captions = []
    for row in rows:
        x, y = heatmap.place.coords[row].tolist()
        captions.append((f"{heatmap.attention[row] * len(heatmap):.3g} x mean", f"{x:,}, {y:,}"))
    return sheet(images, captions, columns, title)


def sheet(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    captions: Sequence[tuple[str, str]],
    columns: int = 8,
    title: str = "",
) -> Image.Image:
    """Images (n, H, W, 3) in rows of `columns`, each over two lines of text."""
    columns = max(1, min(columns, len(images)))
    lines = -(-len(images) // columns)
    head = 30 if title else 0
    step, down = SIDE + GAP, SIDE + 2 * LINE + GAP
    width = columns * step - GAP + 2 * MARGIN
    face, small = font(15), font(12)
    picture = Image.new(
        "RGB", (max(width, int(face.getlength(title)) + 2 * MARGIN),
                lines * down - GAP + 2 * MARGIN + head), "white",
    )  # fmt: skip
    pen = ImageDraw.Draw(picture)
    if title:
        pen.text((MARGIN, MARGIN - 4), title, INK, face)
    for place, (pixels, (first, second)) in enumerate(zip(images, captions, strict=True)):
        x = MARGIN + place % columns * step
        y = MARGIN + head + place // columns * down
        small_one = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.paste(small_one, (x, y))
        pen.text((x, y + SIDE + 2), first, INK, small)
        pen.text((x, y + SIDE + 2 + LINE), second, GRAY, small)
    return picture
