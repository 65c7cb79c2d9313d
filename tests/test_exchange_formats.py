"""Exports field by field, read the way their consumers read them."""

from __future__ import annotations

import csv
import gc
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_exchange import BLOCK, tree, vectors, write_features, write_patches
from hypothesis import given
from hypothesis import strategies as st

from pathgen.errors import DataError, StorageError
from pathgen.exchange import ExportConfig, export_stores, verify
from pathgen.exchange.export import FORMATS
from pathgen.exchange.tfrecord import _masked, decode_example, encode_example
from pathgen.stores.patches import PatchStore

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labeled slides with features of one encoder, one in a folder of its own."""
    root = tmp_path_factory.mktemp("stores")
    one = write_patches(root / "tiles/a/S1.h5", "a/S1", label="tumor", patient="P1", codec="jpeg")
    two = write_patches(root / "tiles/S2.h5", "S2", BLOCK[:5], label="normal", patient="P2")
    write_features(root / "features/S1.h5", one, labeled=True)
    write_features(root / "features/S2.h5", two)
    return root


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("form", FORMATS)
def test_equal_stores_give_equal_bytes_and_pass_verification(
    stores: Path, form: str, tmp_path: Path
) -> None:
    first = export_stores(stores, tmp_path / "one", form)
    export_stores(stores, tmp_path / "other", form)
    assert tree(tmp_path / "one") == tree(tmp_path / "other")
    assert first.slides == 2
    assert first.patches == len(BLOCK) + 5
    report = verify(tmp_path / "one")
    assert report.counts["error"] == 0
    assert report.counts["ok"] >= 2
    names = " ".join(tree(tmp_path / "one"))
    assert "a/S1" not in names
    assert str(tmp_path).encode() not in b"".join(tree(tmp_path / "one").values())


def test_clam_reads_its_patches(stores: Path, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", "clam")
    with PatchStore.open(stores / "tiles/a/S1.h5") as patches:
        wanted = patches.coords()
    with h5py.File(tmp_path / "out/patches/S1.h5") as file:  # Whole_Slide_Bag_FP
        assert set(file) == {"coords"}
        dataset = file["coords"]
        assert dataset.dtype == np.int64
        assert dataset.maxshape == (None, 2)
        assert np.array_equal(dataset[:], wanted)
        assert (dataset.attrs["patch_level"], dataset.attrs["patch_size"]) == (1, 32)
        assert dataset.attrs["downsample"].tolist() == [2, 2]
        assert dataset.attrs["level_dim"].tolist() == [1000, 750]
        assert dataset.attrs["downsampled_level_dim"].tolist() == [1000, 750]
        assert dataset.attrs["name"] == "S1"


def test_clam_reads_its_features(stores: Path, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", "clam")
    wanted = vectors(len(BLOCK))
    bag = torch.load(tmp_path / "out/pt_files/S1.pt", weights_only=True)  # Generic_MIL_Dataset
    assert bag.dtype == torch.float32
    assert np.array_equal(bag.numpy(), wanted)
    with h5py.File(tmp_path / "out/h5_files/S1.h5") as file:
        assert np.array_equal(file["features"][:], wanted)
        assert len(file["coords"]) == len(wanted)
        assert not file.attrs
    assert rows(tmp_path / "out/dataset.csv")[0] == {
        "case_id": "P1", "slide_id": "S1", "label": "tumor"
    }  # fmt: skip
    listed = rows(tmp_path / "out/process_list_autogen.csv")
    assert [row["slide_id"] for row in listed] == ["S1.svs", "S2.svs"]
    assert list(listed[0])[:4] == ["slide_id", "process", "status", "seg_level"]
    assert {row["process"] for row in listed} == {"0"}


def test_old_clam_has_the_pixels(stores: Path, tmp_path: Path) -> None:
    export_stores(stores / "tiles", tmp_path / "out", "clam-pixels")
    with (
        h5py.File(tmp_path / "out/patches/S1.h5") as file,
        PatchStore.open(stores / "tiles/a/S1.h5") as patches,
    ):
        assert np.array_equal(file["imgs"][:], patches.images())
        assert file["imgs"].chunks == (1, 32, 32, 3)
        assert set(file["imgs"].attrs) == {
            "patch_level", "wsi_name", "downsample", "level_dim", "downsampled_level_dim",
        }  # fmt: skip
        assert file["coords"].dtype == np.int32


def test_clam_has_no_file_for_a_slide_without_patches(stores: Path, tmp_path: Path) -> None:
    empty = write_patches(tmp_path / "E.h5", "E", [])
    report = export_stores([stores / "tiles", empty], tmp_path / "out", "clam")
    assert set(report.skipped) == {"E"}
    assert not (tmp_path / "out/patches/E.h5").exists()
    export_stores([stores / "tiles", empty], tmp_path / "t", "trident")
    with h5py.File(tmp_path / "t/20x_32px_0px_overlap/patches/E_patches.h5") as file:
        assert file["coords"].shape == (0, 2)


def test_trident_reads_coordinates_and_features(stores: Path, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", "trident")
    job = tmp_path / "out/20x_32px_0px_overlap"
    with h5py.File(job / "patches/S1_patches.h5") as file:  # read_coords
        attrs = dict(file["coords"].attrs)
        coords = file["coords"][:]
    assert coords.dtype == np.int64
    assert "patch_level" not in attrs
    assert {k: v for k, v in attrs.items() if k not in ("name", "savetodir")} == {
        "patch_size": 32, "patch_size_level0": 64, "level0_magnification": 40,
        "target_magnification": 20, "overlap": 0, "level0_width": 2000, "level0_height": 1500,
    }  # fmt: skip
    with h5py.File(job / "features_vit/S1.h5") as file:
        assert file["features"].attrs["encoder"] == "vit"
        assert np.array_equal(file["features"][:], vectors(len(BLOCK)))
        assert dict(file["coords"].attrs)["patch_size_level0"] == 64
        assert np.array_equal(file["coords"][:], coords)


def test_stamp_gets_microns_and_half_precision(stores: Path, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", "stamp")
    with h5py.File(tmp_path / "out/vit/S1.h5") as file:
        assert file["feats"].dtype == np.float16
        assert file["coords"].dtype == np.float32
        with PatchStore.open(stores / "tiles/a/S1.h5") as patches:
            assert np.allclose(file["coords"][:], patches.coords() * 0.25)
        assert dict(file.attrs) == {
            "extractor": "vit", "unit": "um", "feat_type": "tile", "tile_size_um": 16.0,
            "tile_size_px": 32,
        }  # fmt: skip
        # get_coords of STAMP takes the stride to be the tile size.
        steps = np.diff(np.unique(file["coords"][:, 0]))
        assert np.allclose(steps, file.attrs["tile_size_um"])
    slides = rows(tmp_path / "out/slide_table.csv")
    assert slides[0] == {"PATIENT": "P1", "FILENAME": "S1.h5"}
    assert rows(tmp_path / "out/clini_table.csv")[0] == {"PATIENT": "P1", "label": "tumor"}


def test_stamp_refuses_what_half_precision_cannot_hold(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "S.h5", "S")
    features = write_features(tmp_path / "f/S.h5", patches)
    from pathgen.provenance import Provenance
    from pathgen.stores.features import FeatureStore

    with FeatureStore.open(features) as store:
        values = store.features() * 1e6
        with FeatureStore.create(
            tmp_path / "big/S.h5", store.dim, Provenance(stage="x", config={}, inputs={}),
            encoder=store.encoder, source=store.source,
        ) as writer:  # fmt: skip
            writer.append(features=values, coords=store.coords(), label=store.labels())
    with pytest.raises(DataError, match="half precision"):
        export_stores(tmp_path / "big", tmp_path / "out", "stamp")


def fields(data: bytes) -> list[tuple[int, bytes]]:
    """Fields of a protocol buffer, all of them with a length; a second reader."""
    found, at = [], 0
    while at < len(data):
        assert data[at] & 7 == 2
        end = at + 1
        while data[end] & 128:
            end += 1
        start, length = end + 1, varint(data[at + 1 : end + 1])
        found.append((data[at] >> 3, data[start : start + length]))
        at = start + length
    return found


def varint(data: bytes) -> int:
    return sum((byte & 127) << (7 * i) for i, byte in enumerate(data))


def example(data: bytes) -> dict[str, bytes]:
    ((_, features),) = fields(data)
    result = {}
    for _, entry in fields(features):
        (_, name), (_, feature) = fields(entry)
        ((_, values),) = fields(feature)
        ((_, value),) = fields(values)
        result[name.decode()] = value
    return result


def test_slideflow_finds_every_record_by_the_index(stores: Path, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", "slideflow")
    folder = tmp_path / "out/tfrecords/32px_16um"
    raw = (folder / "S1.tfrecords").read_bytes()
    index = np.load(folder / "S1.index.npz")
    with PatchStore.open(stores / "tiles/a/S1.h5") as patches:
        images, coords = patches.encoded(), patches.coords()
    for row, (start, length) in enumerate(index["arr_0"].tolist()):
        assert struct.unpack("<Q", raw[start : start + 8])[0] == length - 16
        found = example(raw[start + 12 : start + length - 4])
        assert found["image_raw"] == images[row]
        assert found["slide"] == b"S1"
        center = [varint(found[name]) for name in ("loc_x", "loc_y")]  # packed, as TensorFlow's
        assert center == (coords[row] + 32).tolist() == index["locations"][row].tolist()
    assert start + length == len(raw)
    bag = torch.load(tmp_path / "out/bags/S1.pt", weights_only=True)
    assert np.array_equal(bag.numpy(), vectors(len(BLOCK)))
    config = json.loads((tmp_path / "out/bags/bags_config.json").read_text())
    assert (config["num_features"], config["tile_px"], config["tile_um"]) == (6, 32, 16)


@given(
    st.dictionaries(
        st.text(max_size=8), st.one_of(st.binary(max_size=300), st.integers(-(2**63), 2**63 - 1))
    )
)
def test_examples_come_back(features: dict[str, bytes | int]) -> None:
    assert decode_example(encode_example(features)) == features


def test_record_checksums_are_masked_as_tensorflow_masks_them() -> None:
    # crc32c("123456789") is 0xE3069283 by RFC 3720; masked by rotation and a constant.
    crc = 0xE3069283
    masked = (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF
    assert _masked(b"123456789") == struct.pack("<I", masked)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def test_shards_hold_the_stored_bytes(stores: Path, tmp_path: Path) -> None:
    config = ExportConfig(shard_size=8)
    export_stores(stores / "tiles", tmp_path / "out", "webdataset", config)
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name for path in shards] == ["shard-000000.tar", "shard-000001.tar",
                                              "shard-000002.tar"]  # fmt: skip
    found: dict[str, bytes] = {}
    for path in shards:
        found |= members(path)
    with PatchStore.open(stores / "tiles/a/S1.h5") as patches:
        for row, (image, (x, y)) in enumerate(
            zip(patches.encoded(), patches.coords().tolist(), strict=True)
        ):
            assert found[f"S1_{row:07d}.jpg"] == image
            facts = json.loads(found[f"S1_{row:07d}.json"])
            assert (facts["x"], facts["y"], facts["slide"]) == (x, y, "a/S1")
            assert facts["label"] == "tumor"
            assert facts["tissue"] == pytest.approx(patches.measure("tissue")[row], abs=1e-5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(stores: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    export_stores(stores / "tiles", tmp_path / "out", "webdataset", ExportConfig(shard_size=8))
    url = str(tmp_path / "out/shard-{000000..000002}.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8"))
    assert len(samples) == len(BLOCK) + 5
    first: Any = samples[0]
    with PatchStore.open(stores / "tiles/a/S1.h5") as patches:
        near = np.abs(first["jpg"].astype(int) - patches.images([0])[0])
    assert near.mean() < 2  # another JPEG decoder
    assert first["json"]["store_row"] == 0
    gc.collect()  # its open files end here, and not in another test


def test_names_with_dots_stay_one_sample(tmp_path: Path) -> None:
    for name in ("TCGA-1.A", "TCGA-1_A"):
        write_patches(tmp_path / f"{name}.h5", name, BLOCK[:2])
    export_stores(tmp_path, tmp_path / "out", "webdataset")
    names = members(tmp_path / "out/shard-000000.tar")
    keys = {name.partition(".")[0] for name in names}
    assert len(keys) == 4
    assert verify(tmp_path / "out").good


def test_a_folder_has_every_byte_and_every_measure(stores: Path, tmp_path: Path) -> None:
    export_stores(stores / "tiles", tmp_path / "out", "folder")
    listed = rows(tmp_path / "out/coords.csv")
    with PatchStore.open(stores / "tiles/a/S1.h5") as patches:
        own = [row for row in listed if row["slide"] == "a/S1"]
        for row, image, tissue in zip(
            own, patches.encoded(), patches.measure("tissue"), strict=True
        ):
            assert (tmp_path / "out" / row["file"]).read_bytes() == image
            assert float(row["tissue"]) == pytest.approx(float(tissue), rel=1e-5)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"S1", "S2"}


def test_slides_of_one_name_keep_their_folders(tmp_path: Path) -> None:
    for name in ("x/S", "y/S", "T"):
        write_patches(tmp_path / f"in/{name}.h5", name, BLOCK[:1])
    export_stores(tmp_path / "in", tmp_path / "out", "folder")
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {"x__S", "y__S", "T"}


def test_what_is_there_is_not_replaced(stores: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(StorageError) as caught:
        export_stores(stores, out, "clam", overwrite=True)
    assert caught.value.code == "PG-F01"
    assert (out / "mine.txt").read_text() == "keep"
    export_stores(stores, tmp_path / "new", "clam")
    with pytest.raises(StorageError, match="in use"):
        export_stores(stores, tmp_path / "new", "trident")
    export_stores(stores, tmp_path / "new", "trident", overwrite=True)
    assert not (tmp_path / "new/patches").exists()


def test_what_a_format_needs_is_asked_for(stores: Path, tmp_path: Path) -> None:
    for form, place in (("torchmil", "tiles"), ("stamp", "tiles"), ("folder", "features")):
        with pytest.raises(DataError) as caught:
            export_stores(stores / place, tmp_path / "out", form)
        assert caught.value.code == "PG-F02"
        assert not (tmp_path / "out").exists()


def test_two_encoders_are_told_apart_or_asked_about(stores: Path, tmp_path: Path) -> None:
    patches = stores / "tiles/a/S1.h5"
    for name in ("vit", "resnet 50"):
        write_features(tmp_path / f"{name}/S1.h5", patches, encoder=name)
    places = [tmp_path / "vit", tmp_path / "resnet 50"]
    with pytest.raises(DataError, match="several encoders") as caught:
        export_stores(places, tmp_path / "out", "clam")
    assert "--encoder resnet_50" in str(caught.value)
    export_stores(places, tmp_path / "out", "clam", ExportConfig(encoder="vit"))
    export_stores(places, tmp_path / "t", "trident")
    assert (tmp_path / "t/20x_32px_0px_overlap/features_resnet_50/S1.h5").is_file()


def test_labels_of_a_csv_win(stores: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("slide,label,patient\nS1.svs,benign,Q1\n")
    export_stores(stores, tmp_path / "out", "clam", labels=table)
    assert [row["label"] for row in rows(tmp_path / "out/dataset.csv")] == ["benign", "normal"]
