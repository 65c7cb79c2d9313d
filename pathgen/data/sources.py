"""Where patches come from: patch stores, or folders of image files, behind one protocol."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pathgen.errors import DataError, NoInputError
from pathgen.provenance import digest

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Rows = slice | Sequence[int] | NDArray[np.integer[Any]]

#: File names, in lower case, that an image folder takes for images.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
#: More pixels than this is a slide, not a patch.
MAX_PIXELS = 64_000_000
#: Sub-folders with these names are parts of a data set, not classes.
SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


@runtime_checkable
class PatchSource(Protocol):
    """Rows of RGB patches: `pathgen.stores.PatchStore`, `SelfAugmentationStore`, `ImageFolder`.

    A source can be pickled and opens its files anew in each process.
    """

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    def __len__(self) -> int: ...
    def images(self, rows: Rows) -> Images:
        """uint8 (H, W, 3) each, in the order of `rows`; sizes may differ in a folder."""
        ...


def labels_of(source: PatchSource) -> NDArray[np.int64]:
    """Class of every patch, (n,), an index into `classes_of`; -1 is unknown."""
    labels = getattr(source, "labels", None)
    if labels is None:
        return np.full(len(source), -1, np.int64)
    return np.asarray(labels, np.int64)


def classes_of(source: PatchSource) -> tuple[str, ...]:
    """Names of the classes of a labelled source; empty for others."""
    return tuple(getattr(source, "classes", ()) or ())


class ImageFolder:
    """Image files below a folder; each first-level sub-folder is a class (ImageNet's layout).

    Files are taken in the order of their relative names. Gray and CMYK become RGB,
    transparency becomes white, 16 bits become 8. EXIF orientation is ignored, as ImageNet's
    users do. Files lying directly in the folder have no class (-1).

    Attributes:
        files: relative names, with "/" between the parts.
        labels: int64 (n,), index into `classes`, or -1.
        classes: names of the sub-folders that hold images, sorted; empty for a flat folder.
        skipped: relative name -> why, of the files that `check` left out.
        id: digest of the relative names and sizes in bytes; where the folder lies is no part.

    Raises:
        NoInputError: PG-N01, no such folder or no image in it.
        DataError: PG-D01, the sub-folders are train/test parts rather than classes.
    """

    def __init__(self, path: str | Path, *, check: bool = True) -> None:
        self.path = Path(path).resolve()
        self.name = self.path.name
        if not self.path.is_dir():
            raise NoInputError("no such folder", where=path, hint="check the path")
        found = sorted(_image_files(self.path))
        self.skipped: dict[str, str] = self._faults(found) if check else {}
        found = [item for item in found if item[0] not in self.skipped]
        if not found:
            raise NoInputError(
                "no images in this folder",
                where=path,
                why=self._why_empty(),
                hint=f"images end in {', '.join(sorted(SUFFIXES))}",
            )
        self.files = [name for name, _ in found]
        self.id = digest(["image-folder", found])
        top = [name.split("/")[0] if "/" in name else None for name in self.files]
        self.classes = tuple(sorted({name for name in top if name is not None}))
        if self.classes and all(name.lower() in SPLITS for name in self.classes):
            raise DataError(
                "these sub-folders are parts of a data set, not classes",
                code="PG-D01",
                where=path,
                why=f"found {', '.join(self.classes)}",
                hint=f"give one of them, e.g. {self.path / self.classes[-1]}",
            )
        index = {name: i for i, name in enumerate(self.classes)}
        self.labels = np.array([-1 if name is None else index[name] for name in top], np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def images(self, rows: Rows = slice(None)) -> list[NDArray[np.uint8]]:
        """uint8 (H, W, 3) each. Raises DataError (PG-D02) naming a file that cannot be read."""
        numbers = np.arange(len(self.files))[rows if isinstance(rows, slice) else np.asarray(rows)]
        return [read_image(self.path / self.files[row]) for row in numbers]

    def close(self) -> None:
        """No file stays open between reads."""

    def _faults(self, found: Sequence[tuple[str, int]]) -> dict[str, str]:
        faults = {}
        for name, size in found:
            why = "the file is empty" if size == 0 else _header_fault(self.path / name)
            if why:
                faults[name] = why
        return faults

    def _why_empty(self) -> str | None:
        if not self.skipped:
            return None
        name, why = next(iter(self.skipped.items()))
        return f"{len(self.skipped)} cannot be read, the first is {name}: {why}"


def open_sources(paths: str | Path | Sequence[str | Path]) -> list[PatchSource]:
    """Patch stores, folders that hold patch stores, or image folders; kinds may be mixed.

    Stores of synthetic images count too, and folders that hold no patches but those.

    Raises:
        NoInputError: nothing there (PG-N01). StoreError: a damaged store, or another kind.
        DataError: the same patches twice (PG-D03).
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise NoInputError("no patches given", hint="name patch stores or an image folder")
    sources = [open_located(place) for path in paths for place in located(Path(path))]
    seen: dict[str, PatchSource] = {}
    for source in sources:
        if source.id in seen:
            raise DataError(
                "the same patches are given twice",
                code="PG-D03",
                where=source.path,
                why=f"they are those of {seen[source.id].path}",
                hint="name each store or folder once",
            )
        seen[source.id] = source
    return sources


def opened(
    sources: PatchSource | str | Path | Sequence[PatchSource | str | Path],
) -> list[PatchSource]:
    """The same, for a caller who may have opened some of them already. Raises as `open_sources`."""
    if isinstance(sources, str | Path):
        return open_sources(sources)
    if not isinstance(sources, Sequence):
        return [sources]
    found: list[PatchSource] = []
    for source in sources:
        found += open_sources(source) if isinstance(source, str | Path) else [source]
    return found


def located(path: Path) -> list[Path]:
    """The stores at `path`, or `path` itself where it is an image folder; none is opened.

    Raises:
        NoInputError: PG-N01, nothing there that holds patches.
    """
    from pathgen.stores import find_stores

    if not path.exists():
        raise NoInputError(
            "no such file or folder", where=path, hint="give a patch store or an image folder"
        )
    if path.suffix in (".h5", ".zarr") or path.is_file():
        return [path]
    for kind in ("patches", "augmentations"):  # synthetic images where there are no real ones
        with suppress(NoInputError):
            return find_stores(path, kind=kind)
    if (path / "slides.json").is_file():  # its images are thumbnails
        raise NoInputError(
            "no slide here was tiled",
            where=path,
            why="the ledger of `pathgen tile` is here, but no patch store",
            hint=f"see {path / 'slides.csv'} for the reasons",
        )
    if next(_image_files(path), None) is None:
        raise NoInputError(
            "neither patch stores nor images in this folder",
            where=path,
            hint="make stores with `pathgen tile`, or give a folder of JPEG or PNG patches",
        )
    return [path]


def open_located(path: Path) -> PatchSource:
    """One of what `located` gave. Raises StoreError, or NoInputError and DataError of a folder."""
    if path.suffix in (".h5", ".zarr") or path.is_file():
        return _open_store(path)
    return ImageFolder(path)


def _open_store(path: Path) -> PatchSource:
    """Of patches, or of synthetic ones. Raises StoreError (PG-O16) for another kind."""
    from pathgen.stores import PatchStore, SelfAugmentationStore, open_store

    store = open_store(path)
    return store if isinstance(store, SelfAugmentationStore) else PatchStore(store.table)


def read_image(path: Path) -> NDArray[np.uint8]:
    """One image file as RGB, uint8 (H, W, 3). Raises DataError (PG-D02) naming the file."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\xff\xd8" and simplejpeg.is_jpeg(data):
            space = simplejpeg.decode_jpeg_header(data)[2]
            if space in ("YCbCr", "RGB", "Gray"):
                return np.asarray(simplejpeg.decode_jpeg(data, "RGB"), np.uint8)
        with Image.open(path) as image:
            return _rgb(image)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        # PIL reports damage as OSError, ValueError or SyntaxError, by format.
        raise DataError(
            "image cannot be read",
            code="PG-D02",
            where=path,
            why=str(error) or type(error).__name__,
            hint="remove the file or replace it",
        ) from error


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image, np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, over)
    return np.array(image.convert("RGB"), np.uint8)


def _header_fault(path: Path) -> str | None:
    """Why an image is left out, from its header alone; None when it looks well."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels is a slide, not a patch: tile it first"
    return None


def _image_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative name and size in bytes of each image; hidden names are passed over."""
    seen = set()  # linked folders are followed, but never in a circle
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                path = Path(place, name)
                if path.is_file():
                    yield path.relative_to(folder).as_posix(), path.stat().st_size
