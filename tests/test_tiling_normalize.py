"""Stain normalization and color profiles; torchstain's and Little CMS's output are the oracles."""

from __future__ import annotations

import io
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers_tiling import tissue_image, write_svs
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pathgen.errors import ConfigError
from pathgen.stores import PatchStore
from pathgen.tiling import TileConfig, open_slide, tile
from pathgen.tiling.color import ToSrgb, color_profile, describe_profile
from pathgen.tiling.normalize import (
    MACENKO_REFERENCE,
    REINHARD_REFERENCE,
    NormalizeConfig,
    Reinhard,
    normalizer,
    stained,
)
from pathgen.tiling.preparation import without_pen

torchstain = pytest.importorskip("torchstain")

SMALL = TileConfig(patch_size=128, thumbnail_px=256, codec="png", min_hematoxylin=0)


@cache
def profile() -> bytes:
    """An RGB profile far from sRGB, its red and blue swapped; made once, as it holds the time."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = made.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")
    assert swapped != made
    return swapped


def tissue_pixels(seed: int = 0) -> NDArray[np.uint8]:
    """Stained pixels (n, 3) with two stains in many amounts, over noisy light."""
    rng = np.random.default_rng(seed)
    vectors = np.array([[0.60, 0.72, 0.35], [0.12, 0.95, 0.28]])
    amounts = rng.gamma(1.2, 0.35, (20_000, 2)) * (1, 0.8)
    light = 240 * np.exp(-(amounts @ vectors) * 1.6) + rng.normal(0, 1.5, (20_000, 3))
    return stained(np.clip(light, 0, 255).astype(np.uint8))


def test_felt_pen_is_not_fitted() -> None:
    pixels = tissue_pixels()
    rng = np.random.default_rng(1)
    pen = np.clip(rng.normal((28, 28, 30), 2, (len(pixels) // 4, 3)), 0, 255).astype(np.uint8)
    for method in ("macenko", "reinhard"):
        config = NormalizeConfig(method=method)  # type: ignore[arg-type]
        clean = normalizer(config, pixels)
        marked = normalizer(config, without_pen(np.concatenate([pixels, pen]), (240, 240, 240)))
        assert np.abs(clean.apply(pixels[None]).astype(int) - marked.apply(pixels[None])).max() <= 4


def test_macenko_is_torchstains_with_one_fit_for_the_slide() -> None:
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    pixels = tissue_pixels()
    oracle = NumpyMacenkoNormalizer()
    wanted, _, _ = oracle.normalize(pixels[:, None], stains=False)
    found = normalizer(NormalizeConfig(method="macenko"), pixels)
    got = found.apply(pixels[:, None, None])[:, 0]
    assert np.abs(got.astype(int) - wanted).max() <= 2
    assert np.abs(got.astype(int) - pixels[:, None]).mean() > 5  # it does something
    np.testing.assert_allclose(oracle.HERef.T, MACENKO_REFERENCE["stain_vectors"])
    np.testing.assert_allclose(oracle.maxCRef, MACENKO_REFERENCE["max_concentrations"])


def test_reinhard_is_torchstains_with_one_fit_for_the_slide() -> None:
    from torchstain.numpy.normalizers import NumpyReinhardNormalizer

    pixels = tissue_pixels()
    oracle = NumpyReinhardNormalizer()
    oracle.target_means = np.array(REINHARD_REFERENCE["mean"], np.float32)
    oracle.target_stds = np.array(REINHARD_REFERENCE["sd"], np.float32)
    wanted = oracle.normalize(pixels[:, None])
    got = normalizer(NormalizeConfig(method="reinhard"), pixels).apply(pixels[:, None, None])[:, 0]
    assert np.abs(got.astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_another_stain_of_the_same_tissue_comes_out_alike(method: str) -> None:
    """Two slides, one twice as dark: after normalization their colors are close."""
    pale = tissue_pixels()
    dark = np.rint(240 * (pale / 240.0) ** 1.7).clip(0, 255).astype(np.uint8)
    config = NormalizeConfig(method=method)  # type: ignore[arg-type]
    one, other = (
        normalizer(config, p).apply(p[:, None, None]).mean((0, 1, 2)) for p in (pale, dark)
    )
    assert np.abs(one - other).max() < 6 < np.abs(pale.mean(0) - dark.mean(0)).min()


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_patches_without_stain_are_no_problem(method: str) -> None:
    """Glass and black pixels have an answer too, and glass stays glass."""
    found = normalizer(NormalizeConfig(method=method), tissue_pixels())  # type: ignore[arg-type]
    odd = np.zeros((3, 16, 16, 3), np.uint8)
    odd[1], odd[2] = 243, 255
    changed = found.apply(odd)
    assert changed.shape == odd.shape
    assert changed.dtype == np.uint8
    assert np.abs(changed[1:].astype(int) - odd[1:]).max() <= 15
    assert found.apply(odd[:0]).shape == (0, 16, 16, 3)
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 - ours
    assert (again.apply(odd) == changed).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((0, 3), np.uint8),
        np.full((9000, 3), 244, np.uint8),
        np.full((9000, 3), (200, 120, 160), np.uint8),
        np.repeat(np.arange(10, 190, dtype=np.uint8), 60)[:, None].repeat(3, 1),
    ],
    ids=["none", "glass", "one color", "gray"],
)
@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_too_little_to_fit_is_said(method: str, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"too few|told apart|one color|Singular"):
        normalizer(NormalizeConfig(method=method), pixels)  # type: ignore[arg-type]


def test_the_target_may_be_an_image(tmp_path: Path) -> None:
    target, pixels = tissue_pixels(3), tissue_pixels(4)
    Image.fromarray(target[:14_400].reshape(120, 120, 3)).save(tmp_path / "target.png")
    config = NormalizeConfig(method="reinhard", target=str(tmp_path / "target.png"))
    config.check()
    found = normalizer(config, pixels)
    wanted = Reinhard.fit(target[:14_400])
    assert {k: np.round(v, 4).tolist() for k, v in wanted.items()} == found.record["target"]
    for bad in ("missing.png", "."):
        with pytest.raises(ConfigError, match="PG-C01"):
            NormalizeConfig(method="reinhard", target=str(tmp_path / bad)).check()
    Image.new("RGB", (90, 90), "white").save(tmp_path / "white.png")
    with pytest.raises(ConfigError, match="too few"):
        NormalizeConfig(method="macenko", target=str(tmp_path / "white.png")).check()
    with pytest.raises(ValueError, match="needs a method"):
        NormalizeConfig(target="x.png")


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_tiled_patches_are_normalized_and_scored_before(tmp_path: Path, method: str) -> None:
    write_svs(tmp_path / "a.svs", tissue_image(640, 512), compression=None)
    plain = tile(tmp_path / "a.svs", tmp_path / "plain", SMALL, workers=0)
    config = SMALL.model_copy(update={"normalize": NormalizeConfig(method=method)})  # type: ignore[arg-type]
    done = tile(tmp_path / "a.svs", tmp_path / "out", config, workers=0)
    before, after = (PatchStore.open(report.stores[0]) for report in (plain, done))
    record = after.attrs["normalization"]
    assert record["method"] == method
    assert "normalization" not in before.attrs
    for name in before.measures:
        np.testing.assert_array_equal(before.measure(name), after.measure(name))
    kind = normalizer(config.normalize, tissue_pixels()).__class__
    wanted = kind(record["source"], record["target"]).apply(before.images())
    np.testing.assert_array_equal(after.images(), wanted)
    assert (after.images() != before.images()).mean() > 0.3
    assert tile(tmp_path / "a.svs", tmp_path / "out", config, workers=0).kept == 1
    again = tile(tmp_path / "a.svs", tmp_path / "again", config, workers=1)
    assert again.stores[0].read_bytes() == done.stores[0].read_bytes()


def test_a_slide_that_cannot_be_fitted_keeps_its_colors_and_says_so(tmp_path: Path) -> None:
    image = np.full((768, 1024, 3), 243, np.uint8)
    image[100:600, 100:900] = (190, 120, 170)
    write_svs(tmp_path / "flat.svs", image, compression=None)
    config = SMALL.model_copy(update={"normalize": NormalizeConfig(method="macenko")})
    report = tile(tmp_path / "flat.svs", tmp_path / "out", config, workers=0)
    (row,) = report.rows
    assert row.state == "done"
    assert row.message.startswith("its stain is not normalized: ")
    store = PatchStore.open(report.stores[0])
    assert store.attrs["normalization"]["method"] == "none"
    plain = tile(tmp_path / "flat.svs", tmp_path / "plain", SMALL, workers=0)
    assert store.encoded() == PatchStore.open(plain.stores[0]).encoded()


def test_the_target_belongs_to_the_settings_by_its_content(tmp_path: Path) -> None:
    slide = write_svs(tmp_path / "a.svs", tissue_image(1024, 768), compression=None)
    picture = Image.fromarray(tissue_pixels(3)[:14_400].reshape(120, 120, 3))
    names = [tmp_path / "one.png", tmp_path / "two.png"]
    for name in names:
        picture.save(name)

    def config(name: Path) -> TileConfig:
        chosen = NormalizeConfig(method="reinhard", target=str(name))
        return SMALL.model_copy(update={"normalize": chosen})

    first = tile(slide, tmp_path / "out", config(names[0]), workers=0)
    assert tile(slide, tmp_path / "out", config(names[1]), workers=0).kept == 1
    assert str(tmp_path).encode() not in first.stores[0].read_bytes()
    picture.rotate(90).point(lambda v: v // 2).save(names[1])
    with pytest.raises(ConfigError, match=r"PG-O19.*normalize\.target"):
        tile(slide, tmp_path / "out", config(names[1]), workers=0)


# --- color profiles -----------------------------------------------------------------------------


def test_srgb_is_what_little_cms_gives() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 24, 32, 3)).astype(np.uint8)
    before = images.copy()
    got = ToSrgb(profile()).apply(images)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile()))
    for one, changed in zip(images, got, strict=True):
        wanted = ImageCms.profileToProfile(
            Image.fromarray(one), source, ImageCms.createProfile("sRGB"),
            ImageCms.Intent(ImageCms.getDefaultIntent(source)),
        )  # fmt: skip
        np.testing.assert_array_equal(changed, np.asarray(wanted))
    np.testing.assert_array_equal(images, before)
    assert np.abs(got.astype(int) - images).mean() > 20
    assert ToSrgb(profile()).apply(images[:0]).shape == (0, 24, 32, 3)


@pytest.mark.parametrize("data", [b"", b"no profile", profile()[:200]])
def test_a_broken_profile_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ToSrgb(data)
    facts = describe_profile(data)
    assert facts is not None
    assert (facts["name"], facts["bytes"]) == (None, len(data))


def with_profile(path: Path, image: NDArray[np.uint8], icc: bytes) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            image, tile=(256, 256), photometric="rgb", iccprofile=icc, metadata=None,
            resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
        )  # fmt: skip
    return path


@pytest.mark.parametrize("reader", ["openslide", "native", "tiffslide"])
def test_every_reader_finds_the_profile(tmp_path: Path, reader: str) -> None:
    if reader == "tiffslide":
        pytest.importorskip("tiffslide")
    path = with_profile(tmp_path / "a.tif", tissue_image(1024, 768), profile())
    with open_slide(path, reader) as slide:
        assert color_profile(slide) == profile()
    assert color_profile(path) == profile()
    assert color_profile(write_svs(tmp_path / "b.svs", tissue_image(512, 512))) is None
    Image.fromarray(tissue_image(300, 200)).save(tmp_path / "c.png", icc_profile=profile())
    assert color_profile(tmp_path / "c.png") == profile()


def test_the_profile_is_recorded_and_applied_on_request(tmp_path: Path) -> None:
    image = tissue_image(1024, 768)
    path = with_profile(tmp_path / "a.tif", image, profile())
    plain = tile(path, tmp_path / "plain", SMALL, workers=0)
    srgb = SMALL.model_copy(update={"color": "srgb"})
    done = tile(path, tmp_path / "srgb", srgb, workers=0)
    before, after = (PatchStore.open(report.stores[0]) for report in (plain, done))
    facts = describe_profile(profile())
    assert facts is not None
    assert before.attrs["color_profile"] == {**facts, "applied": False}
    assert after.attrs["color_profile"] == {**facts, "applied": True}
    np.testing.assert_array_equal(after.images(), ToSrgb(profile()).apply(before.images()))
    assert done.rows[0].message == ""
    both = srgb.model_copy(update={"normalize": NormalizeConfig(method="macenko")})
    mixed = PatchStore.open(tile(path, tmp_path / "both", both, workers=0).stores[0])
    record = mixed.attrs["normalization"]
    change = normalizer(both.normalize, tissue_pixels()).__class__(
        record["source"], record["target"]
    )
    np.testing.assert_array_equal(mixed.images(), change.apply(after.images()))


def test_a_slide_without_a_usable_profile_stays_as_it_is(tmp_path: Path) -> None:
    image = tissue_image(1024, 768)
    none = write_svs(tmp_path / "s/none.svs", image, compression=None)
    with_profile(tmp_path / "s/broken.tif", image, b"no profile" * 20)
    config = SMALL.model_copy(update={"color": "srgb"})
    report = tile(none.parent, tmp_path / "out", config, workers=0)
    rows = {row.slide: row for row in report.rows}
    assert {row.state for row in rows.values()} == {"done"}
    assert rows["none"].message == "colors are as they are: it has no color profile"
    assert rows["broken"].message.startswith("colors are as they are: its color profile: ")
    stores = {path.stem: PatchStore.open(path) for path in report.stores}
    assert stores["none"].attrs["color_profile"] is None
    assert stores["broken"].attrs["color_profile"]["applied"] is False
    again = tile(none.parent, tmp_path / "out", config, workers=0)
    assert again.rows == report.rows


@pytest.mark.data
def test_the_built_in_reference_is_that_of_its_slide(data: Path) -> None:
    with open_slide(data / "slides/crohn3_crop_dicom") as slide:
        pixels = slide.read((0, 0), 0, slide.size).reshape(-1, 3)
    found = Reinhard.fit(stained(pixels[::8]))
    for name, values in REINHARD_REFERENCE.items():
        np.testing.assert_allclose(found[name], values, atol=0.15)


@pytest.mark.data
def test_the_profiles_of_real_slides(data: Path) -> None:
    named = {
        path: (describe_profile(color_profile(data / "slides" / path)) or {}).get("name")
        for path in ("TCGA-CR-7395-01A-01-TS1.svs", "CMU-1-Small-Region.svs", "crohn3_crop_dicom")
    }
    assert named == {
        "TCGA-CR-7395-01A-01-TS1.svs": "sRGB IEC61966-2.1", "CMU-1-Small-Region.svs": None,
        "crohn3_crop_dicom": "sRGB built-in",
    }  # fmt: skip
