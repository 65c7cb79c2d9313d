"""What a file is, before a reader opens it, so that the message says what is wrong with it."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pathgen.errors import NoInputError, SlideError
from pathgen.provenance import digest
from pathgen.tiling.readers.frames import check_frames
from pathgen.tiling.readers.ngff import is_metadata, is_ome_zarr, read_multiscale, zarr_files
from pathgen.tiling.readers.remote import RemotePath, SlidePath, open_remote, remote_facts
from pathgen.tiling.readers.tiff import (
    Directory,
    beyond_offsets,
    read_directories,
    walk_directories,
)

MIB = 2**20

#: First bytes -> name, of what is read here (True) or only recognized (False).
_MAGIC: tuple[tuple[bytes, str, bool], ...] = (
    (b"II*\0", "TIFF", True), (b"MM\0*", "TIFF", True), (b"II+\0", "TIFF", True),
    (b"MM\0+", "TIFF", True), (b"\x89PNG", "PNG", True), (b"\xff\xd8\xff", "JPEG", True),
    (b"ZISRAWFILE", "Zeiss CZI", True), (b"SQLite format 3", "SQLite", True),
    (b"[Virtual Microscope", "Hamamatsu VMS", True),
    (b"[Uncompressed Virtual", "Hamamatsu VMU", True),
    (b"\0\0\0\x0cjP", "JPEG 2000 image", False), (b"\xff\x4f\xff\x51", "JPEG 2000 image", False),
    (b"<DataObject", "Philips iSyntax", False), (b"<?xml", "XML", False),
    (b"%PDF", "PDF", False), (b"PK\x03\x04", "zip archive", False),
    (b"\x1f\x8b", "gzip archive", False), (b"\x89HDF", "HDF5 file", False),
    (b"GIF8", "GIF", False), (b"BM", "BMP", False), (b"RIFF", "WebP or RIFF", False),
)  # fmt: skip

#: Slide formats by suffix that no reader of this version opens.
UNSUPPORTED = {
    ".isyntax": "Philips iSyntax", ".sdpc": "Sqray SDPC", ".kfb": "KFBio", ".vsi": "Olympus VSI",
    ".jp2": "JPEG 2000 image", ".tmap": "TMAP", ".lif": "Leica LIF", ".zvi": "Zeiss ZVI",
}  # fmt: skip

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".mrxs", ".scn", ".bif", ".svslide",
     ".czi", ".dcm", ".btf", ".tf8", ".tf2", ".qptiff"} | set(UNSUPPORTED)
)  # fmt: skip
#: Plain images count in a folder that holds no slide: beside slides they are thumbnails or masks.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_DOUBLE = (".ome.tiff", ".ome.tif", ".ome.zarr")


def without_suffix(name: str) -> str:
    """A relative path without the suffix of a slide or image; any other suffix is the name's."""
    for double in _DOUBLE:
        if name.lower().endswith(double) and len(PurePosixPath(name).name) > len(double):
            return name[: -len(double)]
    suffix = PurePosixPath(name).suffix
    known = suffix.lower() in SLIDE_SUFFIXES | IMAGE_SUFFIXES | {".zarr"}
    return name[: -len(suffix)] if known else name


