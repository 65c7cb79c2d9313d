"""What is meant by what is given: stores and folders of patches, or slides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pathgen.data.sources import SUFFIXES, ImageFolder, PatchSource, located, open_located
from pathgen.errors import ConfigError, DataError, NoInputError, StoreError
from pathgen.extract.config import ExtractConfig
from pathgen.extract.origins import Origin, Slide, Stored, Unread
from pathgen.tiling.inputs import find_slides
from pathgen.tiling.lists import LIST_SUFFIXES
from pathgen.tiling.maskfiles import check_asked, with_masks
from pathgen.tiling.normalize import NormalizeConfig
from pathgen.tiling.task import TileConfig, TileTask

Given = PatchSource | Path | str | Sequence[PatchSource | Path | str]


def stored_origins(patches: Given, config: ExtractConfig) -> list[Origin]:
    """Every store and folder; one that cannot be opened is an `Unread`.

    Raises:
        NoInputError: nothing there. DataError: PG-D03, the same patches twice.
        ConfigError: PG-C01, stain normalization of what has none to be fitted.
    """
    given = patches if isinstance(patches, Sequence) and not isinstance(patches, str) else [patches]
    found: list[Origin] = []
    for one in given:
        if isinstance(one, str | Path):
            found += _from_path(Path(one), config)
        else:
            found.append(Stored(one, config))
    if not found:
        raise NoInputError("no patches to encode", hint="name patch stores or an image folder")
    seen: dict[str, Path] = {}
    for origin in found:
        if not isinstance(origin, Stored):
            continue
        origin.check()
        other = seen.setdefault(origin.source.id, origin.source.path)
        if other is not origin.source.path:
            raise DataError(
                "the same patches are given twice", code="PG-D03", where=origin.source.path,
                why=f"they are those of {other}", hint="name each store or folder once",
            )  # fmt: skip
    return found


def _from_path(path: Path, config: ExtractConfig) -> list[Origin]:
    found: list[Origin] = []
    for place in located(path):
        try:
            found.append(Stored(open_located(place), config))
        except StoreError as error:
            name = place.relative_to(path) if place != path else Path(place.name)
            found.append(Unread(name.with_suffix("").as_posix(), place, error))
    return found


def slide_origins(
    slides: str | Path | Sequence[str | Path],
    out: Path,
    tile: TileConfig,
    config: ExtractConfig,
    masks: str | Path | None = None,
) -> list[Origin]:
    """Every slide, as `tile` would cut it.

    Raises:
        NoInputError: PG-N01, no slide. DataError: PG-N06, a list cannot be understood.
        ConfigError: PG-C01, settings for masks without any; stain normalization given twice.
    """
    if config.normalize.method != "none":
        if tile.normalize.method != "none" and tile.normalize != config.normalize:
            raise ConfigError(
                "stain normalization is given twice", where="normalize",
                why=f"{_told(tile.normalize)} for tiling, {_told(config.normalize)} for features",
                hint="give it once",
            )  # fmt: skip
        tile = tile.model_copy(update={"normalize": config.normalize})
    tile.normalize.check()
    given, _ = find_slides(slides)
    check_asked(given, masks, tile.masks)
    given = with_masks(given, masks, tile.masks.missing)
    return [Slide(TileTask(slide, out, tile)) for slide in given]


def _told(config: NormalizeConfig) -> str:
    return config.method + (f" to {config.target}" if config.target else "")


def are_slides(given: Sequence[str | Path]) -> bool:
    """Whether these are slides to be tiled, rather than patches: lists, URLs and globs, slide
    files, and folders that hold slides and no stores. Plain images of patches are no slides;
    beside slides they are thumbnails or masks.

    Raises:
        NoInputError: nothing there, or nothing that is either.
    """
    return all(_is_slides(one) for one in given) if given else False


def _is_slides(given: str | Path) -> bool:
    path = Path(given)
    if "://" in str(given) or path.suffix.lower() in LIST_SUFFIXES or not path.exists():
        return True
    if path.is_file():
        return path.suffix.lower() != ".h5"
    if path.suffix == ".zarr":
        from pathgen.stores.facts import is_store

        return not is_store(path)
    try:
        places = located(path)
        if places == [path]:
            if _holds_slides(path):
                return not (path / "slides.json").is_file()
            ImageFolder(path)
    except NoInputError as error:
        try:
            find_slides(path)
        except NoInputError:
            raise error from None
        return not (path / "slides.json").is_file()
    return False


def _holds_slides(folder: Path) -> bool:
    """Whether files here can be nothing but slides: by their suffix, or as TIFFs of tiles or of
    several images, which patches are not saved as."""
    try:
        found, _ = find_slides(folder)
    except NoInputError:
        return False
    paths = [slide.path for slide in found if isinstance(slide.path, Path)]
    if any(path.suffix.lower() not in SUFFIXES for path in paths):
        return True
    tiffs = (path for path in paths if path.suffix.lower() in {".tif", ".tiff"})
    return any(map(_is_slide_tiff, islice(tiffs, 16)))


def _is_slide_tiff(path: Path) -> bool:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            return tiff.pages.first.is_tiled or len(tiff.pages) > 1
    except (OSError, ValueError, IndexError, tifffile.TiffFileError):
        return False
