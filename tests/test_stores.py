"""What every store must do, whatever the back end: a third one is one more word in BACK_ENDS."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import pickle
import sys
import threading
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pathgen import commit
from pathgen.errors import NoInputError, StoreError
from pathgen.provenance import Provenance
from pathgen.stores import (
    BYTES,
    MEASURES,
    Column,
    FeatureStore,
    PatchRef,
    PatchSpec,
    PatchStore,
    Recipe,
    SelfAugmentationStore,
    SlideFacts,
    create_table,
    decode_patch,
    encode_patch,
    find_stores,
    open_store,
    open_table,
    recipe_columns,
)
from pathgen.stores.codec import decode_patches

BACK_ENDS = ["h5", "zarr"]
COLUMNS = {"x": Column("float32", (3,), chunk=4), "i": Column("int64", chunk=16), "image": BYTES}
MADE_BY = Provenance(stage="tile", config={"seed": 0}, inputs={"slide": "abc"})


@pytest.fixture(params=BACK_ENDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"table.{request.param}"


def rows_of(n: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.random((n, 3), dtype=np.float32),
        "i": rng.integers(-(2**60), 2**60, n),
        "image": [rng.bytes(int(size)) for size in rng.integers(0, 3000, n)],
    }


def fill(path: Path, n: int, batch: int = 3, attrs: dict | None = None, seed: int = 0) -> dict:
    rows = rows_of(n, seed)
    with create_table(path, COLUMNS, attrs or {"kind": "test"}) as writer:
        for start in range(0, n, batch):
            writer.append(**{name: v[start : start + batch] for name, v in rows.items()})
    return rows


def file_bytes(path: Path) -> dict[str, str]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {
        str(p.relative_to(path.parent)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


# ------------------------------------------------------------------------------- rows in and out


def test_rows_come_back_in_the_order_asked(path: Path) -> None:
    rows = fill(path, 100)
    table = open_table(path)
    assert len(table) == 100
    assert list(table.columns.items()) == list(COLUMNS.items())
    for asked in ([7, 2, 2, 99, 0], np.array([3], np.uint8), [], np.arange(99, -1, -1)):
        np.testing.assert_array_equal(table.read("x", asked), rows["x"][list(asked)])
        assert table.read_bytes("image", asked) == [rows["image"][i] for i in asked]
    for part in (slice(None), slice(2, 8), slice(90, 500), slice(5, 2), slice(1, 90, 7)):
        np.testing.assert_array_equal(table.read("i", part), rows["i"][part])
        assert table.read_bytes("image", part) == rows["image"][part]
    assert table.read("x").dtype == np.float32


def test_rows_that_are_not_there_are_refused(path: Path) -> None:
    fill(path, 10)
    table = open_table(path)
    for wrong in ([-1], [10], np.array([3, 99]), slice(-3, None), slice(0, -1)):
        with pytest.raises(IndexError):
            table.read("x", wrong)
        with pytest.raises(IndexError):
            table.read_bytes("image", wrong)
    for wrong in (np.ones(10, bool), [[1, 2]], [1.0], 3):
        with pytest.raises(TypeError):
            table.read("x", wrong)  # type: ignore[arg-type]
    for read in (table.read, table.read_bytes):
        with pytest.raises(StoreError, match=r"PG-O17.*'blur'"):
            read("blur")
    with pytest.raises(StoreError, match="PG-O17"):
        table.read("image")


def test_an_empty_table_has_columns_and_no_rows(path: Path) -> None:
    with create_table(path, COLUMNS, {}):
        pass
    table = open_table(path)
    assert len(table) == 0
    assert table.read("x").shape == (0, 3)
    assert table.read_bytes("image") == []
    table.verify(deep=True)


def test_attributes_come_back_as_json_values(path: Path) -> None:
    attrs = {"note": [1, "a", None], "deep": {"b": 0.25, "c": [True]}, "ünïcode": "µm → ok"}
    with create_table(path, {"i": Column("int32")}, attrs) as writer:
        writer.set_attr("count", np.int64(3))
        writer.set_attr("long", "x" * 200_000)
    found = open_table(path).attrs
    assert {name: found[name] for name in attrs} == attrs
    assert found["count"] == 3
    assert len(found["long"]) == 200_000
    assert found["format"] == "pathgen"
    assert found["format_version"] == "1.0"


@pytest.mark.parametrize("wrong", [float("nan"), Path("/tmp"), {1, 2}])
def test_attributes_that_json_cannot_hold_are_refused(path: Path, wrong: object) -> None:
    with (
        pytest.raises((TypeError, ValueError)),
        create_table(path, COLUMNS, {}) as writer,
    ):
        writer.set_attr("wrong", wrong)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": np.zeros((2, 3)), "i": [1, 2]},  # a column is missing
        {"x": np.zeros((2, 3)), "i": [1, 2], "image": [b""] * 2, "y": [0, 0]},  # unknown
        {"x": np.zeros((2, 3)), "i": [1], "image": [b""] * 2},  # counts differ
        {"x": np.zeros((2, 4)), "i": [1, 2], "image": [b""] * 2},  # shape
        {"x": np.zeros((2, 3)), "i": [0.5, 1.0], "image": [b""] * 2},  # would round
        {"x": np.zeros((2, 3)), "i": [1, 2], "image": ["a", "b"]},  # no bytes
        {"x": np.zeros((2, 3)), "i": [1, 2], "image": b"ab"},  # one string, not a list
        {"x": np.full((1, 3), 1e300), "i": [1], "image": [b""]},  # would be infinite
        {"x": np.zeros((1, 3)), "i": np.array([2**63], np.uint64), "image": [b""]},  # would wrap
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_stays(path: Path, wrong: dict) -> None:
    def write() -> None:
        with create_table(path, COLUMNS, {}) as writer:
            writer.append(**rows_of(5))
            writer.append(**wrong)

    with pytest.raises(ValueError, match=r"takes|differ|hold"):
        write()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_what_was_there_before(path: Path, error: type[BaseException]) -> None:
    fill(path, 10)
    before = file_bytes(path)

    def write() -> None:
        with create_table(path, COLUMNS, {}) as writer:
            writer.append(**rows_of(300))
            raise error

    with pytest.raises(error):
        write()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert file_bytes(path) == before


def test_nothing_has_the_final_name_before_the_end(path: Path) -> None:
    with create_table(path, COLUMNS, {}) as writer:
        writer.append(**rows_of(300))
        assert not path.exists()
    assert path.exists()
    with pytest.raises(ValueError, match="with block"):
        writer.append(**rows_of(1))


def test_a_store_replaces_the_one_before(path: Path) -> None:
    fill(path, 10)
    rows = fill(path, 20, seed=5)
    np.testing.assert_array_equal(open_table(path).read("x"), rows["x"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_file_bytes_do_not_depend_on_batch_sizes_or_attribute_order(path: Path) -> None:
    def write(batches: list[int], attrs: dict) -> dict[str, str]:
        rows, start = rows_of(sum(batches)), 0
        with create_table(path, COLUMNS, {"kind": "test"}) as writer:
            for name, value in attrs.items():
                writer.set_attr(name, value)
            for size in batches:
                writer.append(**{k: v[start : start + size] for k, v in rows.items()})
                start += size
        return file_bytes(path)

    one = write([500], {"a": 1, "b": {"c": 2, "d": 3}})
    assert write([1] * 500, {"b": {"d": 3, "c": 2}, "a": 1}) == one
    assert write([63, 1, 0, 64, 65, 7, 300], {"a": 1, "b": {"c": 2, "d": 3}}) == one


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_appends_and_any_reads_agree_with_numpy(path: Path, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 90), max_size=5))
    chunk = data.draw(st.sampled_from([3, 1024]))
    n = sum(sizes)
    x = np.arange(n * 2, dtype=np.int32).reshape(n, 2)
    b = [bytes([i % 251]) * (i * 37 % 1500) for i in range(n)]
    columns = {"x": Column("int32", (2,), chunk), "b": Column("bytes", (), chunk)}
    with create_table(path, columns, {}) as writer:
        start = 0
        for size in sizes:
            writer.append(x=x[start : start + size], b=b[start : start + size])
            start += size
    table = open_table(path)
    table.verify(deep=True)
    for _ in range(3):
        rows = data.draw(st.lists(st.integers(0, max(0, n - 1)), max_size=8)) if n else []
        np.testing.assert_array_equal(table.read("x", rows), x[rows])
        assert table.read_bytes("b", rows) == [b[i] for i in rows]
        part = data.draw(st.slices(n).filter(lambda s: min(s.start or 0, s.stop or 0) >= 0))
        if (part.step or 1) > 0:
            np.testing.assert_array_equal(table.read("x", part), x[part])


def test_zarr_shards_are_full_but_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathgen.stores.zarr.SHARD", 1024 * 1024)
    rows = {"i": np.arange(1300), "image": [bytes([i % 256]) * 2500 for i in range(1300)]}
    with create_table(tmp_path / "a.zarr", {"i": Column("int64"), "image": BYTES}, {}) as writer:
        writer.append(**rows)
    array = zarr.open_array(str(tmp_path / "a.zarr"), path="image/data", mode="r")
    assert array.shards == (1024 * 1024,)
    assert len(list((tmp_path / "a.zarr" / "image" / "data" / "c").iterdir())) == 4
    table = open_table(tmp_path / "a.zarr")
    table.verify(deep=True)
    assert table.read_bytes("image", [1299, 419, 420]) == [
        rows["image"][i] for i in (1299, 419, 420)
    ]


# -------------------------------------------------------------------- processes, threads, handles


def _read_all(table: object) -> np.ndarray:
    return table.read("x")  # type: ignore[attr-defined]


def test_an_open_table_goes_to_another_process(path: Path) -> None:
    rows = fill(path, 50)
    table = open_table(path)
    table.read_bytes("image", [1])
    again = pickle.loads(pickle.dumps(table))  # noqa: S301
    np.testing.assert_array_equal(again.read("x"), rows["x"])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(_read_all, (table,)), rows["x"])


@pytest.mark.skipif(sys.platform != "linux", reason="fork is the default on Linux only")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children_and_their_parent_read_at_once(path: Path) -> None:
    rows = fill(path, 200)
    table = open_table(path)
    table.read("x")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        waiting = [pool.apply_async(_read_all, (table,)) for _ in range(6)]
        here = table.read_bytes("image")
        for result in waiting:
            np.testing.assert_array_equal(result.get(30), rows["x"])
    assert here == rows["image"]


def test_closed_handles_open_again(path: Path) -> None:
    rows = fill(path, 5)
    table = open_table(path)
    for _ in range(2):
        np.testing.assert_array_equal(table.read("x"), rows["x"])
        table.close()


def test_a_store_made_anew_is_read_anew(path: Path) -> None:
    """Its file may still be open under the same name."""
    fill(path, 20, seed=1)
    before = open_table(path).read_bytes("image")
    commit.discard(path)
    rows = fill(path, 20, seed=2)
    assert open_table(path).read_bytes("image") == rows["image"] != before


def test_more_tables_than_open_files_and_threads_on_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathgen.stores.hdf5.MAX_OPEN", 2)
    paths = [path.with_name(f"{i}{path.suffix}") for i in range(5)]
    rows = [fill(p, 20, seed=i) for i, p in enumerate(paths)]
    tables = [open_table(p) for p in paths]
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for i in rng.integers(0, 5, 15):
            try:
                if tables[i].read_bytes("image") != rows[i]["image"]:
                    wrong.append(i)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --------------------------------------------------------------------- readers without pathgen


def flat_arrays(path: Path) -> dict:
    names = ["x", "i", *(f"image/{part}" for part in ("data", "offset", "length", "crc32"))]
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: file[name][:] for name in names}
    group = zarr.open_group(str(path), mode="r")
    return {name: group[name][:] for name in names}


def test_h5py_and_zarr_read_columns_by_name(path: Path) -> None:
    rows = fill(path, 70)
    arrays = flat_arrays(path)
    np.testing.assert_array_equal(arrays["x"], rows["x"])
    for row, image in enumerate(rows["image"]):
        start, length = int(arrays["image/offset"][row]), int(arrays["image/length"][row])
        value = arrays["image/data"][start : start + length].tobytes()
        assert value == image
        assert zlib.crc32(value) == arrays["image/crc32"][row]
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    assert dtypes["image/offset"] == "int64"
    assert dtypes["image/length"] == dtypes["image/crc32"] == "uint32"


@pytest.mark.parametrize("locking", [None, False, True])
def test_h5py_may_have_the_file_open_before_and_after(tmp_path: Path, locking: bool | None) -> None:
    rows = fill(tmp_path / "a.h5", 5)
    with h5py.File(tmp_path / "a.h5", locking=locking):
        assert open_table(tmp_path / "a.h5").read_bytes("image") == rows["image"]
    table = open_table(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5"):
        assert table.read_bytes("image") == rows["image"]


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_the_snippets_of_the_documentation_read_a_patch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, images = make_patches(tmp_path / f"slide.{kind}", 9)
    text = (Path(__file__).resolve().parents[1] / "docs" / "formats.md").read_text("utf-8")
    snippets = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    snippet = next(part for part in snippets if f"slide.{kind}" in part)
    names: dict = {}
    exec(snippet, names)
    np.testing.assert_array_equal(np.asarray(names["patch"]), images[7])
    assert names["coords"].shape == (9, 2)
    assert names["facts"]["name"] == "ward/a"


# --------------------------------------------------------------------------- codec of one patch


def picture(size: int = 64, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(60, 250, (8, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def test_png_is_exact_and_jpeg_is_near() -> None:
    image = picture()
    np.testing.assert_array_equal(decode_patch(encode_patch(image, "png")), image)
    for quality, bound in ((95, 1.5), (80, 4.0)):
        near = decode_patch(encode_patch(image, "jpeg", quality)).astype(int)
        assert np.abs(near - image).mean() < bound


def test_pillow_reads_what_is_encoded() -> None:
    import io

    for codec in ("jpeg", "png"):
        data = encode_patch(picture(), codec, 90)  # type: ignore[arg-type]
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == codec.upper()
            other = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(other - decode_patch(data)).max() <= 3


def test_bytes_that_are_no_image_are_store_errors() -> None:
    for codec in ("jpeg", "png"):
        data = encode_patch(picture(), codec)  # type: ignore[arg-type]
        for wrong in (data[: len(data) // 2], data[:20], b"", b"GIF89a" + data):
            with pytest.raises(StoreError, match="PG-O11"):
                decode_patch(wrong)
    with pytest.raises(StoreError, match="64 x 64"):
        decode_patches([encode_patch(picture(), "png")], 32)
    for shape in ((4, 4), (4, 4, 4), (0, 4, 3)):
        with pytest.raises(ValueError, match="uint8"):
            encode_patch(np.zeros(shape, np.uint8))


@settings(max_examples=60, deadline=None)
@given(codec=st.sampled_from(["jpeg", "png"]), data=st.data())
def test_damaged_images_decode_or_raise_store_errors(codec: str, data: st.DataObject) -> None:
    encoded = bytearray(encode_patch(picture(32), codec))  # type: ignore[arg-type]
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(StoreError):  # and nothing else
        assert decode_patch(bytes(encoded)).ndim == 3


# -------------------------------------------------------------------------------- the three kinds

SLIDE = SlideFacts(
    name="ward/a", identity="0f" * 8, width=2000, height=1000, mpp_x=0.25, mpp_y=0.25,
    mpp_source="file", vendor="aperio", objective=40.0, bounds=(0, 0, 2000, 1000),
)  # fmt: skip
GEOMETRY = {"patch_size_level0": 128.0, "read_level": 0, "mpp_error": 0.0, "level0_mpp": 0.25}


def make_patches(path: Path, n: int = 6, **options: object) -> tuple[PatchStore, np.ndarray]:
    images = np.stack([picture(64, i) for i in range(n)]) if n else np.empty((0, 64, 64, 3), "u1")
    with PatchStore.create(
        path, PatchSpec(size=64), MADE_BY, codec="png", slide=SLIDE, geometry=GEOMETRY,
        label="ISUP 2", patient="p1", **options,
    ) as writer:  # fmt: skip
        writer.append(
            image=[encode_patch(image, "png") for image in images],
            coords=np.arange(2 * n).reshape(n, 2) * 128,
            grid=np.arange(2 * n).reshape(n, 2),
            made=np.arange(n, dtype=np.uint8) % 3,
            **dict.fromkeys(options.get("measures", MEASURES), np.linspace(0, 1, n)),
        )
    return PatchStore.open(path), images


def test_patch_store(path: Path) -> None:
    store, images = make_patches(path)
    assert len(store) == 6
    np.testing.assert_array_equal(store.images([5, 0, 0]), images[[5, 0, 0]])
    np.testing.assert_array_equal(store.coords([1]), [[256, 384]])
    assert store.coords().dtype == np.int64
    assert store.grid().dtype == np.int32
    assert store.measure("tissue", [5]) == [1.0]
    assert store.measures == MEASURES
    assert store.spec == PatchSpec(size=64)
    assert store.slide == SLIDE
    assert store.id == MADE_BY.id
    assert (store.name, store.label, store.patient) == ("ward/a", "ISUP 2", "p1")
    assert store.patch_size_level0 == store.attrs["patch_size_level0"] == 128.0
    assert store.attrs["target_mpp"] == 0.5
    assert store.labels is None
    assert store.classes == ()
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    np.testing.assert_array_equal(again.images(), images)


def test_patch_store_without_patches(path: Path) -> None:
    store, _ = make_patches(path, 0)
    assert len(store) == 0
    assert store.images().shape == (0, 64, 64, 3)
    assert store.coords().shape == (0, 2)


def test_patch_store_with_other_measures(path: Path) -> None:
    store, _ = make_patches(path, measures=("tissue", "blur"))
    assert store.measures == ("tissue", "blur")
    with pytest.raises(StoreError, match="PG-O17"):
        store.measure("eosin")


def test_coords_carry_the_attributes_other_tools_look_for(path: Path) -> None:
    make_patches(path)
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            notes = dict(file["coords"].attrs)
    else:
        notes = dict(zarr.open_group(str(path), mode="r")["coords"].attrs)
    assert notes["patch_size"] == 64
    assert notes["patch_size_level0"] == 128.0
    assert notes["target_mpp"] == 0.5
    assert notes["level0_mpp"] == 0.25
    assert notes["overlap"] == 0
    assert notes["name"] == "ward/a"


def test_a_slide_name_that_is_not_unicode_is_kept_readable(path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    slide = SLIDE.model_copy(update={"name": SlideFacts.model_validate(
        {**SLIDE.model_dump(), "name": name}).name})  # fmt: skip
    with PatchStore.create(path, PatchSpec(), MADE_BY, codec="png", slide=slide, geometry=GEOMETRY):
        pass
    assert PatchStore.open(path).name == "caf\ufffd"


def test_slide_facts_are_an_allow_list() -> None:
    with pytest.raises(ValueError, match="extra"):
        SlideFacts.model_validate({**SLIDE.model_dump(), "aperio.Filename": "PHI"})


def test_feature_store(path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((9, 5)).astype(np.float32)
    with FeatureStore.create(
        path, 5, MADE_BY,
        encoder={"name": "vit", "id": "e1", "dim": 5},
        source={"id": "s1", "name": "a", "label": "2", "patient": None, "patch_size_level0": 512.0},
        classes=("benign", "tumor"),
    ) as writer:  # fmt: skip
        writer.append(features=features, coords=np.zeros((9, 2), int), label=[-1] * 8 + [1])
    store = open_store(path)
    assert isinstance(store, FeatureStore)
    np.testing.assert_array_equal(store.features([8, 1]), features[[8, 1]])
    assert store.labels().tolist() == [-1] * 8 + [1]
    assert (store.dim, store.name, store.label, store.patient) == (5, "a", "2", None)
    assert store.classes == ("benign", "tumor")
    assert store.patch_size_level0 == 512.0
    assert store.encoder["id"] == "e1"


def test_features_may_be_half_precision(path: Path) -> None:
    with FeatureStore.create(
        path, 2, MADE_BY, encoder={}, source={"id": "s", "name": "a"}, dtype="float16"
    ) as writer:
        writer.append(features=np.ones((1, 2), np.float32), coords=[[0, 0]], label=[0])
    assert FeatureStore.open(path).features().dtype == np.float16


def test_recipes_come_back_and_are_found_by_patch(path: Path) -> None:
    a, b = PatchRef("A", 3), PatchRef("B", 0)
    recipes = [
        Recipe(a, b, 0.25, 11), Recipe.generative(a, 12), Recipe.generative(b, 13),
        Recipe(b, a, 0.5, 14), Recipe.generative(a, 15), Recipe(a, PatchRef("A", 4), 0.75, 2**40),
    ]  # fmt: skip
    with SelfAugmentationStore.create(
        path, 64, MADE_BY, sources=["A", "B"], facts={"guidance": 2.0}
    ) as writer:
        writer.append(
            image=[encode_patch(picture(64, i), "png") for i in range(6)],
            cosine=np.full(6, np.nan),
            **recipe_columns(recipes, ["A", "B"]),
        )
    store = SelfAugmentationStore.open(path)
    assert store.recipes() == recipes
    assert store.recipes([3]) == [recipes[3]]
    np.testing.assert_array_equal(store.images([2])[0], picture(64, 2))
    assert store.generative(a).tolist() == [1, 4]
    assert store.interpolated(a).tolist() == [0, 5]
    assert store.generative(b).tolist() == [2]
    assert store.interpolated(b).tolist() == [3]
    for nothing in (PatchRef("C", 0), PatchRef("A", 99)):
        assert store.generative(nothing).tolist() == store.interpolated(nothing).tolist() == []
    assert store.attrs["guidance"] == 2.0
    assert np.isnan(store.cosine()).all()
    assert pickle.loads(pickle.dumps(store)).generative(a).tolist() == [1, 4]  # noqa: S301


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), max_size=40))
def test_the_index_agrees_with_a_plain_search(rows: list[tuple[int, int, int, int]]) -> None:
    columns = dict(zip(
        ("primary_store", "primary_row", "secondary_store", "secondary_row"),
        np.array(rows, np.int64).reshape(-1, 4).T, strict=True,
    ))  # fmt: skip
    store = SelfAugmentationStore.__new__(SelfAugmentationStore)
    store._index, store._place = {}, {str(i): i for i in range(4)}
    store.table = type("Columns", (), {"read": staticmethod(columns.__getitem__)})()  # type: ignore[assignment]
    for s in range(4):
        for r in range(4):
            mine = [i for i, row in enumerate(rows) if row[:2] == (s, r)]
            same = [i for i in mine if rows[i][2:] == (s, r)]
            assert store.generative(PatchRef(str(s), r)).tolist() == same
            assert store.interpolated(PatchRef(str(s), r)).tolist() == [
                i for i in mine if i not in same
            ]


# ------------------------------------------------------------------------- opening and finding


def test_a_store_of_another_kind_is_refused(path: Path) -> None:
    make_patches(path)
    assert isinstance(open_store(path), PatchStore)
    with pytest.raises(StoreError, match=rf"PG-O16 {path.name} holds patches, not features"):
        FeatureStore.open(path)
    fill(path, 3, attrs={"kind": "cells"})
    with pytest.raises(StoreError, match=r"PG-O16.*'cells'"):
        open_store(path)


def rewrite_attrs(path: Path, **changes: object) -> None:
    """Change root attributes as another program would; None removes one."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            for name, value in changes.items():
                del file.attrs[name]
                if value is not None:
                    file.attrs[name] = np.bytes_(json.dumps(value))
    else:
        head = json.loads((path / "zarr.json").read_text())
        head["attributes"] |= changes
        head["attributes"] = {k: v for k, v in head["attributes"].items() if v is not None}
        (path / "zarr.json").write_text(json.dumps(head))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seal": None}, "PG-O04 store is not finished"),
        ({"format_version": "2.0"}, "PG-O12 store needs a newer pathgen"),
        ({"format_version": "x"}, "PG-O11"),
        ({"format": None}, "PG-O15 not a pathgen store"),
        ({"kind": "features"}, "PG-O11.*attributes do not match"),
        ({"seal": {"complete": False}}, "PG-O11.*seal cannot be read"),
    ],
)
def test_heads_that_are_refused(path: Path, changes: dict, message: str) -> None:
    fill(path, 5)
    rewrite_attrs(path, **changes)
    with pytest.raises(StoreError, match=message):
        open_table(path)


