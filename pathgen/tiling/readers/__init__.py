"""The readers by name, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pathgen.errors import ConfigError, SlideError
from pathgen.extras import need
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.readers.check import check_slide
from pathgen.tiling.readers.remote import RemotePath, SlidePath
from pathgen.tiling.slide import Scale, scale_problem


def _openslide(path: Path, override: Scale | None) -> BaseReader:
    from pathgen.tiling.readers.openslide import OpenSlideReader

    return OpenSlideReader(path, override)


def _flat(path: Path, override: Scale | None) -> BaseReader:
    from pathgen.tiling.readers.flat import FlatReader

    return FlatReader(path, override)


def _native(path: Path, override: Scale | None) -> BaseReader:
    from pathgen.tiling.readers.native import NativeReader

    return NativeReader(path, override)


def _tiffslide(path: SlidePath, override: Scale | None) -> BaseReader:
    need(*PACKAGES["tiffslide"])
    from pathgen.tiling.readers.tiffslide import TiffSlideReader

    return TiffSlideReader(path, override)


def _dicom(path: Path, override: Scale | None) -> BaseReader:
    need(*PACKAGES["dicom"])
    from pathgen.tiling.readers.dicom import DicomReader

    return DicomReader(path, override)


def _omezarr(path: Path, override: Scale | None) -> BaseReader:
    from pathgen.tiling.readers.omezarr import OmeZarrReader

    return OmeZarrReader(path, override)


#: By name. Only tiffslide takes a `RemotePath`.
READERS: Mapping[str, Callable[[Any, Scale | None], BaseReader]] = {
    "openslide": _openslide,
    "native": _native,
    "tiffslide": _tiffslide,
    "dicom": _dicom,
    "omezarr": _omezarr,
    "flat": _flat,
}
#: Kind of file, as `check_slide` tells it, -> the readers that `auto` tries, the next one where one
#: does not read that flavor. Any other kind is OpenSlide's; of what OpenSlide opens, the native
#: reader takes over what it reads to the same pixels.
ORDER: Mapping[str, tuple[str, ...]] = {
    "TIFF": ("openslide", "tiffslide"),
    "OME-TIFF": ("native", "openslide", "flat"),
    "TIFF unknown to OpenSlide": ("native", "tiffslide", "flat"),
    "DICOM": ("openslide", "dicom"),
    "OME-Zarr": ("omezarr",),
    "remote TIFF": ("tiffslide",),
    "PNG": ("flat",),
    "JPEG": ("flat",),
}
#: The package that a reader needs besides the base ones, and the extra that brings it.
PACKAGES = {"tiffslide": ("tiffslide", "remote"), "dicom": ("wsidicom", "dicom")}
#: What each reader takes when it is asked for by name.
_KINDS = {
    "openslide": {"TIFF", "DICOM", "MIRAX", "Zeiss CZI", "SQLite", "Hamamatsu VMS",
                  "Hamamatsu VMU"},
    "native": {"TIFF"}, "tiffslide": {"TIFF", "remote TIFF"}, "dicom": {"DICOM"},
    "omezarr": {"OME-Zarr"}, "flat": {"TIFF", "PNG", "JPEG"},
}  # fmt: skip


def open_with(
    path: SlidePath, reader: str, override: Scale | None, *, fallback: Scale | None = None
) -> BaseReader:
    """Check what is at `path`, then open it. Errors as `pathgen.tiling.open_slide`.

    `override` wins over the slide's own scale; `fallback` is for a slide without a usable one.
    """
    if reader != "auto" and reader not in READERS:
        raise ConfigError("no such reader", where=reader, why=f"known: auto, {', '.join(READERS)}")
    if isinstance(path, RemotePath) and reader not in ("auto", "tiffslide"):
        raise ConfigError(
            f"the reader {reader} does not read URLs", where=path,
            hint="leave out --reader, or download the slide",
        )  # fmt: skip
    kind = check_slide(path)
    if reader != "auto" and kind not in _KINDS[reader]:
        raise SlideError(
            f"the reader {reader} does not read this", code="PG-S10", where=path.name,
            why=f"by its content it is {kind}", hint="leave out --reader",
        )  # fmt: skip
    slide = _opened(path, kind, override) if reader == "auto" else READERS[reader](path, override)
    own = slide.header.scale
    if override is None and (own is None or scale_problem(own)):
        slide.override = fallback
    return slide


def _opened(path: SlidePath, kind: str, override: Scale | None) -> BaseReader:
    """What `auto` means for this slide: the first reader of the row in `ORDER` that reads it."""
    if kind == "TIFF" and isinstance(path, Path):
        kind = _kind_of_tiff(path)
    first, *others = ORDER.get(kind, ("openslide",))
    problems = []
    for name in [first, *others]:
        if name in PACKAGES and name != first and not find_spec(PACKAGES[name][0]):
            continue
        try:
            return _fastest(READERS[name](path, override))
        except SlideError as error:
            # A TIFF that one reader cannot open may be another's, or no slide at all.
            if error.code != "PG-S10" and not (error.code == "PG-S02" and others):
                raise
            problems.append(error)
    raise problems[0 if first == "openslide" else -1]


def _kind_of_tiff(path: Path) -> str:
    import openslide

    from pathgen.tiling.readers.ometiff import is_ome_tiff

    vendor = openslide.OpenSlide.detect_format(path)
    if vendor in (None, "generic-tiff") and is_ome_tiff(path):
        return "OME-TIFF"  # to OpenSlide, one without levels and scale
    return "TIFF" if vendor else "TIFF unknown to OpenSlide"


def _fastest(slide: BaseReader) -> BaseReader:
    """The native reader in place of OpenSlide's, where it gives the same pixels; else `slide`."""
    if slide.reader != "openslide":
        return slide
    from pathgen.tiling.readers.native import native_beside

    native = native_beside(slide)
    if native is None:
        return slide
    slide.close()
    return native
