"""A slide opens as what it is, or says by code what is wrong with it."""

from __future__ import annotations

import pickle
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import openslide
import pytest
from helpers_tiling import tissue_image, write_svs, write_tiff
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathgen.errors import ConfigError, NoInputError, PathgenError, SlideError
from pathgen.tiling import open_slide, slide_info
from pathgen.tiling.readers.openslide import on_white


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def svs(folder: Path) -> Path:
    return write_svs(folder / "one.svs", tissue_image(700, 500))


def code_of(path: Path, **options: object) -> str:
    with pytest.raises(PathgenError) as caught:
        open_slide(path, **options)  # type: ignore[arg-type]
    return caught.value.code


def test_header_is_openslides(svs: Path) -> None:
    with open_slide(svs) as slide, openslide.OpenSlide(svs) as other:
        assert slide.size == other.dimensions
        assert slide.level_sizes == other.level_dimensions
        assert slide.downsamples == other.level_downsamples
        assert slide.vendor == "aperio"
        assert slide.mpp == float(other.properties["openslide.mpp-x"]) == 0.5
        assert slide.mpp_source == "vendor"
        assert slide.objective == 20
        assert slide.bounds == (0, 0, *other.dimensions)
        assert slide.associated == ("thumbnail",)


@pytest.mark.parametrize("level", [0, 1])
def test_pixels_are_openslides_on_white(svs: Path, level: int) -> None:
    with open_slide(svs) as slide, openslide.OpenSlide(svs) as other:
        theirs = other.read_region((600, 400), level, (200, 150))
        white = Image.new("RGBA", theirs.size, "white")
        expected = np.asarray(Image.alpha_composite(white, theirs).convert("RGB"))
        ours = slide.read((600, 400), level, (200, 150))
        np.testing.assert_allclose(ours, expected, atol=1)
        assert ours.shape == (150, 200, 3)
        assert ours.dtype == np.uint8
        assert (slide.read((5000, 5000), 0, (8, 8)) == 255).all()


def test_slide_travels_to_other_processes(svs: Path) -> None:
    slide = open_slide(svs)
    first = slide.read((10, 20), 0, (30, 30))
    again = pickle.loads(pickle.dumps(slide))  # noqa: S301 - our own bytes
    assert np.array_equal(again.read((10, 20), 0, (30, 30)), first)
    slide.close()
    assert np.array_equal(slide.read((10, 20), 0, (30, 30)), first)


@given(st.integers(0, 2**32 - 1))
def test_on_white_is_alpha_compositing(seed: int) -> None:
    rgba = np.random.default_rng(seed).integers(0, 256, (9, 7, 4), np.uint8)
    back = Image.new("RGBA", (7, 9), "white")
    expected = Image.alpha_composite(back, Image.fromarray(rgba, "RGBA")).convert("RGB")
    assert np.abs(on_white(rgba).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_a_bad_tile_does_not_spoil_the_good_ones(folder: Path) -> None:
    path = write_svs(folder / "bad.svs", tissue_image(1024, 512), levels=(1,))
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].dataoffsets[0]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\0" * 40)
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match="PG-S04"):
            slide.read((0, 0), 0, (64, 64))
        assert slide.read((600, 300), 0, (64, 64)).shape == (64, 64, 3)


# What is no slide


