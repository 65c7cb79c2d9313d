"""Masks from outside: which settings they take, what a mask file is, and how it is read.

Known by content, not by name: GeoJSON (plain or gzip), XML of ASAP, PNG and TIFF of values.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from pathgen.config import Config
from pathgen.errors import SlideError
from pathgen.tiling.annotations import Annotations, bad_mask, parse_asap, parse_geojson
from pathgen.tiling.outlines import Outlines, Polygon
from pathgen.tiling.regions import OutlineRegions, RasterRegions, Regions
from pathgen.tiling.segment import bands, counted
from pathgen.tiling.slide import SlideReader

MIB = 2**20
#: Text of outlines is read whole; unpacked it may have this many bytes. Python's objects take
#: about ten times as many.
MAX_TEXT = 128 * MIB
#: A raster is held whole: of a pyramid, the finest level within this many bytes.
MAX_RASTER = 512 * MIB
#: By how much the sides of a raster may be off the slide's proportions.
MAX_ASPECT = 0.02
#: How a TIFF begins.
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: So many values of a raster are named in an error.
MANY_VALUES = 12


class MaskConfig(Config):
    """What masks from outside are used for. Without masks, a setting here is refused."""

    use: Literal["tissue", "within", "classes"] = "tissue"
    """``tissue``: the mask is the tissue; ``within``: only tissue inside of it counts;
    ``classes``: it only says how much of each patch a class covers"""
    missing: Literal["fail", "tissue", "skip"] = "fail"
    """a slide without a mask fails (PG-M01), is tiled by its tissue alone, or is left out"""
    classes: dict[str, tuple[int | str, ...]] | None = None
    """name -> values of a raster or class names of outlines; the others are left out. None: as
    the file names them; a raster must then hold one value besides 0"""
    within: tuple[str, ...] = ()
    """the classes that `use` takes; none = all"""
    exclude: tuple[str, ...] = ()
    """class names, as outlines have them, that are cut out of all others"""
    frame: Literal["auto", "bounds", "canvas"] = "auto"
    """where positions count from: the scanned part, as QuPath shows it, or the whole canvas;
    auto: GeoJSON from the scanned part but for TRIDENT's, all else from the canvas"""
    min_class: dict[str, float] = Field(default_factory=dict)
    """class -> least share of a patch; patches where at least one of them is reached are kept"""

    @field_validator("classes", mode="before")
    @classmethod
    def _several(cls, classes: Any) -> Any:
        if not isinstance(classes, Mapping):
            return classes
        return {
            str(name): (found,) if isinstance(found, int | str) else found
            for name, found in classes.items()
        }

    @field_validator("within", "exclude", mode="before")
    @classmethod
    def _one(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, share in self.min_class.items():
            if not 0 < share <= 1:
                raise ValueError(f"the least share of {name!r} is above 0 and at most 1")
        unknown = [n for n in self.named if self.classes is not None and n not in self.classes]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of the classes {sorted(self.classes or ())}")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """Classes that are asked for by name."""
        return tuple(dict.fromkeys([*self.within, *self.min_class]))


def mask_digest(path: Path) -> str:
    """Digest of all bytes of a mask file: a changed mask is another input.

    Raises:
        SlideError: PG-M02, the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as handle:
            while block := handle.read(MIB):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def read_regions(path: Path, slide: SlideReader, config: MaskConfig = MaskConfig()) -> Regions:
    """The regions that a mask file draws on a slide.

    Raises:
        SlideError: PG-M02 the file cannot be understood, PG-M03 it does not fit the slide,
            PG-M04 a raster of several values without `classes`.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(64)
    except OSError as error:
        raise _unreadable(path, error) from error
    if head.startswith(b"\x89PNG"):
        return _raster_regions(_read_png(path), path.name, slide, config)
    if head[:4] in TIFF:
        return _raster_regions(_read_tiff(path), path.name, slide, config)
    return _outline_regions(_outlines(path, head), path.name, slide, config)


def read_annotations(path: Path, faults: list[SlideError] | None = None) -> Annotations:
    """The outlines of a file, before they are laid on a slide.

    Args:
        faults: takes what is wrong with a single feature of a GeoJSON, which is then left out.

    Raises:
        SlideError: PG-M02, the file is no GeoJSON and no XML of ASAP.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(64)
    except OSError as error:
        raise _unreadable(path, error) from error
    if head.startswith(b"\x89PNG") or head[:4] in TIFF:
        raise bad_mask(path.name, "it is a raster and has no outlines", "give it as a mask")
    return _outlines(path, head, faults)


def _outlines(path: Path, head: bytes, faults: list[SlideError] | None = None) -> Annotations:
    data = _text(path, packed=head.startswith(b"\x1f\x8b"))
    first = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first in (b"{", b"["):
        return parse_geojson(data, path.name, faults)
    if first == b"<" or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return parse_asap(data, path.name)
    raise bad_mask(
        path.name, "it is neither GeoJSON, XML, PNG nor TIFF" if head else "it is empty",
        "JPEG changes values: save masks as PNG",
    )  # fmt: skip


def _unreadable(path: Path, error: OSError) -> SlideError:
    return bad_mask(path.name, str(error.strerror or error), "check permissions and the disk")


def _text(path: Path, packed: bool) -> bytes:
    try:
        with gzip.open(path) if packed else path.open("rb") as handle:
            data: bytes = handle.read(MAX_TEXT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise bad_mask(path.name, f"it cannot be read: {error}") from error
    if len(data) > MAX_TEXT:
        raise bad_mask(
            path.name, f"{'unpacked, ' * packed}it has more than {MAX_TEXT // MIB} MiB of text",
            "export annotations only, without cells, or fewer corners a region",
        )  # fmt: skip
    return data


# Outlines


def _outline_regions(
    found: Annotations, name: str, slide: SlideReader, config: MaskConfig
) -> Regions:
    frame = found.frame if config.frame == "auto" else config.frame
    shift = np.array(slide.bounds[:2] if frame == "bounds" else (0, 0), np.float64)
    moved = {
        key: [Polygon(p.exterior + shift, tuple(h + shift for h in p.holes)) for p in polygons]
        for key, polygons in found.polygons.items()
    }
    _check_place(moved, name, slide)
    cut = [polygon for key in config.exclude for polygon in moved.get(key, ())]
    rest = {key: polygons for key, polygons in moved.items() if key not in config.exclude}
    if config.classes is None:
        wanted: Mapping[str, Sequence[int | str]] = {key: (key,) for key in rest}
    else:
        wanted = config.classes
    classes = {
        key: [p for source in sources for p in rest.get(str(source), ())]
        for key, sources in wanted.items()
    }
    notes = []
    if found.left_out:
        notes.append(f"{found.left_out} outlines of the mask have no area")
    notes += _absent(config.named, wanted)
    notes += _absent(config.exclude, moved, " to exclude")
    return OutlineRegions(
        {key: Outlines(polygons) for key, polygons in classes.items() if polygons},
        Outlines(cut) if cut else None, sorted({*wanted, *config.named}), "; ".join(notes),
    )  # fmt: skip


def _absent(names: Sequence[str], there: Mapping[str, Any], what: str = "") -> Iterator[str]:
    """Classes asked for by name that the file does not have: rightly so, or by a typing error."""
    for name in names:
        if name not in there:
            has = ", ".join(sorted(there)) or "no classes"
            yield f"the mask has no class {name!r}{what}, but {has}"


def _check_place(moved: Mapping[str, list[Polygon]], name: str, slide: SlideReader) -> None:
    corners = [p.exterior for polygons in moved.values() for p in polygons]
    if not corners:
        return
    points = np.concatenate(corners)
    inside = ((points >= 0) & (points <= slide.size)).all(axis=1).mean()
    if inside < 0.5:
        raise SlideError(
            "mask does not fit the slide", code="PG-M03", where=name,
            why=f"{1 - inside:.0%} of its corners lie outside of the {slide.size[0]} x "
            f"{slide.size[1]} pixels of level 0",
            hint="is it of another slide, or drawn at another scale? Positions are level-0 pixels",
        )  # fmt: skip


# Rasters


def _read_png(path: Path) -> NDArray[np.integer]:
    from PIL import Image

    from pathgen.tiling.readers.flat import PILLOW_ERRORS

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=("PNG",)) as image:
                opaque = {"RGBA": "RGB", "LA": "L"}.get(image.mode)
                values = np.asarray(image.convert(opaque) if opaque else image)
        except (*PILLOW_ERRORS, Image.DecompressionBombWarning) as error:
            raise bad_mask(path.name, str(error), "give a smaller PNG, or a TIFF") from error
    return _single(values, path.name)


def _read_tiff(path: Path) -> NDArray[np.integer]:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO() if path.stat().st_size == 0 else path) as tiff:
            levels = tiff.series[0].levels
            fits = [i for i, level in enumerate(levels) if 0 < level.nbytes <= MAX_RASTER]
            if not fits:
                raise bad_mask(
                    path.name, f"no level of it is smaller than {MAX_RASTER // MIB} MiB",
                    "save it with a pyramid, or at a coarser scale",
                )  # fmt: skip
            level = levels[fits[0]]
            axes, values = level.axes, np.asarray(level.asarray())
    except SlideError:
        raise
    except Exception as error:  # tifffile and its codecs raise of every kind on damaged files
        raise bad_mask(path.name, f"{type(error).__name__}: {error}") from error
    if axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif axes not in ("YX", "YXS"):
        raise bad_mask(path.name, f"a TIFF with the axes {axes}")
    return _single(values, path.name)


