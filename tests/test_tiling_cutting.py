"""Cutting: threads change nothing, drives that go away are no damage, memory stays bounded."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import openslide
import pytest
from helpers_tiling import tissue_image, write_svs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pathgen
from pathgen.stores.patches import PatchSpec, PatchStore
from pathgen.tiling import TileConfig, attempt, open_slide
from pathgen.tiling.grid import BLOCK_SIDE, ReadPlan, TileGrid
from pathgen.tiling.inputs import find_slides
from pathgen.tiling.readers import native, open_with, tiles
from pathgen.tiling.readers.tiles import PageCodec, TiledLevel
from pathgen.tiling.stain import shrunk
from pathgen.tiling.task import TileTask
from pathgen.tiling.tiler import tile_slide


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_svs(tmp_path_factory.mktemp("cutting") / "a.svs", tissue_image(2048, 1536, seed=9))


@pytest.mark.parametrize(
    "options",
    [{}, {"copy_tiles": False}, {"overlap": 32}, {"mpp": 0.7}, {"reader": "openslide"},
     {"normalize": {"method": "reinhard"}}],
)  # fmt: skip
def test_threads_change_no_byte(svs: Path, tmp_path: Path, options: dict[str, object]) -> None:
    slide = find_slides(svs)[0][0]
    config = TileConfig(**{"mpp": 0.5, "patch_size": 128, **options})
    made = []
    for threads in (1, 3):
        task = TileTask(slide, tmp_path / str(threads), config, threads=threads)
        assert tile_slide(task).patches > 20
        made.append(task.store.read_bytes())
    assert made[0] == made[1]


@settings(max_examples=40)
@given(
    factor=st.sampled_from([2, 3, 4, 8]), high=st.integers(8, 40), wide=st.integers(8, 40),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_averages_are_pillows(factor: int, high: int, wide: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (3, high, wide, 3), dtype=np.uint8)
    box = (0, 0, wide // factor * factor, high // factor * factor)
    expected = [np.asarray(Image.fromarray(image).reduce(factor, box)) for image in images]
    np.testing.assert_array_equal(shrunk(images, factor), expected)


@pytest.mark.parametrize("reader", ["native", "openslide"])
def test_levels_at_a_fraction_of_the_first_are_cut_in_place(tmp_path: Path, reader: str) -> None:
    """A downsample of 2.5: the grid lies on whole pixels of both levels."""
    image = tissue_image(1600, 1280, seed=4)
    path = tmp_path / "half.svs"
    write_svs(path, image, levels=(1,), compression=None, mpp=0.4)
    small = np.asarray(Image.fromarray(image).resize((640, 512), Image.Resampling.BOX))
    import tifffile

    text = "Aperio Image Library v11.2.1\r\n|MPP = 0.4"
    with tifffile.TiffWriter(path, append=True) as tiff:
        tiff.write(small, tile=(128, 128), photometric="rgb", description=text, metadata=None)
    with open_with(path, reader, None) as slide:
        assert slide.downsamples == (1.0, 2.5)
        spec = PatchSpec(size=64, mpp=1.0)
        plan = ReadPlan.for_spec(slide, spec)
        assert (plan.level, plan.native) == (1, True)
        grid = TileGrid.over(slide, spec, plan)
        images = plan.read(slide, grid.coords)
        for patch, (row, column) in zip(images, grid.cells.tolist(), strict=True):
            y, x = row * 64, column * 64
            np.testing.assert_array_equal(patch, small[y : y + 64, x : x + 64])


def test_a_drive_that_goes_away_is_no_damage(
    svs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One EIO is waited out, and no patch is lost to it."""
    config = TileConfig(mpp=0.5, patch_size=128, max_damaged=0.5)
    whole = pathgen.tile(svs, tmp_path / "whole", config, workers=0)
    calls = 0

    def shaky(file: int, length: int, offset: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.pread(file, length, offset)

    monkeypatch.setattr(tiles, "_read_at", shaky)
    monkeypatch.setattr(attempt, "PAUSES", (0.0,))
    again = pathgen.tile(svs, tmp_path / "again", config, workers=0)
    assert calls > 9
    assert again.rows == whole.rows
    assert again.rows[0].dropped_damaged == 0
    assert again.stores[0].read_bytes() == whole.stores[0].read_bytes()


def test_gaps_between_patches_are_not_read(svs: Path) -> None:
    with open_slide(svs, "openslide") as slide:
        spec = PatchSpec(size=64, mpp=0.5, overlap=-700)
        plan = ReadPlan.for_spec(slide, spec)
        grid = TileGrid.over(slide, spec, plan)
        for strip in grid.strips(plan):
            for rows in strip:
                span = np.ptp(grid.coords[rows], axis=0).max() + 64
                assert span <= BLOCK_SIDE
        huge = PatchSpec(size=64, mpp=0.5, overlap=64 - 5000)
        coords = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2)
        sparse = TileGrid(coords * 5000, coords[:, ::-1].astype(np.int32))
        assert ReadPlan.for_spec(slide, huge) == plan
        assert all(len(rows) == 1 for strip in sparse.strips(plan) for rows in strip)


def test_bytes_of_tiles_are_fetched_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "PORTION", 100)
    counts = np.array([40, 40, 40, 500, 10, 0, 90], np.int64)
    level = TiledLevel((112, 16), (16, 16), 7, counts.cumsum() - counts, counts,
                       PageCodec((16, 16), None))  # fmt: skip
    parts = list(level.portions([0, 1, 2, 3, 4, 5, 6]))
    assert [i for part in parts for i in part] == [0, 1, 2, 3, 4, 5, 6]
    assert all(counts[part].sum() <= 100 or len(part) == 1 for part in parts)
    assert list(level.portions([])) == []


def test_memory_does_not_grow_with_the_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "CACHE_BYTES", 4 * 2**20)
    peaks = []
    for width in (1024, 4096):
        path = write_svs(tmp_path / f"{width}.svs", tissue_image(width, 1024), levels=(1, 16))
        config = TileConfig(mpp=0.5, patch_size=100, min_tissue=0, min_hematoxylin=0)
        task = TileTask(find_slides(path)[0][0], tmp_path / str(width), config)
        tracemalloc.start()
        tile_slide(task)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 12 * 2**20  # four times the pixels: 9 MB more of them


def test_the_store_says_who_read_the_slide(svs: Path, tmp_path: Path) -> None:
    for reader, expected in (("auto", "native"), ("openslide", "openslide")):
        report = pathgen.tile(
            svs, tmp_path / reader, TileConfig(mpp=1.0, reader=reader), workers=0  # type: ignore[arg-type]
        )  # fmt: skip
        assert report.rows[0].reader == expected
        store = PatchStore.open(report.stores[0])
        assert store.attrs["reader"] == expected
        assert store.attrs["read_shrink"] == (2 if expected == "native" else 1)


def test_openslides_regions_are_what_is_stored(svs: Path, tmp_path: Path) -> None:
    config = TileConfig(mpp=0.5, patch_size=200, codec="png")
    report = pathgen.tile(svs, tmp_path, config, workers=0)
    store = PatchStore.open(report.stores[0])
    with openslide.OpenSlide(svs) as slide:
        for image, (x, y) in zip(store.images(), store.coords().tolist(), strict=True):
            region = slide.read_region((x, y), 0, (200, 200)).convert("RGB")
            np.testing.assert_array_equal(image, np.asarray(region))
