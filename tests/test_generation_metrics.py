"""FID, KID, precision and recall against the formulas written out anew, and others' code."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd
from typer.testing import CliRunner

from pathgen.cli.root import app
from pathgen.errors import DataError, RunError
from pathgen.evaluate import generation
from pathgen.evaluate.generation import (
    compare_sets,
    evaluate_generation,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from pathgen.provenance import Provenance
from pathgen.stores import FeatureStore


def sets(n: int, m: int, dim: int, shift: float = 0.3, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dim, dim))
    return rng.normal(size=(n, dim)), (rng.normal(size=(m, dim)) @ mix / dim**0.5 + shift)


def by_matrix_root(x: Any, y: Any) -> float:
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(one @ two).real
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.trace(one + two - 2 * root))


@pytest.mark.parametrize(("n", "m", "dim"), [(50, 80, 6), (200, 33, 16)])
def test_fid_is_the_formula_of_heusel(n: int, m: int, dim: int) -> None:
    x, y = sets(n, m, dim)
    value = frechet_distance(x, y)
    assert value == pytest.approx(by_matrix_root(x, y), rel=1e-9)
    moments = [(torch.tensor(v.mean(0)), torch.tensor(np.cov(v, rowvar=False))) for v in (x, y)]
    theirs = float(_compute_fid(*moments[0], *moments[1]))
    assert value == pytest.approx(theirs, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-9)


def test_fid_of_gaussians_is_known_and_holds_without_full_rank() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20_000, 3))
    # Two Gaussians N(0, I) and N(d, s^2 I): |d|^2 + 3 (1 - s)^2.
    assert frechet_distance(x, 2 * x + 1) == pytest.approx(3 + 3, abs=0.15)
    few = rng.normal(size=(5, 40))  # rank 4 of 40
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    turned = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    other = rng.normal(size=(7, 40))
    assert frechet_distance(few @ turned, other @ turned) == pytest.approx(
        frechet_distance(few, other), rel=1e-9
    )
    assert frechet_distance(few + 3, few) == pytest.approx(9 * 40, rel=1e-9)


def test_kid_of_one_subset_is_the_unbiased_discrepancy() -> None:
    x, y = sets(12, 12, 5)
    kernel = lambda a, b: (float(a @ b) / 5 + 1) ** 3  # noqa: E731

    def by_loops(a: Any, b: Any) -> float:
        n, m = len(a), len(b)
        within = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j)
        other = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j)
        cross = sum(kernel(one, two) for one in a for two in b)
        return within / (n * (n - 1)) + other / (m * (m - 1)) - 2 * cross / (n * m)

    assert generation._discrepancy(x, y) == pytest.approx(by_loops(x, y), rel=1e-10)
    assert generation._discrepancy(x, y[:7]) == pytest.approx(by_loops(x, y[:7]), rel=1e-10)
    theirs = float(poly_mmd(torch.tensor(x), torch.tensor(y)))
    assert generation._discrepancy(x, y) == pytest.approx(theirs, rel=1e-10)


def test_kid_averages_over_all_subsets_and_is_zero_for_equal_distributions() -> None:
    x, y = sets(4, 4, 3)
    found = kernel_distance(x, y, subsets=4000, seed=5)
    assert found.size == 2  # half of the set
    pairs = list(itertools.combinations(range(4), 2))
    every = [generation._discrepancy(x[list(a)], y[list(b)]) for a in pairs for b in pairs]
    assert found.mean == pytest.approx(np.mean(every), abs=5 * np.std(every) / 4000**0.5)
    assert found.sd == pytest.approx(np.std(every), rel=0.15)
    assert kernel_distance(x, y, subsets=3, seed=5) == kernel_distance(x, y, subsets=3, seed=5)
    assert kernel_distance(x, y, subsets=3, seed=6) != kernel_distance(x, y, subsets=3, seed=5)

    rng = np.random.default_rng(3)
    equal = [
        kernel_distance(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), subsets=5).mean
        for _ in range(60)
    ]
    assert abs(np.mean(equal)) < 4 * np.std(equal) / 60**0.5  # unbiased: also below zero
    assert min(equal) < 0


def test_precision_and_recall_are_those_of_neighbor_balls() -> None:
    x, y = sets(90, 70, 4, shift=0.8)

    def share_inside(asked: Any, centers: Any, k: int) -> float:
        radius = NearestNeighbors(n_neighbors=k + 1).fit(centers).kneighbors(centers)[0][:, k]
        distance = np.linalg.norm(asked[:, None] - centers[None], axis=2)
        return float((distance <= radius).any(1).mean())

    for k in (1, 3):
        found = precision_recall(x, y, k)
        assert found.precision == share_inside(y, x, k)
        assert found.recall == share_inside(x, y, k)
    # All images alike and good: precise, but of no variety.
    alike = np.tile(x[:1], (50, 1)) + np.random.default_rng(0).normal(size=(50, 4)) * 1e-3
    found = precision_recall(x, alike)
    assert found.precision == 1
    assert found.recall < 0.2


def test_distances_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sets(40, 30, 4)
    whole = precision_recall(x, y)
    monkeypatch.setattr(generation, "DISTANCES", 64)
    assert precision_recall(x, y) == whole


def test_few_images_are_warned_of_and_too_few_refused() -> None:
    x, y = sets(30, 9, 8)
    assert compare_sets(x, y)["warning"] is None  # 9 of 8 + 1
    values = compare_sets(x, y[:8])
    assert "FID of 8 images in 8 dimensions" in values["warning"]
    assert (values["n_real"], values["n_synthetic"], values["dim"]) == (30, 8, 8)
    with pytest.raises(DataError, match="PG-D06"):
        compare_sets(x, y[:3])
    with pytest.raises(DataError, match="PG-D06"):
        frechet_distance(x, y[:, :5])
    with pytest.raises(DataError, match="not finite"):
        frechet_distance(x, np.where(np.arange(9)[:, None] == 4, np.nan, y))


def put(path: Path, vectors: Any, encoder: str = "e1") -> Path:
    provenance = Provenance(stage="extract", config={}, inputs={"patches": path.stem})
    source = {"id": path.stem, "name": path.stem}
    with FeatureStore.create(
        path, vectors.shape[1], provenance, source=source,
        encoder={"name": "vit", "id": encoder, "dim": vectors.shape[1]},
    ) as writer:  # fmt: skip
        writer.append(
            features=vectors.astype(np.float32), coords=np.zeros((len(vectors), 2), np.int64),
            label=np.full(len(vectors), -1, np.int32),
        )  # fmt: skip
    return path


def test_the_command_compares_folders_of_features(tmp_path: Path) -> None:
    x, y = sets(40, 31, 4)
    x, y = x.astype(np.float32), y.astype(np.float32)
    put(tmp_path / "real" / "a.h5", x[:15])
    put(tmp_path / "real" / "b.h5", x[15:])
    put(tmp_path / "synthetic" / "c.h5", y)
    out = tmp_path / "fid.json"
    folders = [str(tmp_path / "real"), str(tmp_path / "synthetic")]
    done = CliRunner().invoke(app, ["evaluate", "fid", *folders, "-o", str(out), "--title", "tiny"])
    assert done.exit_code == 0, done.output
    values = json.loads(out.read_text())
    assert values["fid"] == pytest.approx(frechet_distance(x, y))
    assert (values["n_real"], values["n_synthetic"], values["title"]) == (40, 31, "tiny")
    assert "40 real, 31 synthetic" in done.output
    sampled = evaluate_generation(*folders, sample=20, seed=1)
    assert (sampled["n_real"], sampled["n_synthetic"]) == (20, 20)
    assert evaluate_generation(*folders, sample=20, seed=1) == sampled
    put(tmp_path / "other" / "c.h5", y, encoder="e2")
    with pytest.raises(RunError, match="several encoders"):
        evaluate_generation(folders[0], tmp_path / "other")
