"""Slides of every kind that the readers have to agree on, written in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import zarr
from helpers_tiling import tissue_image
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import generate_uid

Image = NDArray[np.uint8]
#: Odd on purpose: no multiple of a tile, a level or a chunk.
SIZE = (701, 523)
TILE = 128
#: Gray levels by which two decoders of one tile may differ.
SAME = 2


def picture(width: int = SIZE[0], height: int = SIZE[1], seed: int = 3) -> Image:
    """Tissue, with a ramp across so that no part of it looks like another."""
    image = tissue_image(width, height, seed).astype(np.int16)
    image[..., 2] -= (np.arange(width) * 60 // width).astype(np.int16)
    image[..., 0] -= (np.arange(height) * 60 // height).astype(np.int16)[:, None]
    return image.clip(0, 255).astype(np.uint8)


def far(one: Image, other: Image) -> int:
    """The largest difference."""
    return int(np.abs(one.astype(np.int16) - other).max())


def shrunk(image: Image, factor: float) -> Image:
    """Smaller by `factor`, rounded down, by nearest pixels: only the sizes matter."""
    height, width = (int(side / factor) for side in image.shape[:2])
    rows = (np.arange(height) * factor).astype(int)
    columns = (np.arange(width) * factor).astype(int)
    return np.ascontiguousarray(image[rows][:, columns])


# TIFF


@dataclass(frozen=True)
class TiffKind:
    """How a TIFF slide is written."""

    codec: str = "jpeg-ycbcr-420"
    vendor: str = "aperio"
    levels: tuple[float, ...] = (1, 4.3)
    tile: int | None = TILE
    missing: tuple[int, ...] = ()
    """numbers of level-0 tiles that have no bytes"""
    options: dict[str, object] = field(default_factory=dict)


def _jpeg(out: str, subsampling: str):  # type: ignore[no-untyped-def]
    def encode(tile: Image) -> bytes:
        return bytes(imagecodecs.jpeg8_encode(
            tile, level=90, colorspace="rgb", outcolorspace=out, subsampling=subsampling
        ))  # fmt: skip

    return encode


def _jpeg2000(tile: Image) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k", mct=False))


def _jpeg2000_ycc(tile: Image) -> bytes:
    from PIL import Image as Pil

    return _jpeg2000(np.asarray(Pil.fromarray(tile).convert("YCbCr")))


#: Codec -> its encoder (None: tifffile's own), compression tag, photometric, chroma subsampling.
CODECS = {
    "jpeg-rgb": (_jpeg("rgb", "444"), 7, "rgb", None),
    "jpeg-ycbcr-444": (_jpeg("ycbcr", "444"), 7, "ycbcr", (1, 1)),
    "jpeg-ycbcr-422": (_jpeg("ycbcr", "422"), 7, "ycbcr", (2, 1)),
    "jpeg-ycbcr-420": (_jpeg("ycbcr", "420"), 7, "ycbcr", (2, 2)),
    "jp2k-33003": (_jpeg2000_ycc, 33003, "rgb", None),
    "jp2k-33005": (_jpeg2000, 33005, "rgb", None),
    "jp2k-34712": (_jpeg2000, 34712, "rgb", None),
    "none": (None, 1, "rgb", None),
    "lzw": (None, 5, "rgb", None),
    "deflate": (None, 8, "rgb", None),
}


def write_tiff_slide(path: Path, image: Image, kind: TiffKind) -> Path:
    """A pyramid; as Aperio with 0.5 um per pixel in its description, else in resolution tags."""
    options = dict(kind.options)
    with tifffile.TiffWriter(path, **{k: options.pop(k) for k in ("bigtiff", "byteorder")
                                      if k in options}) as tiff:  # fmt: skip
        for number, factor in enumerate(kind.levels):
            level = shrunk(image, factor) if factor != 1 else image
            missing = () if number else kind.missing
            _write_level(tiff, level, kind, missing, options, reduced=number > 0)
            if number == 0 and kind.vendor == "aperio":
                tiff.write(np.full((64, 64, 3), 200, np.uint8), photometric="rgb", metadata=None,
                           rowsperstrip=16, description=_description(kind, image))  # fmt: skip
    return path


def _write_level(
    tiff: tifffile.TiffWriter, level: Image, kind: TiffKind, missing: Sequence[int],
    options: object, *, reduced: bool,
) -> None:  # fmt: skip
    encode, compression, photometric, subsampling = CODECS[kind.codec]
    tags: dict[str, object] = dict(options)  # type: ignore[call-overload]
    if kind.codec == "jpeg-rgb":
        tags["compressionargs"] = {"outcolorspace": "rgb"}  # else the tag becomes YCbCr
    if kind.vendor == "aperio":
        tags["description"] = _description(kind, level)
    else:
        tags |= {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        tags["subfiletype"] = int(reduced)
    data: object = level
    if kind.tile is not None:
        tags["tile"] = (kind.tile, kind.tile)
        if encode is not None or missing:
            tags |= {"shape": level.shape, "dtype": np.uint8}
            data = _segments(level, kind.tile, encode or (lambda tile: tile.tobytes()), missing)
    tiff.write(data, photometric=photometric, compression=compression, subsampling=subsampling,
               metadata=None, **tags)  # fmt: skip


def _segments(level: Image, side: int, encode, missing: Sequence[int]) -> Iterator[bytes]:  # type: ignore[no-untyped-def]
    height, width = level.shape[:2]
    padded = np.pad(level, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    number = 0
    for y in range(0, height, side):
        for x in range(0, width, side):
            tile = np.ascontiguousarray(padded[y : y + side, x : x + side])
            yield b"" if number in missing else encode(tile)
            number += 1


def _description(kind: TiffKind, level: Image) -> str:
    height, width = level.shape[:2]
    return (f"Aperio Image Library v11.2.1\r\n{width}x{height} ({kind.tile}x{kind.tile}) "
            "JPEG/RGB Q=90|AppMag = 20|MPP = 0.5")  # fmt: skip


def tile_bytes(path: Path) -> tuple[int, int]:
    """Where the first tile of a slide lies, and its length."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        return int(page.dataoffsets[0]), int(page.databytecounts[0])