def _single(values: NDArray[Any], name: str) -> NDArray[np.integer]:
    """One number a pixel. PANDA's masks hold it in red, with green and blue 0; others repeat it."""
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind not in "iu":
        raise bad_mask(name, f"its values are of type {values.dtype}, not whole numbers")
    if values.ndim == 2:
        return values
    first, others = values[..., 0], values[..., 1:3]
    for i in range(others.shape[-1]):
        if others[..., i].any() and (others[..., i] != first).any():
            raise bad_mask(name, "a color picture, not one value a pixel", "save it as values")
    return np.ascontiguousarray(first)


def _raster_regions(
    raster: NDArray[np.integer], name: str, slide: SlideReader, config: MaskConfig
) -> Regions:
    if config.exclude:
        raise SlideError(
            "a raster has nothing to exclude", code="PG-M04", where=name,
            why="masks.exclude names classes of outlines; a pixel of a raster has one value alone",
            hint="leave masks.exclude out, and the value out of masks.classes",
        )  # fmt: skip
    frame = "canvas" if config.frame == "auto" else config.frame
    x, y, *size = slide.bounds if frame == "bounds" else (0, 0, *slide.size)
    height, width = raster.shape
    _check_aspect((width, height), (size[0], size[1]), name, frame)
    scale = size[0] / width, size[1] / height
    notes: list[str] = []
    if config.classes is None:
        only = _only_value(raster, name)
        values: dict[str, tuple[int, ...]] = {"mask": (only,)} if only else {}
        names = {"mask", *config.named}
    else:
        values = {key: tuple(_whole(v, name) for v in vs) for key, vs in config.classes.items()}
        names = {*values}
    notes += _absent(config.named, {"mask": ()} if config.classes is None else values)
    return RasterRegions(raster, (x, y), scale, values, sorted(names), "; ".join(notes))


