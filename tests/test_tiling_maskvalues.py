"""Settings of masks that do not fit a file are said, and a large file takes little memory."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from pathgen.errors import SlideError
from pathgen.tiling import TileConfig, open_slide, tile
from pathgen.tiling.masks import MAX_TEXT, MIB, MaskConfig, _values, read_regions

SQUARE = [[256, 128], [768, 128], [768, 640], [256, 640], [256, 128]]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,536 x 1,024 pixels of 0.5 um."""
    return write_svs(tmp_path_factory.mktemp("masks") / "a.svs", tissue_image())


def outlines(path: Path, *names: str) -> Path:
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE]},
         "properties": {"classification": {"name": name}}}
        for name in names
    ]  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize("classes", [None, {"tumor": 1}])
def test_a_raster_has_nothing_to_exclude(
    classes: dict[str, int] | None, slide: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.ones((64, 96), np.uint8)).save(path)
    config = MaskConfig.model_validate({"exclude": "_2", "classes": classes})
    with open_slide(slide) as opened, pytest.raises(SlideError, match=r"PG-M04.*masks\.exclude"):
        read_regions(path, opened, config)


def test_a_typing_error_in_what_is_excluded_is_in_the_ledger(slide: Path, tmp_path: Path) -> None:
    mask = outlines(tmp_path / "a.geojson", "_0", "_2")
    for given_name, said in (("_3", True), ("_2", False)):
        config = TileConfig.model_validate({"masks": {"exclude": given_name, "use": "classes"}})
        report = tile(slide, tmp_path / given_name, config, masks=mask, workers=0)
        note = "the mask has no class '_3' to exclude, but _0, _2"
        assert (note in report.rows[0].message) is said


@given(
    arrays(
        st.sampled_from([np.dtype(t) for t in ("u1", "i1", "u2", "i4", "u8", ">u2")]),
        st.tuples(st.integers(1, 30), st.integers(1, 30)),
    )
)
def test_values_of_a_raster_are_found_whatever_its_type(raster: NDArray[Any]) -> None:
    np.testing.assert_array_equal(_values(raster), np.unique(raster))


def test_a_large_raster_is_not_copied_to_find_its_values() -> None:
    raster = np.zeros((5000, 6000), np.uint8)
    raster[100:, 7] = 9
    tracemalloc.start()
    try:
        start = time.perf_counter()
        assert _values(raster).tolist() == [0, 9]
        assert time.perf_counter() - start < 2
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
def test_text_beyond_the_limit_is_refused(packed: bool, slide: Path, tmp_path: Path) -> None:
    """What it has unpacked counts: Python's objects take ten times as much."""
    assert MAX_TEXT == 128 * MIB
    path = tmp_path / "a.geojson"
    block = b"[" + b" " * (16 * MIB - 1)
    with gzip.open(path, "wb", compresslevel=1) if packed else path.open("wb") as file:
        for _ in range(9):
            file.write(block)
    with open_slide(slide) as opened, pytest.raises(SlideError, match="PG-M02") as caught:
        read_regions(path, opened)
    assert "more than 128 MiB of text" in str(caught.value)
    assert ("unpacked" in str(caught.value).lower()) is packed
