"""The baselines of a run: color, size, majority and shuffled labels on the run's own splits."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_data import make_patches, noise
from helpers_mil import write_store
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathgen.cli import main
from pathgen.errors import ConfigError, DataError, RunError
from pathgen.evaluate.baselinedata import read_run
from pathgen.evaluate.baselines import evaluate_baselines
from pathgen.evaluate.mil import train_mil
from pathgen.evaluate.shortcutfits import PENALTY, fit_classes, fit_numbers, fit_risks
from pathgen.evaluate.shortcuts import COLORS, STAINS, size_measures, stain_measures
from pathgen.models.mil import PoolingConfig
from pathgen.train.mil import MILTrainConfig

SLIDES = 30
QUICK = MILTrainConfig(
    model=PoolingConfig(embed=8, hidden=8), epochs=12, lr=0.02, batch_size=8, folds=3,
    device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class 1 is redder, and its features lie elsewhere; sizes say nothing."""
    folder = tmp_path_factory.mktemp("cohort")
    rng, lines = np.random.default_rng(0), ["slide,label,patient,site"]
    for i in range(SLIDES):
        label, n = i % 2, int(rng.integers(3, 9))
        images = noise(rng, n, 16) // 2
        images[..., 0] += np.uint8(100 * label)
        make_patches(folder / "tiles" / f"s{i:02}.h5", images, f"s{i:02}")
        vectors = rng.normal(2.0 * label, 1, (n, 4)).astype(np.float32)
        write_store(folder / "features", f"s{i:02}", vectors)
        lines.append(f"s{i:02},{label},p{i // 2 % 8 + 8 * label},{'ab'[i // 15]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(cohort: Path, one_thread: None) -> Path:
    train_mil(cohort / "features", cohort / "labels.csv", cohort / "mil", QUICK)
    return cohort / "mil"


@pytest.fixture(scope="module")
def values(cohort: Path, run: Path) -> dict[str, Any]:
    return evaluate_baselines(run, patches=cohort / "tiles", features=cohort / "features")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _bare(run: Path, out: Path) -> Path:
    """A copy of the run that has no baselines yet."""
    return Path(shutil.copytree(run, out, ignore=shutil.ignore_patterns("baselines")))


# --- what they say --------------------------------------------------------------------------


def test_each_is_compared_with_the_run(run: Path, values: dict[str, Any]) -> None:
    found = {row["name"]: row for row in values["baselines"]}
    assert list(found) == ["majority", "size-only", "stain-only", "label-shuffle"]
    assert values["skipped"] == []
    assert values == json.loads((run / "baselines" / "baselines.json").read_text())
    own = json.loads((run / "metrics.json").read_text())
    assert own["accuracy"] > 0.9
    for name, row in found.items():
        folder = run / "baselines" / name
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["n"] == SLIDES
        assert row["comparison"] == json.loads((folder / "comparison.json").read_text())
        difference = row["comparison"]["metrics"]["accuracy"]
        assert difference["first"] == pytest.approx(own["accuracy"])
        assert difference["second"] == pytest.approx(metrics["accuracy"])
    assert found["stain-only"]["metrics"]["accuracy"] == 1  # the color gives it away
    assert found["stain-only"]["comparison"]["metrics"]["accuracy"]["better"] != "first"
    # Shuffled labels and sizes teach nothing: the run is better, and the interval says so.
    for name in ("label-shuffle", "size-only", "majority"):
        assert found[name]["metrics"]["accuracy"] < 0.8
        assert found[name]["comparison"]["metrics"]["accuracy"]["better"] == "first"


def test_folds_patients_and_sites_are_the_runs(run: Path, values: dict[str, Any]) -> None:
    want = {row["slide"]: row for row in _rows(run / "predictions.csv")}
    for name in ("majority", "size-only", "stain-only", "label-shuffle"):
        rows = _rows(run / "baselines" / name / "predictions.csv")
        assert len(rows) == len(want)
        for row in rows:
            for column in ("fold", "patient", "site", "label"):
                assert row[column] == want[row["slide"]][column]


def test_stain_only_is_a_logistic_regression_of_the_training_slides(
    run: Path, cohort: Path, values: dict[str, Any]
) -> None:
    slides = {row["slide"]: [float(v) for k, v in row.items() if k != "slide"]
              for row in _rows(run / "baselines" / "stain-only" / "slides.csv")}  # fmt: skip
    label = {row["slide"]: int(row["label"]) for row in _rows(cohort / "labels.csv")}
    got = {row["slide"]: float(row["p_1"])
           for row in _rows(run / "baselines" / "stain-only" / "predictions.csv")}  # fmt: skip
    for split in json.loads((run / "splits.json").read_text()):
        train = [*split["train"], *split["valid"]]
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        model.fit([slides[name] for name in train], [label[name] for name in train])
        want = model.predict_proba([slides[name] for name in split["test"]])[:, 1]
        assert [got[name] for name in split["test"]] == pytest.approx(want, abs=1e-3)


def test_majority_says_the_frequencies_of_the_training_slides(
    run: Path, values: dict[str, Any]
) -> None:
    rows = _rows(run / "baselines" / "majority" / "predictions.csv")
    label = {row["slide"]: row["label"] for row in rows}
    for fold, split in enumerate(json.loads((run / "splits.json").read_text())):
        train = [label[name] for name in [*split["train"], *split["valid"]]]
        share = train.count("1") / len(train)
        for row in rows:
            if row["fold"] == str(fold):
                assert float(row["p_1"]) == pytest.approx(share)


# --- measures -------------------------------------------------------------------------------


def test_measures_are_those_of_the_pixels(tmp_path: Path) -> None:
    images = noise(np.random.default_rng(3), 5, 32)
    make_patches(tmp_path / "s.h5", images, "s").close()
    got = stain_measures(tmp_path)
    assert got.columns == (*COLORS, *STAINS)
    pixels = images.reshape(-1, 3).astype(float)
    density = -np.log10(np.maximum(pixels, 1) / 255)
    assert got.rows["s"][:6] == pytest.approx([*pixels.mean(0), *density.mean(0)])
    assert got.rows["s"][6:].tolist() == [1] * 4  # what the helper says tiling measured
    sizes = size_measures(tmp_path)
    area = 5 * (32 * 0.5 / 1000) ** 2
    assert sizes.rows["s"] == pytest.approx([5, np.log(5), area, np.log(area)])


def test_feature_stores_know_the_number_alone(tmp_path: Path) -> None:
    write_store(tmp_path, "a", np.zeros((7, 2), np.float32))
    write_store(tmp_path, "none", np.zeros((0, 2), np.float32))
    got = size_measures(tmp_path)
    assert got.columns == ("patches", "log_patches")
    assert {name: row[0] for name, row in got.rows.items()} == {"a": 7}


# --- fits -----------------------------------------------------------------------------------


def _numbers(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return rng.normal(3, [1, 100], (60, 2)), rng.normal(3, [1, 100], (10, 2))


def test_a_test_slide_changes_no_other_prediction() -> None:
    train, test = _numbers(0)
    y = (train[:, 0] > 3).astype(int)
    other = test.copy()
    other[1:] += 1e6
    for fit in (
        lambda t: fit_classes(train, y, t, 3, balanced=True),
        lambda t: fit_numbers(train, train[:, 1], t),
        lambda t: fit_risks(train, np.exp(train[:, 0]), y == 1, t),
    ):
        assert np.array_equal(fit(test)[0], fit(other)[0])


def test_classes_that_do_not_occur_get_nothing() -> None:
    train, test = _numbers(1)
    got = fit_classes(train, np.where(train[:, 0] > 3, 2, 1), test, 4, balanced=False)
    assert got.shape == (10, 4)
    assert not got[:, [0, 3]].any()
    assert got.sum(1) == pytest.approx(1)
    alone = fit_classes(train, np.full(60, 1), test, 2, balanced=True)
    assert alone.tolist() == [[0, 1]] * 10


def test_risks_are_those_of_the_partial_likelihood() -> None:
    rng = np.random.default_rng(2)
    train, test = _numbers(2)
    time = np.ceil(rng.exponential(10, 60))  # with ties
    event = rng.random(60) < 0.7
    x = (train - train.mean(0)) / train.std(0)

    def loss(beta: NDArray[np.float64]) -> float:
        total = PENALTY / 2 * float(beta @ beta)
        for i in np.flatnonzero(event):
            total += np.log(np.exp(x[time >= time[i]] @ beta).sum()) - x[i] @ beta
        return float(total)

    beta = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-8}).x
    want = (test - train.mean(0)) / train.std(0) @ beta
    assert fit_risks(train, time, event, test) == pytest.approx(want, abs=1e-4)