def test_missing_path_names_the_nearest(svs: Path) -> None:
    with pytest.raises(NoInputError, match=r"PG-N01.*one\.svs") as caught:
        open_slide(svs.with_name("onee.svs"))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("empty.svs", b"", "PG-S01"),
        ("text.svs", b"this is no slide\n" * 20, "PG-S02"),
        ("archive.svs", b"PK\x03\x04" + b"\0" * 300, "PG-S02"),
        ("noise.ndpi", bytes(range(256)) * 4, "PG-S02"),
        ("scan.isyntax", b'<DataObject ObjectType="x">' * 20, "PG-S10"),
        ("image.jp2", b"\0\0\0\x0cjP  " + b"\0" * 200, "PG-S10"),
        ("lost.mrxs", b"\xff\xd8\xff\xe0" + b"\0" * 200, "PG-S11"),
        ("lost0.mrxs", b"", "PG-S11"),
        ("cut.svs", b"II*\0\x10\x27\0\0" + b"\0" * 200, "PG-S03"),
        ("nothing.tif", b"II*\0\0\0\0\0" + b"\0" * 200, "PG-S05"),
    ],
)
def test_what_is_no_slide_says_what_it_is(
    tmp_path: Path, name: str, content: bytes, code: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert code_of(tmp_path / name) == code


def test_folders(tmp_path: Path) -> None:
    assert code_of(tmp_path) == "PG-S02"
    (tmp_path / "x.ome.zarr").mkdir()
    assert code_of(tmp_path / "x.ome.zarr") == "PG-S02"


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.8, 0.9, 0.99, 0.9999])
def test_truncated_slide_says_how_much_is_there(svs: Path, tmp_path: Path, share: float) -> None:
    whole = svs.read_bytes()
    cut = tmp_path / "cut.svs"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SlideError, match=r"PG-S03.*\d+%"):
        open_slide(cut)


def first_directory(data: bytes) -> int:
    return int(struct.unpack("<I", data[4:8])[0])


def test_directory_loop(svs: Path, tmp_path: Path) -> None:
    data = bytearray(svs.read_bytes())
    at = first_directory(data)
    tags = struct.unpack("<H", data[at : at + 2])[0]
    struct.pack_into("<I", data, at + 2 + 12 * tags, at)
    (tmp_path / "loop.svs").write_bytes(data)
    assert code_of(tmp_path / "loop.svs") == "PG-S05"


def test_implausible_size(svs: Path, tmp_path: Path) -> None:
    data = bytearray(svs.read_bytes())
    at = first_directory(data)
    for i in range(struct.unpack("<H", data[at : at + 2])[0]):
        entry = at + 2 + 12 * i
        if struct.unpack("<H", data[entry : entry + 2])[0] in (256, 257):
            struct.pack_into("<HII", data, entry + 2, 4, 1, 2**31 - 1)
    (tmp_path / "bomb.svs").write_bytes(data)
    assert code_of(tmp_path / "bomb.svs") == "PG-S06"


@settings(max_examples=40)
@given(chance=st.data())
def test_no_damaged_header_does_worse_than_an_error(chance: st.DataObject, folder: Path) -> None:
    source = folder / "tiny.svs"
    if not source.exists():
        write_svs(source, tissue_image(300, 200), levels=(1,))
    content = bytearray(source.read_bytes())
    head = first_directory(content)
    spots = st.one_of(st.integers(0, 15), st.integers(head, min(head + 300, len(content) - 1)))
    for at in chance.draw(st.lists(spots, min_size=1, max_size=8)):
        content[at] = chance.draw(st.integers(0, 255))
    broken = folder / "broken.svs"
    broken.write_bytes(content)
    with suppress(PathgenError):  # and nothing else
        slide_info(broken)


@pytest.mark.parametrize("big", [False, True])
def test_bigtiff_and_classic_are_walked_alike(tmp_path: Path, big: bool) -> None:
    path = write_tiff(tmp_path / "x.tif", tissue_image(300, 300), per_cm=(2e4, 2e4), bigtiff=big)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert slide.mpp_source == "tiff"
    path.write_bytes(path.read_bytes()[:-5000])
    assert code_of(path) == "PG-S03"


def test_sixteen_bits_are_refused_by_name(tmp_path: Path) -> None:
    image = np.zeros((300, 300), np.uint16)
    with pytest.raises(SlideError, match=r"PG-S10.*16 bits.*raw2ometiff --rgb"):
        open_slide(write_tiff(tmp_path / "deep.tif", image, tile=None))


# Pixel size


