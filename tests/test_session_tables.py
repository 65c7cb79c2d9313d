"""Features and labels as tables, their pictures, and the cross-validation of a table."""

from __future__ import annotations

import csv
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas
import pytest
from helpers_mil import write_store
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, cohen_kappa_score
from sklearn.preprocessing import StandardScaler

import pathgen
from pathgen.errors import ConfigError, DataError, MissingExtraError, NoInputError
from pathgen.evaluate.predictionfile import read_predictions
from pathgen.session import Features

SLIDES, DIM = 30, 5


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"s{i:02}": (rng.normal(size=(5 + i, DIM)) + [i % 3, 0, 0, 0, 0]).astype(np.float32)
        for i in range(SLIDES)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vectors: dict[str, np.ndarray]) -> Path:
    out = tmp_path_factory.mktemp("tables")
    for name, values in vectors.items():
        write_store(out / "features", name, values)
    write_store(out / "features", "bare", np.zeros((0, DIM), np.float32))
    lines = ["Slide ID;grade;patient;site"]
    lines += [f"s{i:02}.svs;{i % 3};00{i // 2};{'NA' if i < 2 else 'x'}" for i in range(SLIDES)]
    (out / "cases.csv").write_text("\n".join(lines) + "\n")
    return out


@pytest.fixture(scope="module")
def table(folder: Path) -> pandas.DataFrame:
    means = pathgen.features(folder / "features").slide_means()
    return means.join(pathgen.labels(folder / "cases.csv", "Slide ID", ["grade", "patient"]))


def test_means_are_those_of_numpy(folder: Path, vectors: dict[str, np.ndarray]) -> None:
    found = pathgen.features(folder / "features")
    assert isinstance(found, Features)
    total = sum(map(len, vectors.values()))
    assert repr(found) == (
        f"31 slides · {total} patches · {DIM} numbers each · encoder e1 · 1 slide without patches"
    )
    means = found.slide_means()
    assert means.index.name == "slide"
    assert list(means.index) == list(vectors)
    expected = [values.astype(np.float64).mean(axis=0) for values in vectors.values()]
    assert np.allclose(means.to_numpy(), expected, atol=1e-6)
    assert found.empty == ("bare",)
    assert found["s03"].features().shape == (8, DIM)
    with pytest.raises(NoInputError):
        found["none"]


