"""`pathgen.open`: whatever one has, as the object one wants."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pathgen.progress import Progress
from pathgen.session.cohort import Cohort, open_cohort
from pathgen.session.slide import Slide
from pathgen.session.waiting import AfterAWhile

if TYPE_CHECKING:
    from pathgen.stores.store import Store


def open_anything(
    anything: str | Path | Sequence[str | Path],
    *,
    mpp: float | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Slide | Cohort | Store:
    """A slide for a slide; a cohort for a folder, a glob, a CSV or a list; a store for a store.

    A bad slide in a cohort is a row of `Cohort.problems`; one that is opened alone raises.

    Args:
        anything: a slide is a file, the folder of one DICOM or OME-Zarr slide, or a URL.
        mpp: microns per level-0 pixel of slides that say none that can be.
        workers: processes that look a cohort over; None = one a core, 0 = in this process.
        progress: default: shown on stderr once it takes more than two seconds.

    Raises:
        NoInputError: PG-N01, nothing is there.
        SlideError: PG-S01 to PG-S11, one slide cannot be opened.
        DataError: PG-N06, a CSV of slides cannot be understood.
        StoreError: a store is damaged.
    """
    if isinstance(anything, str | Path):
        if _is_store(anything):
            from pathgen.stores import open_store

            return open_store(anything)
        if _is_one_slide(anything):
            return Slide(anything, slide_mpp=mpp)
        given: list[str | Path] = [anything]
    else:
        given = list(anything)
    return open_cohort(given, slide_mpp=mpp, workers=workers, progress=progress or AfterAWhile())


def _is_store(place: str | Path) -> bool:
    from pathgen.stores.facts import is_store

    return "://" not in str(place) and is_store(Path(place))


def _is_one_slide(place: str | Path) -> bool:
    from pathgen.tiling.inputs import find_slides, is_slide_folder
    from pathgen.tiling.lists import LIST_SUFFIXES

    if "://" in str(place):
        return True
    path = Path(place)
    if path.is_dir():
        # One of DICOM files may hold several slides.
        return is_slide_folder(path) and len(find_slides(path)[0]) == 1
    if path.suffix.lower() in LIST_SUFFIXES:
        return False
    return path.exists() or not glob.has_magic(str(path))
