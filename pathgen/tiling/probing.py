"""Whether a slide can be decoded, by a few squares of each level."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pathgen.errors import SlideError
from pathgen.tiling.slide import SlideReader

#: Squares read of each level, and their side in pixels.
READS, SIDE = 6, 256
#: A slide of more pixels should have a pyramid.
LARGE = 2**26


def unreadable(slide: SlideReader) -> Iterator[str]:
    """Of squares spread over the scanned part of each level, those that cannot be decoded."""
    x0, y0, width, height = slide.bounds
    # Multiples of these two numbers fill a square evenly.
    turns = np.arange(READS)[:, None] * (0.7548776662, 0.5698402910)
    for level, (step, size) in enumerate(zip(slide.downsamples, slide.level_sizes, strict=True)):
        square = min(SIDE, size[0]), min(SIDE, size[1])
        room = np.maximum((width - square[0] * step, height - square[1] * step), 0)
        for x, y in (x0, y0) + (0.5 + turns) % 1 * room:
            try:
                slide.read((float(x), float(y)), level, square)
            except SlideError as error:
                yield f"level {level}, {error.why or error.what}"
