"""Extraction: row i of the features is the encoder's vector of patch i, once and for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import make_folder, make_patches, noise
from numpy.typing import NDArray

from pathgen.data.sources import ImageFolder, PatchSource
from pathgen.errors import ConfigError, DataError, MissingExtraError, RunError, StoreError
from pathgen.evaluate.knn import ColorHistogram, evaluate_knn
from pathgen.extract import ExtractConfig, encoder_facts, extract_features, load_encoder
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.runs import save_model
from pathgen.stores import FeatureStore

TINY = {"name": "vit_tiny_patch16_224", "image_size": 32, "drop_path": 0.0,
        "kwargs": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}}  # fmt: skip


class Means:
    """Mean color, and how many patches it was shown."""

    dim, id = 3, "means-1"

    def __init__(self) -> None:
        self.seen = 0

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert patches.dtype == np.uint8
        self.seen += len(patches)
        return patches.mean((1, 2)).astype(np.float32)


class Counter:
    """A `Progress` that adds up."""

    def task(self, title: str, total: int, done: int = 0) -> Any:
        self.total, self.done = total, done
        return self

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count

    def say(self, text: str) -> None: ...


@pytest.fixture
def sources(tmp_path: Path) -> list[PatchSource]:
    """Two slides, one of them empty, and a class folder whose images differ in size."""
    rng = np.random.default_rng(0)
    first = make_patches(tmp_path / "1.h5", noise(rng, 7, 32), "sub/one", "tumor", "p1")
    none = make_patches(tmp_path / "2.zarr", noise(rng, 0, 32), "none")
    images = {f"{name}/{i}.png": noise(rng, 1, 30 + i)[0] for name in "ab" for i in range(4)}
    return [first, none, ImageFolder(make_folder(tmp_path / "folder", images))]


@pytest.fixture
def tiny() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(**TINY)).eval()


def test_rows_are_aligned(sources: list[PatchSource], tmp_path: Path) -> None:
    progress = Counter()
    paths = extract_features(
        Means(), sources, tmp_path / "out", ExtractConfig(batch_size=3), progress=progress
    )
    assert paths == [tmp_path / "out" / f"{name}.h5" for name in ("sub/one", "none", "folder")]
    assert (progress.done, progress.total) == (15, 15)
    for path, source in zip(paths, sources, strict=True):
        with FeatureStore.open(path) as store:
            rows = list(range(len(source)))
            expected = [image.mean((0, 1)) for image in source.images(rows)]
            assert np.allclose(store.features(), np.reshape(expected, (-1, 3)), atol=1e-3)
            assert store.source["id"] == source.id
            assert store.name == source.name
            assert store.encoder["id"] == "means-1"


def test_what_is_known_of_the_patches_is_kept(sources: list[PatchSource], tmp_path: Path) -> None:
    slide, empty, folder = map(
        FeatureStore.open, extract_features(Means(), sources, tmp_path / "out")
    )
    assert (slide.label, slide.patient, slide.patch_size_level0) == ("tumor", "p1", 32)
    assert np.array_equal(slide.coords(), sources[0].coords())  # type: ignore[attr-defined]
    assert slide.labels().tolist() == [-1] * 7
    assert len(empty) == 0
    assert folder.classes == ("a", "b")
    assert folder.labels().tolist() == [0] * 4 + [1] * 4


def test_finished_stores_are_kept(sources: list[PatchSource], tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = extract_features(Means(), sources, out)
    before = [path.read_bytes() for path in paths]
    again = Means()
    progress = Counter()
    assert extract_features(again, sources, out, progress=progress) == paths
    assert again.seen == 0
    assert progress.done == progress.total == 15
    paths[0].unlink()
    extract_features(again, sources, out)
    assert again.seen == 7
    extract_features(again, sources, out, ExtractConfig(batch_size=2), overwrite=True)
    assert again.seen == 7 + 15
    assert [path.read_bytes() for path in paths] == before  # equal runs, equal bytes


def test_another_store_is_not_overwritten(sources: list[PatchSource], tmp_path: Path) -> None:
    extract_features(Means(), sources, tmp_path / "out")
    for encoder, config, said in (
        (ColorHistogram(2), ExtractConfig(), "encoder"),
        (Means(), ExtractConfig(dtype="float16"), "dtype"),
    ):
        with pytest.raises(StoreError, match=said) as caught:
            extract_features(encoder, sources, tmp_path / "out", config)
        assert caught.value.code == "PG-O18"


def test_half_precision(sources: list[PatchSource], tmp_path: Path) -> None:
    whole = extract_features(Means(), sources[:1], tmp_path / "a")
    half = extract_features(Means(), sources[:1], tmp_path / "b", ExtractConfig(dtype="float16"))
    features = FeatureStore.open(half[0]).features()
    assert features.dtype == np.float16
    assert np.array_equal(features, FeatureStore.open(whole[0]).features().astype(np.float16))


def test_nothing_is_left_when_encoding_fails(sources: list[PatchSource], tmp_path: Path) -> None:
    class Wild(Means):
        def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
            return super().encode(patches) * np.float32(np.nan)

    class Wide(Means):
        dim = 4

    for encoder in (Wild(), Wide()):
        out = tmp_path / type(encoder).__name__
        with pytest.raises(DataError) as caught:
            extract_features(encoder, sources, out)
        assert caught.value.code == "PG-D06"
        left = {path.name for path in out.rglob("*") if path.is_file()}
        # The source without patches has nothing that could fail.
        assert left == {".pathgen-lock", "none.h5", "features.csv", "features.json"}


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = [
        ImageFolder(make_folder(tmp_path / place / "train", {f"{place}.png": noise(rng, 1, 8)[0]}))
        for place in "xy"
    ]
    with pytest.raises(DataError) as caught:
        extract_features(Means(), folders, tmp_path / "out")
    assert caught.value.code == "PG-D05"


def test_workers_change_nothing(sources: list[PatchSource], tmp_path: Path, tiny: Encoder) -> None:
    config = {"batch_size": 4}
    here = extract_features(tiny, sources, tmp_path / "a", ExtractConfig(**config))
    there = extract_features(tiny, sources, tmp_path / "b", ExtractConfig(workers=1, **config))
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]


def test_features_are_the_encoders(
    sources: list[PatchSource], tmp_path: Path, tiny: Encoder
) -> None:
    (path,) = extract_features(tiny, sources[:1], tmp_path / "out")
    images = torch.from_numpy(np.stack(sources[0].images(range(7)))).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = tiny(images).numpy()
    with FeatureStore.open(path) as store:
        assert np.allclose(store.features(), expected, atol=1e-5)
        assert store.encoder["name"] == "vit_tiny_patch16_224"
        assert store.encoder["config"]["image_size"] == 32


def test_features_go_into_the_judge(sources: list[PatchSource], tmp_path: Path) -> None:
    (path,) = extract_features(ColorHistogram(), sources[2:], tmp_path / "out")
    assert evaluate_knn(path, path, k=1)["accuracy"] == 1


# --- encoders by name ------------------------------------------------------------------------


def test_an_encoder_is_found_in_a_run(tmp_path: Path, tiny: Encoder) -> None:
    torch.manual_seed(1)
    better, untrained = (Encoder(EncoderConfig(**TINY)) for _ in range(2))
    run = tmp_path / "run"
    save_model(run / "dino" / "model", tiny)
    save_model(run / "dino" / "initial", untrained)
    (run / "gen-dino").mkdir()  # begun, not finished
    assert load_encoder(run).id == tiny.id
    assert load_encoder(run / "dino" / "initial").id == untrained.id
    save_model(run / "gen-dino" / "model", better)
    for place in (run, str(run), run / "gen-dino", run / "gen-dino" / "model"):
        found = load_encoder(place, device="cpu")
        assert found.id == better.id
        assert not found.training
        assert encoder_facts(found) == encoder_facts(better)
    assert load_encoder(run / "dino").id == tiny.id


def test_no_encoder_is_said(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError) as caught:
            load_encoder(place)
        assert caught.value.code == "PG-T04"
    with pytest.raises(ConfigError, match="resnet18"):
        load_encoder("timm:resnet81,random")


def test_timm_without_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = load_encoder("timm:test_vit,random")
    assert encoder.dim == 64
    # Untrained weights are the same each time, whatever was drawn: a second call goes on.
    torch.manual_seed(3)
    assert load_encoder("timm:test_vit,random").id == encoder.id
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingExtraError) as caught:
        load_encoder("timm:vit_tiny_patch16_224")
    assert caught.value.code == "PG-E02"


@pytest.mark.parametrize("name", ["../../x", "/elsewhere/x"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    """Stores come from anywhere, and say their name themselves."""
    store = make_patches(tmp_path / "a.h5", noise(np.random.default_rng(0), 2, 8), name=name)
    with pytest.raises(DataError, match="PG-D11"):
        extract_features(Means(), [store], tmp_path / "out" / "deep")
    assert not list(tmp_path.rglob("x.h5"))


def test_one_folder_never_mixes_two_encoders(tmp_path: Path) -> None:
    for name in "ab":
        make_folder(tmp_path / name, {"x.png": noise(np.random.default_rng(0), 1, 16)[0]})
    extract_features(Means(), tmp_path / "a", tmp_path / "out")
    other = Means()
    other.id = "means-2"
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"PG-O18.*another kind.*encoder"):
            extract_features(other, tmp_path / "b", tmp_path / "out", overwrite=overwrite)
    half = ExtractConfig(dtype="float16")
    with pytest.raises(StoreError, match=r"PG-O18.*another kind.*dtype"):
        extract_features(Means(), tmp_path / "b", tmp_path / "out", half)
    assert [path.name for path in (tmp_path / "out").glob("*.h5")] == ["a.h5"]
    extract_features(Means(), tmp_path / "b", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.h5"))) == 2
