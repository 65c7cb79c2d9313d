"""Which mask belongs to which slide."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pathgen.errors import ConfigError, NoInputError, SlideError
from pathgen.tiling.inputs import SlideInput
from pathgen.tiling.masks import MaskConfig
from pathgen.tiling.readers.check import missing, without_suffix

MASK_SUFFIXES = (
    ".geojson.gz", ".json.gz", ".geojson", ".json", ".xml", ".png", ".ome.tiff", ".ome.tif",
    ".tiff", ".tif",
)  # fmt: skip
#: What tools add to a slide's name.
ENDINGS = ("_mask_use", "_mask", "-mask", "_annotations", "_annotation", "_tissue")


def check_asked(slides: Sequence[SlideInput], masks: object | None, config: MaskConfig) -> None:
    """Refuse settings for masks where there is none to use them on.

    Raises:
        ConfigError: PG-C01, names the first.
    """
    if masks is not None or any(slide.mask is not None for slide in slides):
        return
    asked = config.model_dump(exclude_defaults=True)
    if asked.get("missing") == "tissue":  # which is what is done
        del asked["missing"]
    if asked:
        raise ConfigError(
            "a setting for masks, and no masks", where=f"masks.{next(iter(asked))}",
            why="no folder of masks is given, and no list has a column `mask`",
            hint="give --masks FOLDER, or leave the setting out",
        )  # fmt: skip


def with_masks(
    slides: Sequence[SlideInput], masks: str | Path | None, when_missing: str = "fail"
) -> list[SlideInput]:
    """The slides, each with its mask; unchanged where neither `masks` nor a list names any.

    A list's mask wins over `masks`, a folder that is searched through (or one file for one
    slide). A file belongs to the slide whose name it has, with or without the slide's suffix and
    one of `ENDINGS`: ``a.geojson``, ``a_mask.tiff``, ``a.svs_mask_use.png``.

    Args:
        when_missing: as `MaskConfig.missing`; with ``fail``, a slide without a mask gets the
            problem PG-M01.

    Raises:
        NoInputError: PG-N01, `masks` is not there, or none of its files belongs to a slide.
        ConfigError: PG-C01, one file for several slides.
    """
    if masks is None and all(slide.mask is None for slide in slides):
        return list(slides)
    found = {} if masks is None else _belonging(slides, Path(masks))
    result = []
    for slide in slides:
        files = [slide.mask] if slide.mask is not None else found.get(slide.name, [])
        if slide.same_as is not None or slide.problem is not None:
            result.append(slide)
        elif len(files) == 1 and os.path.lexists(files[0]):
            # Workers elsewhere may have another working folder.
            result.append(replace(slide, mask=Path(os.path.abspath(files[0]))))
        elif not files and when_missing != "fail":
            result.append(replace(slide, unmasked=True))
        else:
            result.append(replace(slide, mask=None, problem=_problem(slide, files)))
    return result


def _problem(slide: SlideInput, files: Sequence[Path]) -> SlideError:
    if len(files) > 1:
        names = ", ".join(sorted(file.name for file in files)[:3])
        return SlideError(
            "several masks for one slide", code="PG-M01", where=slide.name,
            why=f"{names} have its name", hint="leave one, or name it in a CSV's column `mask`",
        )  # fmt: skip
    why = f"{files[0].name!r}, as listed, is not there" if files else "no file has its name"
    return SlideError(
        "no mask for this slide", code="PG-M01", where=slide.name, why=why,
        hint="add it; or find its tissue with --set masks.missing=tissue, or leave such slides "
        "out with --set masks.missing=skip",
    )  # fmt: skip


def _belonging(slides: Sequence[SlideInput], masks: Path) -> Mapping[str, list[Path]]:
    """Name of a slide -> the mask files that have it."""
    if not os.path.lexists(masks):
        raise missing(masks)
    if not masks.is_dir():
        if len(slides) > 1:
            raise ConfigError(
                "one mask for several slides", where=masks, why=f"there are {len(slides)} slides",
                hint="give a folder with a mask a slide, or a CSV with a column `mask`",
            )  # fmt: skip
        return {slides[0].name: [masks]}
    files: dict[str, list[Path]] = {}
    for path in sorted(masks.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        relative = path.relative_to(masks).as_posix()
        for suffix in MASK_SUFFIXES:
            if relative.lower().endswith(suffix):
                for key in _keys(relative[: -len(suffix)]):
                    files.setdefault(key, []).append(path)
                break
    found = _matched(slides, files)
    if not found:
        raise NoInputError(
            "no mask belongs to a slide", where=masks,
            why=f"{sum(map(len, files.values()))} files there, none with the name of a slide"
            if files else "no GeoJSON, XML, PNG or TIFF is there",
            hint=f"a mask has its slide's name, as {slides[0].name}.geojson",
        )  # fmt: skip
    return found


def _matched(
    slides: Sequence[SlideInput], files: Mapping[str, list[Path]]
) -> dict[str, list[Path]]:
    """By path below the folder; else by name alone, where only one slide has it."""
    names = Counter(PurePosixPath(slide.name).name for slide in slides)
    by_name: dict[str, list[Path]] = {}
    for key, paths in files.items():
        by_name.setdefault(PurePosixPath(key).name, []).extend(paths)
    found = {}
    for slide in slides:
        own = PurePosixPath(slide.name).name
        paths = files.get(slide.name, [])
        if not paths and names[own] == 1:
            paths = by_name.get(own, []) or by_name.get(without_suffix(slide.path.name), [])
        if paths:
            found[slide.name] = list(dict.fromkeys(paths))
    return found


def _keys(name: str) -> set[str]:
    """The slide names that a mask file of this name, without its suffix, may stand for."""
    stems = {name}
    for ending in ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            stems.add(name[: -len(ending)])
    return stems | {without_suffix(stem) for stem in stems}
