"""Several encoders in one pass, and sources that fail: each of the others is as if alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import torch
from helpers_data import make_folder, make_patches, noise
from helpers_extract import Means, Pixels, content
from numpy.typing import NDArray

from pathgen.data.sources import ImageFolder, PatchSource
from pathgen.errors import ConfigError, DataError, StoreError
from pathgen.extract import ExtractConfig, extract, extract_features
from pathgen.provenance import Provenance
from pathgen.stores import FeatureStore
from pathgen.stores.features import chunk_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """Patch stores of 7, 0 and 5 patches below one folder."""
    rng = np.random.default_rng(0)
    places = [(x, y) for y in range(2) for x in range(3, 6)] + [(9, 9)]
    make_patches(tmp_path / "tiles/sub/a.h5", noise(rng, 7, 32), "sub/a", "tumor", places=places)
    make_patches(tmp_path / "tiles/b.h5", noise(rng, 0, 32), "b")
    make_patches(tmp_path / "tiles/c.h5", noise(rng, 5, 32), "c")
    return tmp_path / "tiles"


def test_each_patch_is_read_once_for_all_encoders(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathgen.stores import patches

    real, decoded = patches.decode_patches, []

    def counting(encoded: list[bytes], size: int) -> NDArray[np.uint8]:
        decoded.append(len(encoded))
        return real(encoded, size)

    monkeypatch.setattr(patches, "decode_patches", counting)
    paths = extract_features([Means(), Pixels()], stores, tmp_path / "both")
    assert sum(decoded) == 12
    names = [
        f"{encoder}/{name}.h5" for encoder in ("Means", "Pixels") for name in ("b", "c", "sub/a")
    ]
    assert paths == [tmp_path / "both" / name for name in names]
    for encoder in (Means(), Pixels()):
        extract_features(encoder, stores, tmp_path / "alone" / type(encoder).__name__)
    both, alone = content(tmp_path / "both"), content(tmp_path / "alone")
    assert {n: b for n, b in both.items() if n.endswith(".h5")} == {
        n: b for n, b in alone.items() if n.endswith(".h5")
    }


def test_what_one_encoder_finished_is_kept(stores: Path, tmp_path: Path) -> None:
    first, second = Means(), Pixels()
    paths = extract_features([first, second], stores, tmp_path / "out")
    before = content(tmp_path / "out")
    paths[-1].unlink()
    again = Means(), Pixels()
    assert extract_features(again, stores, tmp_path / "out") == paths
    assert [encoder.seen for encoder in again] == [0, 7]
    assert content(tmp_path / "out") == before


def test_encoders_of_one_name_have_folders_of_their_own(stores: Path, tmp_path: Path) -> None:
    class Others(Means):
        id = "other-weights"

    Others.__name__ = "Means"
    paths = extract_features([Means(), Others()], stores, tmp_path)
    assert {path.relative_to(tmp_path).parts[0] for path in paths} == {
        "Means-means-1", "Means-other-we"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="twice"):
        extract_features([Means(), Means()], stores, tmp_path / "x")
    with pytest.raises(ConfigError):
        extract_features([], stores, tmp_path / "x")


def test_a_damaged_store_does_not_end_the_run(stores: Path, tmp_path: Path) -> None:
    path = stores / "sub/a.h5"
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        start = file["image/data"].id.get_chunk_info(0).byte_offset
    data[start + 40] ^= 0xFF
    path.write_bytes(data)  # the pixels of a patch
    (stores / "bad.h5").write_bytes(path.read_bytes()[:3000])  # cannot even be opened
    report = extract(Means(), stores, tmp_path / "out", ExtractConfig(batch_size=2))
    (one,) = report.encoders
    assert one.counts == {"sources": 4, "done": 1, "empty": 1, "failed": 2, "features": 5}
    states = {row.slide: (row.state, row.reason) for row in one.rows}
    assert states["c"] == ("done", "ok")
    assert states["sub/a"] == ("failed", "PG-O11")
    assert states["bad"][0] == "failed"
    assert sorted(path.name for path in one.stores) == ["b.h5", "c.h5"]
    assert len(report.errors) == 2
    with (tmp_path / "out/features.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert {row["slide"]: row["state"] for row in listed} == {n: s for n, (s, _) in states.items()}
    with pytest.raises(StoreError, match="PG-O"):
        extract_features(Means(), stores, tmp_path / "out")


def test_an_encoder_that_fails_on_one_source_leaves_the_rest(stores: Path, tmp_path: Path) -> None:
    class Fussy(Means):
        """No number for the third batch of four: the store of five patches comes before it."""

        id, calls = "fussy", 0

        def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.calls += 1
            return super().encode(patches) * np.float32(np.nan if self.calls == 3 else 1)

    report = extract(
        [Fussy(), Pixels()], stores, tmp_path / "out", ExtractConfig(batch_size=4)
    )  # fmt: skip
    fussy, pixels = report.encoders
    assert [row.state for row in fussy.rows] == ["empty", "done", "failed"]
    assert [row.state for row in pixels.rows] == ["empty", "done", "done"]
    assert [error.code for error in report.errors] == ["PG-D06"]
    assert not (tmp_path / "out/Fussy/sub/a.h5").exists()
    assert not list((tmp_path / "out").rglob(".pathgen-tmp-*"))
    again = extract([Fussy(), Pixels()], stores, tmp_path / "out", ExtractConfig(batch_size=4))
    assert not again.errors


def test_an_unfinished_output_is_made_anew(stores: Path, tmp_path: Path) -> None:
    paths = extract_features(Means(), stores, tmp_path / "out")
    before = content(tmp_path / "out")
    with paths[1].open("r+b") as file:
        file.truncate(1000)
    extract_features(Means(), stores, tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_only_feature_stores_are_replaced(stores: Path, tmp_path: Path) -> None:
    before = content(stores)
    with pytest.raises(StoreError, match="PG-O16"):
        extract_features(Means(), stores, stores, overwrite=True)
    assert content(stores) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out/features.csv").write_text("my,own\n1,2\n")
    with pytest.raises(ConfigError, match="PG-O19"):
        extract_features(Means(), stores, tmp_path / "out")


def test_the_ledger_keeps_sources_of_earlier_runs(stores: Path, tmp_path: Path) -> None:
    extract_features(Means(), stores / "c.h5", tmp_path / "out")
    extract_features(Means(), stores / "sub", tmp_path / "out")
    ledger = json.loads((tmp_path / "out/features.json").read_text())
    assert [row["slide"] for row in ledger["sources"]] == ["c", "sub/a"]
    assert ledger["counts"]["features"] == 12


# --- the store -------------------------------------------------------------------------------


def test_the_grid_is_that_of_the_patches(stores: Path, tmp_path: Path) -> None:
    paths = extract_features(Means(), stores, tmp_path / "out")
    with h5py.File(paths[2]) as file:  # as any tool reads it
        assert file["grid"][:].tolist() == [[y, x] for y in range(2) for x in range(3, 6)] + [
            [9, 9]
        ]
        assert np.array_equal(file["coords"][:], file["grid"][:][:, ::-1] * 32)
        assert json.loads(bytes(file.attrs["encoder"]))["id"] == "means-1"
    with FeatureStore.open(paths[2]) as store:
        assert store.grid([6, 0]).tolist() == [[9, 9], [0, 3]]
    image = noise(np.random.default_rng(0), 1, 8)[0]
    folder = ImageFolder(make_folder(tmp_path / "folder", {"1.png": image, "2.png": image}))
    (path,) = extract_features(Means(), folder, tmp_path / "images")
    with FeatureStore.open(path) as store:
        assert store.grid().tolist() == [[-1, -1]] * 2


def test_a_store_without_a_grid_says_so(tmp_path: Path) -> None:
    made = FeatureStore.create(
        tmp_path / "old.h5", 3, Provenance(stage="extract", config={}, inputs={}),
        encoder={"id": "e"}, source={"id": "s", "name": "s"},
    )  # fmt: skip
    with made as writer:
        writer.append(
            features=np.zeros((5, 3), np.float32), coords=np.zeros((5, 2), np.int64),
            label=np.zeros(5, np.int32),
        )  # fmt: skip
    with FeatureStore.open(tmp_path / "old.h5") as store:
        assert store.grid().shape == (5, 2)
        assert store.grid([3, 1, 1]).tolist() == [[-1, -1]] * 3
        assert store.grid(slice(1, 4)).dtype == np.int32
        with pytest.raises(IndexError):
            store.grid([5])


@pytest.mark.parametrize(("dim", "dtype"), [(384, "float32"), (1536, "float16"), (2, "float32"),
                                            (10**6, "float32")])  # fmt: skip
def test_vectors_lie_together_by_the_megabyte(dim: int, dtype: str) -> None:
    rows = chunk_rows(dim, dtype)
    size = rows * dim * np.dtype(dtype).itemsize
    assert 16 <= rows <= 1024
    assert rows & (rows - 1) == 0
    assert rows in (16, 1024) or 2**19 < size <= 2**20


def test_a_card_is_repeated(stores: Path, tmp_path: Path) -> None:
    class Known(Means):
        card: ClassVar = {"name": "known/encoder", "license": "MIT"}

    (plain,) = extract_features(Means(), stores / "c.h5", tmp_path / "plain")
    (known,) = extract_features(Known(), stores / "c.h5", tmp_path / "known")
    with FeatureStore.open(known) as store, FeatureStore.open(plain) as other:
        assert store.encoder["card"] == {"name": "known/encoder", "license": "MIT"}
        assert store.encoder["name"] == "known/encoder"
        assert store.provenance.inputs == other.provenance.inputs


# --- how it is computed -----------------------------------------------------------------------


class Linear(torch.nn.Module):
    """A network of torch that knows nothing of precision. (n, 2)"""

    dim, id = 2, "linear"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 2)

    @torch.inference_mode()
    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        mean = torch.from_numpy(patches.mean((1, 2)).astype(np.float32) / 255)
        found: NDArray[np.float32] = self.layer(mean).float().numpy()
        return found


def test_precision_is_what_was_computed_in(stores: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("auto", "fp32", "bf16"):
        config = ExtractConfig(precision=name)  # type: ignore[arg-type]
        (path,) = extract_features(Linear(), stores / "c.h5", tmp_path / name, config)
        with FeatureStore.open(path) as store:
            found[name] = store.features(), store.provenance
    assert found["auto"][1].id == found["fp32"][1].id  # there is no GPU in a test
    assert "precision" not in found["fp32"][1].config  # as in stores of earlier versions
    assert found["bf16"][1].config["precision"] == "bf16"
    assert not np.array_equal(found["fp32"][0], found["bf16"][0])
    assert np.allclose(found["fp32"][0], found["bf16"][0], atol=0.01)
    rounded = torch.from_numpy(found["bf16"][0])
    assert torch.equal(rounded, rounded.bfloat16().float())
    with pytest.raises(StoreError, match="precision: it has bf16, asked for fp32"):
        extract_features(Linear(), stores / "c.h5", tmp_path / "bf16")
    with pytest.raises(ConfigError, match="PG-C05"):
        extract_features(Means(), stores, tmp_path / "x", ExtractConfig(precision="bf16"))


def test_what_knows_nothing_of_precision_is_left_alone(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where auto would be bf16, as on a GPU: its code may make numpy arrays of what comes out."""
    from pathgen.train import engine

    monkeypatch.setattr(engine, "choose_precision", lambda wanted, _: "bf16")

    class Told(Linear):
        precision = "fp32"

    for encoder, expected in ((Linear(), None), (Told(), "bf16")):
        (path,) = extract_features(encoder, stores / "c.h5", tmp_path / str(expected))
        with FeatureStore.open(path) as store:
            assert store.provenance.config.get("precision") == expected


