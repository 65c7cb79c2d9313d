"""The preflight says of each slide what `tile` will find, and what a person should look at."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs
from PIL import Image

from pathgen.cli import main
from pathgen.doctor import Diagnosis, diagnose, write_diagnosis
from pathgen.errors import NoInputError, StorageError
from pathgen.tiling import TileConfig, tile

SMALL = TileConfig(patch_size=128, thumbnail_px=256)
CANARY = "CANARY7f3a"


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "slides"
    write_svs(root / "a.svs", tissue_image(seed=1), extra=f"|Filename = {CANARY}")
    write_svs(root / "sub/a.svs", tissue_image(900, 700, seed=2))
    write_svs(root / "lens.svs", tissue_image(seed=4), mpp=0.25)  # and objective 20
    shutil.copy(root / "a.svs", root / "copy.svs")
    write_svs(root / "glass.svs", np.full((600, 800, 3), 240, np.uint8))
    write_svs(root / "scaleless.svs", tissue_image(600, 400), mpp=None)
    (root / "text.svs").write_text("no slide\n" * 99)
    (root / "notes.txt").write_text("no slide at all")
    damaged = bytearray(write_svs(root / "holes.svs", tissue_image(seed=3)).read_bytes())
    damaged[6000:60_000] = b"\xff" * 54_000
    (root / "holes.svs").write_bytes(damaged)
    return root


@pytest.fixture(scope="module")
def found(slides: Path) -> Diagnosis:
    return diagnose(slides, SMALL, workers=0)


def test_each_slide_is_ok_or_to_be_looked_at_or_failed(found: Diagnosis) -> None:
    assert {row.slide: (row.state, row.reason) for row in found.slides} == {
        "a": ("look", "look"),
        "copy": ("look", "look"),
        "sub/a": ("ok", "ok"),
        "lens": ("look", "look"),
        "glass": ("look", "no_tissue"),
        "scaleless": ("failed", "PG-S07"),
        "text": ("failed", "PG-S02"),
        "holes": ("failed", "PG-S04"),
    }
    counts = found.counts
    assert counts["slides"] == counts["ok"] + counts["look"] + counts["failed"] == 8
    assert found.ignored == {".txt": 1}
    assert all(row.message for row in found.slides if row.state != "ok")


def test_copies_are_found_by_name_and_by_content(found: Diagnosis) -> None:
    rows = {row.slide: row for row in found.slides}
    assert (rows["a"].same_content, rows["copy"].same_content) == ("copy", "a")
    assert (rows["a"].same_name, rows["sub/a"].same_name) == ("sub/a", "a")
    assert rows["a"].identity == rows["copy"].identity != rows["sub/a"].identity
    assert not rows["glass"].same_content


def test_facts_and_samples(found: Diagnosis) -> None:
    rows = {row.slide: row for row in found.slides}
    a = rows["a"]
    assert (a.width, a.height, a.levels, a.vendor) == (1536, 1024, "1 4", "aperio")
    assert (a.mpp, a.mpp_source, a.objective, a.scanned) == (0.5, "vendor", 20.0, 1.0)
    assert (a.readable, a.reads) == (12, 12)
    assert 0 < rows["holes"].readable < rows["holes"].reads
    assert rows["scaleless"].picture is not None, "a picture, though no mask"


def test_the_predictions_come_true(slides: Path, found: Diagnosis, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"min_hematoxylin": 0.0})
    real = {row.slide: row for row in tile(slides, tmp_path / "out", config, workers=0).rows}
    for row in found.slides:
        if row.state != "failed":
            assert row.patches == real[row.slide].patches
            assert row.candidates == real[row.slide].candidates
        if row.patches and row.state != "failed":
            stored = (tmp_path / "out" / f"{row.slide}.h5").stat().st_size
            assert 0.5 < row.store_bytes / stored < 2


def test_workers_find_the_same(slides: Path, found: Diagnosis) -> None:
    def timeless(diagnosis: Diagnosis) -> list[dict[str, object]]:
        rows = diagnosis.to_dict()["slides"]
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert timeless(diagnose(slides, SMALL, workers=1)) == timeless(found)


def test_the_page_stands_alone_and_keeps_secrets(
    slides: Path, found: Diagnosis, tmp_path: Path
) -> None:
    table, page = write_diagnosis(found, tmp_path / "out", "slides")
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:|//|file:)", html)
    for text in (html, table.read_text(encoding="utf-8")):
        assert CANARY not in text
        assert str(slides.parent) not in text
    pictures = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", html)
    assert len(pictures) == 7
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert max(image.size) <= 361
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide"] for row in rows] == [row.slide for row in found.slides]
    assert "picture" not in rows[0]


def test_the_command(slides: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["doctor", *map(str, words), "--workers", "0"])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    code, out, _ = run(slides, "-o", tmp_path / "d", "--patch-size", "128")
    assert code == 3
    assert "8 slides: 1 ok, 4 to look at, 3 failed" in out
    assert "Next: pathgen tile" in out
    assert {path.name for path in (tmp_path / "d").iterdir()} == {"doctor.csv", "doctor.html"}
    code, out, _ = run(slides / "sub", "--json", "--mag", "20x", "--patch-size", "128")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["counts"]["ok"] == 1
    (tmp_path / "empty").mkdir()
    code, _, err = run(tmp_path / "empty")
    assert code == 4
    assert "PG-N01" in err


def test_impossible_places(slides: Path, found: Diagnosis, tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="PG-N01"):
        diagnose(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="PG-O01"):
        write_diagnosis(found, tmp_path / "file")
