"""Patch sources and datasets: what is read is what lies there, and what is bad is named."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import make_folder, make_patches, noise
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from pathgen import PatchDataset
from pathgen.data.loading import Order, Steps, image_loader, steps_per_epoch
from pathgen.data.sources import ImageFolder, PatchSource, labels_of, open_sources, read_image
from pathgen.errors import DataError, NoInputError
from pathgen.stores import PatchRef, PatchStore, hdf5, rawdata

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture
def classes_folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    images = noise(rng, 5, 24)
    names = ["b/2.png", "b/deep/1.png", "a/x.png", "a/Y.PNG", "a/z.bmp"]
    return make_folder(tmp_path / "folder", dict(zip(names, images, strict=True)))


# --- image folders ---------------------------------------------------------------------------


def test_sub_folders_are_classes_and_order_is_by_name(classes_folder: Path) -> None:
    folder = ImageFolder(classes_folder)
    assert folder.files == ["a/Y.PNG", "a/x.png", "a/z.bmp", "b/2.png", "b/deep/1.png"]
    assert folder.classes == ("a", "b")
    assert folder.labels.tolist() == [0, 0, 0, 1, 1]
    assert folder.name == "folder"
    assert isinstance(folder, PatchSource)
    for name, image in zip(folder.files, folder.images(), strict=True):
        assert np.array_equal(image, np.asarray(Image.open(classes_folder / name)))


def test_a_flat_folder_has_no_classes(tmp_path: Path, rng: np.random.Generator) -> None:
    image = noise(rng, 1, 8)[0]
    make_folder(tmp_path / "flat", {"1.png": image, ".hidden.png": image})
    (tmp_path / "flat" / "notes.txt").write_text("no image")
    folder = ImageFolder(tmp_path / "flat")
    assert folder.files == ["1.png"]
    assert folder.classes == ()
    assert labels_of(folder).tolist() == [-1]


def test_identity_follows_names_and_sizes_not_the_place(
    classes_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(classes_folder, tmp_path / "elsewhere")
    assert ImageFolder(copy).id == ImageFolder(classes_folder).id
    (copy / "a" / "x.png").rename(copy / "a" / "w.png")
    assert ImageFolder(copy).id != ImageFolder(classes_folder).id


def test_bad_headers_are_left_out_and_counted(classes_folder: Path) -> None:
    (classes_folder / "a" / "empty.jpg").write_bytes(b"")
    (classes_folder / "a" / "text.jpg").write_text("this is not an image")
    folder = ImageFolder(classes_folder)
    assert set(folder.skipped) == {"a/empty.jpg", "a/text.jpg"}
    assert len(folder) == 5


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_is_named_when_it_is_read(
    tmp_path: Path, suffix: str, rng: np.random.Generator
) -> None:
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    make_folder(tmp_path / "f", {f"good{suffix}": image, f"torn{suffix}": image})
    torn = tmp_path / "f" / f"torn{suffix}"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    folder = ImageFolder(tmp_path / "f")
    assert len(folder.images([0])) == 1
    with pytest.raises(DataError, match=f"torn{suffix}") as caught:
        folder.images([1])
    assert caught.value.code == "PG-D02"


def test_nothing_but_bad_images_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(NoInputError, match=r"x\.png"):
        ImageFolder(tmp_path)


def test_train_and_test_are_not_classes(tmp_path: Path, rng: np.random.Generator) -> None:
    image = noise(rng, 1, 8)[0]
    make_folder(tmp_path / "set", {"train/a/1.png": image, "test/a/2.png": image})
    with pytest.raises(DataError) as caught:
        ImageFolder(tmp_path / "set")
    assert caught.value.code == "PG-D01"


def test_every_mode_becomes_rgb(tmp_path: Path, rng: np.random.Generator) -> None:
    gray = np.linspace(0, 255, 256).reshape(16, 16).astype(np.uint8)
    Image.fromarray(gray).save(tmp_path / "l.png")
    Image.fromarray(gray).save(tmp_path / "l.jpg", quality=100)
    Image.fromarray(gray.astype(np.uint16) << 8).save(tmp_path / "i16.png")
    for name in ("l.png", "i16.png"):
        assert np.array_equal(read_image(tmp_path / name), np.repeat(gray[..., None], 3, 2))
    assert np.abs(read_image(tmp_path / "l.jpg").astype(int) - gray[..., None]).max() <= 3

    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2, :, 3] = 255  # black above, nothing below
    Image.fromarray(clear).save(tmp_path / "rgba.png")
    seen = read_image(tmp_path / "rgba.png")
    assert (seen[:2] == 0).all()
    assert (seen[2:] == 255).all()

    rgb = noise(rng, 1, 32)[0]
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - rgb).mean() < 4
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="mode F"):
        read_image(tmp_path / "float.tif")


def test_a_link_in_a_circle_ends(classes_folder: Path) -> None:
    (classes_folder / "b" / "loop").symlink_to(classes_folder, target_is_directory=True)
    assert len(ImageFolder(classes_folder)) == 5


# --- opening ---------------------------------------------------------------------------------


def test_stores_and_folders_may_be_mixed(
    classes_folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    make_patches(tmp_path / "tiles" / "one.h5", noise(rng, 3, 16), "one")
    make_patches(tmp_path / "tiles" / "sub" / "two.zarr", noise(rng, 2, 16), "sub/two")
    sources = open_sources([tmp_path / "tiles", classes_folder])
    assert [source.name for source in sources] == ["one", "sub/two", "folder"]
    assert [len(source) for source in sources] == [3, 2, 5]
    assert isinstance(sources[0], PatchStore)
    assert [s.name for s in open_sources(tmp_path / "tiles" / "one.h5")] == ["one"]


def test_what_is_not_there_is_said(tmp_path: Path, classes_folder: Path) -> None:
    with pytest.raises(NoInputError):
        open_sources(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match="neither"):
        open_sources(tmp_path / "empty")
    make_folder(tmp_path / "tiles", {"thumbnails/s.png": np.zeros((8, 8, 3), np.uint8)})
    (tmp_path / "tiles" / "slides.json").write_text("[]")
    with pytest.raises(NoInputError, match="no slide here was tiled"):
        open_sources(tmp_path / "tiles")
    with pytest.raises(NoInputError):
        open_sources([])
    with pytest.raises(DataError) as caught:
        open_sources([classes_folder, classes_folder])
    assert caught.value.code == "PG-D03"


# --- the dataset -----------------------------------------------------------------------------


@pytest.fixture
def dataset(classes_folder: Path, tmp_path: Path, rng: np.random.Generator) -> PatchDataset:
    store = make_patches(tmp_path / "one.h5", noise(rng, 4, 16), "one")
    empty = make_patches(tmp_path / "none.h5", noise(rng, 0, 16).reshape(0, 16, 16, 3), "none")
    return PatchDataset([store, empty, classes_folder])


def test_items_are_patches_in_order(dataset: PatchDataset) -> None:
    assert len(dataset) == 9
    images = [image for source in dataset.sources for image in source.images(range(len(source)))]
    for i, image in enumerate(images):
        tensor, ref = dataset[i]
        assert tensor.dtype == torch.uint8
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), image)
        assert dataset.index_of(ref) == i
        assert dataset.locate(i - len(dataset)) == ref
    with pytest.raises(IndexError):
        dataset.locate(9)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=20))
def test_any_items_in_any_order(items: list[int]) -> None:
    made = PatchDataset([_Numbers("a", 4), _Numbers("b", 0), _Numbers("c", 5)])
    assert [int(image[0, 0, 0]) for image in made.images(items)] == [
        row if row < 4 else 96 + row for row in items
    ]


class _Numbers:
    """A source whose patch shows its own row: "a" from 0, others from 100."""

    path = Path(".")

    def __init__(self, name: str, n: int) -> None:
        self.id = self.name = name
        self.n = n

    def __len__(self) -> int:
        return self.n

    def images(self, rows: object) -> np.ndarray:
        start = 0 if self.name == "a" else 100
        values = np.asarray(rows, np.uint8) + start
        return np.broadcast_to(values[:, None, None, None], (len(values), 2, 2, 3))


def test_transform_gets_patch_and_ref(classes_folder: Path) -> None:
    made = PatchDataset(str(classes_folder), transform=lambda image, ref: (ref.row, image.shape))
    assert made[2] == (2, (3, 24, 24))


def test_labels_of_many_sources_share_their_classes(
    dataset: PatchDataset, tmp_path: Path, rng: np.random.Generator
) -> None:
    other = make_folder(tmp_path / "other", {"b/1.png": noise(rng, 1, 8)[0]})
    both = PatchDataset([*dataset.sources, other])
    assert both.classes == ("a", "b")
    assert both.labels.tolist() == [-1] * 4 + [0, 0, 0, 1, 1] + [1]


def test_an_unknown_patch_is_named(dataset: PatchDataset) -> None:
    with pytest.raises(DataError) as caught:
        dataset.index_of(PatchRef("0123", 5))
    assert caught.value.code == "PG-D04"


def test_only_some_files_stay_open(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "MAX_OPEN", 2)
    monkeypatch.setattr(rawdata._files, "most", 2)
    images = noise(rng, 10, 8)
    stores = [make_patches(tmp_path / f"{i}.h5", images[i : i + 1], str(i)) for i in range(5)]
    made = PatchDataset(stores)
    for order in ([0, 1, 2, 3, 4], [4, 0, 3, 1]):
        for item, image in zip(order, made.images(order), strict=True):
            assert np.array_equal(image, images[item])
        assert len(hdf5._opened) <= 2
        assert len(rawdata._files.open) <= 2
    made.close()
    assert not [path for path in rawdata._files.open if Path(path).parent == tmp_path]


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_read_what_we_read(dataset: PatchDataset, method: str, workers: int) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    expected = [int(dataset[i][0].sum()) for i in range(9)]  # and files are open here
    items = list(
        DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=method)
    )
    assert [int(image.sum()) for image, _ in items] == expected
    assert [dataset.index_of(ref) for _, ref in items] == list(range(9))


def test_a_batch_is_its_items(dataset: PatchDataset) -> None:
    order = [8, 0, 0, -1, 5]
    for (image, ref), index in zip(dataset.__getitems__(order), order, strict=True):
        alone, its = dataset[index]
        assert ref == its
        assert torch.equal(image, alone)
    same = [3, 0, 2]
    assert np.array_equal(dataset.batch(same), np.stack(dataset.images(same)))
    doubled = PatchDataset(dataset.sources, lambda image, ref: (2 * image.int(), ref))
    assert torch.equal(doubled.__getitems__([3])[0][0], 2 * dataset[3][0].int())


def test_pickled_after_use(dataset: PatchDataset) -> None:
    expected = [int(dataset[i][0].sum()) for i in range(9)]
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own bytes
    assert [int(copy[i][0].sum()) for i in range(9)] == expected


# --- order -----------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2**31))
def test_each_epoch_takes_each_patch_at_most_once(n: int, batch_size: int, seed: int) -> None:
    order = Order(n, batch_size, seed)
    per_epoch = steps_per_epoch(n, batch_size)
    for epoch in range(2):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        taken = np.concatenate([order(step) for step in steps])
        assert len(taken) == per_epoch * batch_size
        counts = np.bincount(taken, minlength=n)
        if n >= batch_size:
            assert counts.max() == 1
        else:  # wrapped around, as evenly as can be
            assert counts.max() - counts.min() <= 1
    assert np.array_equal(order(0), Order(n, batch_size, seed)(0))


def test_image_loader_goes_on_where_it_stopped(dataset: PatchDataset) -> None:
    settings = {"batch_size": 4, "seed": 5, "flips": True}
    whole = list(image_loader(dataset.sources, 12, steps=6, **settings))
    rest = list(image_loader(dataset.sources, 12, steps=6, start_step=4, **settings))
    assert len(whole) == 6
    assert list(image_loader(dataset.sources, 12, steps=4, start_step=4, **settings)) == []
    for one, other in zip(whole[4:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)
    assert whole[0].images.shape == (4, 3, 12, 12)
    assert whole[0].images.dtype == torch.float32


def test_image_loader_shows_the_patch_of_each_index(dataset: PatchDataset) -> None:
    for images, indices in image_loader(dataset.sources[:1], 16, batch_size=4, seed=0, steps=2):
        for image, index in zip(images, indices, strict=True):
            assert torch.allclose(image * 255, dataset[int(index)][0].float(), atol=1e-4)


def test_image_loader_flips_are_mirrors(dataset: PatchDataset) -> None:
    seen = set()
    for images, indices in image_loader(
        dataset.sources[:1], 16, batch_size=4, seed=0, steps=12, flips=True
    ):
        for image, index in zip(images, indices, strict=True):
            plain = dataset[int(index)][0].float() / 255
            options = {
                "": plain,
                "h": plain.flip(-1),
                "v": plain.flip(-2),
                "hv": plain.flip(-1, -2),
            }
            seen |= {name for name, option in options.items() if torch.allclose(image, option)}
    assert seen == {"", "h", "v", "hv"}


def test_an_error_keeps_its_code_on_the_way_from_a_worker(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    make_folder(tmp_path / "f", {"torn.png": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)})
    torn = tmp_path / "f" / "torn.png"
    torn.write_bytes(torn.read_bytes()[:600])

    class Torn(Steps[Any]):
        def batch(self, step: int) -> Any:
            return read_image(torn)

    sent = pickle.loads(pickle.dumps(Torn()[0]))  # noqa: S301 - our own bytes
    assert isinstance(sent, DataError)
    assert (sent.code, sent.hint) == ("PG-D02", "remove the file or replace it")
    loader = image_loader(open_sources(tmp_path / "f"), 8, batch_size=1, seed=0, steps=1)
    with pytest.raises(DataError, match=r"torn\.png"):
        next(loader)


def test_no_patches_is_no_input(tmp_path: Path) -> None:
    empty = make_patches(tmp_path / "none.h5", np.empty((0, 16, 16, 3), np.uint8))
    with pytest.raises(NoInputError):
        image_loader([empty], 8, batch_size=1, seed=0, steps=1)


@pytest.mark.data
def test_real_patches_open() -> None:
    path = DATA / "patches" / "colon5_112" / "test"
    if not path.is_dir():
        pytest.skip("colon5_112 is not here")
    (folder,) = open_sources(path)
    assert (len(folder), folder.classes) == (1500, ("AC", "H", "S", "T", "V"))
    assert {image.shape for image in folder.images([0, 700, 1499])} == {(112, 112, 3)}
