"""Straight from slides: the patches `tile` would keep and their vectors; no pixel is stored."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers_extract import Pixels, content
from helpers_tiling import tissue_image, write_svs
from numpy.typing import NDArray
from PIL import Image

from pathgen.errors import ConfigError, NoInputError, SlideError, StoreError
from pathgen.extract import ExtractConfig, ExtractReport, extract, extract_features, slidefeed
from pathgen.extract.inputs import are_slides
from pathgen.stores import FeatureStore, PatchStore
from pathgen.tiling import LedgerRow, SlideInput, TileConfig, tile
from pathgen.tiling.pixels import cut_slide
from pathgen.tiling.task import TileTask

#: Some patches fail the filters of stain and of quality, at a scale that is no level's.
CONFIG = TileConfig.model_validate(
    {"patch_size": 64, "mpp": 0.7, "min_tissue": 0.2, "min_hematoxylin": 0.03, "max_white": 0.3,
     "codec": "png", "thumbnail_px": 64}
)  # fmt: skip
SMALL = ExtractConfig(batch_size=10)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of tissue, one of glass, one that is none, and two of damage."""
    root = tmp_path_factory.mktemp("slides")
    for i in range(2):
        write_svs(root / f"{i}.svs", tissue_image(700, 500, seed=i))
    write_svs(root / "glass.svs", np.full((300, 400, 3), 240, np.uint8))
    (root / "text.svs").write_text("no slide\n" * 99)
    whole = (root / "0.svs").read_bytes()
    (root / "cut.svs").write_bytes(whole[: len(whole) // 2])
    return root


def rows_of(report: ExtractReport) -> tuple[LedgerRow, ...]:
    (one,) = report.encoders
    return one.rows


def same_vectors(slides: Path, out: Path, config: TileConfig) -> ExtractReport:
    """The report of features from slides, which are those of the stores that `tile` makes."""
    tiled = tile(slides, out / "tiles", config, workers=0)
    direct = extract(Pixels(), slides, out / "direct", SMALL, tile=config)
    stored = extract(Pixels(), out / "tiles", out / "stored", SMALL)
    assert [path.name for path in direct.stores] == [path.name for path in stored.stores]
    for one, other in zip(direct.stores, stored.stores, strict=True):
        with FeatureStore.open(one) as a, FeatureStore.open(other) as b:
            for column in ("features", "coords", "grid", "labels"):
                assert np.array_equal(getattr(a, column)(), getattr(b, column)()), column
            assert {**a.source, "id": ""} == {**b.source, "id": ""} | {
                key: a.source[key] for key in ("color_profile", "normalization") if key in a.source
            }  # fmt: skip
            assert a.id != b.id
    for row, made in zip(rows_of(direct), tiled.rows, strict=True):
        for name in (item.name for item in fields(LedgerRow)):
            if name not in ("store", "thumbnail"):
                assert getattr(row, name) == getattr(made, name)
    return direct


def test_the_patches_and_vectors_are_those_of_tiling(slides: Path, tmp_path: Path) -> None:
    report = same_vectors(slides, tmp_path, CONFIG)
    counts = report.encoders[0].counts
    assert (counts["sources"], counts["failed"], counts["empty"]) == (5, 2, 1)
    rows = {row.slide: row for row in rows_of(report)}
    assert rows["0"].dropped_stain + rows["0"].dropped_quality > 0  # the filters had work
    for row in rows.values():
        dropped = sum(getattr(row, f.name) for f in fields(row) if f.name.startswith("dropped_"))
        assert row.candidates == row.patches + dropped
    assert not list((tmp_path / "direct").rglob("*.jpg"))


def test_tiles_that_would_be_copied_are_the_same_pixels(tmp_path: Path) -> None:
    """A JPEG store is lossless where it keeps the slide's own tiles."""
    write_svs(tmp_path / "slides/a.svs", tissue_image(800, 600), tile=128)
    config = TileConfig(patch_size=128, min_tissue=0.2, thumbnail_px=64)
    same_vectors(tmp_path / "slides", tmp_path, config)
    with PatchStore.open(tmp_path / "tiles/a.h5") as store:
        assert (store.table.read("made") == 0).all()  # copied


def test_normalized_patches_are_those_of_tiling(slides: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchstain")
    config = CONFIG.model_copy(update={"min_hematoxylin": 0.0, "max_white": 1.0})
    changed = CONFIG.model_validate({**config.model_dump(), "normalize": {"method": "macenko"}})
    one = slides / "0.svs"
    same_vectors(one, tmp_path, changed)
    plain = tile(one, tmp_path / "plain", config, workers=0)
    stain = ExtractConfig(batch_size=10, normalize={"method": "macenko"})
    found = {
        "tiled": tmp_path / "stored/0.h5",
        "slide": extract_features(Pixels(), one, tmp_path / "a", stain, tile=config)[0],
        # Nothing was filtered, so the fit sees the same sample of patches.
        "store": extract_features(Pixels(), plain.stores, tmp_path / "b", stain)[0],
        "plain": extract_features(Pixels(), plain.stores, tmp_path / "c", SMALL)[0],
    }
    vectors = {name: FeatureStore.open(path).features() for name, path in found.items()}
    assert np.array_equal(vectors["slide"], vectors["tiled"])
    assert np.array_equal(vectors["store"], vectors["tiled"])
    assert np.abs(vectors["plain"] - vectors["tiled"]).mean() > 3
    with FeatureStore.open(found["store"]) as store:
        assert store.source["normalization"]["method"] == "macenko"
        assert store.provenance.config["normalize"]["method"] == "macenko"
    with pytest.raises(StoreError, match="normalization: it has macenko, asked for none"):
        extract_features(Pixels(), plain.stores, tmp_path / "b", SMALL)
    with pytest.raises(ConfigError, match="macenko"):  # once is enough
        extract_features(Pixels(), tmp_path / "tiles", tmp_path / "d", stain)
    Image.fromarray(np.random.default_rng(0).integers(90, 250, (64, 64, 3), np.uint8)).save(
        look := tmp_path / "look.png"
    )
    targeted = {"method": "macenko", "target": str(look)}
    other = CONFIG.model_validate({**config.model_dump(), "normalize": targeted})
    with pytest.raises(ConfigError, match=r"given twice.*look\.png"):  # a target is not lost
        extract_features(Pixels(), one, tmp_path / "e", stain, tile=other)


def test_processes_change_no_byte(slides: Path, tmp_path: Path) -> None:
    here = extract(Pixels(), slides, tmp_path / "here", SMALL, tile=CONFIG)
    workers = ExtractConfig(batch_size=10, workers=2)
    there = extract(Pixels(), slides, tmp_path / "there", workers, tile=CONFIG)
    assert rows_of(here) == rows_of(there)
    assert content(tmp_path / "here") == content(tmp_path / "there")


def dies_on_glass(pipe: Connection) -> None:
    """A worker whose reader crashes with one slide, after it has sent something."""
    real = slidefeed.cut_to_the_end

    def cut(slide: Any, *rest: Any) -> Iterator[Any]:
        if slide.name == "glass":
            os._exit(1)
        yield from real(slide, *rest)

    slidefeed.cut_to_the_end = cut  # type: ignore[assignment]
    slidefeed._serve(pipe)


def test_a_slide_that_kills_its_process_has_a_row(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slidefeed, "SERVE", dies_on_glass)
    workers = ExtractConfig(batch_size=10, workers=1)
    report = extract(
        Pixels(), [slides / "0.svs", slides / "glass.svs"], tmp_path, workers, tile=CONFIG
    )
    assert [row.reason for row in rows_of(report)] == ["ok", "PG-S13"]
    assert [error.code for error in report.errors] == ["PG-S13"]


def hangs_on_one(pipe: Connection) -> None:
    """A worker whose reader never answers with one slide."""
    real = slidefeed.cut_to_the_end

    def cut(slide: Any, *rest: Any) -> Iterator[Any]:
        if slide.name == "1":
            time.sleep(3600)
        yield from real(slide, *rest)

    slidefeed.cut_to_the_end = cut  # type: ignore[assignment]
    slidefeed._serve(pipe)


def test_a_run_that_ends_does_not_wait_for_a_reader(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slidefeed, "SERVE", hangs_on_one)

    class Broken(Pixels):
        def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
            time.sleep(1)  # until the other slide has nothing more to say
            raise KeyboardInterrupt

    workers = ExtractConfig(batch_size=1000, workers=2)
    given = [slides / "0.svs", slides / "1.svs"]
    with pytest.raises(KeyboardInterrupt):
        extract(Broken(), given, tmp_path, workers, tile=CONFIG)
    assert not multiprocessing.active_children()
    assert not list(tmp_path.rglob("*.h5"))


def test_what_is_finished_is_kept_and_other_settings_are_refused(
    slides: Path, tmp_path: Path
) -> None:
    first = extract(Pixels(), slides, tmp_path, SMALL, tile=CONFIG)
    before = content(tmp_path)
    first.stores[1].unlink()
    again = Pixels()
    assert rows_of(extract(again, slides, tmp_path, SMALL, tile=CONFIG)) == rows_of(first)
    assert again.seen == rows_of(first)[1].patches
    assert content(tmp_path) == before
    looser = CONFIG.model_copy(update={"min_tissue": 0.1})
    with pytest.raises(StoreError, match=r"PG-O18.*min_tissue: it has 0\.2, asked for 0\.1"):
        extract(Pixels(), slides, tmp_path, SMALL, tile=looser)
    # How a store of patches would be written is no matter here.
    other = CONFIG.model_copy(update={"quality": 50, "store": "zarr", "thumbnail_px": 99})
    assert rows_of(extract(Pixels(), slides, tmp_path, SMALL, tile=other)) == rows_of(first)


def test_a_slide_that_is_away_keeps_its_store(slides: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text(f"slide\n{slides / '0.svs'}\n")
    extract(Pixels(), listed, tmp_path / "out", SMALL, tile=CONFIG)
    listed.write_text(f"slide\n{tmp_path / '0.svs'}\n")
    report = extract(Pixels(), listed, tmp_path / "out", SMALL, tile=CONFIG)
    (row,) = rows_of(report)
    assert row.state == "failed"
    assert row.message.endswith("The store of an earlier run was kept.")
    assert (tmp_path / "out/0.h5").is_file()


def test_a_drive_that_comes_back_costs_nothing(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = extract(Pixels(), slides / "0.svs", tmp_path / "clean", SMALL, tile=CONFIG)
    real, tries = slidefeed.cut_slide, []

    def shaky(*given: Any) -> Any:
        tries.append(1)
        cutting = real(*given)
        for _ in range(3):  # what is known, and two blocks
            yield next(cutting)
        if len(tries) < 3:
            raise OSError(5, os.strerror(5))
        return (yield from cutting)

    monkeypatch.setattr(slidefeed, "cut_slide", shaky)
    monkeypatch.setattr(slidefeed, "PAUSES", (0.0, 0.0))
    report = extract(Pixels(), slides / "0.svs", tmp_path / "shaky", SMALL, tile=CONFIG)
    assert (len(tries), rows_of(report)) == (3, rows_of(clean))
    assert content(tmp_path / "shaky") == content(tmp_path / "clean")
    tries.clear()
    monkeypatch.setattr(slidefeed, "PAUSES", (0.0,))
    with pytest.raises(SlideError, match="PG-S12"):
        extract_features(Pixels(), slides / "0.svs", tmp_path / "gone", SMALL, tile=CONFIG)
    assert not (tmp_path / "gone/0.h5").exists()


def test_a_bug_fails_one_slide_and_is_written_down(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = slidefeed.cut_slide

    def buggy(task: Any, *rest: Any) -> Any:
        if task.slide.name == "0":
            raise ZeroDivisionError("of nothing")
        return (yield from real(task, *rest))

    monkeypatch.setattr(slidefeed, "cut_slide", buggy)
    given = [slides / "0.svs", slides / "1.svs"]
    report = extract(Pixels(), given, tmp_path, SMALL, tile=CONFIG)
    assert [row.reason for row in rows_of(report)] == ["PG-S00", "ok"]
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["slide"], "ZeroDivisionError" in event["traceback"]) == ("0", True)


def test_what_is_not_opened_has_a_row_and_no_store(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    square = [[[x, y] for x, y in ((0, 0), (350, 0), (350, 500), (0, 500), (0, 0))]]
    shape = {"type": "Polygon", "coordinates": square}
    feature = {"type": "Feature", "geometry": shape, "properties": {}}
    drawn = {"type": "FeatureCollection", "features": [feature]}
    (tmp_path / "masks/0.geojson").write_text(json.dumps(drawn))
    config = TileConfig.model_validate({**CONFIG.model_dump(), "masks": {"missing": "skip"}})
    given = [slides / "0.svs", slides / "1.svs"]
    report = extract(
        Pixels(), given, tmp_path / "out", SMALL, tile=config, masks=tmp_path / "masks"
    )
    tiled = tile(given, tmp_path / "tiles", config, masks=tmp_path / "masks", workers=0)
    assert [row.reason for row in rows_of(report)] == [row.reason for row in tiled.rows]
    assert [row.reason for row in rows_of(report)] == ["ok", "no_mask"]
    assert [row.patches for row in rows_of(report)] == [row.patches for row in tiled.rows]
    assert [path.name for path in report.stores] == ["0.h5"]
    part = SlideInput(slides / "1.svs", "part", same_as="1")
    with pytest.raises(StopIteration) as end:
        next(cut_slide(TileTask(part, tmp_path, CONFIG), 10))
    assert end.value.value.reason == "same_slide"


def test_slides_are_told_from_patches(slides: Path, tmp_path: Path) -> None:
    from helpers_data import make_folder, make_patches, noise

    images = noise(np.random.default_rng(0), 2, 16)
    make_patches(tmp_path / "tiles/a.h5", images)
    make_folder(tmp_path / "images", {"a/1.png": images[0]})
    (tmp_path / "empty").mkdir()
    assert are_slides([str(slides)])
    assert are_slides([str(slides / "0.svs"), "https://example.org/a.svs", "list.csv"])
    assert not are_slides([str(tmp_path / "tiles")])
    assert not are_slides([str(tmp_path / "tiles/a.h5")])
    assert not are_slides([str(tmp_path / "images")])
    # Masks and thumbnails beside slides do not make them a folder of patches.
    make_folder(tmp_path / "masked", {"truth/0.png": images[0]})
    (tmp_path / "masked/0.svs").write_bytes((slides / "0.svs").read_bytes())
    assert are_slides([str(tmp_path / "masked")])
    # Only tiled or pyramidal TIFFs are slides.
    (tmp_path / "tiffs").mkdir()
    (tmp_path / "tiffs/0.tif").write_bytes((slides / "0.svs").read_bytes())
    assert are_slides([str(tmp_path / "tiffs")])
    tifffile.imwrite(tmp_path / "images/a/2.tif", images[1])
    assert not are_slides([str(tmp_path / "images")])
    with pytest.raises(NoInputError):
        are_slides([str(tmp_path / "empty")])
