"""Which slides are meant: folders, files, globs and CSV lists, each slide with a safe name."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from pathgen.errors import DataError, NoInputError, PathgenError, SlideError
from pathgen.tiling.lists import LIST_SUFFIXES, read_list
from pathgen.tiling.readers.check import (
    IMAGE_SUFFIXES,
    SLIDE_SUFFIXES,
    dicom_files,
    missing,
    series_of,
    without_suffix,
)
from pathgen.tiling.readers.ngff import is_ome_zarr
from pathgen.tiling.readers.remote import (
    RemotePath,
    SlidePath,
    listed,
    path_key,
    slide_path,
)


@dataclass(frozen=True)
class SlideInput:
    """One slide to tile. `name` is safe as a relative path and unique among the inputs."""

    path: SlidePath
    name: str
    mpp: float | None = None
    """from a CSV; None where it gave none"""
    label: str | None = None
    patient: str | None = None
    problem: PathgenError | None = None
    """known before the slide is opened, as for a listed file that is not there"""
    same_as: str | None = None
    """name of the input that this file is a part of: an instance of the same DICOM series"""
    mask: Path | None = None
    """where its tissue or classes were drawn; see `pathgen.tiling.masks`"""
    unmasked: bool = False
    """masks were given, but none for this slide"""


@dataclass(frozen=True)
class _Found:
    path: SlidePath
    base: Path
    mpp: float | None = None
    label: str | None = None
    patient: str | None = None
    problem: PathgenError | None = None
    mask: Path | None = None


def find_slides(
    inputs: str | Path | Sequence[str | Path],
) -> tuple[list[SlideInput], dict[str, int]]:
    """The slides that `inputs` mean, sorted by name, and what was passed over.

    Args:
        inputs: folders (searched through, links to folders not followed), slide files, globs,
            URLs of slides, and CSV lists; see `pathgen.tiling.lists` for their columns.

    Returns:
        Slides, and how many files of which suffix were ignored as no slides.

    Raises:
        NoInputError: PG-N01, a path is not there or nothing was found.
        DataError: PG-N06, a CSV cannot be understood.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    ignored: Counter[str] = Counter()
    found: list[_Found] = []
    for one in given:
        path = slide_path(one)
        if isinstance(path, RemotePath):
            found.append(_Found(path, Path()))
        else:
            found += _expand(path, ignored)
    unique: dict[str, _Found] = {}
    for item in found:
        key = path_key(item.path)
        unique[key] = _merged(unique[key], item) if key in unique else item
    if not unique:
        passed = ", ".join(f"{n} {suffix}" for suffix, n in sorted(ignored.items()))
        raise NoInputError(
            "no slides found", where=listed(given) or None,
            why=f"ignored: {passed}" if passed else "nothing is there",
            hint="give slide files, a folder of them, or a CSV with a column `slide`",
        )  # fmt: skip
    slides = sorted(_named(list(unique.values())), key=lambda slide: slide.name)
    return _series_once(slides), dict(sorted(ignored.items()))


def _merged(first: _Found, again: _Found) -> _Found:
    """One slide given twice, as by a folder and by a CSV: what any list says of it counts.

    Raises:
        DataError: PG-N06, two lists say different things.
    """
    values = {}
    for name in ("mpp", "label", "patient", "mask"):
        one, other = getattr(first, name), getattr(again, name)
        if None not in (one, other) and one != other:
            raise DataError(
                "slide listed twice with different values", where=first.path.name,
                why=f"{name} is {one!r} in one list and {other!r} in another",
                hint="make the lists agree",
            )  # fmt: skip
        values[name] = other if one is None else one
    return replace(first, **values)


def _expand(path: Path, ignored: Counter[str]) -> Iterator[_Found]:
    if path.is_dir():
        if is_slide_folder(path):
            yield from (_Found(slide, path.parent) for slide in _series(path))
        else:
            yield from _search(path, ignored)
    elif os.path.lexists(path):
        if path.suffix.lower() in LIST_SUFFIXES:
            for row in read_list(path):
                yield _Found(
                    row.path, path.parent, row.mpp, row.label, row.patient, row.problem, row.mask
                )
        else:
            yield _Found(path, path.parent)
    elif glob.has_magic(str(path)):
        yield from _matches(path, ignored)
    else:
        raise missing(path)


def _matches(pattern: Path, ignored: Counter[str]) -> Iterator[_Found]:
    fixed = Path(*_until_magic(pattern.parts))
    paths = sorted(Path(p) for p in glob.glob(str(pattern), recursive=True))
    if not paths:
        raise NoInputError("no file matches", where=pattern, hint="check the pattern")
    for path in paths:
        if path.is_dir() and not is_slide_folder(path):
            continue
        if path.is_dir() or path.suffix.lower() in SLIDE_SUFFIXES | IMAGE_SUFFIXES:
            yield _Found(path, fixed)
        else:
            ignored[_kind(path)] += 1