def test_means_go_out_as_csv(folder: Path, tmp_path: Path) -> None:
    found = pathgen.features(folder / "features")
    with found.to_csv(tmp_path / "means.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows[4]["slide"] == "s04"
    assert float(rows[4]["f0"]) == pytest.approx(found.slide_means().loc["s04", "f0"])


def test_two_encoders_are_not_mixed(tmp_path: Path) -> None:
    write_store(tmp_path, "a", np.ones((2, 3), np.float32), encoder="one")
    write_store(tmp_path, "b", np.ones((2, 3), np.float32), encoder="two")
    with pytest.raises(DataError, match="different encoders"):
        pathgen.features(tmp_path)
    write_store(tmp_path / "again", "a", np.ones((2, 3), np.float32), encoder="one")
    with pytest.raises(DataError, match="two feature stores"):
        pathgen.features([tmp_path / "a.h5", tmp_path / "again"])
    write_store(tmp_path / "nan", "c", np.full((2, 3), np.nan, np.float32))
    with pytest.raises(DataError, match="PG-D06"):
        pathgen.features(tmp_path / "nan").slide_means()


def test_ids_and_cells_stay_strings(folder: Path) -> None:
    found = pathgen.labels(folder / "cases.csv", id="Slide ID")
    assert list(found.columns) == ["grade", "patient", "site"]
    assert found.index[0] == "s00"
    assert found.loc["s02", "patient"] == "001"
    assert isinstance(found.loc["s02", "grade"], str)
    assert found["site"].isna().tolist() == [True, True] + [False] * (SLIDES - 2)


def test_labels_are_read_strictly(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="id you mean 'grade'"):
        pathgen.labels(folder / "cases.csv", id="Slide ID", columns=["grades"])
    (tmp_path / "twice.csv").write_text("slide,grade\na.svs,1\na,2\n")
    with pytest.raises(DataError, match="stands twice"):
        pathgen.labels(tmp_path / "twice.csv")


def test_a_missing_package_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathgen import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pathgen\[tables\]") as caught:
        pathgen.features(folder / "features").slide_means()
    assert caught.value.code == "PG-E01"


# --- cross-validation --------------------------------------------------------------------


def test_it_is_what_scikit_learn_says_fold_by_fold(table: pandas.DataFrame) -> None:
    result = pathgen.cross_validate(table, target="grade", groups="patient", folds=5, c=0.5)
    x, y = table[[f"f{i}" for i in range(DIM)]].to_numpy(float), table["grade"].astype(int)
    fold, owners = np.array(result.folds), np.array(result.groups)
    expected = np.zeros((SLIDES, 3))
    for number in range(5):
        test = fold == number
        assert not set(owners[test]) & set(owners[~test])
        scaler = StandardScaler().fit(x[~test])
        model = LogisticRegression(C=0.5, max_iter=5000).fit(scaler.transform(x[~test]), y[~test])
        expected[test] = model.predict_proba(scaler.transform(x[test]))
    assert np.allclose(result.probabilities, expected)
    said = expected.argmax(axis=1)
    assert result.metrics["accuracy"] == pytest.approx(accuracy_score(y, said))
    kappa = cohen_kappa_score(y, said, weights="quadratic")
    assert result.metrics["qwk"] == pytest.approx(kappa)
    assert f"kappa {kappa:.3f} [" in repr(result)
    assert f"on {SLIDES} slides of {SLIDES // 2} patients" in repr(result)


def test_classes_given_as_numbers_are_no_numbers_to_learn_from(table: pandas.DataFrame) -> None:
    text = pathgen.cross_validate(table, target="grade", groups="patient")
    cells = table.astype({"grade": float, "patient": int})
    numbers = pathgen.cross_validate(cells, target="grade", groups="patient")
    assert numbers.classes == ("0", "1", "2")
    assert np.array_equal(numbers.probabilities.argmax(1), text.probabilities.argmax(1))
    assert numbers.metrics["accuracy"] < 1  # the target among the numbers would give it away


def test_the_answers_go_out_as_predictions(table: pandas.DataFrame, tmp_path: Path) -> None:
    from pathgen.evaluate.predictions import evaluate_predictions

    result = pathgen.cross_validate(table, target="grade", groups="patient")
    values = evaluate_predictions(result.to_csv(tmp_path / "predictions.csv"))
    for name in ("accuracy", "qwk", "auc"):
        assert values[name] == pytest.approx(result.metrics[name])
    assert values["intervals"]["qwk"] == pytest.approx(result.metrics["intervals"]["qwk"])


def test_names_that_look_like_formulas_go_out_as_texts(
    table: pandas.DataFrame, tmp_path: Path
) -> None:
    named = table.assign(grade=[f"=G{grade}" for grade in table["grade"]])
    result = pathgen.cross_validate(named, target="grade", groups="patient")
    path = result.to_csv(tmp_path / "predictions.csv")
    with path.open(newline="") as handle:
        assert all(row["label"].startswith("'=G") for row in csv.DictReader(handle))
    assert list(read_predictions(path).labels or []) == list(result.labels)


def test_the_page_says_how_and_how_well(table: pandas.DataFrame, tmp_path: Path) -> None:
    result = pathgen.cross_validate(table, target="grade", groups="patient")
    page = result.report(tmp_path / "result.html").read_text(encoding="utf-8")
    for words in ("Confusion matrix", "quadratic kappa", "Surest errors", "Logistic regression",
                  "slides of one patient"):  # fmt: skip
        assert words in page
    slide = result.wrong()[0][0]
    assert slide in page
    assert str(tmp_path) not in page
    (axes,) = result.plot().axes
    numbers = sorted(int(text.get_text()) for text in axes.texts)
    assert numbers == sorted(np.ravel(result.metrics["confusion"]).tolist())


def test_what_is_left_out_is_said(table: pandas.DataFrame) -> None:
    some = table.copy()
    some.loc[["s00", "s05"], "grade"] = None
    some.loc["s07", "patient"] = None
    result = pathgen.cross_validate(some, target="grade", groups="patient")
    assert len(result.slides) == SLIDES - 2
    assert result.notes[0] == "2 rows without a grade left out (s00, s05)"
    assert "1 row without a patient" in result.notes[1]
    alone = pathgen.cross_validate(table, target="grade")
    assert "no column of patients" in alone.notes[0]


def test_chance_is_chance(table: pandas.DataFrame) -> None:
    rng = np.random.default_rng(1)
    noise = pandas.DataFrame(rng.normal(size=(120, 3)), columns=["a", "b", "c"])
    noise["y"] = rng.permutation(np.repeat(["no", "yes"], 60))
    low, high = pathgen.cross_validate(noise, target="y").metrics["intervals"]["auc"]
    assert low < 0.5 < high


def test_tables_that_do_not_do_are_refused(table: pandas.DataFrame) -> None:
    for target, options, word in (
        ("grad", {}, "no column 'grad'"), ("grade", {"groups": "patients"}, "no column"),
        ("grade", {"groups": "patient", "folds": 99}, "PG-N07"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=word):
            pathgen.cross_validate(table, target, **options)
    with pytest.raises(DataError, match="no columns of numbers"):
        pathgen.cross_validate(table[["grade", "patient"]], "grade")
    gone = table.copy()
    gone.loc["s04", "f2"] = np.nan
    with pytest.raises(DataError, match="s04"):
        pathgen.cross_validate(gone, "grade")


# --- pictures ----------------------------------------------------------------------------


def test_axes_are_the_principal_ones(table: pandas.DataFrame) -> None:
    figure = pathgen.pl.pca(table, color="grade")
    (axes,) = figure.axes
    points = np.concatenate([np.asarray(part.get_offsets()) for part in axes.collections])
    x = StandardScaler().fit_transform(table[[f"f{i}" for i in range(DIM)]].to_numpy(float))
    model = PCA(2).fit(x)
    order = np.argsort(table["grade"].to_numpy(), kind="stable")
    expected = model.transform(x)[order]
    for i in (0, 1):
        sign = np.sign(points[0, i] * expected[0, i])
        assert np.allclose(points[:, i], sign * expected[:, i], atol=1e-6)
    assert f"({model.explained_variance_ratio_[0]:.0%} of the variance)" in axes.get_xlabel()
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["0 (10)", "1 (10)", "2 (10)"]


def test_colors_are_classes_scales_or_gray(table: pandas.DataFrame) -> None:
    some = table.copy()
    some["age"] = [str(40 + i) for i in range(SLIDES)]
    some.loc["s00", "grade"] = None
    numbers = pathgen.pl.pca(some.drop(columns="grade"), color="age")
    assert len(numbers.axes) == 2  # a color bar
    gray = pathgen.pl.pca(some, color="grade").axes[0]
    assert gray.get_legend().get_texts()[0].get_text() == "unknown"
    assert pathgen.pl.pca(some).axes[0].get_legend() is None


def test_tsne_keeps_groups_together_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    apart = pandas.DataFrame(rng.normal(size=(30, 4)) + np.repeat([0, 50], 15)[:, None])
    points = [
        np.asarray(pathgen.pl.tsne(apart, seed=3).axes[0].collections[0].get_offsets())
        for _ in range(2)
    ]
    assert np.array_equal(points[0], points[1])
    centers = points[0][:15].mean(0), points[0][15:].mean(0)
    spread = np.linalg.norm(points[0][:15] - centers[0], axis=1).max()
    assert np.linalg.norm(centers[0] - centers[1]) > spread


def test_pictures_that_cannot_be_are_refused(table: pandas.DataFrame) -> None:
    with pytest.raises(DataError, match="too few"):
        pathgen.pl.pca(table.iloc[:2])
    with pytest.raises(ConfigError, match="pca, tsne, umap"):
        pathgen.pl.embedding(table, method="mds")


@pytest.mark.skipif(find_spec("umap") is not None, reason="umap-learn is installed")
def test_umap_says_what_it_needs(table: pandas.DataFrame) -> None:
    with pytest.raises(MissingExtraError, match=r"pathgen\[umap\]"):
        pathgen.pl.umap(table, color="grade")


def test_figures_leave_pyplot_alone(table: pandas.DataFrame) -> None:
    before = sys.modules.get("matplotlib.pyplot")
    figure = pathgen.pl.pca(table)
    assert sys.modules.get("matplotlib.pyplot") is before
    assert before is None or not before.get_fignums()
    assert figure._repr_png_()[:4] == b"\x89PNG"
