"""The labelled patches: unlabelled copies to train on, the whole of both splits to judge by."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np

from pathgen.commit import draft
from pathgen.data.sources import ImageFolder


def unlabelled(folder: Path, out: Path, patches: int | None) -> Path:
    """A random sample of an image folder's files as a flat folder: the classes stay behind.

    Files are numbered in the order drawn, so a smaller sample is the start of a larger one.
    """
    if out.exists():
        return out
    files = ImageFolder(folder).files
    order = np.random.default_rng(0).permutation(len(files))[:patches]
    with draft(out) as place:
        place.mkdir()
        for number, index in enumerate(order.tolist()):
            source = folder / files[index]
            shutil.copyfile(source, place / f"{number:06d}{source.suffix}")
    return out


def slides_of(folder: Path, source: ImageFolder) -> list[str] | None:
    """The slide of each file of `folder`'s split, from labels.csv beside the splits; None: unknown.

    Raises KeyError for a file that labels.csv does not list.
    """
    table = folder.parent / "labels.csv"
    if not table.exists():
        return None
    with table.open(newline="", encoding="utf-8") as handle:
        slides = {row["file"]: row["slide"] for row in csv.DictReader(handle)}
    return [slides[f"{folder.name}/{name}"] for name in source.files]
