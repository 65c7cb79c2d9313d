"""Slides through OpenSlide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray
from openslide import OpenSlideError

from pathgen.errors import SlideError
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.readers.check import dicom_files, parts, truncated_dicom, unsupported
from pathgen.tiling.readers.tiff import check_size
from pathgen.tiling.slide import Header, Scale

#: Decoded tiles kept per open slide. Blocks are read once, so neighbors need little.
CACHE_BYTES = 32 * 2**20


class OpenSlideReader(BaseReader):
    """Whatever OpenSlide opens: svs, tif, ndpi, mrxs, scn, bif, vms, svslide, czi, DICOM."""

    reader = "openslide"
    path: Path
    read_errors = (OpenSlideError, OSError)

    def _open(self) -> openslide.OpenSlide:
        try:
            handle = openslide.OpenSlide(self._entry())
            handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            return handle
        except OpenSlideError as error:
            raise _explain(self.path, error) from error

    def _entry(self) -> Path:
        # OpenSlide finds a DICOM slide's other files itself.
        return dicom_files(self.path)[0] if self.path.is_dir() else self.path

    def _describe(self) -> Header:
        handle = self.handle
        properties: Mapping[str, str] = handle.properties
        width, height = handle.dimensions
        vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        if vendor != "dicom":
            files = [part.stat().st_size for part in parts(self.path)]
            # A slide of many files may be an empty canvas with little in it.
            check_size(self.path, width, height, max(sum(files), 2**20), capped=len(files) == 1)
        bounds = [number(properties, f"openslide.bounds-{k}") for k in ("x", "y", "width",
                  "height")]  # fmt: skip
        x, y, w, h = (
            (0, 0, width, height) if None in bounds else (int(v) for v in bounds if v is not None)
        )
        x, y = max(x, 0), max(y, 0)
        return Header(
            vendor=vendor,
            size=(width, height),
            level_sizes=tuple(handle.level_dimensions),
            downsamples=tuple(handle.level_downsamples),
            bounds=(x, y, min(w, width - x), min(h, height - y)),
            scale=_scale(properties, vendor),
            objective=number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER),
            associated=tuple(sorted(handle.associated_images)),
        )

    def _read(
        self, position: tuple[float, float], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        x, y = (round(v) for v in position)
        image = self.handle.read_region((x, y), level, size)
        if image.getchannel("A").getextrema() == (255, 255):
            return np.asarray(image.convert("RGB"))
        return on_white(np.asarray(image))


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB of straight-alpha RGBA, laid on white."""
    share = rgba[..., 3:].astype(np.float32) / 255
    mixed = rgba[..., :3] * share + 255 * (1 - share)
    return np.asarray(mixed + 0.5, np.uint8)


def _scale(properties: Mapping[str, str], vendor: str) -> Scale | None:
    if vendor == "generic-tiff":
        from pathgen.tiling.readers.ometiff import ome_scale

        found = ome_scale(properties.get("tiff.ImageDescription", ""))
        if found:
            return found
    x = number(properties, openslide.PROPERTY_NAME_MPP_X)
    y = number(properties, openslide.PROPERTY_NAME_MPP_Y)
    if x is not None or y is not None:
        # A generic TIFF's mpp is OpenSlide's reading of the resolution tags.
        source = {"generic-tiff": "tiff", "dicom": "dicom"}.get(vendor, "vendor")
        first = x if x is not None else y
        assert first is not None
        return Scale(first, y if y is not None else first, source)
    per_unit = {"inch": 25_400.0, "centimeter": 10_000.0}.get(
        properties.get("tiff.ResolutionUnit", "")
    )
    across = number(properties, "tiff.XResolution")
    down = number(properties, "tiff.YResolution")
    if not (per_unit and across and down):
        return None
    return tag_scale(per_unit / across, per_unit / down)


def tag_scale(x: float, y: float) -> Scale | None:
    """A scale from resolution tags, where it can be one: 72 dots per inch is a screen's."""
    return Scale(x, y, "tiff") if min(x, y) >= 0.05 and max(x, y) <= 20 else None


def number(properties: Mapping[str, Any], key: str) -> float | None:
    """A property as a number; nan where it is none."""
    text = properties.get(key)
    if text is None:
        return None
    try:
        return float(str(text).replace(",", "."))
    except ValueError:
        return float("nan")


def _explain(path: Path, error: OpenSlideError) -> SlideError:
    text = str(error)
    if path.is_dir() or path.suffix.lower() == ".dcm":
        for sign, what in _DICOM_REFUSALS.items():
            if sign in text:
                return unsupported(path, what)
        if truncated_dicom(text):
            return SlideError(
                "slide truncated", code="PG-S03", where=path.name, why=text, hint="copy it again"
            )
        return SlideError(
            "DICOM slide cannot be used", code="PG-S11", where=path.name, why=text,
            hint="give the instance of ImageType VOLUME with its whole series in one folder",
        )  # fmt: skip
    if "Unsupported TIFF compression" in text:
        return unsupported(path, f"a TIFF whose compression ({text.split()[-1]}) is not known here")
    return SlideError(
        "slide cannot be opened", code="PG-S02", where=path.name, why=f"OpenSlide says: {text}",
        hint="check how the file was made or downloaded",
    )  # fmt: skip


_DICOM_REFUSALS = {
    "BitsAllocated": "a DICOM instance of more than 8 bits per channel",
    "Unsupported transfer syntax": "a DICOM instance compressed in a way OpenSlide does not read",
    "SamplesPerPixel": "a DICOM instance that is not RGB",
    "PhotometricInterpretation": "a DICOM instance that is not RGB",
    "Couldn't get image flavor": "a DICOM instance whose ImageType names no flavor (VOLUME, LABEL)",
}
