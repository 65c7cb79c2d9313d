"""Settings by name for kinds of material, and lengths in other units than pixels.

A preset is what a user might have written into a YAML file: what is given besides wins over it,
and the settings that result are what is stored.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from pathgen.config import WrongValue
from pathgen.errors import ConfigError

#: Needle cores are 0.3 to 0.6 mm wide and break; TMA cores 0.6 to 2 mm wide; cells of a smear lie
#: apart, each a few microns.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "resection": {
        "min_tissue": 0.5,
        "tissue": {"method": "otsu", "mpp": 8.0, "min_area_mm2": 0.1, "close_um": 24.0},
    },
    "biopsy": {
        "min_tissue": 0.1,
        "edge": "pad",
        "tissue": {"method": "otsu", "mpp": 4.0, "min_area_mm2": 0.005, "close_um": 32.0},
    },
    "tma": {
        "min_tissue": 0.3,
        "tissue": {"method": "otsu", "mpp": 4.0, "min_area_mm2": 0.03, "close_um": 48.0},
    },
    "cytology": {
        "min_tissue": 0.01,
        "min_hematoxylin": 0.001,
        "tissue": {"method": "density", "mpp": 4.0, "min_area_mm2": 0.0001, "close_um": 8.0},
    },
}


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset. Raises ConfigError (PG-C01) for a name that is none."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        raise ConfigError(
            "no preset of that name", where=name, why=f"known: {', '.join(PRESETS)}",
            hint=f"did you mean {close[0]!r}?" if close else None,
        )  # fmt: skip
    return {
        key: dict(value) if isinstance(value, Mapping) else value
        for key, value in PRESETS[name].items()
    }


def mpp_of(mag: Any) -> float:
    """Microns per pixel at a magnification, 10 / mag: 40x 0.25, 20x 0.5, 10x 1, 5x 2, 2.5x 4.

    That is what scanners mean by it, within a few percent; the exact scale is what is stored.

    Raises:
        ValueError: neither a number nor one followed by ``x``.
    """
    text = str(mag).strip().lower().removesuffix("x")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        raise WrongValue("mag", f"a magnification is a number above 0, as 20 or 20x, not {mag!r}")
    return 10 / value


def in_pixels(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of tiling with `mag` as `mpp`, `patch_um` as `patch_size`, `step` as `overlap`.

    Raises:
        ValueError: a patch of `patch_um` has no whole number of pixels, or two words for one
            setting disagree.
    """
    left = dict(values)
    if (mag := left.pop("mag", None)) is not None:
        mpp = mpp_of(mag)
        if left.setdefault("mpp", mpp) != mpp:
            raise WrongValue("mag", f"mag {mag} is mpp {mpp:g}; give one of them")
    if (um := left.pop("patch_um", None)) is not None:
        size = _size(_number("patch_um", um), left.get("mpp", 0.5))
        if left.setdefault("patch_size", size) != size:
            raise WrongValue(
                "patch_um", f"patch_um {um:g} is {size} pixels, and patch_size says otherwise"
            )
    if (step := left.pop("step", None)) is not None:
        if not isinstance(step, int) or step < 1:
            raise WrongValue("step", f"step is a whole number of pixels from 1 up, not {step!r}")
        overlap = int(left.get("patch_size", 256)) - step
        if left.setdefault("overlap", overlap) != overlap:
            raise WrongValue("step", f"step {step} means overlap {overlap}; give one of them")
    return left


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise WrongValue(name, f"it is a number, not {value!r}") from error


def _size(um: float, mpp: Any) -> int:
    if mpp is None:
        raise WrongValue(
            "patch_um", "patch_um needs a fixed mpp: slides differ, and patches must be alike"
        )
    exact = um / float(mpp)
    if not (math.isfinite(exact) and exact > 0):
        raise WrongValue("patch_um", f"patch_um is above 0, not {um:g}")
    size = round(exact)
    if abs(exact - size) > 1e-6 * max(size, 1):
        low, high = math.floor(exact), math.ceil(exact)
        raise WrongValue(
            "patch_um",
            f"{um:g} um at {float(mpp):g} um per pixel are {exact:.2f} pixels; whole are "
            f"{low} ({low * float(mpp):g} um) and {high} ({high * float(mpp):g} um)",
        )
    return size
