"""Many patches as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Pixels between patches.
GAP = 4


def montage(patches: Sequence[NDArray[np.uint8]], side: int = 128) -> Image.Image:
    """Patches, RGB (h, w, 3), on white, each `side` pixels wide and high; row by row, about square.

    Without patches the picture is one white square.
    """
    across = max(math.ceil(math.sqrt(len(patches))), 1)
    down = max(math.ceil(len(patches) / across), 1)
    step = side + GAP
    sheet = Image.new("RGB", (across * step - GAP, down * step - GAP), "white")
    for number, patch in enumerate(patches):
        picture = Image.fromarray(patch).resize((side, side), Image.Resampling.BOX)
        sheet.paste(picture, (number % across * step, number // across * step))
    return sheet