def write_ome_tiff(path: Path, image: Image, factor: int = 4) -> Path:
    """An OME-TIFF whose coarser level is a sub-directory."""
    path = path.with_suffix(".ome.tif")
    facts = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "\u00b5m",
             "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "\u00b5m"}  # fmt: skip
    with tifffile.TiffWriter(path, ome=True) as tiff:
        options = {"photometric": "rgb", "tile": (TILE, TILE), "compression": "deflate"}
        tiff.write(image, subifds=1, metadata=facts, **options)
        tiff.write(shrunk(image, factor), subfiletype=1, **options)
    return path


# DICOM


def write_dicom(
    folder: Path,
    image: Image,
    levels: Sequence[float] = (1, 4),
    *,
    syntax: str = "1.2.840.10008.1.2.4.50",
    flavors: Sequence[str] = (),
    bits: int = 8,
    spacing: float = 0.0005,
) -> Path:
    """A folder with one TILED_FULL series: a VOLUME a level, then the other `flavors`."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for number, factor in enumerate([*levels, *(16.0 for _ in flavors)]):
        level = shrunk(image, factor) if factor != 1 else image
        flavor = "VOLUME" if number < len(levels) else flavors[number - len(levels)]
        data = _instance(level, syntax, flavor, bits, spacing * factor)
        data.SeriesInstanceUID, data.StudyInstanceUID = series, study
        data.FrameOfReferenceUID = frame
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def _instance(level: Image, syntax: str, flavor: str, bits: int, spacing: float) -> Dataset:
    height, width = level.shape[:2]
    side = TILE if flavor == "VOLUME" else max(height, width) + max(height, width) % 2
    frames = list(_segments(level, side, DICOM_CODECS[syntax], ()))
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.Modality = "SM"
    data.PatientName, data.PatientID = "CANARY", "CANARY"
    resampled = flavor == "VOLUME" and spacing != 0.0005
    data.ImageType = ["DERIVED" if resampled else "ORIGINAL", "PRIMARY", flavor,
                      "RESAMPLED" if resampled else "NONE"]  # fmt: skip
    data.Rows = data.Columns = side
    if flavor != "VOLUME":
        data.Rows, data.Columns = side, side
        height = width = side
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = height, width
    data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = 1, 1
    data.NumberOfFrames = len(frames)
    data.SamplesPerPixel, data.PlanarConfiguration = 3, 0
    data.PhotometricInterpretation = "YBR_FULL_422" if syntax.endswith(".50") else "RGB"
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation = bits - 1, 0
    data.DimensionOrganizationType = "TILED_FULL"
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = width * spacing, height * spacing
    data.ImagedVolumeDepth, data.VolumetricProperties = 0.001, "VOLUME"
    data.SpecimenLabelInImage, data.FocusMethod = "NO", "AUTO"
    data.ExtendedDepthOfField, data.BurnedInAnnotation = "NO", "NO"
    data.LossyImageCompression = "00"
    data.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0.0
    data.TotalPixelMatrixOriginSequence = DicomSequence([origin])
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing, spacing], 0.001
    shared = Dataset()
    shared.PixelMeasuresSequence = DicomSequence([measures])
    data.SharedFunctionalGroupsSequence = DicomSequence([shared])
    optical = Dataset()
    optical.OpticalPathIdentifier, optical.ObjectiveLensPower = "1", 20.0
    data.OpticalPathSequence = DicomSequence([optical])
    if syntax == "1.2.840.10008.1.2.1":
        data.PixelData = b"".join(frames)
    else:
        data.PixelData = encapsulate(frames)
        data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    return data


#: Transfer syntax -> encoder: JPEG baseline, JPEG 2000 lossless, JPEG-LS lossless, none.
DICOM_CODECS = {
    "1.2.840.10008.1.2.4.50": _jpeg("ycbcr", "422"),
    "1.2.840.10008.1.2.4.90": _jpeg2000,
    "1.2.840.10008.1.2.4.80": lambda tile: bytes(imagecodecs.jpegls_encode(tile)),
    "1.2.840.10008.1.2.1": lambda tile: tile.tobytes(),
}


# OME-Zarr


def write_ome_zarr(
    folder: Path,
    image: NDArray[np.generic],
    levels: Sequence[float] = (1, 2.3),
    *,
    version: str = "0.5",
    axes: str = "cyx",
    unit: str | None = "micrometer",
    mpp: float = 0.5,
    chunk: int = 100,
    skip: Sequence[str] = (),
) -> Path:
    """An image (height, width, channel) as an OME-Zarr; `skip`: chunk files that are not there."""
    group = zarr.open_group(folder, mode="w", zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for number, factor in enumerate(levels):
        level = shrunk(image, factor) if factor != 1 else image  # type: ignore[arg-type]
        array = level.transpose(["yxc".index(name) for name in axes if name in "yxc"])
        array = np.expand_dims(array, [i for i, name in enumerate(axes) if name not in "yxc"])
        spatial = {"y": chunk, "x": chunk, "c": 3}
        stored = group.create_array(
            str(number), shape=array.shape, dtype=array.dtype, fill_value=0,
            chunks=tuple(spatial.get(name, 1) for name in axes),
            chunk_key_encoding={"name": "v2" if version == "0.4" else "default", "separator": "/"},
        )  # fmt: skip
        stored[:] = array
        step = [mpp * factor if name in "yx" else 1.0 for name in axes]
        scaling = [{"type": "scale", "scale": step}]
        datasets.append({"path": str(number), "coordinateTransformations": scaling})
    for name in skip:
        (folder / name).unlink()
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": name, "type": kinds.get(name, "space")} for name in axes]
    for axis in named:
        if axis["type"] == "space" and unit:
            axis["unit"] = unit
    facts = {"version": version, "multiscales": [{"axes": named, "datasets": datasets}]}
    if version == "0.5":
        path = folder / "zarr.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "attributes": {"ome": facts}}))
    else:
        (folder / ".zattrs").write_text(json.dumps(facts))
    return folder
