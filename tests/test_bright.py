"""The BRIGHT challenge: official metrics of its own files, and the submission."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from pathgen.cli import main
from pathgen.errors import ConfigError, DataError
from pathgen.evaluate.predictions import Predictions, evaluate_predictions, write_predictions
from pathgen.evaluate.submission import write_submission

HEADERS = {
    "bright3": "image_name,predicted_label,Noncancerous-score,Precancerous-score,Cancerous-score",
    "bright6": "image_name,predicted_label,PB-score,UDH-score,FEA-score,ADH-score,DCIS-score,"
    "IC-score",
}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _skill(y: np.ndarray, p: np.ndarray) -> float:
    """1 - BS / BS of the class frequencies, BS summed over classes: the challenge's definition."""
    one_hot = np.eye(p.shape[1])[y]
    always = np.tile(one_hot.mean(0), (len(y), 1))
    errors = [np.mean(np.sum((said - one_hot) ** 2, axis=1)) for said in (p, always)]
    return float(1 - errors[0] / errors[1])


# --- the challenge's own files --------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("task", [1, 2])
def test_the_official_metrics_of_the_baseline(data: Path, task: int) -> None:
    meta = data / "meta"
    path = meta / f"bright_validation_baseline_task{task}_predictions.csv"
    got = evaluate_predictions(path, targets=meta / "bright_validation_targets.csv")
    said = {row["image_name"]: row for row in _rows(path)}
    truth = {row["image_name"]: int(row[f"Task{task}-target"])
             for row in _rows(meta / "bright_validation_targets.csv")}  # fmt: skip
    assert set(said) == set(truth)
    names = list(truth)
    y = np.array([truth[name] for name in names])
    labels = [int(said[name]["predicted_label"]) for name in names]
    p = np.array([[float(v) for k, v in said[n].items() if "-score" in k] for n in names])
    assert got["n"] == 80
    challenge = got["challenge"]
    assert challenge["title"] == f"BRIGHT task {task}"
    assert challenge["average_f1"] == pytest.approx(sk.f1_score(y, labels, average="macro"))
    assert challenge["brier_skill_score"] == pytest.approx(_skill(y, p))
    sums = [sk.brier_score_loss(y == i, p[:, i]) for i in range(p.shape[1])]
    assert got["brier"] == pytest.approx(sum(sums))
    assert got["weighted_f1"] == pytest.approx(sk.f1_score(y, labels, average="weighted"))
    areas = [sk.roc_auc_score(y == i, p[:, i]) for i in range(p.shape[1])]
    assert got["auc"] == pytest.approx(np.mean(areas))
    assert got["log_loss"] == pytest.approx(sk.log_loss(y, p / p.sum(1, keepdims=True)), rel=1e-6)
    for name in ("average_f1", "brier_skill_score"):
        low, high = challenge["intervals"][name]
        assert low < challenge[name] < high
    assert any("read as positions" in note for note in got["notes"])


@pytest.mark.data
@pytest.mark.parametrize(("task", "name"), [(1, "bright3"), (2, "bright6")])
def test_the_baseline_goes_through_unchanged(
    data: Path, tmp_path: Path, task: int, name: str
) -> None:
    meta = data / "meta"
    path = meta / f"bright_validation_baseline_task{task}_predictions.csv"
    out = tmp_path / "submission.csv"
    write_submission(path, out, name, images=meta / "bright_validation_targets.csv")
    assert out.read_text().splitlines()[0] == path.read_text().splitlines()[0] == HEADERS[name]
    before, after = _rows(path), _rows(out)
    assert [row["image_name"] for row in after] == [row["image_name"] for row in before]
    for old, new in zip(before, after, strict=True):
        assert new["predicted_label"] == old["predicted_label"]
        scores = [key for key in old if key.endswith("-score")]
        assert [float(new[key]) for key in scores] == [float(old[key]) for key in scores]


# --- submissions ----------------------------------------------------------------------------


