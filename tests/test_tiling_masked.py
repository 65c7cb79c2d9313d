"""Each slide gets its own mask, and the store says what the mask did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs

from pathgen.config import build
from pathgen.errors import ConfigError, NoInputError, PathgenError
from pathgen.stores import PatchStore
from pathgen.tiling import SlideInput, TileConfig, tile
from pathgen.tiling.maskfiles import with_masks

SQUARE = [[256, 128], [768, 128], [768, 640], [256, 640], [256, 128]]
HOLE = [[384, 256], [512, 256], [512, 384], [384, 384], [384, 256]]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,536 x 1,024 pixels of 0.5 um."""
    return write_svs(tmp_path_factory.mktemp("masks") / "a.svs", tissue_image())


# Which mask is whose


def inputs(*names: str) -> list[SlideInput]:
    return [SlideInput(Path(f"{name}.svs"), name) for name in names]


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("[]")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "a.geojson",
        "A/a.json.gz",
        "a_mask.tiff",
        "a.svs/a.svs_mask_use.png",
        "a-mask.tif",
        "a.svs.xml",
    ],
)
def test_masks_have_their_slides_name(name: str, tmp_path: Path) -> None:
    (found,) = with_masks(inputs("a"), put(tmp_path, name, "a_thumb.png", "ab.geojson"))
    assert found.mask == tmp_path / name


def test_twins_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    put(tmp_path, "x/a.json", "y/a.json", "b.json")
    found = with_masks(inputs("x/a", "y/a", "x/b"), tmp_path)
    assert [s.mask for s in found] == [tmp_path / n for n in ("x/a.json", "y/a.json", "b.json")]
    (tmp_path / "x/a.json").unlink()
    found = with_masks(inputs("x/a", "y/a"), tmp_path)
    assert found[0].mask is None  # not its twin's


def test_two_masks_of_one_slide_are_refused(tmp_path: Path) -> None:
    (found,) = with_masks(inputs("a"), put(tmp_path, "a.geojson", "a_mask.png"))
    assert found.problem is not None
    assert found.problem.code == "PG-M01"


@pytest.mark.parametrize("when", ["fail", "tissue", "skip"])
def test_a_slide_without_a_mask(when: str, tmp_path: Path) -> None:
    masked, bare = with_masks(inputs("a", "b"), put(tmp_path, "a.json"), when)
    assert masked.mask is not None
    assert not masked.unmasked
    assert bare.unmasked == (when != "fail")
    assert (bare.problem.code if bare.problem else None) == ("PG-M01" if when == "fail" else None)


def test_places_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="PG-N01"):
        with_masks(inputs("a"), tmp_path / "nowhere")
    with pytest.raises(NoInputError, match="no mask belongs"):
        with_masks(inputs("a"), put(tmp_path, "z.json"))
    with pytest.raises(ConfigError, match="several slides"):
        with_masks(inputs("a", "b"), tmp_path / "z.json")