def check_slide(path: SlidePath) -> str:
    """The kind of file at `path`: ``"TIFF"``, ``"DICOM"``, ``"OME-Zarr"``, ``"remote TIFF"`` ...

    Raises:
        NoInputError: PG-N01 nothing there.
        SlideError: PG-S01 empty, PG-S02 not a slide, PG-S03 truncated, PG-S05 or PG-S06 damaged,
            PG-S10 a format this version does not read, PG-S11 a part is missing, PG-N04 and
            PG-N05 a remote slide cannot be reached.
    """
    if isinstance(path, RemotePath):
        return _check_remote(path)
    if not os.path.lexists(path):
        raise missing(path)
    if path.is_dir():
        return _check_folder(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(132)
    except OSError as error:
        raise unreadable(path, error) from error
    if path.suffix.lower() == ".mrxs":
        return _check_mrxs(path)
    kind = _readable(path, head)
    if kind == "TIFF" and not beyond_offsets(path):
        _check_depth(path, read_directories(path))
    if kind == "DICOM":
        check_frames(path)
    return kind


def _check_remote(path: RemotePath) -> str:
    with open_remote(path) as file:
        head = file.read(132)
        kind = _readable(path, head)
        if kind != "TIFF":
            raise unsupported(path, f"a remote {kind}: only TIFF-based slides are read by URL")
        if head[2:4] in (b"+\0", b"\0+") or file.size < 2**32:
            _check_depth(path, walk_directories(file, path, file.size))
    return "remote TIFF"


def _readable(path: SlidePath, head: bytes) -> str:
    """The kind of file by its first bytes, if any reader takes it."""
    if not head:
        raise SlideError(
            "empty file", code="PG-S01", where=path.name, why="it has 0 bytes", hint="copy it again"
        )
    kind, readable = _kind(head)
    if not readable:
        raise _refuse(path, kind)
    if kind == "PNG" and head[24:25] == b"\x10":
        raise unsupported(path, "a PNG of 16 bits per channel")
    return kind


def missing(path: Path) -> NoInputError:
    """PG-N01, with the nearest name that is there."""
    parent = path.parent
    there = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1)
    if close:
        hint = f"did you mean {str(parent / close[0])!r}?"
    elif not parent.is_dir():
        hint = f"the folder {str(parent)!r} is not there either"
    else:
        hint = "check the path"
    return NoInputError("no such file or folder", where=path, hint=hint)


def unreadable(path: SlidePath, error: OSError) -> SlideError:
    """PG-N04: permissions, a broken link, a disk that fails."""
    return SlideError(
        "slide cannot be read", code="PG-N04", where=path.name,
        why=str(error.strerror or error), hint="check permissions, links and the disk",
    )  # fmt: skip


def unsupported(path: SlidePath, what: str) -> SlideError:
    """PG-S10: a format or flavor that this version does not read."""
    return SlideError(
        "format not supported by this version", code="PG-S10", where=path.name, why=f"it is {what}",
        hint="convert it to a tiled pyramidal TIFF, 8 bits RGB, e.g. with bioformats2raw and "
        "`raw2ometiff --rgb`, or with `vips tiffsave --tile --pyramid`",
    )  # fmt: skip


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, sorted; drafts and hidden files left out."""
    return sorted(
        path for path in folder.iterdir()
        if path.suffix.lower() == ".dcm" and not path.name.startswith(".") and path.is_file()
    )  # fmt: skip


def truncated_dicom(text: str) -> bool:
    """Whether OpenSlide's message speaks of a DICOM file that ends too early."""
    return any(sign in text.lower() for sign in ("truncated", "end of file", "short read"))


def parts(path: Path) -> Iterator[Path]:
    """The files that hold a slide: itself, its folder's, or an MRXS's or VMS's companions."""
    if path.is_dir():
        yield from (dicom_files(path) or zarr_files(path))
        return
    yield path
    suffix = path.suffix.lower()
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        yield from sorted(p for p in path.with_suffix("").iterdir() if p.is_file())
    elif suffix in (".vms", ".vmu"):
        yield from sorted(p for p in path.parent.glob("*.jpg"))


def total_bytes(path: SlidePath) -> int:
    """Of all files that hold a slide."""
    if isinstance(path, RemotePath):
        return remote_facts(path).size
    return sum(part.stat().st_size for part in parts(path))


def stamp(path: SlidePath) -> list[tuple[int, int | str]]:
    """Size and time of change of each file of a slide: other ones after than before say that it
    changed meanwhile."""
    if isinstance(path, RemotePath):
        facts = remote_facts(path)
        return [(facts.size, facts.version)]
    return [(stat.st_size, stat.st_mtime_ns) for stat in (part.stat() for part in parts(path))]