def test_a_newer_minor_version_is_read(path: Path) -> None:
    rows = fill(path, 5)
    attrs = {**open_table(path).attrs, "format_version": "1.7", "new": "unknown here"}
    from pathgen.stores.seal import attrs_crc32

    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            seal = json.loads(file.attrs["seal"])
            file.attrs["new"] = np.bytes_(b'"x"')
    else:
        seal = json.loads((path / "zarr.json").read_text())["attributes"]["seal"]
    seal |= {"attrs_crc32": attrs_crc32(attrs), "later": 1}
    rewrite_attrs(path, format_version="1.7", new="unknown here", seal=seal)
    np.testing.assert_array_equal(open_table(path).read("x"), rows["x"])


def test_files_that_are_no_stores(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["kind"] = "of another tool"
        file["coords"] = [1, 2]
    (tmp_path / "text.h5").write_text("not hdf5")
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "file.zarr").write_text("x")
    (tmp_path / "slide.svs").write_text("x")
    zarr.create_group(str(tmp_path / "other.zarr"))
    for place in sorted(tmp_path.iterdir()):
        with pytest.raises(StoreError, match="PG-O15 not a pathgen store"):
            open_table(place)
    with pytest.raises(StoreError, match="PG-O15 no store here"):
        open_table(tmp_path / "missing.h5")