def _write(path: Path, classes: tuple[str, ...], repeats: int = 1) -> np.ndarray:
    """Predictions of four slides, and their (repeats, 4, classes) scores."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(len(classes)), (repeats, 4))
    names = [f"Cancerous/BRACS_{i}" for i in (30, 4, 21, 7)]
    flat = p.reshape(-1, len(classes))
    write_predictions(
        path,
        Predictions(
            names * repeats, names * repeats, [0] * len(flat), [classes[0]] * len(flat),
            [classes[i] for i in flat.argmax(1)], flat, classes,
            repeats=np.repeat(range(repeats), 4).tolist() if repeats > 1 else None,
        ),
    )  # fmt: skip
    return p


def test_classes_are_put_in_the_challenges_order(tmp_path: Path) -> None:
    p = _write(tmp_path / "p.csv", ("cancerous", "Non-cancerous", "pre_cancerous"))[0]
    result = write_submission(tmp_path / "p.csv", tmp_path / "out.csv", "bright3")
    assert result["images"] == 4
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == HEADERS["bright3"]
    rows = _rows(tmp_path / "out.csv")
    assert [row["image_name"] for row in rows] == ["BRACS_21", "BRACS_30", "BRACS_4", "BRACS_7"]
    scores = p[0][[1, 2, 0]]  # BRACS_30
    assert [float(v) for k, v in rows[1].items() if "-score" in k] == scores.tolist()
    assert rows[1]["predicted_label"] == str(scores.argmax())
    targets = tmp_path / "targets.csv"
    lines = [f"BRACS_{i},{i % 3},{i % 6}" for i in (30, 4, 21, 7)]
    targets.write_text("\n".join(["image_name,Task1-target,Task2-target", *lines]))
    got = evaluate_predictions(tmp_path / "out.csv", targets=targets)
    assert got["challenge"]["task"] == "bright3"
    y = np.array([i % 3 for i in (30, 4, 21, 7)])
    assert got["challenge"]["brier_skill_score"] == pytest.approx(_skill(y, p[:, [1, 2, 0]]))


def test_grades_are_positions_and_other_names_are_asked_for(tmp_path: Path) -> None:
    p = _write(tmp_path / "p.csv", tuple("012345"))[0]
    write_submission(tmp_path / "p.csv", tmp_path / "out.csv", "bright6")
    row = _rows(tmp_path / "out.csv")[1]
    assert [float(row[f"{name}-score"]) for name in ("PB", "IC")] == [p[0][0], p[0][5]]
    _write(tmp_path / "q.csv", ("benign", "tumor", "atypia"))
    with pytest.raises(DataError, match=r"not the challenge's.*benign, tumor, atypia.*--classes"):
        write_submission(tmp_path / "q.csv", tmp_path / "out.csv", "bright3")
    write_submission(
        tmp_path / "q.csv", tmp_path / "out.csv", "bright3", classes=("benign", "atypia", "tumor")
    )
    with pytest.raises(ConfigError, match="classes are not those of the predictions"):
        write_submission(tmp_path / "q.csv", tmp_path / "o.csv", "bright3", classes=("a", "b", "c"))
    with pytest.raises(DataError, match="not the challenge's"):
        write_submission(tmp_path / "p.csv", tmp_path / "out.csv", "bright3")
    with pytest.raises(ConfigError, match=r"no such challenge task.*bright3, bright6"):
        write_submission(tmp_path / "p.csv", tmp_path / "out.csv", "bright7")


def test_repeats_are_averaged(tmp_path: Path) -> None:
    p = _write(tmp_path / "p.csv", tuple("012"), repeats=3)
    result = write_submission(tmp_path / "p.csv", tmp_path / "out.csv", "bright3")
    assert result["notes"] == ["probabilities are means over up to 3 repeats"]
    row = _rows(tmp_path / "out.csv")[1]
    mean = p[:, 0].mean(0)
    assert [float(v) for k, v in row.items() if "-score" in k] == pytest.approx(mean.tolist())
    assert row["predicted_label"] == str(mean.argmax())


def test_no_image_may_be_missing(tmp_path: Path) -> None:
    _write(tmp_path / "p.csv", tuple("012"))
    images = tmp_path / "images.csv"
    images.write_text("image_name\nBRACS_7\nBRACS_21\n")
    result = write_submission(tmp_path / "p.csv", tmp_path / "out.csv", "bright3", images=images)
    assert [row["image_name"] for row in _rows(tmp_path / "out.csv")] == ["BRACS_7", "BRACS_21"]
    assert result["notes"] == ["2 predicted slides not among the images: left out"]
    images.write_text("image_name\nBRACS_7\nBRACS_8\n")
    with pytest.raises(DataError, match=r"images without a prediction.*BRACS_8"):
        write_submission(tmp_path / "p.csv", tmp_path / "out.csv", "bright3", images=images)
    (tmp_path / "bare.csv").write_text("slide,label,predicted\na,0,0\nb,1,1\nc,2,2\n")
    with pytest.raises(DataError, match="needs probabilities"):
        write_submission(tmp_path / "bare.csv", tmp_path / "out.csv", "bright3")
    (tmp_path / "two.csv").write_text("slide,p_0,p_1,p_2\nx/a,1,0,0\ny/a,0,1,0\n")
    with pytest.raises(DataError, match="two slides of one image name"):
        write_submission(tmp_path / "two.csv", tmp_path / "out.csv", "bright3")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "predictions.csv", tuple("012"))
    out = tmp_path / "bright.csv"
    arguments = ["evaluate", "submission", str(tmp_path), "-o", str(out), "--task", "bright3"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "4 images of bright3 are in" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["images"] == 4
