"""The tissue mask as an attribute of a patch store: a small PNG and where it lies."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from pathgen.errors import StoreError
from pathgen.tiling.tissue import TissueMask


def mask_attribute(mask: TissueMask) -> dict[str, Any]:
    """``png`` (base64, one bit a pixel, white is tissue), ``origin`` and ``scale`` in level-0
    pixels, and ``mpp``."""
    out = io.BytesIO()
    Image.fromarray(mask.pixels).save(out, "PNG", compress_level=9)
    return {
        "png": base64.b64encode(out.getvalue()).decode("ascii"),
        "origin": list(mask.origin), "scale": list(mask.scale), "mpp": mask.mpp,
    }  # fmt: skip


def read_mask(attribute: Mapping[str, Any]) -> TissueMask:
    """The mask that `mask_attribute` wrote. Raises StoreError (PG-O11) when it cannot be read."""
    try:
        data = base64.b64decode(attribute["png"], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("1"))
        x, y = attribute["origin"]
        across, down = attribute["scale"]
        return TissueMask(pixels, attribute["mpp"], (int(x), int(y)), (float(across), float(down)))
    except (KeyError, TypeError, ValueError, OSError, SyntaxError, binascii.Error) as error:
        raise StoreError(
            "tissue mask cannot be read", why=str(error), hint="tile the slide again"
        ) from error
