"""The page shows what was measured of synthetic images, and survives what is not what it seems."""

from __future__ import annotations

import copy
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from pathgen.report import figures, write_report
from pathgen.report.augmentation import augmentation
from pathgen.report.blocks import Section
from pathgen.report.collect import Found

SPREAD = {"count": 9, "mean": 0.61, "q05": 0.4, "q95": 0.8}
SET = {"fid": 12.345, "kid": 0.00123, "kid_sd": 0.0004, "precision": 0.71, "recall": 0.52}
KIND = {
    "nearest": SPREAD, "nearest_is_source": 0.9, "suspects": 0.125,
    "suspects_of_source": 0.085, "suspects_of_others": 0.04,
}  # fmt: skip
BAND = {"mean": [0.2, 0.9], "q10": [0.1, 0.8], "q25": [0.1, 0.8], "q75": [0.3, 1], "q90": [0.3, 1]}
METRICS: dict[str, Any] = {
    "images": 1500,
    "counts": {"planned": 1600, "kept": 1500, "dropped": 100, "resampled": 321, "attempts": 2200},
    "generative": SPREAD, "interpolated": SPREAD, "random_pair": SPREAD, "reconstruction": SPREAD,
    "filter": {
        "min_cosine": 0.456,
        "would_fail": [
            {"of": "random_pairs", "quantile": 0.95, "min_cosine": 0.377, "share": 0.117}
        ],
    },
    "closer_to_source": {
        "generative": {"images": 700, "source": 0.987},
        "interpolated": {"images": 700, "primary": 0.91, "secondary": 0.82, "nearer": 0.99},
    },
    "sets": {"images": 600, "warning": "FID of 600 images in 768 dimensions", "real": SET,
             "generative": SET, "interpolated": SET},
    "copies": {"real": 5000, "pixels": {"threshold": 0.1, "generative": KIND},
               "embedding": {"threshold": 0.1, "generative": KIND}},
    "interpolation": {"pairs": 32, "alphas": [0, 1], "primary": BAND, "secondary": BAND,
                      "monotone_share": 0.844, "spearman": 0.97},
}  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "augment"
    folder.mkdir()
    (folder / "done.json").write_text("{}")
    for name in ("sheet.png", "memorization.png", "interpolation.png"):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / name)
    return folder


def shown(folder: Path, metrics: Any) -> tuple[str, str]:
    """Text and raw HTML of the page."""
    (folder / "metrics.json").write_text(json.dumps(metrics))
    raw = write_report(folder).read_text()
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", raw)).split()), raw


def test_every_measure_has_its_place(stage: Path) -> None:
    text, raw = shown(stage, METRICS)
    for piece in (
        "1,500 of 1,600 planned images stayed",
        "a cosine of 0.456 or more, 321 images were drawn again and 100 dropped, in 2,200 draws",
        "random pairs 0.950 0.377 0.117",
        "views of one patch its source 0.987 700",
        "blends the nearer of the two 0.990",
        "Images of 32 pairs",
        "every step for 0.844 of the pairs",
        "real patches (the floor) 12.35 0.00123 0.0004 0.71 0.52",
        "FID of 600 images in 768 dimensions",
        "nearest of 5,000 real patches",
        "pixels, at 32 px views of one patch 12.5% 8.5% 4.0% 90.0%",
    ):
        assert piece in text, piece
    alts = set(re.findall(r'<img[^>]*alt="([^"]*)"', raw))
    assert {"Synthetic views", "Cosines over alpha", "Nearest pairs"} <= alts


def test_what_was_not_measured_is_left_out(stage: Path) -> None:
    (stage / "interpolation.png").unlink()
    some = {key: METRICS[key] for key in ("images", "generative", "random_pair")}
    text, _ = shown(stage, some | {"sets": None, "copies": None, "interpolation": None})
    assert "views of one patch" in text
    for piece in ("Does it copy", "Distance to real", "From one patch", "planned images"):
        assert piece not in text
    text, _ = shown(stage, METRICS | {"filter": {"min_cosine": None}})
    assert "no filter was asked for" in text
    assert "interpolation.png is missing" in text


@pytest.mark.parametrize("wrong", [None, 3, "x", [], [1], {"a": 1}, True, {"generative": 4}])
def test_wrong_types_do_not_stop_the_page(
    stage: Path, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "bars", lambda rows, *_, **__: Markup(len(rows)))
    monkeypatch.setattr(figures, "picture", lambda path: path)
    versions = [METRICS | {key: wrong} for key in METRICS]
    for key in ("filter", "closer_to_source", "sets", "copies", "interpolation", "counts"):
        for inner in METRICS[key]:
            versions.append(copy.deepcopy(METRICS))
            versions[-1][key][inner] = wrong
    for metrics in versions:
        (stage / "metrics.json").write_text(json.dumps(metrics))
        augmentation(Section("run", "Run"), Found(stage), stage)


def test_results_of_evaluate_fid_stand_side_by_side(tmp_path: Path) -> None:
    for name in ("dpm", "ddim"):
        values = {"format": "pathgen.generation", "title": name, "n_real": 800, "dim": 384,
                  "n_synthetic": 750, "warning": None, **SET}  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    raw = write_report(tmp_path).read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", raw).split())
    assert "ddim 12.35 0.00123 0.0004 0.71 0.52 800 750 384 dpm 12.35" in text