# --- other runs -----------------------------------------------------------------------------


def test_fixed_splits_and_numbers(cohort: Path, tmp_path: Path, one_thread: None) -> None:
    """Training slides that nobody predicts keep their labels in the run."""
    rng = np.random.default_rng(0)
    names = [f"s{i:02}" for i in range(SLIDES)]
    lines = [f"{name},{rng.normal():.3f}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["slide,label", *lines]))
    parts = ["train"] * 16 + ["valid"] * 4 + ["test"] * 10
    rows = [f"{name},0,{part}" for name, part in zip(names, parts, strict=True)]
    (tmp_path / "splits.csv").write_text("\n".join(["slide,split,part", *rows]))
    config = QUICK.model_copy(update={"target": "regression", "epochs": 1})
    train_mil(
        cohort / "features", tmp_path / "labels.csv", tmp_path / "mil", config,
        splits=tmp_path / "splits.csv",
    )  # fmt: skip
    data = read_run(tmp_path / "mil")
    assert (len(data.names), len(data.splits), len(data.splits[0].train)) == (SLIDES, 1, 20)
    assert [
        f"{name},{value:.3f}" for name, value in zip(data.names, data.values, strict=True)
    ] == lines
    got = evaluate_baselines(
        tmp_path / "mil", patches=cohort / "tiles", features=cohort / "features"
    )
    assert [row["n"] for row in got["baselines"]] == [10] * 4
    assert all("mae" in row["comparison"]["metrics"] for row in got["baselines"])
    (tmp_path / "mil" / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"slides of the run without a label.*20 slides.*--labels"):
        evaluate_baselines(tmp_path / "mil", only=["majority"])
    again = evaluate_baselines(tmp_path / "mil", only=["majority"], labels=tmp_path / "labels.csv")
    assert again["baselines"][0]["metrics"] == got["baselines"][0]["metrics"]


def test_slides_without_patches_are_told(cohort: Path, run: Path, tmp_path: Path) -> None:
    for path in sorted((cohort / "tiles").glob("*.h5"))[2:]:
        (tmp_path / path.name).symlink_to(path)
    bare = _bare(run, tmp_path / "mil")
    got = evaluate_baselines(bare, patches=tmp_path, only=["stain-only"])["baselines"][0]
    assert got["n"] == SLIDES - 2
    assert got["notes"] == ["2 slides without patches left out ('s00', 's01')"]
    assert got["comparison"]["only_first"] == ["s00", "s01"]


def test_what_is_needed_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "baselines", str(_bare(run, tmp_path / "mil"))])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "stain-only was not made: it reads colors and stain scores of patches" in text
    assert "label-shuffle was not made: it trains heads" in text
    assert re.search(r"majority: qwk -0\.\d{3}; mil 1\.000, difference \+1", text)
    assert "1 baseline is in" in text
    assert "Next: pathgen report" in text
    with pytest.raises(ConfigError, match=r"no such baseline.*color"):
        evaluate_baselines(run, only=["color"])
    with pytest.raises(RunError, match=r"not a finished train-mil run.*splits\.json"):
        evaluate_baselines(run.parent)


def test_baselines_of_a_run_stay_until_it_is_another(
    cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    config, mil = QUICK.model_copy(update={"epochs": 1}), tmp_path / "mil"
    train_mil(cohort / "features", cohort / "labels.csv", mil, config)
    evaluate_baselines(mil, only=["majority"])
    got = evaluate_baselines(mil, features=cohort / "features", only=["size-only", "stain-only"])
    assert [row["name"] for row in got["baselines"]] == ["majority", "size-only"]
    assert [row["name"] for row in got["skipped"]] == ["stain-only"]
    train_mil(cohort / "features", cohort / "labels.csv", mil, config, seed=1, overwrite=True)
    assert not (mil / "baselines").exists()
    got = evaluate_baselines(mil, features=cohort / "features", only=["size-only"])
    assert [row["name"] for row in got["baselines"]] == ["size-only"]