def series_of(path: Path) -> str | None:
    """SeriesInstanceUID (0020,000E) of an explicit little-endian DICOM file; None if not found."""
    try:
        with path.open("rb") as handle:
            head = handle.read(65536)
    except OSError:
        return None  # opening it as a slide will say why
    if head[128:132] != b"DICM":
        return None
    at = head.find(b"\x20\x00\x0e\x00UI")
    if at < 0:
        return None
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[at + 8 : at + 8 + length].decode("ascii", "replace").strip("\0 ")


def slide_identity(path: SlidePath) -> str:
    """Digest of a slide's files: each one's size, first and last MiB. Reads little, misses little.

    Of an OME-Zarr image: its metadata, the name and size of each chunk, and the content of a few.

    Raises:
        NoInputError, SlideError: as `check_slide`; PG-N04 when a file cannot be read.
    """
    try:
        kind = check_slide(path)
        if isinstance(path, RemotePath):
            with open_remote(path) as file:
                return digest([_mark(file, file.size)], 32)
        if kind == "OME-Zarr":
            return digest(_zarr_marks(path), 32)
        return digest([_file_mark(part) for part in parts(path)], 32)
    except OSError as error:
        raise unreadable(path, error) from error


def _file_mark(part: Path) -> list[Any]:
    with part.open("rb") as handle:
        return _mark(handle, part.stat().st_size)


def _mark(handle: BinaryIO | RawIOBase, size: int) -> list[Any]:
    ends = hashlib.blake2b(handle.read(MIB) or b"", digest_size=16)
    if size > MIB:
        handle.seek(max(size - MIB, MIB))
        ends.update(handle.read(MIB) or b"")
    return [size, ends.hexdigest()]


#: Chunks of an OME-Zarr image that are looked into.
_SAMPLE = 32


def _zarr_marks(folder: Path) -> list[Any]:
    files = list(zarr_files(folder))
    chunks = [path for path in files if not is_metadata(path)]
    looked = set(chunks[:: max(len(chunks) // _SAMPLE, 1)]) | set(files).difference(chunks)
    return [
        [path.relative_to(folder).as_posix(), *_file_mark(path)] if path in looked
        else [path.relative_to(folder).as_posix(), path.stat().st_size]
        for path in files
    ]  # fmt: skip


def _kind(head: bytes) -> tuple[str, bool]:
    if head[128:132] == b"DICM":
        return "DICOM", True
    for magic, name, readable in _MAGIC:
        if head.startswith(magic):
            return name, readable
    text = all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    return ("text" if text else "unknown"), False


def _refuse(path: SlidePath, kind: str) -> SlideError:
    named = UNSUPPORTED.get(path.suffix.lower())
    if kind in ("Philips iSyntax", "JPEG 2000 image") or named:
        return unsupported(path, named or kind)
    found = {"text": "a text file", "unknown": "no image format known here"}.get(kind, f"a {kind}")
    return SlideError(
        "not a slide", code="PG-S02", where=path.name, why=f"by its content it is {found}",
        hint="check how the file was made or downloaded",
    )  # fmt: skip


def _check_depth(path: SlidePath, pages: list[Directory]) -> None:
    pyramid = [page for page in pages if page.tiled] or pages[:1]
    deepest = max(page.bits for page in pyramid)
    if deepest > 8:
        raise unsupported(path, f"a TIFF of {deepest} bits per channel")


def _check_mrxs(path: Path) -> str:
    if not (path.with_suffix("") / "Slidedat.ini").is_file():
        raise SlideError(
            "a part of the slide is missing", code="PG-S11", where=path.name,
            why=f"an MRXS needs the folder {path.stem!r} with Slidedat.ini beside it",
            hint="copy that folder too",
        )  # fmt: skip
    return "MIRAX"


def _check_folder(path: Path) -> str:
    if is_ome_zarr(path):
        read_multiscale(path)
        return "OME-Zarr"
    if files := dicom_files(path):
        for file in files:
            check_frames(file)
        return "DICOM"
    raise SlideError(
        "not a slide", code="PG-S02", where=path.name, why="it is a folder",
        hint="give a slide file or a store; `pathgen tile` takes a folder of slides, and "
        "`pathgen report` what pathgen wrote",
    )  # fmt: skip
