"""Latents in stores: those of the patches, row for row, made once and read as training draws."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pathgen import commit
from pathgen.data.latents import Latents, drawn_mirrors, latent_loader
from pathgen.data.loading import image_loader
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import ImageFolder, PatchSource
from pathgen.errors import DataError, NoInputError, RunError, StoreError
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.weights import weights_id
from pathgen.progress import Silent
from pathgen.provenance import Provenance
from pathgen.stores import LatentStore, find_stores, open_store
from pathgen.train.latents import mirrored, prepare_latents

SHAPE = (4, 4, 4)


def folder_of(place: Path, count: int, seed: int) -> ImageFolder:
    rng = np.random.default_rng(seed)
    place.mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 255, (20, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    return ImageFolder(place)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[PatchSource]:
    """Two sources, of 37 and 5 patches."""
    root = tmp_path_factory.mktemp("patches")
    return [folder_of(root / "first", 37, 0), folder_of(root / "second", 5, 1)]


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(
        AutoencoderConfig(kind="tiny", image_size=16, block_out_channels=(8, 8), fold=2)
    ).eval()
    model.measure([torch.rand(8, 3, 16, 16)])
    return model


@pytest.fixture(scope="module")
def stores(
    sources: list[PatchSource], autoencoder: Autoencoder, tmp_path_factory: pytest.TempPathFactory
) -> list[LatentStore]:
    return prepare_latents(autoencoder, sources, tmp_path_factory.mktemp("latents"), shard=16)


def whole_images(sources: list[PatchSource]) -> torch.Tensor:
    """All patches in their order, as the autoencoder is shown them, (42, 3, 16, 16)."""
    rows = image_loader(sources, 16, batch_size=42, seed=0, steps=1)
    images, indices = next(iter(rows))
    return images[indices.argsort()]


def encoded(autoencoder: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([autoencoder.encode(part) for part in images.split(8)])


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
def test_latents_are_those_of_the_mirrored_patches(
    cache_gib: float,
    stores: list[LatentStore],
    sources: list[PatchSource],
    autoencoder: Autoencoder,
) -> None:
    latents = Latents(stores, cache_gib=cache_gib)
    assert (len(latents), latents.shape, latents.mirrors) == (42, SHAPE, 4)
    assert latents.in_memory == (cache_gib > 0)
    assert latents.autoencoder_id == weights_id(autoencoder)
    images, everyone = whole_images(sources), np.arange(42)
    for mirror in range(4):
        found = latents.batch(everyone, np.full(42, mirror))
        assert found.dtype == torch.float16
        theirs = encoded(autoencoder, mirrored(images, mirror))
        torch.testing.assert_close(found.float(), theirs, atol=2e-3, rtol=2e-3)
    wanted, chosen = np.array([41, 3, 3, 16, 40]), np.array([0, 2, 1, 3, 0])
    several = pickle.loads(pickle.dumps(latents)).batch(wanted, chosen)  # noqa: S301
    alone = [latents.batch(wanted[i : i + 1], chosen[i : i + 1]) for i in range(5)]
    assert torch.equal(several, torch.cat(alone))
    assert torch.equal(latents.batch(wanted), latents.batch(wanted, np.zeros(5, int)))


def test_stores_say_what_they_are_of(
    stores: list[LatentStore], sources: list[PatchSource], autoencoder: Autoencoder
) -> None:
    rows = [(s.name, s.first_row, len(s)) for s in stores]
    assert rows == [("first", 0, 16), ("first", 16, 16), ("first", 32, 5), ("second", 0, 5)]
    assert [path.name for path in find_stores(stores[0].path.parent, "latents")] == [
        "first-00000.h5", "first-00001.h5", "first-00002.h5", "second.h5"
    ]  # fmt: skip
    store = stores[1]
    assert isinstance(open_store(store.path), LatentStore)
    assert store.source == {"id": sources[0].id, "name": "first", "rows": 37}
    assert store.autoencoder == {"id": weights_id(autoencoder), "image_size": 16}
    assert store.provenance.inputs["patches"] == sources[0].id
    assert store.provenance.config["precision"] == "fp32"
    with pytest.raises(StoreError, match="PG-O17"):
        store.latents(4)


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
@pytest.mark.parametrize("flips", [True, False])
def test_a_step_has_the_patches_and_mirrors_that_pixels_would_have(
    flips: bool,
    cache_gib: float,
    stores: list[LatentStore],
    sources: list[PatchSource],
    autoencoder: Autoencoder,
) -> None:
    """The draws of `image_loader`, from any step on and for any part of the batch."""
    latents = Latents(stores, cache_gib=cache_gib)
    common: dict[str, Any] = {"batch_size": 6, "seed": 3, "flips": flips, "steps": 9}
    pixels = list(image_loader(sources, 16, **common))
    whole = list(latent_loader(latents, **common))
    seen = torch.cat([batch.indices for batch in whole[:7]])
    assert sorted(seen.tolist()) == list(range(42))  # an epoch has each patch once
    for (images, indices), batch in zip(pixels, whole, strict=True):
        assert torch.equal(batch.indices, indices)
        theirs = encoded(autoencoder, images)
        torch.testing.assert_close(batch.latents.float(), theirs, atol=2e-3, rtol=2e-3)
    parts = latent_loader(latents, **common, start_step=5, rows=slice(2, 5))
    for batch, part in zip(whole[5:], parts, strict=True):
        assert torch.equal(part.indices, batch.indices[2:5])
        assert torch.equal(part.latents, batch.latents[2:5])


def test_fewer_mirrors_are_those_that_are_kept(
    sources: list[PatchSource], autoencoder: Autoencoder, stores: list[LatentStore], tmp_path: Path
) -> None:
    """With two, the left-right ones of the same draw; with one, none."""
    steps: dict[str, Any] = {"batch_size": 6, "seed": 3, "flips": True, "steps": 4}
    four = Latents(stores)
    assert set(np.concatenate([drawn_mirrors(3, step, 6) for step in range(4)])) == {0, 1, 2, 3}
    for mirrors in (1, 2):
        few = Latents(
            prepare_latents(autoencoder, sources, tmp_path / str(mirrors), mirrors=mirrors)
        )
        for step, batch in enumerate(latent_loader(few, **steps)):
            drawn = drawn_mirrors(3, step, 6) % mirrors
            theirs = four.batch(batch.indices, drawn)
            torch.testing.assert_close(batch.latents, theirs, atol=2e-3, rtol=2e-3)
        assert few.mirrors == mirrors


class Counted(Silent):
    """Counts what is encoded, and stops the process that does it after `stop` images."""

    def __init__(self, stop: int = 10**9) -> None:
        self.count, self.stop = 0, stop

    def task(self, title: str, total: int, done: int = 0) -> Any:
        return self

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None:
        self.count += count
        if self.count >= self.stop:
            raise KeyboardInterrupt


def test_a_stop_costs_one_store_and_the_rest_is_kept(
    sources: list[PatchSource], autoencoder: Autoencoder, stores: list[LatentStore], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare_latents(autoencoder, sources, tmp_path, shard=16, progress=Counted(stop=30))
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["first-00000.h5"]
    rest = Counted()
    again = prepare_latents(autoencoder, sources, tmp_path, shard=16, progress=rest)
    assert rest.count == 42 - 16
    for mine, theirs in zip(again, stores, strict=True):
        assert mine.path.read_bytes() == theirs.path.read_bytes()
    idle = Counted()
    with commit.lock(tmp_path):  # nothing to do: no lock is asked for
        prepare_latents(autoencoder, sources, tmp_path, shard=16, progress=idle)
    assert idle.count == 0


def test_latents_of_another_autoencoder_are_not_taken_for_ours(
    sources: list[PatchSource], autoencoder: Autoencoder, tmp_path: Path
) -> None:
    prepare_latents(autoencoder, sources[1:], tmp_path, mirrors=1)
    other = Autoencoder(autoencoder.config).eval()
    with pytest.raises(StoreError, match=r"PG-O18.*autoencoder: it has"):
        prepare_latents(other, sources[1:], tmp_path, mirrors=1)
    with pytest.raises(StoreError, match=r"PG-O18.*mirrors: it has 1, asked for 4"):
        prepare_latents(autoencoder, sources[1:], tmp_path)
    found = prepare_latents(other, sources[1:], tmp_path, mirrors=1, overwrite=True)
    assert found[0].autoencoder["id"] == weights_id(other)


def test_what_cannot_be_encoded_is_said(
    sources: list[PatchSource], autoencoder: Autoencoder, tmp_path: Path
) -> None:
    with pytest.raises(NoInputError, match="PG-N01"):
        prepare_latents(autoencoder, [], tmp_path)
    twin = folder_of(tmp_path / "second", 2, 7)
    with pytest.raises(DataError, match="PG-D05"):
        prepare_latents(autoencoder, [sources[1], twin], tmp_path / "a")
    broken = Autoencoder(autoencoder.config).eval()
    broken.latent_scale.fill_(torch.inf)
    with pytest.raises(DataError, match="PG-D06"):
        prepare_latents(broken, sources[1:], tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.h5"))


def test_latents_with_gaps_or_of_two_kinds_are_refused(
    stores: list[LatentStore], sources: list[PatchSource], autoencoder: Autoencoder, tmp_path: Path
) -> None:
    for some in (stores[1:], stores[:2], [stores[0], *stores[2:]], stores[::-1]):
        with pytest.raises(RunError, match="PG-T04 latents are missing"):
            Latents(some)
    few = prepare_latents(autoencoder, sources[1:], tmp_path, mirrors=2)
    with pytest.raises(RunError, match="PG-T04 latents do not belong together"):
        Latents([*stores[:3], *few])
    with pytest.raises(NoInputError):
        Latents([])


def test_an_empty_source_has_an_empty_store(
    sources: list[PatchSource], autoencoder: Autoencoder, tmp_path: Path
) -> None:
    class Empty:
        id, name, path = "0" * 16, "empty", tmp_path

        def __len__(self) -> int:
            return 0

        def images(self, rows: Any) -> Iterator[Any]:
            raise AssertionError("there is nothing to read")

    found = prepare_latents(autoencoder, [Empty(), sources[1]], tmp_path / "out")  # type: ignore[list-item]
    assert [len(store) for store in found] == [0, 5]
    numbered = PatchDataset([sources[1]])
    assert len(Latents(found)) == len(numbered)


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_a_latent_store_is_a_store_like_any_other(suffix: str, tmp_path: Path) -> None:
    """In either back end: rows come back, the seal holds, a damaged file is not read."""
    path, made_by = tmp_path / f"x.{suffix}", Provenance(stage="latents", config={}, inputs={})
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((70, 2, 3, 3)).astype(np.float16) for _ in range(2)]
    facts: dict[str, Any] = {
        "autoencoder": {"id": "a" * 16}, "source": {"id": "b" * 16, "name": "x", "rows": 70}
    }  # fmt: skip
    with LatentStore.create(path, (2, 3, 3), made_by, mirrors=2, **facts) as writer:
        for part in (slice(0, 33), slice(33, 70)):
            writer.append(latent0=values[0][part], latent1=values[1][part])
    store = LatentStore.open(path)
    assert (store.shape, store.mirrors, store.first_row) == ((2, 3, 3), 2, 0)
    rows = [69, 0, 33, 33]
    for mirror, whole in enumerate(values):
        np.testing.assert_array_equal(store.latents(mirror), whole)
        np.testing.assert_array_equal(store.latents(mirror, rows), whole[rows])
    store.verify(deep=True)
    with pytest.raises(ValueError, match="mirrors is one of"):
        LatentStore.create(path, (2, 3, 3), made_by, mirrors=3, **facts)
    with pytest.raises(ValueError, match="source takes"):
        LatentStore.create(path, (2, 3, 3), made_by, mirrors=1, **facts | {"source": {}})
    store.close()
    parts = sorted(
        (p for p in [path, *path.rglob("*")] if p.is_file()), key=lambda p: -p.stat().st_size
    )
    data = bytearray(parts[0].read_bytes())
    data[len(data) // 2] ^= 1
    parts[0].write_bytes(bytes(data))
    with pytest.raises(StoreError, match="PG-O11"):
        LatentStore.open(path).verify(deep=True)


def test_mirrored_is_each_of_the_four() -> None:
    picture = torch.arange(6).view(1, 2, 3)
    turned = [mirrored(picture, mirror).flatten().tolist() for mirror in range(4)]
    assert turned == [
        [0, 1, 2, 3, 4, 5],
        [2, 1, 0, 5, 4, 3],
        [3, 4, 5, 0, 1, 2],
        [5, 4, 3, 2, 1, 0],
    ]
