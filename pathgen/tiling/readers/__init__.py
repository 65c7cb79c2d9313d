"""The readers by name, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pathgen.errors import ConfigError
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.readers.check import check_slide
from pathgen.tiling.slide import Scale, scale_problem


def _openslide(path: Path, override: Scale | None) -> BaseReader:
    from pathgen.tiling.readers.openslide import OpenSlideReader

    return OpenSlideReader(path, override)


def _flat(path: Path, override: Scale | None) -> BaseReader:
    from pathgen.tiling.readers.flat import FlatReader

    return FlatReader(path, override)


READERS: Mapping[str, Callable[[Path, Scale | None], BaseReader]] = {
    "openslide": _openslide,
    "flat": _flat,
}


def open_with(
    path: Path, reader: str, override: Scale | None, *, fallback: Scale | None = None
) -> BaseReader:
    """Check what is at `path`, then open it. Errors as `pathgen.tiling.open_slide`.

    `override` wins over the slide's own scale; `fallback` is for a slide without a usable one.
    """
    if reader != "auto" and reader not in READERS:
        raise ConfigError("no such reader", where=reader, why=f"known: auto, {', '.join(READERS)}")
    kind = check_slide(path)
    slide = READERS[_choice(path, kind) if reader == "auto" else reader](path, override)
    own = slide.header.scale
    if override is None and (own is None or scale_problem(own)):
        slide.override = fallback
    return slide


def _choice(path: Path, kind: str) -> str:
    if kind not in ("TIFF", "PNG", "JPEG"):
        return "openslide"
    import openslide

    return "openslide" if openslide.OpenSlide.detect_format(path) else "flat"