def _check_aspect(raster: tuple[int, int], slide: tuple[int, int], name: str, frame: str) -> None:
    """A whole number of pixels may be a pixel off; more than that and 2 % is another area."""
    expected = raster[0] * slide[1] / slide[0]
    alike = abs(raster[1] - expected) <= max(MAX_ASPECT * expected, 1)
    if alike and min(raster) > 0 and raster[0] <= slide[0] * (1 + MAX_ASPECT):
        return
    raise SlideError(
        "mask does not fit the slide", code="PG-M03", where=name,
        why=f"it has {raster[0]} x {raster[1]} pixels and the {frame} of the slide "
        f"{slide[0]} x {slide[1]}",
        hint="is it of another slide? One of the scanned part only takes "
        "--set masks.frame=bounds",
    )  # fmt: skip


def _only_value(raster: NDArray[np.integer], name: str) -> int:
    """The one value besides 0; 0 where there is none."""
    found = _values(raster)
    found = found[found != 0]
    if len(found) > 1:
        some = ", ".join(map(str, found[:MANY_VALUES].tolist()))
        raise SlideError(
            "mask has several values", code="PG-M04", where=name, why=f"besides 0 it holds {some}",
            hint=f'name them: --set "masks.classes={{tumor: {int(found[-1])}}}"',
        )  # fmt: skip
    return int(found[0]) if len(found) else 0


def _values(raster: NDArray[np.integer]) -> NDArray[np.integer]:
    """Those that occur, in order, without a sorted copy of the raster."""
    if raster.dtype.itemsize == 1:
        bytes_there = np.flatnonzero(counted(raster.view(np.uint8))).astype(np.uint8)
        return np.sort(bytes_there.view(raster.dtype))
    return np.unique(np.concatenate([np.unique(raster[rows]) for rows in bands(raster.shape)]))


def _whole(value: int | str, name: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise SlideError(
            "mask has values, not names", code="PG-M04", where=name,
            why=f"{value!r} in masks.classes is no value of a raster",
            hint="give whole numbers, as in masks.classes={tumor: 2}",
        ) from error  # fmt: skip
