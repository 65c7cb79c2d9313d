"""Many slides in a session, and tiling with plain settings."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs, write_tiff

import pathgen
from pathgen.errors import ConfigError, NoInputError, SlideError
from pathgen.session import Cohort
from pathgen.stores import PatchStore
from pathgen.tiling import TileConfig
from pathgen.tiling import tile as tile_slides


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good slides of two scales, a copy, an empty one, a blank one, one without a scale."""
    folder = tmp_path_factory.mktemp("slides")
    write_svs(folder / "a.svs", tissue_image(768, 512, seed=1))
    write_svs(folder / "b" / "b.svs", tissue_image(768, 512, seed=2), mpp=0.4)
    shutil.copy(folder / "a.svs", folder / "copy.svs")
    (folder / "empty.svs").write_bytes(b"")
    blank = np.full((512, 768, 3), 242, np.uint8)
    write_svs(folder / "glass.svs", blank)
    write_tiff(folder / "plain.tiff", tissue_image(512, 384))
    (folder / "notes.txt").write_text("of no slide")
    return folder


@pytest.fixture(scope="module")
def cohort(slides: Path) -> Cohort:
    return pathgen.open(slides, workers=0)


def test_a_cohort_says_how_it_is(cohort: Cohort) -> None:
    assert repr(cohort).startswith("6 slides · 5 problems · 0.40-0.50 um/px · 1 scanner vendor")
    assert cohort.ignored == {".txt": 1}
    assert cohort.names == ("a", "b/b", "copy", "empty", "glass", "plain")
    assert "no tissue found" in cohort._repr_html_()


def test_each_problem_has_a_row(cohort: Cohort) -> None:
    table = cohort.problems()
    assert list(table.columns) == ["slide", "code", "what", "what to do"]
    found = {(row.slide, row.code) for row in table.itertuples()}
    assert found >= {
        ("empty", "PG-S01"), ("glass", "no_tissue"), ("plain", "PG-S07"),
        ("a", "same_content"), ("copy", "same_content"),
    }  # fmt: skip
    assert (table["what to do"] != "").all()
    assert "b/b" not in set(table["slide"])


def test_good_slides_have_facts_and_bad_ones_none(cohort: Cohort) -> None:
    table = cohort.table()
    assert table.loc["b/b", "mpp"] == pytest.approx(0.4)
    assert table.loc["a", "width"] == 768
    true = np.pi * (0.42 * 768) * (0.42 * 512) * 0.5**2 / 1e6
    assert table.loc["a", "tissue_mm2"] == pytest.approx(true, rel=0.05)
    assert table.loc["empty"].isna()[["width", "mpp", "tissue_mm2"]].all()


