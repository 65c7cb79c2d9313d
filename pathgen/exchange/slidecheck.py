"""Coordinate files of CLAM and TRIDENT against the slides that will be read with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pathgen.exchange.findings import Finding, over
from pathgen.exchange.foreign import coordinate_files, patch_size, read_coords
from pathgen.exchange.hdf5 import describe
from pathgen.exchange.regions import slide_of, slides_by_name
from pathgen.tiling.inputs import SlideInput
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.task import TileConfig, TileTask


def check_slides(folder: Path, form: str, slides: Path) -> Iterator[Finding]:
    """Whether each slide is there, has the level, the size, and the places that a file names."""
    reader = {"clam": "CLAM", "trident": "TRIDENT"}[form]
    known = slides_by_name(slides)
    for name, path in coordinate_files([folder], form).items():
        yield from over(
            [path], reader, lambda p, name=name: _check(p, name, known, reader)  # type: ignore[misc]
        )  # fmt: skip


def _check(
    path: Path, name: str, slides: Mapping[str, list[SlideInput]], reader: str
) -> Iterator[Finding]:
    task = TileTask(slide_of(name, slides), path.parent, TileConfig())
    with task.open() as slide:
        problems = list(_problems(path, slide))
    for problem in problems:
        yield Finding.error(path, reader, problem, f"as {task.slide.path.name} is")
    if not problems:
        yield Finding.good(path, reader, f"fits {task.slide.path.name}")


def _problems(path: Path, slide: SlideReader) -> Iterator[str]:
    size, coords = patch_size(path), read_coords(path)
    attrs = describe(path).attrs["coords"]
    if size.level is not None:
        levels = len(slide.downsamples)
        if size.level >= levels:
            yield f"patch_level {size.level}, but the slide has {levels} levels"
            return
        step = slide.downsamples[size.level]
        said = float(np.ravel(attrs.get("downsample", step))[0])
        if abs(said / step - 1) > 0.01:
            yield f"level {size.level} is 1:{step:g}, not 1:{said:g}"
    whole = attrs.get("level0_width", slide.size[0]), attrs.get("level0_height", slide.size[1])
    if tuple(map(int, whole)) != slide.size:
        yield f"made from {whole[0]} x {whole[1]} pixels; it has {slide.size[0]} x {slide.size[1]}"
    if (coords < 0).any() or (coords >= slide.size).any():
        yield "patches lie outside of the slide"
