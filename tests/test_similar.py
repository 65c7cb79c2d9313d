"""The nearest patches are those with the greatest cosine, and are shown as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_exchange import BLOCK, write_features, write_patches
from helpers_tiling import tissue_image, write_svs
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from typer.testing import CliRunner

from pathgen.cli import app
from pathgen.errors import ConfigError, DataError, NoInputError
from pathgen.heatmap import similar
from pathgen.provenance import Provenance
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchStore
from pathgen.tiling import TileConfig, tile

OWNERS = {"S1": "p1", "S02": "p1", "S003": "p2"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of 15 patches with random vectors; two are of one patient."""
    root = tmp_path_factory.mktemp("similar")
    rng = np.random.default_rng(3)
    for name, patient in OWNERS.items():
        path = write_patches(root / f"tiles/{name}.h5", name, BLOCK, patient=patient)
        with PatchStore.open(path) as store:
            facts = {key: store.attrs[key] for key in ("patch_size", "patch_size_level0", "slide")}
            with FeatureStore.create(
                root / f"features/{name}.h5", 6,
                Provenance(stage="extract", config={}, inputs={"patches": store.id}),
                encoder={"name": "e", "id": "e", "dim": 6},
                source={"id": store.id, "name": name, "patient": patient, **facts},
                dtype="float16",
            ) as writer:  # fmt: skip
                writer.append(
                    features=rng.normal(size=(len(store), 6)).astype(np.float16) * 10,
                    coords=store.coords(), label=np.full(len(store), -1, np.int32),
                )  # fmt: skip
    return root


@pytest.mark.parametrize(
    ("among", "left"),
    [("all", ["S1", "S02", "S003"]), ("other-slides", ["S02", "S003"]),
     ("other-patients", ["S003"])],
)  # fmt: skip
@pytest.mark.parametrize("given", ["tiles/S1.h5#7", "features/S1.h5#7", "tiles/S1#7"])
def test_the_nearest_are_those_of_greatest_cosine(
    root: Path, given: str, among: str, left: list[str]
) -> None:
    found = similar(str(root / given), root / "features", k=6, among=among)  # type: ignore[arg-type]
    vectors = {}
    for name in OWNERS:
        with FeatureStore.open(root / f"features/{name}.h5") as store:
            vectors[name] = store.features().astype(np.float64)
    scored = [
        (cosine, name, row)
        for name in left
        for row, cosine in enumerate(cosine_similarity(vectors["S1"][7:8], vectors[name])[0])
        if (name, row) != ("S1", 7)
    ]
    wanted = sorted(scored, reverse=True)[:6]
    assert [(one.slide, one.row) for one in found.neighbors] == [one[1:] for one in wanted]
    assert np.allclose(
        [one.cosine for one in found.neighbors], [one[0] for one in wanted], atol=1e-5
    )
    assert found.searched == len(scored)
    for one in found.neighbors:
        with PatchStore.open(root / f"tiles/{one.slide}.h5") as store:
            assert store.coords([one.row])[0].tolist() == [one.x, one.y]


def test_the_montage_shows_the_patch_and_then_its_neighbors(root: Path) -> None:
    found = similar(root / "tiles/S1.h5#7", root / "features", k=3)
    sheet = np.asarray(found.montage(columns=4))
    assert (sheet == np.asarray(found.montage(columns=4))).all()
    for i, one in enumerate([found.query, *found.neighbors]):
        with PatchStore.open(root / f"tiles/{one.slide}.h5") as store:
            image = Image.fromarray(store.images([one.row])[0])
        cell = sheet[46 : 46 + 160, 16 + i * 170 : 16 + i * 170 + 160]
        wanted = np.asarray(image.resize((160, 160), Image.Resampling.LANCZOS))
        assert np.array_equal(cell, wanted)
    assert "S1#7: 3 of 44 patches" in repr(found)
    assert "data:image/png" in found._repr_html_()


