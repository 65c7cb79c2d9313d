"""Whether patches have the scale that an encoder is meant for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: A scale this many times finer or coarser is said to be another.
FACTOR = 1.5


def mpp_note(card: Mapping[str, Any], mpp: float | None, patch_size: int | None = None) -> str:
    """A sentence where patches are far from the scale an encoder was trained at; else "".

    Args:
        card: of the encoder; `mpp` in it holds um per pixel, one or several.
        mpp: um per pixel of the patches; None where it is not known.
        patch_size: side of the patches in pixels. Patches are resized to what the network sees,
            which changes their scale; without a size they count as they are.
    """
    meant, side = [float(value) for value in card.get("mpp") or ()], card.get("resize")
    if not meant or mpp is None:
        return ""
    usual = card.get("patch_size") or side
    seen = mpp * patch_size / usual if patch_size and usual else mpp
    if any(1 / FACTOR <= seen / value <= FACTOR for value in meant):
        return ""
    scales = ", ".join(f"{value:g}" for value in meant)
    how = f"{mpp:g} um per pixel"
    if patch_size and usual and patch_size != usual:
        how += f", {seen:.3g} once {patch_size} px are resized as {usual} px are"
    name = card.get("name", "the encoder")
    return f"the patches are {how}; {name} is meant for {scales}, and may see less in them"
