"""The real slides: every one is tiled or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from pathgen.stores import PatchStore
from pathgen.tiling import TileConfig, TileReport, find_slides, open_slide, slide_info, tile
from pathgen.tiling.stain import stain_scores

pytestmark = pytest.mark.data

#: What becomes of each slide at 1 um per pixel.
EXPECTED = {
    "CMU-1-Small-Region": "ok",
    "TCGA-CR-7395-01A-01-TS1": "PG-S07",
    "boxes": "PG-S08",
    "boxes_0": "too_small",
    "boxes_1": "same_slide",
    "broken": "PG-S02",
    "camelyon_jpeg": "PG-S08",
    "crohn3_crop_dicom": "ok",
    "crohn3_crop_v04": "ok",
    "crohn3_crop_v05": "ok",
    "csf_mgg_penmarks_quarter": "ok",
    "duodenum_net_CHR_ihc_quarter": "ok",
    "gcp_jpeg": "PG-S08",
    "hamamatsu_vms/slide": "ok",
    "hd_sm_image": "too_small",
    "hd_sm_image_grayscale": "PG-S10",
    "hd_sm_image_jpegls": "too_small",
    "kidney-48-5": "PG-S07",
    "leica_colon": "ok",
    "lung_scc_HE3": "ok",
    "mirax_giardia": "ok",
    "pancreas_trypsin_ihc_quarter": "PG-S08",
    "philips_endometrium": "ok",
    "small_HE_levels": "PG-S08",
    "small_dicom": "PG-S10",
    "smalltif": "PG-S10",
    "test3-DAPI-2-387": "PG-S14",
    "trestle_duodenum": "ok",
    "unreadable": "PG-S04",
    "ventana_spleen": "ok",
}


@pytest.fixture(scope="module")
def report(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TileReport:
    return tile(data / "slides", tmp_path_factory.mktemp("out"), TileConfig(mpp=1.0))


def test_every_slide_ends_in_one_state(data: Path, report: TileReport) -> None:
    reasons = {row.slide: row.reason for row in report.rows}
    found = {slide.name for slide in find_slides(data / "slides")[0]}
    assert set(reasons) == found
    assert {name: reasons[name] for name in EXPECTED if name in reasons} == EXPECTED
    counts = report.counts
    assert counts["done"] + counts["empty"] + counts["failed"] == counts["slides"] == len(found)
    for row in report.rows:
        assert row.candidates == row.dropped_tissue + row.dropped_stain + row.patches


def test_a_second_run_does_nothing(data: Path, report: TileReport) -> None:
    before = {path: path.stat().st_mtime_ns for path in report.stores}
    ledger = (report.path / "slides.csv").read_bytes()
    again = tile(data / "slides", report.path, TileConfig(mpp=1.0), workers=0)
    assert again.rows == report.rows
    assert again.kept == len(report.stores)
    assert {path: path.stat().st_mtime_ns for path in report.stores} == before
    assert (report.path / "slides.csv").read_bytes() == ledger


@pytest.mark.parametrize(
    ("name", "mpp"),
    [("CMU-1-Small-Region.svs", 0.499), ("leica_colon.scn", 0.5), ("ventana_spleen.bif", 0.465),
     ("duodenum_net_CHR_ihc_quarter.svs", 1.0)],
)  # fmt: skip
def test_native_patches_are_openslides(data: Path, tmp_path: Path, name: str, mpp: float) -> None:
    config = TileConfig(mpp=mpp, min_tissue=0.9)
    out = tile(data / "slides" / name, tmp_path, config, workers=0)
    store = PatchStore.open(out.stores[0])
    rows = np.linspace(0, len(store) - 1, 8).astype(int)
    with openslide.OpenSlide(data / "slides" / name) as slide:
        for image, position in zip(store.images(rows), store.coords(rows).tolist(), strict=True):
            level = int(store.attrs["read_level"])
            theirs = slide.read_region(position, level, (256, 256)).convert("RGB")
            assert np.abs(image.astype(int) - np.asarray(theirs).astype(int)).mean() < 2


def test_one_scale_from_three_levels(data: Path, tmp_path: Path) -> None:
    """A patch at 1.3 um agrees with level 0 averaged down, wherever it was read from."""
    path = data / "slides/crohn3_crop_dicom"
    out = tile(path, tmp_path, TileConfig(mpp=1.3, min_tissue=0.9, codec="png"), workers=0)
    store = PatchStore.open(out.stores[0])
    assert store.attrs["read_level"] == 1
    side = store.patch_size_level0
    with open_slide(path) as slide:
        for image, (x, y) in zip(store.images([0, 5]), store.coords([0, 5]).tolist(), strict=True):
            region = slide.read((x, y), 0, (round(side) + 1, round(side) + 1))
            size = (256, 256)
            small = Image.fromarray(region).resize(size, Image.Resampling.BOX, (0, 0, side, side))
            gray, other = (np.asarray(i).astype(float).mean(-1) for i in (image, small))
            aligned = np.abs(gray - other).mean()
            assert aligned < 6
            for axis in (0, 1):
                for shift in (-1, 1):
                    assert aligned < np.abs(np.roll(gray, shift, axis) - other)[8:-8, 8:-8].mean()


def test_bounds_are_respected(report: TileReport) -> None:
    store = PatchStore.open(report.path / "leica_colon.h5")
    x, y, width, height = store.slide.bounds or (0, 0, 0, 0)
    assert (x, y, width, height) == (18000, 60000, 3584, 3072)
    coords = store.coords()
    assert (coords >= (x, y)).all()
    assert (coords + store.patch_size_level0 <= (x + width + 1, y + height + 1)).all()


def test_stained_patches_are_kept_and_pink_necrosis_is_not(data: Path, tmp_path: Path) -> None:
    out = tile(data / "slides/lung_scc_HE3.svs", tmp_path, TileConfig(mpp=1.0), workers=0)
    kept = PatchStore.open(out.stores[0])
    assert kept.measure("hematoxylin").min() >= 0.01
    assert out.rows[0].dropped_stain > 10
    tumor = kept.images(np.flatnonzero(kept.measure("hematoxylin") > 0.3))
    assert stain_scores(tumor)["hematoxylin_mean"].min() > 0.06


def test_pen_is_not_taken_for_tissue(report: TileReport) -> None:
    store = PatchStore.open(report.path / "csf_mgg_penmarks_quarter.h5")
    dark = (store.images().max(axis=3) < 110).mean(axis=(1, 2))
    assert len(store) < 60
    assert dark.max() < 0.9


def test_info_of_every_slide_that_opens(data: Path) -> None:
    info = slide_info(data / "slides/leica_colon.scn")
    assert (info["vendor"], info["mpp_x"], info["objective"]) == ("leica", 0.5, 20)
    assert info["bounds"] == {"x": 18000, "y": 60000, "width": 3584, "height": 3072}
    assert info["associated"] == ["macro"]
    no_scale = slide_info(data / "slides/TCGA-CR-7395-01A-01-TS1.svs")
    assert no_scale["mpp_x"] is None
    assert any("PG-S07" in problem for problem in no_scale["problems"])
    dark = slide_info(data / "slides/test3-DAPI-2-387.ndpi")
    assert any("PG-S14" in problem for problem in dark["problems"])
