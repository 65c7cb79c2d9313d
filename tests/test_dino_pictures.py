"""What DINO leaves to look at on its way, and that looking changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_dino import Textures, random_views, tiny
from PIL import Image

from pathgen.checkpoints import read_checkpoint
from pathgen.models.encoder import Encoder
from pathgen.report import write_report
from pathgen.runs import Run, RunConfig
from pathgen.train.dino import train_dino
from pathgen.train.dinopictures import attention_sheet, crop_sheet

pytestmark = pytest.mark.usefixtures("one_thread")


def fit(path: Path, every: int) -> Run:
    config = tiny(run=RunConfig(device="cpu", log_every=1, pictures_every=every))
    run = Run.start(path, "dino", config, {})
    train_dino(config, [Textures(16)], run)
    return run


def test_pictures_change_no_weight_and_the_report_shows_the_last(tmp_path: Path) -> None:
    shown, plain = fit(tmp_path / "dino", 5), fit(tmp_path / "plain", 0)
    names = sorted(path.name for path in (shown.path / "pictures").iterdir())
    assert names == [
        f"step-000000{n}-{kind}.png" for n in ("05", "10") for kind in ("attention", "crops")
    ]
    mine, its = (read_checkpoint(run.checkpoints()[-1])["parts"]["pair"] for run in (shown, plain))
    assert all(torch.equal(value, its[key]) for key, value in mine.items())
    page = write_report(tmp_path / "dino", tmp_path / "report.html").read_text()
    assert "crops after step 10" in page
    assert "attention after step 10" in page
    assert "after step 5<" not in page


def test_a_sheet_has_a_row_a_patch_and_says_what_is_synthetic_or_blended() -> None:
    views = random_views(0, blend=True)
    views = views._replace(synthetic=torch.tensor([[False, True], *[[True, False]] * 7]))
    rows = crop_sheet(views)
    assert [cell.caption for cell in rows[1]] == [
        "global 1, synthetic", "global 2", "local 1", "local 2"
    ]  # fmt: skip
    assert rows[0][1].caption == "global 2, synthetic"
    assert [cell.caption.split(",")[0] for cell in rows[2][-2:]] == ["blend", "its second"]
    assert views.blend is not None
    pixels = (views.blend.image[1] * 255).round().byte().permute(1, 2, 0).numpy()
    assert (rows[2][-2].pixels == pixels).all()  # the second blend is of the third patch


def test_attention_is_shown_brightest_at_each_heads_own_maximum() -> None:
    torch.manual_seed(0)
    sheet = attention_sheet(Encoder(tiny().encoder), torch.rand(2, 3, 32, 32))
    assert sheet is not None
    assert [len(row) for row in sheet] == [3, 3]
    for row in sheet:
        assert all(cell.pixels.max() == 255 for cell in row[1:])
        assert Image.fromarray(row[0].pixels).size == (32, 32)
