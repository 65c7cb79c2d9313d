"""Numbers and names as a page shows them."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DASH = "\N{EN DASH}"

#: A path from the root of a POSIX system or a Windows drive or share, up to its last part.
_ABSOLUTE = re.compile(
    r"(?<![\w.~<:/\\])(?:/(?:[^\s/'\",;:]+/)+|(?:[A-Za-z]:|\\)\\(?:[^\s\\'\",;:]+\\)*)"
)


class Scrubber:
    """Takes out of a text where it was made: absolute paths, the home folder, the host's name.

    User names stand in paths and go with them. A host whose name is a plain word, as "demo", is
    left alone: that word means something else on the page.
    """

    def __init__(self, root: Path) -> None:
        self._places = [(f"{root.resolve()}/", ""), (f"{Path.home()}/", "~/")]
        host = re.escape(socket.gethostname())
        telling = re.search(r"\d", host) and len(host) > 3
        self._host = re.compile(rf"(?<![\w.-]){host}(?![\w-])") if telling else None

    def __call__(self, text: str) -> str:
        for place, instead in self._places:
            if len(place) > 1:
                text = text.replace(place, instead)
        text = _ABSOLUTE.sub("", text)
        return self._host.sub("(host)", text) if self._host else text


def as_float(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: Any, digits: int = 3) -> str:
    """``0.713``, ``1,234``, or a dash when there is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    known = as_float(value)
    return DASH if known is None else f"{known:.{digits}f}"


def compact(value: Any) -> str:
    """A setting in few characters: ``0.0005``, ``1e-06``, ``256``, ``a, b``."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(compact(one) for one in value)
    return DASH if value is None else str(value)


def interval_of(value: Any) -> tuple[float, float] | None:
    """A [low, high] pair of finite numbers, or None."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return None
    low, high = as_float(value[0]), as_float(value[1])
    return None if low is None or high is None else (low, high)


def limits_of(value: Any) -> tuple[float | None, float | None]:
    """Low and high of an interval; None for both where there is none."""
    return interval_of(value) or (None, None)


def inside(values: Any, *keys: str) -> Any:
    """What nested mappings hold under the keys; None where one of them is missing."""
    for key in keys:
        if not isinstance(values, Mapping):
            return None
        values = values.get(key)
    return values


def mappings(values: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list; none of anything else."""
    found = values if isinstance(values, list) else []
    return [one for one in found if isinstance(one, Mapping)]


def sentences(values: Any) -> list[str]:
    """The notes of a result; none of anything but a list of texts."""
    found = values if isinstance(values, list) else []
    return [one for one in found if isinstance(one, str) and one]


def signed(value: Any, interval: Any = None) -> str:
    """``+0.120 [+0.020, +0.210]``."""
    known, limits = as_float(value), interval_of(interval)
    tail = f" [{limits[0]:+.3f}, {limits[1]:+.3f}]" if limits else ""
    return DASH if known is None else f"{known:+.3f}{tail}"


def with_interval(value: Any, interval: Any) -> str:
    """``0.713 [0.650, 0.780]``."""
    limits = interval_of(interval)
    tail = f" [{limits[0]:.3f}, {limits[1]:.3f}]" if limits else ""
    return number(as_float(value)) + tail


def count(n: int, thing: str, plural: str | None = None) -> str:
    """``1 slide``, ``1,204 slides``."""
    return f"{n:,} {thing if n == 1 else plural or f'{thing}s'}"
