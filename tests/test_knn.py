"""k-NN: DINO's vote, against scikit-learn and brute force; slides never on both sides."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier

from pathgen.data.sources import ImageFolder
from pathgen.errors import ConfigError, DataError, NoInputError, RunError
from pathgen.evaluate import knn
from pathgen.evaluate.knn import (
    ColorHistogram,
    color_histogram_features,
    evaluate_knn,
    group_folds,
    knn_accuracy,
    knn_predict,
    scores,
)
from pathgen.evaluate.labelled import load_labelled
from pathgen.provenance import Provenance
from pathgen.stores import FeatureStore

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def clusters(
    rng: np.random.Generator, n: int, dim: int = 16, classes: int = 4, spread: float = 1.5
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.integers(0, classes, n)
    return (centers[labels] + spread * rng.normal(size=(n, dim))).astype(np.float32), labels


# --- the vote --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 10, 20, 200])
def test_vote_is_scikit_learns_with_dinos_weight(k: int) -> None:
    """Check 11: cosine distance d, weight exp((1 - d) / 0.07)."""
    rng = np.random.default_rng(0)
    (train, labels), (test, truth) = clusters(rng, 600), clusters(rng, 300)
    reference = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(train.astype(np.float64), labels)
    expected = reference.predict(test.astype(np.float64))
    assert np.array_equal(knn_predict(train, labels, test, k=k), expected)
    assert knn_accuracy(train, labels, test, truth, k=k) == (expected == truth).mean()


def test_vote_is_the_published_loop() -> None:
    """One-hot votes of the top k, weighted and summed, in torch and one sample at a time."""
    rng = np.random.default_rng(1)
    (train, labels), (test, _) = clusters(rng, 150), clusters(rng, 40)
    bank = torch.nn.functional.normalize(torch.from_numpy(train), dim=1)
    for row, found in zip(test, knn_predict(train, labels, test, k=7), strict=True):
        one = torch.nn.functional.normalize(torch.from_numpy(row), dim=0)
        near, places = (bank @ one).topk(7)
        votes = torch.zeros(4)
        for weight, place in zip((near / 0.07).exp(), places, strict=True):
            votes[labels[place]] += weight
        assert int(votes.argmax()) == found


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    (train, labels), (test, _) = clusters(rng, 100), clusters(rng, 50)
    whole = knn_predict(train, labels, test)
    monkeypatch.setattr(knn, "CHUNK", 7)
    assert np.array_equal(whole, knn_predict(train, labels, test))
    monkeypatch.setattr(knn, "COSINES", 300)  # three at a time
    assert np.array_equal(whole, knn_predict(train, labels, test))
    monkeypatch.setattr(knn, "COSINES", 1)
    assert np.array_equal(whole, knn_predict(train, labels, test))


def test_memory_is_bounded_whatever_the_number_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "COSINES", 2**20, raising=False)
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 2)).astype(np.float32) for n in (40_000, 500))
    tracemalloc.start()
    try:
        knn_predict(train, np.zeros(len(train), np.int64), test, k=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20  # all 20 million cosines and their order would be 240 MB


def test_length_of_vectors_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    (train, labels), (test, _) = clusters(rng, 100), clusters(rng, 50)
    scaled = train * rng.uniform(0.1, 10, (100, 1)).astype(np.float32)
    assert np.array_equal(knn_predict(train, labels, test), knn_predict(scaled, labels, test * 3))


def test_a_copy_is_its_own_nearest_neighbor() -> None:
    train, labels = clusters(np.random.default_rng(4), 80)
    assert knn_accuracy(train, labels, train, labels, k=1) == 1


def test_few_neighbors_and_none() -> None:
    train, labels = clusters(np.random.default_rng(5), 3)
    assert len(knn_predict(train, labels, train, k=20)) == 3
    with pytest.raises(DataError) as caught:
        knn_predict(train[:0], labels[:0], train)
    assert caught.value.code == "PG-D07"


# --- color histograms ------------------------------------------------------------------------


def test_histogram_counts_each_pixel_once() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    found = ColorHistogram(bins=4).encode(images)
    assert found.shape == (5, 64)
    for image, vector in zip(images, found, strict=True):
        edges = [np.arange(5) * 64] * 3
        counts, _ = np.histogramdd(image.reshape(-1, 3), bins=edges)
        assert np.allclose(vector**2 * 63, counts.ravel(), atol=1e-4)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.array_equal(found, color_histogram_features(list(images), bins=4))


# --- folds -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=50)
def test_no_group_is_on_both_sides(numbers: list[int], folds: int, seed: int) -> None:
    groups = np.array([f"p{number}" for number in numbers])
    if len(set(numbers)) < 2:
        with pytest.raises(DataError):
            list(group_folds(groups, folds, seed))
        return
    parts = list(group_folds(groups, folds, seed))
    assert len(parts) == min(folds, len(set(numbers)))
    for train, test in parts:
        assert not set(groups[train]) & set(groups[test])
        assert len(train) + len(test) == len(groups)
        assert len(test) > 0
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(len(groups)))


# --- metrics ---------------------------------------------------------------------------------


def test_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(6)
    truth = rng.choice(5, 400, p=[0.5, 0.2, 0.2, 0.08, 0.02])
    predicted = np.where(rng.random(400) < 0.6, truth, rng.integers(0, 5, 400))
    found = scores(truth, predicted, [f"c{i}" for i in range(5)])
    assert np.isclose(found["accuracy"], (truth == predicted).mean())
    assert np.isclose(found["balanced_accuracy"], balanced_accuracy_score(truth, predicted))
    assert np.isclose(found["macro_f1"], f1_score(truth, predicted, average="macro"))
    assert np.isclose(found["chance"], np.bincount(truth).max() / 400)
    expected = np.array(precision_recall_fscore_support(truth, predicted)).T
    for (precision, recall, f1, count), line in zip(
        expected, found["per_class"].values(), strict=True
    ):
        assert np.isclose(line["precision"], precision)
        assert np.isclose(line["recall"], recall)
        assert np.isclose(line["f1"], f1)
        assert line["count"] == count


# --- stores ----------------------------------------------------------------------------------


def make_features(
    path: Path,
    features: NDArray[np.float32],
    labels: NDArray[np.int64] | None = None,
    *,
    name: str = "slide",
    patient: str | None = None,
    encoder: str = "e1",
    classes: tuple[str, ...] = ("c0", "c1", "c2", "c3"),
) -> Path:
    n = len(features)
    source = {"id": f"id of {name}", "name": name} | ({"patient": patient} if patient else {})
    with FeatureStore.create(
        path, features.shape[1], Provenance(stage="extract", config={}, inputs={"patches": name}),
        encoder={"name": "toy", "id": encoder, "dim": features.shape[1]}, source=source,
        classes=() if labels is None else classes,
    ) as writer:  # fmt: skip
        writer.append(
            features=features,
            coords=np.stack([np.arange(n) * 10, np.full(n, 7)], 1).astype(np.int64),
            label=np.full(n, -1, np.int32) if labels is None else labels.astype(np.int32),
        )
    return path


def test_folders_carry_their_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    (train, labels), (test, truth) = clusters(rng, 200), clusters(rng, 80)
    labels[:5] = -1
    result = evaluate_knn(
        make_features(tmp_path / "train.h5", train, labels, name="train"),
        make_features(tmp_path / "test.h5", test, truth, name="test"),
        k=10,
        title="mine",
    )
    assert result["accuracy"] == knn_accuracy(train[5:], labels[5:], test, truth, k=10)
    assert (result["n_train"], result["n_test"], result["n_unlabelled"]) == (195, 80, 5)
    assert (result["k"], result["title"], result["shared_groups"]) == (10, "mine", 0)
    assert result["encoder"] == {"name": "toy", "id": "e1", "dim": 16}
    assert result["chance"] == np.bincount(truth).max() / 80


def test_classes_are_joined_by_name_not_by_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    x, y = clusters(rng, 200)
    one = make_features(tmp_path / "one.h5", x, y, name="one")
    other = make_features(
        tmp_path / "other.h5", x, 3 - y, name="other", classes=("c3", "c2", "c1", "c0")
    )
    assert evaluate_knn(one, other, k=1)["accuracy"] == 1


@pytest.fixture
def slides(tmp_path: Path) -> tuple[list[Path], Path]:
    """Six slides of three patients; a slide-specific offset rewards leaking between slides."""
    rng = np.random.default_rng(9)
    paths, rows = [], []
    for number in range(6):
        x, y = clusters(rng, 30, spread=3)
        name = f"sub/s{number}"
        path = tmp_path / "features" / f"{name}.h5"
        paths.append(make_features(path, x, name=name, patient=f"p{number // 2}"))
        rows += [(name, i * 10, 7, f"c{label}") for i, label in enumerate(y[:25])]
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerows([("slide", "x", "y", "label"), *rows, ("gone", 0, 0, "c1")])
    return paths, table


def test_patients_are_left_out(slides: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, table = slides
    result = evaluate_knn(tmp_path / "features", labels=table, folds=5, seed=1, k=5)
    assert result["folds"] == 3  # patients, not slides
    assert (result["n_train"], result["n_test"], result["n_unlabelled"]) == (100, 150, 30)
    assert result == evaluate_knn(paths, labels=str(table), folds=5, seed=1, k=5)

    with table.open(newline="") as handle:
        names = {(r["slide"], int(r["x"])): r["label"] for r in csv.DictReader(handle)}
    stores = [FeatureStore.open(path) for path in paths]
    right = 0
    for patient in range(3):  # with one patient a fold, the split is known
        judged, known = stores[2 * patient : 2 * patient + 2], stores
        known = [store for store in stores if store not in judged]
        x, y = _labelled(known, names)
        tx, ty = _labelled(judged, names)
        right += round(knn_accuracy(x, y, tx, ty, k=5) * len(ty))
    assert result["accuracy"] == right / 150


def test_a_patient_column_of_the_labels_wins(
    slides: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, table = slides
    lines = table.read_text().splitlines()
    owned = tmp_path / "owned.csv"

    def write(owner: dict[str, str]) -> None:
        rows = [f"{line},{owner.get(line.split(',')[0], '')}" for line in lines[1:]]
        owned.write_text("\n".join([f"{lines[0]},Patient ID", *rows]) + "\n")

    write({"sub/s0": "a", "sub/s1": "b", "sub/s2": "a"})
    groups = load_labelled(paths, owned).groups
    assert list(dict.fromkeys(groups.tolist())) == ["a", "b", "p1", "p2"]
    assert (groups[50:75] == "a").all()  # s2 joins s0; s3 keeps the patient of its store
    assert evaluate_knn(paths, labels=owned, k=5)["folds"] == 4
    owned.write_text("slide,x,y,label,case\nsub/s0,0,7,c1,p\nsub/s0,10,7,c1,q\n")
    with pytest.raises(DataError, match="Line 3: two patients for one slide"):
        load_labelled(paths, owned)
    owned.write_text("slide,x,y,label,Case,case\nsub/s0,0,7,c1,p,q\n")
    with pytest.raises(DataError, match="Several patient columns") as caught:
        load_labelled(paths, owned)
    assert caught.value.code == "PG-D08"


def test_a_patch_label_for_nothing_known_is_none(
    slides: tuple[list[Path], Path], tmp_path: Path
) -> None:
    text = "slide,x,y,label\nsub/s0,0,7,c1\nsub/s0,10,7,NA\nsub/s0,20,7,nan\n"
    (tmp_path / "na.csv").write_text(text)
    found = load_labelled(slides[0], tmp_path / "na.csv")
    assert (found.classes, len(found)) == (("c1",), 1)


def _labelled(
    stores: list[FeatureStore], names: dict[tuple[str, int], str]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x, y = [], []
    for store in stores:
        for vector, coord in zip(store.features(), store.coords(), strict=True):
            name = names.get((store.name, int(coord[0])))
            if name:
                x.append(vector)
                y.append(int(name[1:]))
    return np.array(x), np.array(y)


def test_what_cannot_be_judged_is_said(tmp_path: Path, slides: tuple[list[Path], Path]) -> None:
    paths, table = slides
    with pytest.raises(DataError) as caught:
        evaluate_knn(paths)
    assert caught.value.code == "PG-D07"
    with pytest.raises(DataError) as caught:
        evaluate_knn(paths[:1], labels=table)
    assert caught.value.code == "PG-D09"
    x, y = clusters(np.random.default_rng(0), 10)
    other = make_features(tmp_path / "other.h5", x, y, name="o", encoder="e2")
    mine = make_features(tmp_path / "mine.h5", x, y, name="m")
    for train, test in ([mine, other], None), (mine, other):
        with pytest.raises(RunError, match="several encoders"):
            evaluate_knn(train, test)
    with pytest.raises(NoInputError):
        evaluate_knn(tmp_path / "nowhere")
    with pytest.raises(ConfigError):
        evaluate_knn(mine, mine, k=0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide,x,label\n", "no column y"),
        ("slide,x,y,label\ns,one,2,c\n", "Line 2"),
        ("slide,x,y,label\ns,1,2,a\ns,1,2,b\n", "two labels"),
        ("", "no column"),
    ],
)
def test_bad_label_files_are_named(
    slides: tuple[list[Path], Path], tmp_path: Path, text: str, said: str
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        evaluate_knn(slides[0], labels=bad)
    assert caught.value.code == "PG-D08"


@pytest.mark.data
def test_colors_alone_tell_much_of_the_colon_patches() -> None:
    """The data's notes put a color-histogram k-NN near 0.6 at chance 0.2."""
    root = DATA / "patches" / "colon5_112"
    if not root.is_dir():
        pytest.skip("colon5_112 is not here")
    train, test = ImageFolder(root / "train"), ImageFolder(root / "test")
    rng = np.random.default_rng(0)
    learn, judge = rng.permutation(len(train))[:1000], rng.permutation(len(test))[:300]
    accuracy = knn_accuracy(
        color_histogram_features(train.images(learn)), train.labels[learn],
        color_histogram_features(test.images(judge)), test.labels[judge],
    )  # fmt: skip
    assert 0.5 < accuracy < 0.7
