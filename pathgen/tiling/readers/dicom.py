"""DICOM whole-slide images, through wsidicom: what OpenSlide reads, and JPEG-LS and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.errors
import wsidicom.errors
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.tiling.readers.check import dicom_files, unsupported
from pathgen.tiling.readers.levels import DAMAGE, LevelReader, mean_downsamples, quiet
from pathgen.tiling.readers.tiff import check_size
from pathgen.tiling.slide import Header, Scale

#: ImageType's third value -> the name that OpenSlide gives such an image.
_ASSOCIATED = {"LABEL": "label", "OVERVIEW": "macro", "THUMBNAIL": "thumbnail"}
_RGB = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420"})
_TAGS = ("SeriesInstanceUID", "ImageType", "BitsAllocated", "SamplesPerPixel", "Rows", "Columns",
         "PhotometricInterpretation", "TotalPixelMatrixColumns", "TotalPixelMatrixRows",
         "SharedFunctionalGroupsSequence", "OpticalPathSequence")  # fmt: skip
_ERRORS: tuple[type[Exception], ...] = (
    *DAMAGE,
    *(one for module in (pydicom.errors, wsidicom.errors) for one in vars(module).values()
      if isinstance(one, type) and issubclass(one, Exception)),
)  # fmt: skip
_NEEDED = ("BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns")
#: A tile is decoded whole.
MAX_TILE_PIXELS = 2**26


class DicomReader(LevelReader):
    """The VOLUME pyramid of one DICOM series."""

    reader = "dicom"
    path: Path
    read_errors = _ERRORS

    def _describe(self) -> Header:
        slide = self.handle
        sizes = tuple((level.size.width, level.size.height) for level in slide.levels)
        length = sum(path.stat().st_size for path, _ in slide.files)
        check_size(self.path, *sizes[0], max(length, 2**20), capped=False)
        base = slide.base
        flavors = {_flavor(header) for _, header in slide.files}
        return Header(
            vendor="dicom", size=sizes[0], level_sizes=sizes, downsamples=mean_downsamples(sizes),
            bounds=(0, 0, *sizes[0]), scale=_scale(base), objective=_objective(base),
            associated=tuple(sorted(_ASSOCIATED[f] for f in flavors & _ASSOCIATED.keys())),
        )  # fmt: skip

    def _open(self) -> _Slide:
        files = self._series()
        for path, header in files:
            if _flavor(header) == "VOLUME":
                self._refuse(path, header)
        try:
            with quiet("wsidicom", "pydicom"):
                return _Slide(wsidicom.WsiDicom.open([path for path, _ in files]), files)
        except _ERRORS as error:
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, EOFError):
                raise _truncated(self.path, text) from error
            raise SlideError(
                "DICOM slide cannot be used", code="PG-S11", where=self.path.name, why=text,
                hint="give the instance of ImageType VOLUME with its whole series in one folder",
            ) from error  # fmt: skip

    def _series(self) -> list[tuple[Path, Any]]:
        """The files of the slide's series with their headers, the one asked for first."""
        folder = self.path if self.path.is_dir() else self.path.parent
        asked = dicom_files(folder) if self.path.is_dir() else [self.path]
        found = [(path, self._header(path)) for path in asked]
        if self.path.is_dir():
            found.sort(key=lambda one: _flavor(one[1]) != "VOLUME")
        series = found[0][1].get("SeriesInstanceUID")
        if not self.path.is_dir():
            others = (path for path in dicom_files(folder) if path != self.path)
            found += [(path, header) for path in others if (header := _try_header(path))]
        mine = [one for one in found if one[1].get("SeriesInstanceUID") == series]
        if any(_flavor(header) == "VOLUME" for _, header in mine):
            return mine
        first, header = mine[0]
        _whole(first, header)
        if not _flavor(header):
            raise unsupported(
                first, "a DICOM instance whose ImageType names no flavor (VOLUME, LABEL)"
            )
        raise SlideError(
            "DICOM slide cannot be used", code="PG-S11", where=self.path.name,
            why=f"it is a {_flavor(header)}, and its series has no VOLUME here",
            hint="give the instance of ImageType VOLUME with its whole series in one folder",
        )  # fmt: skip

    def _header(self, path: Path) -> Any:
        header = _try_header(path)
        if header is None:
            raise SlideError(
                "slide cannot be opened", code="PG-S02", where=path.name,
                why="its DICOM header cannot be read",
                hint="check how the file was made or downloaded",
            )  # fmt: skip
        return header

    def _refuse(self, path: Path, header: Any) -> None:
        """PG-S10 for what is no 8-bit RGB; PG-S06 for tiles that no scanner writes."""
        _whole(path, header)
        if header.get("BitsAllocated") != 8:
            raise unsupported(path, "a DICOM instance of more than 8 bits per channel")
        photometric = str(header.get("PhotometricInterpretation"))
        if header.get("SamplesPerPixel") != 3 or photometric not in _RGB:
            raise unsupported(path, f"a DICOM instance that is not RGB but {photometric}")
        rows, columns = (int(header.get(name) or 0) for name in ("Rows", "Columns"))
        if not 0 < rows * columns <= MAX_TILE_PIXELS:
            raise SlideError(
                "declared size is implausible", code="PG-S06", where=path.name,
                why=f"tiles of {columns:,} x {rows:,} pixels", hint="get a fresh copy",
            )  # fmt: skip

    def _cut(self, level: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = box
        slide = self.handle
        image = slide.wsi.read_region((x0, y0), slide.levels[level].level, (x1 - x0, y1 - y0))
        return np.asarray(image.convert("RGB"))


class _Slide:
    def __init__(self, wsi: Any, files: list[tuple[Path, Any]]) -> None:
        self.wsi, self.files = wsi, files
        self.levels = sorted(wsi.levels, key=lambda level: -int(level.size.width))
        largest = int(self.levels[0].size.width)
        self.base: Mapping[str, Any] = next(
            header for _, header in files
            if _flavor(header) == "VOLUME" and header.get("TotalPixelMatrixColumns") == largest
        )  # fmt: skip

    def close(self) -> None:
        self.wsi.close()


def _try_header(path: Path) -> Any:
    """The facts of a DICOM file that matter here; None where it has none."""
    try:
        with quiet("pydicom"):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            _ = [header.get(name) for name in _TAGS]  # values are parsed when asked for
    except _ERRORS:
        return None
    return header


def _flavor(header: Any) -> str:
    """VOLUME, LABEL, OVERVIEW, THUMBNAIL; empty where it is not said."""
    kinds: Any = header.get("ImageType") or ()
    return str(kinds[2]) if not isinstance(kinds, str) and len(kinds) > 2 else ""


def _scale(header: Any) -> Scale | None:
    """Microns per pixel from PixelSpacing, which gives millimeters, y before x."""
    try:
        spacing = header["SharedFunctionalGroupsSequence"][0].PixelMeasuresSequence[0].PixelSpacing
        down, across = (float(value) * 1000 for value in spacing)
    except DAMAGE:
        return None
    return Scale(across, down, "dicom")


def _objective(header: Any) -> float | None:
    try:
        return float(header["OpticalPathSequence"][0].ObjectiveLensPower)
    except DAMAGE:
        return None


def _whole(path: Path, header: Any) -> None:
    """PG-S03 for a header that ends before it says what the image is."""
    if missing := [name for name in _NEEDED if name not in header]:
        raise _truncated(path, f"its header ends without {', '.join(missing)}")


def _truncated(path: Path, why: str) -> SlideError:
    return SlideError("slide truncated", code="PG-S03", where=path.name, why=why,
                      hint="copy it again")  # fmt: skip
