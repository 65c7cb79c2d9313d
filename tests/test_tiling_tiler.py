"""What one slide's row and store say: whose pixel size, against which glass, how much pen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs

from pathgen.errors import ConfigError
from pathgen.stores import open_store
from pathgen.tiling import TileConfig, tile

SMALL = TileConfig(patch_size=128, thumbnail_px=256)


def test_the_slide_mpp_setting_is_for_slides_without_their_own(tmp_path: Path) -> None:
    image = tissue_image(600, 400)
    for name, mpp in (("own", 0.5), ("none", None), ("absurd", 300), ("listed", 0.5)):
        write_svs(tmp_path / f"s/{name}.svs", image, mpp=mpp)
    (tmp_path / "list.csv").write_text("slide,mpp\ns/listed.svs,0.4\n")
    config = SMALL.model_copy(update={"slide_mpp": 0.45})
    inputs = [tmp_path / "s", tmp_path / "list.csv"]
    report = tile(inputs, tmp_path / "out", config, workers=0)
    assert {row.slide: (row.mpp, row.mpp_source) for row in report.rows} == {
        "own": (0.5, "vendor"), "none": (0.45, "option"), "absurd": (0.45, "option"),
        "listed": (0.4, "csv"),
    }  # fmt: skip
    assert tile(inputs, tmp_path / "out", config, workers=0).kept == 4
    with pytest.raises(ConfigError, match=r"PG-O19.*slide\.mpp was 0\.4 and is now None"):
        tile(tmp_path / "s", tmp_path / "out", config, workers=0)


def test_the_slide_mpp_setting_counts_only_where_it_was_used(tmp_path: Path) -> None:
    """The advice of PG-S07 works on the folder it was given for."""
    for name, mpp in (("own", 0.5), ("none", None)):
        write_svs(tmp_path / f"s/{name}.svs", tissue_image(600, 400), mpp=mpp)
    first = tile(tmp_path / "s", tmp_path / "out", SMALL, workers=0)
    assert [(row.slide, row.reason) for row in first.failed] == [("none", "PG-S07")]
    before = (tmp_path / "out/own.h5").read_bytes()
    config = SMALL.model_copy(update={"slide_mpp": 0.5})
    again = tile(tmp_path / "s", tmp_path / "out", config, workers=0)
    assert (again.counts["done"], again.kept) == (2, 1)
    whole = tile(tmp_path / "s", tmp_path / "whole", config, workers=0)
    assert [path.read_bytes() for path in again.stores] == [
        path.read_bytes() for path in whole.stores
    ]
    assert (tmp_path / "out/own.h5").read_bytes() == before
    other = SMALL.model_copy(update={"slide_mpp": 0.25})
    with pytest.raises(ConfigError, match=r"none\.h5.*slide_mpp was 0\.5 and is now 0\.25"):
        tile(tmp_path / "s", tmp_path / "out", other, workers=0)
    assert tile(tmp_path / "s/own.svs", tmp_path / "one", SMALL, workers=0).kept == 0
    assert tile(tmp_path / "s/own.svs", tmp_path / "one", other, workers=0).kept == 1


def test_a_list_and_the_setting_with_one_number_are_not_the_same(tmp_path: Path) -> None:
    write_svs(tmp_path / "a.svs", tissue_image(600, 400))
    (tmp_path / "list.csv").write_text("slide,mpp\na.svs,0.4\n")
    tile(
        tmp_path / "a.svs", tmp_path / "out", SMALL.model_copy(update={"slide_mpp": 0.4}), workers=0
    )
    with pytest.raises(ConfigError, match="PG-O19"):
        tile(tmp_path / "list.csv", tmp_path / "out", SMALL, workers=0)


def test_gray_glass_is_no_hematoxylin(tmp_path: Path) -> None:
    """The same tissue through darker glass keeps the same patches, with the same scores."""
    image = tissue_image(1024, 768, glass=255)
    darker = (image * (210 / 255) + 0.5).astype(np.uint8)
    reports = {}
    for name, pixels in (("bright", image), ("dark", darker)):
        path = write_svs(tmp_path / f"{name}.svs", pixels, compression=None)
        config = SMALL.model_copy(update={"min_tissue": 0.0, "codec": "png"})
        reports[name] = tile(path, tmp_path / name, config, workers=0)
    bright, dark = (open_store(report.stores[0]) for report in reports.values())
    assert dark.attrs["background"] == pytest.approx([210] * 3, abs=3)
    assert bright.attrs["background"] == pytest.approx([255] * 3, abs=3)
    assert np.array_equal(bright.grid(), dark.grid())
    for name in ("hematoxylin", "eosin", "hematoxylin_mean", "eosin_mean"):
        np.testing.assert_allclose(dark.measure(name), bright.measure(name), atol=0.03)


def test_what_was_taken_for_pen_is_in_the_ledger(tmp_path: Path) -> None:
    image = tissue_image(1536, 1024)
    plain = write_svs(tmp_path / "s/he.svs", image)
    blue = image.copy()
    blue[256:768, 512:1280] = (60, 90, 190)  # Alcian blue, or felt pen
    stained = write_svs(tmp_path / "s/blue.svs", blue)
    out = tmp_path / "out"
    report = tile(tmp_path / "s", out, SMALL, workers=0)
    rows = {row.slide: row for row in report.rows}
    assert (rows["he"].ink, rows["he"].message) == (0, "")
    assert 0.2 < rows["blue"].ink < 0.8
    assert f"{rows['blue'].ink:.0%} of the tissue was taken for pen" in rows["blue"].message
    assert "--set tissue.drop_ink=false" in rows["blue"].message
    columns = (out / "slides.csv").read_text().splitlines()[0].split(",")
    assert columns[columns.index("dropped_stain") + 1] == "dropped_quality"
    assert json.loads((out / "slides.json").read_text())["slides"][0]["ink"] == rows["blue"].ink
    assert tile([plain, stained], out, SMALL, workers=0).rows == report.rows
    assert "taken for pen" in tile(stained, tmp_path / "p", SMALL, plan=True).rows[0].message
    tissue = SMALL.tissue.model_copy(update={"drop_ink": False})
    kept = tile(stained, tmp_path / "all", SMALL.model_copy(update={"tissue": tissue}), workers=0)
    assert (kept.rows[0].ink, kept.rows[0].message) == (0, "")
    assert kept.counts["patches"] > rows["blue"].patches
