"""From slides to an answer in Python, on slides drawn here: folders as plain strings, no CLI."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from helpers_pretrain import MINUTE

import pathgen
from pathgen.synthetic import CohortConfig
from pathgen.tiling import TileConfig
from pathgen.train.mil import MILTrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")

SLIDES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("session")
    config = CohortConfig(width=1024, height=1024, grades=(0, 5), second_slide=0.0)
    pathgen.make_slides(out / "slides", SLIDES, 0, config, workers=0)
    return out


def test_from_slides_to_a_slide_level_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    first = sorted(Path("slides").glob("*.svs"))[0]
    with pathgen.open_slide(str(first)) as slide:
        assert slide.size == (1024, 1024)
        assert slide.mpp_source == "vendor"

    report = pathgen.tile("slides/", "tiles/", TileConfig(patch_size=128, mpp=0.5), workers=0)
    assert report.counts["done"] == SLIDES

    with pathgen.open_store(f"tiles/{first.stem}.h5") as store:
        images = store.images(range(2))
        assert images.shape == (2, 128, 128, 3)
        hematoxylin = store.measure("hematoxylin")
        assert np.all((hematoxylin >= 0) & (hematoxylin <= 1))
        x, y = (int(value) for value in store.coords()[0])
    with openslide.OpenSlide(first) as raw:
        region = np.asarray(raw.read_region((x, y), 0, (128, 128)).convert("RGB"))
    assert np.abs(images[0].astype(int) - region).mean() < 2

    dataset = pathgen.PatchDataset("tiles/")
    assert len(dataset) == report.counts["patches"]
    tensor, ref = dataset[0]
    assert tensor.dtype == torch.uint8
    assert tuple(tensor.shape) == (3, 128, 128)
    assert ref.row == 0

    run = pathgen.pretrain("tiles/", "runs/first", recipe="tiny", overrides=MINUTE)
    encoder = pathgen.load_encoder(run.encoder)
    made = pathgen.extract_features(encoder, "tiles/", "features/")
    assert len(made) == SLIDES

    config = MILTrainConfig(epochs=2)
    result = pathgen.train_mil("features/", "slides/labels.csv", "mil/", config, folds=2)
    assert "slides" in result.summary()
    with open("mil/predictions.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["slide"] for row in rows] == sorted(
        path.stem for path in Path("slides").glob("*.svs")
    )
    for row in rows:
        assert sum(float(row[f"p_{label}"]) for label in (0, 5)) == pytest.approx(1, abs=1e-5)