@pytest.mark.parametrize("mpp", ["0", "-1", "nan", "25.0", "352.8", "0.001"])
def test_absurd_pixel_size_is_refused_when_used(tmp_path: Path, mpp: str) -> None:
    path = write_svs(tmp_path / "x.svs", tissue_image(300, 200), mpp=mpp, levels=(1,))
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"PG-S0[78]"):
        _ = slide.mpp
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "option")


def test_no_pixel_size(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "x.svs", tissue_image(300, 200), mpp=None, levels=(1,))
    with open_slide(path) as slide, pytest.raises(SlideError, match="PG-S07"):
        _ = slide.mpp
    assert any("PG-S07" in problem for problem in slide_info(path)["problems"])


def test_decimal_comma(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "x.svs", tissue_image(300, 200), mpp="0,25", levels=(1,))
    with open_slide(path) as slide:
        assert slide.mpp == 0.25


@pytest.mark.parametrize(("ratio", "good"), [(1.015, True), (1.05, False)])
def test_anisotropy(tmp_path: Path, ratio: float, good: bool) -> None:
    path = write_tiff(
        tmp_path / "x.tif", tissue_image(300, 200), per_cm=(2e4, 2e4 / ratio), tile=None
    )
    with open_slide(path) as slide:
        if good:
            assert slide.mpp_xy == pytest.approx((0.5, 0.5 * ratio))
        else:
            with pytest.raises(SlideError, match=r"PG-S08.*differ"):
                _ = slide.mpp


def test_screen_resolution_is_no_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(tissue_image(300, 200)).save(path, dpi=(72, 72))
    with open_slide(path) as slide, pytest.raises(SlideError, match="PG-S07"):
        _ = slide.mpp


def test_impossible_option(svs: Path) -> None:
    with open_slide(svs, mpp=300) as slide, pytest.raises(ConfigError, match="PG-S08"):
        _ = slide.mpp
    with pytest.raises(ConfigError, match="no such reader"):
        open_slide(svs, reader="magic")


# Plain images


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_plain_image_is_a_slide_of_one_level(tmp_path: Path, kind: str) -> None:
    image = tissue_image(300, 200)
    path = tmp_path / f"x.{kind}"
    Image.fromarray(image).save(path)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.size == (300, 200)
        assert slide.downsamples == (1.0,)
        patch = slide.read((250, 150), 0, (100, 80))
        assert (patch[50:, :] == 255).all()
        assert (patch[:, 50:] == 255).all()
        difference = np.abs(patch[:50, :50].astype(int) - image[150:, 250:].astype(int)).mean()
        assert difference < (3 if kind == "jpg" else 1e-9)


def test_transparent_png_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (10, 20, 30, 0)).save(tmp_path / "x.png")
    with open_slide(tmp_path / "x.png", mpp=1) as slide:
        assert (slide.read((0, 0), 0, (64, 64)) == 255).all()


# What is told of a slide


def test_info_tells_no_secrets(tmp_path: Path) -> None:
    path = write_svs(
        tmp_path / "x.svs", tissue_image(300, 200), levels=(1,), extra="|Filename = CANARY7f3a"
    )
    info = slide_info(path)
    assert "CANARY7f3a" not in repr(info)
    assert (info["width"], info["height"], info["mpp_x"]) == (300, 200, 0.5)
    assert info["associated"] == ["thumbnail"]
    assert info["problems"] == []
    assert info["bytes"] == path.stat().st_size


def test_info_notes_a_disagreement_with_the_objective(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "x.svs", tissue_image(300, 200), mpp=0.1, levels=(1,))
    assert any("disagree" in problem for problem in slide_info(path)["problems"])


def test_fluorescence_is_refused_by_name(tmp_path: Path) -> None:
    dark = 255 - tissue_image(400, 300)
    path = write_svs(tmp_path / "x.svs", dark // 4, levels=(1,))
    assert any("PG-S14" in problem for problem in slide_info(path)["problems"])