def test_the_inventory_is_the_table(cohort: Cohort, tmp_path: Path) -> None:
    with cohort.to_csv(tmp_path / "inventory.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["slide"] for row in rows] == list(cohort.names)
    assert {row["slide"]: row["problems"] for row in rows}["empty"] == "PG-S01"


def test_slides_of_a_cohort_are_opened_by_name(cohort: Cohort) -> None:
    assert cohort["b/b"].size == (768, 512)
    assert repr(cohort["b/b"]).startswith("b/b · ")
    assert [slide.name for slide in cohort] == ["a", "b/b", "copy", "glass", "plain"]
    with pytest.raises(SlideError, match="PG-S01"):
        cohort["empty"]
    with pytest.raises(NoInputError, match="no such slide"):
        cohort["c"]


def test_a_list_gives_scale_label_and_patient(slides: Path, tmp_path: Path) -> None:
    listed = tmp_path / "slides.csv"
    listed.write_text(
        f"slide,mpp,label,patient\n{slides}/plain.tiff,0.5,007,p1\n{slides}/gone.svs,,1,p2\n"
    )
    found = pathgen.open(listed, workers=0)
    assert len(found) == 2
    assert found["plain"].mpp == 0.5
    table = found.table()
    assert table.loc["plain", ["mpp", "mpp_source", "label", "patient"]].tolist() == [
        0.5, "csv", "007", "p1",
    ]  # fmt: skip
    assert set(found.problems()["slide"]) == {"gone"}


def test_a_reader_that_dies_takes_nothing_along(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathgen.session import cohort as module
    from pathgen.tiling.pool import Crashed

    def crash(function, tasks, workers):  # type: ignore[no-untyped-def]
        for index, task in enumerate(tasks):
            died = task.slide.name == "a"
            yield index, Crashed("died", "SIGSEGV") if died else function(task)

    monkeypatch.setattr(module, "run_all", crash)
    found = pathgen.open([slides / "a.svs", slides / "b"], workers=0)
    assert [tuple(row)[:2] for row in found.problems().to_numpy()] == [("a", "PG-S13")]


# --- tiling ------------------------------------------------------------------------------


def test_plain_settings_are_those_of_the_config(slides: Path, tmp_path: Path) -> None:
    plain = pathgen.tile(slides / "a.svs", tmp_path / "plain", mpp=1.0, size=64, workers=0)
    config = TileConfig(mpp=1.0, patch_size=64)
    old = tile_slides(slides / "a.svs", tmp_path / "old", config, workers=0)
    given = pathgen.tile(slides / "a.svs", tmp_path / "given", config, workers=0)
    assert plain.rows == old.rows == given.rows
    stores = [report.stores[0].read_bytes() for report in (plain, old, given)]
    assert stores[0] == stores[1] == stores[2]


def test_later_settings_win(slides: Path, tmp_path: Path) -> None:
    config = TileConfig(patch_size=128, mpp=1.0)
    report = pathgen.tile(
        slides / "a.svs", tmp_path, config, preset="biopsy", size=64, min_tissue=0.25, workers=0
    )
    with PatchStore.open(report.stores[0]) as store:
        settings = store.provenance.config
    assert settings["patch_size"] == 64
    assert settings["mpp"] == 1.0
    assert settings["min_tissue"] == 0.25
    assert settings["edge"] == "pad"  # of the preset
    with pytest.raises(ConfigError, match="id you mean 'min_tissue'"):
        pathgen.tile(slides / "a.svs", tmp_path / "x", min_tisue=0.5, workers=0)


def test_a_cohort_is_tiled_and_told(cohort: Cohort, tmp_path: Path) -> None:
    tiles = pathgen.tile(cohort, tmp_path, mpp=0.5, size=64, workers=0)
    counts = tiles.counts
    assert counts["slides"] == 6
    said = tiles.summary()
    assert said.startswith(f"{counts['patches']:,} patches of 6 slides: dropped ")
    assert "empty failed" in said
    assert "plain failed" in said
    assert "glass empty" in said
    assert repr(tiles) == said
    assert tiles.table().loc["a", "patches"] == tiles.rows[0].patches
    assert tiles.montage(n=9, side=32).size == (3 * 32 + 8, 3 * 32 + 8)
    assert tiles.montage(9).tobytes() == tiles.montage(9).tobytes()
    assert pathgen.tile(cohort, tmp_path, mpp=0.5, size=64, workers=0).kept == 4


def test_a_montage_is_made_of_patches(slides: Path, tmp_path: Path) -> None:
    tiles = pathgen.tile(slides / "a.svs", tmp_path, mpp=0.5, size=64, workers=0)
    count = tiles.counts["patches"]
    sheet = np.asarray(tiles.montage(n=10_000, side=64))
    with PatchStore.open(tiles.stores[0]) as store:
        images = store.images()
    across = int(np.ceil(np.sqrt(count)))
    for number, image in enumerate(images):
        row, column = divmod(number, across)
        assert np.array_equal(
            sheet[row * 68 : row * 68 + 64, column * 68 : column * 68 + 64], image
        )


def test_a_plan_becomes_the_tiles(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiles"
    plan = pathgen.plan_tiles(slides / "a.svs", out, workers=0, mpp=0.5, size=64)
    assert not out.exists()
    assert repr(plan).startswith("1 to do · ")
    assert "second" in repr(plan)
    assert "patches" in plan._repr_html_()
    tiles = plan.run(workers=0)
    assert tiles.counts["done"] == 1
    again = pathgen.plan_tiles(slides / "a.svs", out, workers=0, mpp=0.5, size=64)
    assert repr(again).startswith("1 done · 0 to do")


def test_a_given_scale_stands_in_where_the_file_says_none(slides: Path, tmp_path: Path) -> None:
    found = pathgen.open([slides / "plain.tiff", slides / "a.svs"], mpp=1.0, workers=0)
    assert found.table()["mpp"].to_dict() == {"a": 0.5, "plain": 1.0}
    assert found["plain"].mpp == 1.0
    tiles = pathgen.tile(found["plain"], tmp_path, mpp=1.0, size=64, workers=0)
    assert tiles.rows[0].mpp == 1.0
    assert tiles.rows[0].mpp_source == "option"


def test_another_scale_than_the_files_is_not_lost_on_the_way(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"slide,mpp\n{slides / 'a.svs'},0.25\n")
    slide = pathgen.open(tmp_path / "list.csv", workers=0)["a"]
    assert slide.mpp == 0.25
    with pytest.raises(ConfigError, match="the scale in the file"):
        pathgen.tile(slide, tmp_path / "out", workers=0)


def test_progress_waits_for_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pathgen.session import waiting

    for patience, shown in ((60.0, False), (0.0, True)):
        monkeypatch.setattr(waiting, "PATIENCE", patience)
        with waiting.AfterAWhile().task("look", 3) as bar:
            for _ in range(3):
                bar.advance()
        assert ("look: 3/3" in capsys.readouterr().err) == shown