def _until_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _search(root: Path, ignored: Counter[str]) -> Iterator[_Found]:
    """Slides below a folder, in a fixed order."""
    problems: list[_Found] = []

    def note(error: OSError) -> None:
        place = Path(error.filename)
        problems.append(_Found(place, root, problem=_unreadable(place, error)))

    slides: list[Path] = []
    images: list[Path] = []
    for folder, names, files in os.walk(root, onerror=note):
        here = Path(folder)
        keep = []
        for name in sorted(names):
            place = here / name
            if name.startswith(".") or _is_output(place) or _is_mirax_data(place):
                continue
            if is_slide_folder(place):
                slides += _series(place)
            elif place.suffix.lower() == ".zarr":
                ignored[".zarr"] += 1
            else:
                keep.append(name)
        names[:] = keep
        for name in sorted(files):
            place = here / name
            suffix = place.suffix.lower()
            if name.startswith(".") or (suffix not in SLIDE_SUFFIXES | IMAGE_SUFFIXES):
                ignored[_kind(place)] += 1
            else:
                (slides if suffix in SLIDE_SUFFIXES else images).append(place)
    if slides:
        for image in images:
            ignored[_kind(image)] += 1
    for path in slides or images:
        yield _Found(path, root)
    yield from problems


def _unreadable(place: Path, error: OSError) -> SlideError:
    return SlideError(
        "folder cannot be read", code="PG-N04", where=place.name,
        why=str(error.strerror or error), hint="check permissions",
    )  # fmt: skip


def is_slide_folder(path: Path) -> bool:
    """Whether a folder is slides itself, OME-Zarr or DICOM, rather than holds them."""
    if is_ome_zarr(path):
        return True
    try:
        names = [entry.name for entry in os.scandir(path) if not entry.name.startswith(".")]
    except OSError:
        return False
    return bool(names) and all(name.lower().endswith(".dcm") for name in names)


def _series(folder: Path) -> list[Path]:
    """A folder of one DICOM series is one slide; one of several has a slide for each."""
    if is_ome_zarr(folder):
        return [folder]
    first: dict[str, Path] = {}
    for path in dicom_files(folder):
        first.setdefault(series_of(path) or path.name, path)
    return [folder] if len(first) == 1 else list(first.values())


def _series_once(slides: list[SlideInput]) -> list[SlideInput]:
    """OpenSlide reads a whole series whichever instance it is given: the first stands for all."""
    first: dict[tuple[Path, str], str] = {}
    result = []
    for slide in slides:
        path = slide.path
        if isinstance(path, Path) and path.suffix.lower() == ".dcm" and path.is_file():
            series = (path.parent, series_of(path) or slide.name)
            owner = first.setdefault(series, slide.name)
            if owner != slide.name:
                slide = replace(slide, same_as=owner)
        result.append(slide)
    return result


def _is_mirax_data(path: Path) -> bool:
    return (path / "Slidedat.ini").is_file()


def _is_output(path: Path) -> bool:
    return (path / "slides.json").is_file() and (path / "config.yaml").is_file()


def _kind(path: Path) -> str:
    if path.name.startswith("._"):
        return "._*"
    if path.name.startswith("."):
        return "hidden"
    return path.suffix.lower() or "no suffix"


def _named(found: list[_Found]) -> list[SlideInput]:
    """Give each slide the shortest of three names that is its own: stem, with suffix, with path."""
    slides = []
    short = [_relative(item) for item in found]
    choices = [[without_suffix(name) for name in short], short, _from_common(found)]
    names = choices[0]
    for longer in choices[1:]:
        taken = Counter(_key(name) for name in names)
        names = [
            name if taken[_key(name)] == 1 else more
            for name, more in zip(names, longer, strict=True)
        ]
    safe = [safe_name(name) for name in names]
    taken = Counter(_key(name) for name in safe)
    for item, name in zip(found, safe, strict=True):
        if taken[_key(name)] > 1:  # NFC and NFD twins, or names that differ in case only
            name = f"{name}~{blake2b(os.fsencode(_raw(item.path)), digest_size=4).hexdigest()}"
        slides.append(SlideInput(
            item.path, name, item.mpp, item.label, item.patient, item.problem, mask=item.mask
        ))  # fmt: skip
    return slides


def _raw(path: SlidePath) -> str:
    return path.url if isinstance(path, RemotePath) else str(path)


def _relative(item: _Found) -> str:
    if isinstance(item.path, RemotePath):
        return item.path.name
    path, base = (Path(os.path.abspath(p)) for p in (item.path, item.base))
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name


def _from_common(found: list[_Found]) -> list[str]:
    paths = [os.path.abspath(item.path) for item in found if isinstance(item.path, Path)]
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # several Windows drives, or nothing on disk
        common = ""
    return [
        item.path.place if isinstance(item.path, RemotePath)
        else Path(os.path.relpath(item.path, common) if common else item.path).as_posix()
        for item in found
    ]  # fmt: skip


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


_ODD = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\%\ud800-\udfff]')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?$")


def safe_name(name: str) -> str:
    """`name` as a relative path that any file system takes and that stays inside its folder.

    Odd characters are percent-encoded, names are NFC, and a part that is too long is cut and
    ends in a digest.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "/".join(_safe_part(part) for part in parts) or "slide"


def _safe_part(part: str) -> str:
    whole = part
    part = unicodedata.normalize("NFC", part)
    part = _ODD.sub(lambda match: _percent(match[0]), part)
    if part[0] in ".-+=@ " or _RESERVED.match(part):
        part = _percent(part[0]) + part[1:]
    if part[-1] in ". ":
        part = part[:-1] + _percent(part[-1])
    encoded = part.encode()
    if len(encoded) > 180:  # room for the draft's prefix within 255 bytes
        digest = blake2b(_bytes(whole), digest_size=4).hexdigest()
        part = f"{encoded[:160].decode('utf-8', 'ignore')}~{digest}"
    return part


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in _bytes(text))


def _bytes(text: str) -> bytes:
    """UTF-8, with undecodable bytes of a file name as they were; other lone surrogates WTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