def test_an_encoder_that_knows_precision_is_told(stores: Path, tmp_path: Path) -> None:
    class Knows(Linear):
        precision = "before"

        def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
            assert self.precision == "bf16"
            assert not torch.is_autocast_enabled("cpu")
            return super().encode(patches)

    encoder = Knows()
    extract_features(encoder, stores, tmp_path / "out", ExtractConfig(precision="bf16"))
    assert encoder.precision == "before"


def test_what_half_precision_cannot_hold_is_an_error(stores: Path, tmp_path: Path) -> None:
    class Large(Means):
        def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
            return super().encode(patches) * np.float32(1e4)

    with pytest.raises(DataError, match="too large for float16"):
        extract_features(Large(), stores, tmp_path / "half", ExtractConfig(dtype="float16"))
    extract_features(Large(), stores, tmp_path / "whole")


def test_what_is_read_ahead_stops_with_its_reader() -> None:
    import threading

    from pathgen.extract.items import ahead

    made: list[int] = []

    def numbers() -> Any:
        for i in range(1000):
            made.append(i)
            yield i

    found = ahead(numbers)
    assert [next(found), next(found)] == [0, 1]
    found.close()
    assert len(made) < 10
    assert not [t for t in threading.enumerate() if t.name == "pathgen-ahead"]

    def broken() -> Any:
        yield 1
        raise KeyError("two")

    rest = ahead(broken)
    assert next(rest) == 1
    with pytest.raises(KeyError, match="two"):
        next(rest)
    assert list(ahead(lambda: iter([1, 2, 3]), lambda x: -x)) == [-1, -2, -3]


def test_sources_that_are_opened_or_named_are_one(stores: Path, tmp_path: Path) -> None:
    from pathgen.stores import PatchStore

    given: list[PatchSource | Path] = [PatchStore.open(stores / "c.h5"), stores / "sub"]
    assert len(extract_features(Means(), given, tmp_path / "out")) == 2
    with pytest.raises(DataError, match="PG-D03"):
        extract_features(Means(), [stores, stores / "c.h5"], tmp_path / "out")