def test_stores_are_found(tmp_path: Path) -> None:
    names = ["b.h5", "sub/c.h5", "sub/deep/a.zarr"]
    for name in names:
        make_patches(tmp_path / name, 1)
    fill(tmp_path / "other.h5", 1, attrs={"kind": "features"})
    (tmp_path / "slides.csv").write_text("slide\n")
    (tmp_path / ".pathgen-tmp-h+1+x+late.h5").write_bytes(b"")
    with h5py.File(tmp_path / "foreign.h5", "w"):
        pass
    found = find_stores(tmp_path, "patches")
    assert [str(p.relative_to(tmp_path)) for p in found] == names
    assert len(find_stores(tmp_path)) == 4
    assert find_stores(tmp_path / "b.h5", "patches") == [tmp_path / "b.h5"]
    several = [tmp_path / "sub", str(tmp_path / "b.h5"), tmp_path / "b.h5"]
    assert find_stores(several) == [tmp_path / name for name in (*names[1:], names[0])]
    (tmp_path / "none").mkdir()
    for nothing in (tmp_path / "none", tmp_path / "missing", []):
        with pytest.raises(NoInputError, match="PG-N01"):
            find_stores(nothing)
    with pytest.raises(NoInputError, match="no augmentation stores"):
        find_stores(tmp_path, "augmentations")


def test_damaged_stores_are_found_so_that_opening_them_says_so(tmp_path: Path) -> None:
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert find_stores(tmp_path, "patches") == [tmp_path / "cut.h5"]
    with pytest.raises(StoreError, match="PG-O11"):
        open_store(tmp_path / "cut.h5")