def test_patches_come_from_the_slides_where_none_are_stored(tmp_path: Path) -> None:
    """To what resampling leaves, as a store of them has them."""
    slide = write_svs(tmp_path / "slides/a.svs", tissue_image(900, 700))
    config = TileConfig(patch_size=64, mpp=1.0, min_hematoxylin=0, codec="png")
    report = tile(slide, tmp_path / "tiles", config, workers=0)
    write_features(tmp_path / "features/a.h5", report.stores[0], 6)
    ref = f"{tmp_path / 'features/a.h5'}#3"
    cut = similar(ref, tmp_path / "features", k=5, slides=tmp_path / "slides")
    kept = similar(ref, tmp_path / "features", k=5, tiles=tmp_path / "tiles")
    one, other = (np.asarray(found.montage()).astype(int) for found in (cut, kept))
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 2
    with pytest.raises(DataError, match=r"PG-H04.*--slides"):
        similar(ref, tmp_path / "features", k=5).montage()


def test_patches_come_from_the_slide_of_that_name_and_not_of_that_file(tmp_path: Path) -> None:
    """Of a/x.svs and b/x.svs the patches of b are shown."""
    for i, folder in enumerate("ab"):
        image = np.roll(tissue_image(512, 384), 100 * i, axis=0)
        write_svs(tmp_path / "slides" / folder / "x.svs", image)
    config = TileConfig(patch_size=64, mpp=1.0, min_hematoxylin=0, codec="png")
    report = tile(tmp_path / "slides", tmp_path / "tiles", config, workers=0)
    (store,) = (path for path in report.stores if path.parent.name == "b")
    write_features(tmp_path / "features/x.h5", store, 6)
    ref = f"{tmp_path / 'features/x.h5'}#1"
    cut = similar(ref, tmp_path / "features", k=3, slides=tmp_path / "slides")
    kept = similar(ref, tmp_path / "features", k=3, tiles=tmp_path / "tiles")
    one, other = (np.asarray(found.montage()).astype(int) for found in (cut, kept))
    assert np.abs(one - other).mean() < 2


def test_what_is_not_there_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no such patch"):
        similar(root / "tiles/S1.h5#15", root / "features")
    with pytest.raises(NoInputError, match="STORE#ROW"):
        similar(root / "tiles/S1.h5", root / "features")
    with pytest.raises(ConfigError, match=r"similar.txt.*\.png"):
        similar(root / "tiles/S1.h5#1", root / "features").save(tmp_path / "similar.txt")
    with pytest.raises(NoInputError, match="no such store"):
        similar(root / "tiles/S9#1", root / "features")
    other = write_patches(tmp_path / "S9.h5", "S9")
    with pytest.raises(DataError, match="PG-H08"):
        similar(f"{other}#1", root / "features")
    mixed = write_features(tmp_path / "f/S9.h5", other, 6)
    with pytest.raises(DataError, match="PG-H02"):
        similar(root / "tiles/S1.h5#1", [root / "features", mixed])
    with pytest.raises(NoInputError, match="nothing to compare"):
        similar(root / "tiles/S1.h5#1", root / "features/S1.h5", among="other-slides")


def test_a_vector_of_zeros_is_near_to_nothing(root: Path, tmp_path: Path) -> None:
    path = write_patches(tmp_path / "tiles/Z.h5", "Z", BLOCK[:3])
    with PatchStore.open(path) as store:
        source = {"id": store.id, "name": "Z"}
        with FeatureStore.create(
            tmp_path / "features/Z.h5", 6, Provenance(stage="extract", config={}, inputs={}),
            encoder={"name": "e", "id": "e", "dim": 6}, source=source,
        ) as writer:  # fmt: skip
            vectors = np.array([[1, 0, 0, 0, 0, 0], [0] * 6, [2, 0, 0, 0, 0, 0]], np.float32)
            writer.append(features=vectors, coords=store.coords(), label=np.full(3, -1, np.int32))
    found = similar(f"{path}#0", tmp_path / "features", k=5)
    assert [(one.row, one.cosine) for one in found.neighbors] == [(2, 1.0), (1, 0.0)]


def test_the_command_prints_a_table_and_writes_the_montage(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "similar.png"
    given = ["similar", f"{root / 'tiles/S1.h5'}#7", "--within", str(root / "features"), "-k", "4"]
    done = CliRunner().invoke(app, [*given, "-o", str(out)])
    assert done.exit_code == 0, done.output
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["slide", "row", "x", "y", "cosine"]
    assert len([line for line in lines if line.startswith(("S0", "S1"))]) == 4
    done = CliRunner().invoke(app, [*given, "--json"])
    assert len(json.loads(done.stdout.splitlines()[-1])["neighbors"]) == 4
