"""Lengths as people write them: ``"256um"``, ``"1.5 mm"``, or a number of pixels."""

from __future__ import annotations

import math
import re

from pathgen.errors import ConfigError

#: Microns in a unit.
UNITS = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1000.0}
_LENGTH = re.compile(r"\s*([-+0-9.eE_]+?)\s*([a-zA-Zµμ]*)\s*")


def pixels(length: float | str, mpp: float, name: str) -> float:
    """A length in pixels of `mpp` microns: a number is one already, as is ``"512px"``.

    Raises:
        ConfigError: PG-C01, it is no length; `name` says which.
    """
    if isinstance(length, str):
        found = _LENGTH.fullmatch(length)
        unit = found[2] if found else ""
        try:
            number = float(found[1]) if found else math.nan
        except ValueError:
            number = math.nan
        value = number if unit in ("", "px") else number * UNITS.get(unit, math.nan) / mpp
    else:
        value = float(length)
    if not math.isfinite(value):
        raise ConfigError(
            "not a length", where=f"{name}={length!r}",
            hint='write pixels as 512, or microns as "256um", or "1.5mm"',
        )  # fmt: skip
    return value