@pytest.mark.parametrize(
    "wrong",
    [{"use": "roi"}, {"min_class": {"a": 0}}, {"classes": {"a": 1}, "within": ["b"]},
     {"classes": {"a": 1}, "min_class": {"b": 0.5}}, {"klasses": {}}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build(TileConfig, {"masks": wrong})


# In stores


def write_mask(folder: Path, rings: Any = (SQUARE, HOLE)) -> Path:
    folder.mkdir(exist_ok=True)
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    properties = {"classification": {"name": "Tumor", "color": [200, 0, 0]}}
    one = {"type": "Feature", "geometry": geometry, "properties": properties}
    (folder / "a.geojson").write_text(json.dumps([one]))
    return folder


def tiled(slide: Path, out: Path, drawn: Path | None, **settings: Any) -> PatchStore:
    values = {"patch_size": 64, "mpp": 0.5, "min_hematoxylin": 0, "tissue": {"mpp": 4}}
    config = build(TileConfig, {**values, **settings})
    report = tile(slide, out, config, masks=drawn, workers=0)
    assert not report.failed, report.failed[0].message
    row = report.rows[0]
    dropped = row.dropped_tissue + row.dropped_class + row.dropped_stain
    assert row.candidates == dropped + row.patches
    return PatchStore.open(out / "a.h5")


def test_the_mask_is_the_tissue(slide: Path, tmp_path: Path) -> None:
    store = tiled(slide, tmp_path / "o", write_mask(tmp_path / "m"), min_tissue=0.5)
    assert store.class_names == ("Tumor",)
    inside = {(x, y) for x in range(256, 768, 64) for y in range(128, 640, 64)}
    inside -= {(x, y) for x in range(384, 512, 64) for y in range(256, 384, 64)}
    assert {tuple(c) for c in store.coords().tolist()} == inside
    assert (store.class_shares() == 1).all()
    assert (store.measure("tissue") == 1).all()
    assert store.class_shares([3, 1]).shape == (2, 1)


def test_within_is_both(slide: Path, tmp_path: Path) -> None:
    masks = write_mask(tmp_path / "m")
    alone = tiled(slide, tmp_path / "a", None, min_tissue=0.9)
    drawn = tiled(slide, tmp_path / "b", masks, min_tissue=0.9)
    both = tiled(slide, tmp_path / "c", masks, min_tissue=0.9, masks={"use": "within"})
    cells = [{tuple(c) for c in store.coords().tolist()} for store in (alone, drawn, both)]
    assert cells[2] == cells[0] & cells[1]
    assert cells[2] != cells[1]


def test_classes_only_annotate_and_may_choose(slide: Path, tmp_path: Path) -> None:
    masks = write_mask(tmp_path / "m", [np.add(SQUARE, 32).tolist()])
    alone = tiled(slide, tmp_path / "a", None)
    store = tiled(slide, tmp_path / "b", masks, masks={"use": "classes"})
    np.testing.assert_array_equal(alone.coords(), store.coords())
    assert set(store.class_shares().ravel().tolist()) == {0, 0.25, 0.5, 1}
    chosen = {"use": "classes", "min_class": {"Tumor": 0.5}}
    few = tiled(slide, tmp_path / "c", masks, masks=chosen)
    kept = store.class_shares()[:, 0] >= 0.5
    np.testing.assert_array_equal(few.coords(), store.coords()[kept])


def test_without_a_mask_there_are_no_classes(slide: Path, tmp_path: Path) -> None:
    store = tiled(slide, tmp_path / "a", None)
    assert store.class_names == ()
    with pytest.raises(PathgenError, match="PG-O17"):
        store.class_shares()
    empty = tmp_path / "m"
    empty.mkdir()
    (empty / "a.json").write_text("[]")
    store = tiled(slide, tmp_path / "b", empty, masks={"use": "classes"})
    assert store.class_shares().shape == (len(store), 0)


def test_a_changed_mask_makes_another_store(slide: Path, tmp_path: Path) -> None:
    masks, out = write_mask(tmp_path / "m"), tmp_path / "o"
    first = tiled(slide, out, masks)
    again = tiled(slide, out, masks)
    assert again.id == first.id
    write_mask(masks, [SQUARE])
    with pytest.raises(ConfigError, match=r"PG-O19.*mask is not the one"):
        tile(slide, out, build(TileConfig, {"patch_size": 64, "min_hematoxylin": 0,
             "tissue": {"mpp": 4}}), masks=masks, workers=0)  # fmt: skip


def test_equal_masks_elsewhere_give_equal_bytes(slide: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiled(slide, tmp_path / name, write_mask(tmp_path / f"masks of {name}"))
    one, two = ((tmp_path / name / "a.h5").read_bytes() for name in ("one", "two"))
    assert one == two
    assert b"masks of" not in one


def test_a_list_names_masks(slide: Path, tmp_path: Path) -> None:
    write_mask(tmp_path / "m")
    listed = tmp_path / "slides.csv"
    other = write_svs(tmp_path / "b.svs", tissue_image(600, 400))
    listed.write_text(f"slide,mask_path\n{slide},m/a.geojson\n{other},\n")
    for when, reason in (("fail", "PG-M01"), ("skip", "no_mask"), ("tissue", "ok")):
        config = build(TileConfig, {"mpp": 1, "patch_size": 64, "masks": {"missing": when}})
        report = tile(listed, tmp_path / when, config, workers=0)
        assert [row.reason for row in report.rows] == ["ok", reason]
        assert (tmp_path / when / "b.h5").exists() == (when == "tissue")
    listed.write_text(f"slide,mask\n{slide},nowhere.geojson\n")
    report = tile(listed, tmp_path / "gone", TileConfig(), workers=0)
    assert report.rows[0].reason == "PG-M01"
