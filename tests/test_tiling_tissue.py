"""Tissue is found, glass and pen are not; stain is measured as scikit-image measures it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.color import hed2rgb, rgb2hed

from pathgen.errors import SlideError
from pathgen.synthetic import SlideSpec, make_slide
from pathgen.tiling import TissueConfig, find_tissue, open_slide
from pathgen.tiling.overview import Overview
from pathgen.tiling.stain import SCORE_MPP, STAINED, STAINS, halvings, hed, stain_scores
from pathgen.tiling.tissue import background, mask_of

rgb_images = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).integers(0, 256, (2, 16, 16, 3), np.uint8)
)

# Stain


@given(rgb_images)
def test_hed_is_scikit_images_in_base_ten(images: NDArray[np.uint8]) -> None:
    np.testing.assert_allclose(hed(images), rgb2hed(images) * 6, atol=2e-5)


@given(rgb_images)
def test_scores_follow_from_hed(images: NDArray[np.uint8]) -> None:
    scores = stain_scores(images, factor=1)
    density = rgb2hed(images) * 6
    for i, (stain, least) in enumerate(STAINED.items()):
        np.testing.assert_allclose(scores[f"{stain}_mean"], density[..., i].mean((1, 2)), atol=1e-4)
        np.testing.assert_allclose(scores[stain], (density[..., i] > least).mean((1, 2)), atol=0.01)
        assert scores[stain].dtype == np.float32


@given(rgb_images, st.integers(200, 255))
def test_light_is_divided_by_the_background(images: NDArray[np.uint8], glass: int) -> None:
    through = np.clip(images / glass, 1e-6, 1)
    expected = np.maximum(-np.log10(through) @ np.linalg.inv(STAINS), 0)
    np.testing.assert_allclose(hed(images, (glass,) * 3), expected, atol=1e-4)


def test_gray_glass_scores_nothing_against_itself() -> None:
    glass = np.full((1, 64, 64, 3), 210, np.uint8)
    assert stain_scores(glass)["hematoxylin_mean"][0] > 0.03
    scores = stain_scores(glass - 2, background=(210, 210, 210))
    assert scores["hematoxylin"][0] == 0
    assert scores["hematoxylin_mean"][0] < 0.01


def test_averaged_scores_are_near_those_at_full_resolution() -> None:
    image = tissue_image(256, 256)[None]
    full, fast = stain_scores(image, 1), stain_scores(image, 4)
    for name in full:
        assert fast[name] == pytest.approx(full[name], abs=0.05)


def test_nuclei_pink_and_glass_come_apart() -> None:
    def stained(h: float, e: float) -> NDArray[np.uint8]:
        rgb = hed2rgb(np.full((64, 64, 3), (h / 6, e / 6, 0)))
        return np.asarray(rgb * 255 + 0.5, np.uint8)

    nuclei, pink, glass = stained(0.5, 0.2), stained(0.01, 0.4), np.full((64, 64, 3), 243, np.uint8)
    scores = stain_scores([nuclei, pink, glass])
    assert scores["hematoxylin"].tolist() == [1, 0, 0]
    assert scores["eosin"].tolist() == [1, 1, 0]
    assert scores["hematoxylin_mean"][0] == pytest.approx(0.5, abs=0.02)
    assert scores["eosin_mean"][1] == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    ("mpp", "factor"), [(0.1, 16), (0.25, 8), (0.4, 4), (0.5, 4), (1.0, 2), (4.0, 1)]
)
def test_scores_are_measured_at_one_physical_scale(mpp: float, factor: int) -> None:
    assert halvings(SCORE_MPP / mpp, 16) == factor


@pytest.mark.parametrize(
    ("color", "glass"),
    [
        ((210, 210, 210), (210, 210, 210)),
        ((240, 236, 225), (240, 236, 225)),
        ((226, 190, 210), (255, 255, 255)),
    ],
    ids=["gray", "warm", "pink to the edges"],
)
def test_background_is_glass_or_white(
    color: tuple[int, int, int], glass: tuple[int, int, int]
) -> None:
    image = np.full((100, 100, 3), color, np.uint8)
    image[:60] = (120, 60, 140)
    assert background(image) == glass


# Tissue


def mask(image: NDArray[np.uint8], **settings: object) -> NDArray[np.bool_]:
    """The mask of an image at 8 um per pixel."""
    config = TissueConfig(**settings)  # type: ignore[arg-type]
    return mask_of(Overview(image, (0, 0), (16.0, 16.0)), (0.5, 0.5), config).pixels


@pytest.mark.parametrize("glass", [200, 225, 243, 255])
@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_bare_glass_holds_no_tissue(glass: int, noise: float) -> None:
    rng = np.random.default_rng(0)
    image = np.full((200, 300, 3), glass) + rng.normal(0, noise, (200, 300, 3))
    shade = np.linspace(0.98, 1.02, 300)[None, :, None]  # uneven light
    assert not mask(np.clip(image * shade, 0, 255).astype(np.uint8)).any()


def painted(color: tuple[int, int, int]) -> NDArray[np.uint8]:
    image = np.full((120, 120, 3), 243, np.uint8)
    image[30:90, 30:90] = color
    return image


@pytest.mark.parametrize(
    "color",
    [(226, 150, 190), (235, 215, 228), (150, 110, 70), (210, 213, 228), (60, 30, 100)],
    ids=["H&E", "pale H&E", "DAB", "pale counterstain", "dense nuclei"],
)
def test_stained_tissue_is_found_whole(color: tuple[int, int, int]) -> None:
    found = mask(painted(color))
    assert found[32:88, 32:88].all()
    assert not found[:26].any()


@pytest.mark.parametrize(
    "color", [(20, 20, 22), (70, 66, 70), (30, 60, 190), (40, 150, 70), (0, 0, 0), (228, 228, 227)],
    ids=["black pen", "gray pen", "blue pen", "green pen", "fill", "shadow"],
)  # fmt: skip
def test_pen_fill_and_shadow_are_no_tissue(color: tuple[int, int, int]) -> None:
    assert not mask(painted(color)).any()


def test_holes_stay_and_specks_go() -> None:
    image = painted((226, 150, 190))
    image[50:70, 50:70] = 243
    image[5:8, 5:8] = (226, 150, 190)
    found = mask(image)
    assert not found[53:67, 53:67].any()
    assert not found[:20, :20].any()
    assert mask(image, min_area_mm2=0)[5:8, 5:8].all()


def test_mask_does_not_depend_on_the_pyramid(tmp_path: Path) -> None:
    image = tissue_image(1024, 768)
    shares = []
    for levels in ((1,), (1, 4), (1, 2, 4, 8, 16)):
        path = write_svs(tmp_path / f"{len(levels)}.svs", image, levels=levels, compression=None)
        with open_slide(path) as slide:
            tissue = find_tissue(slide)
        assert tissue.mpp == 8
        shares.append(tissue.pixels)
    for other in shares[1:]:
        assert (other != shares[0]).mean() < 0.01


def test_the_truth_of_a_synthetic_slide_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.svs"
    truth = make_slide(path, SlideSpec(width=2048, height=2048, seed=5, tissue_share=0.4))
    with open_slide(path) as slide:
        found = find_tissue(slide, TissueConfig(mpp=truth.mpp * 4))
    rows, columns = found.pixels.shape
    known = truth.tissue[: rows * 4, : columns * 4]
    known = known.reshape(rows, 4, columns, 4).mean((1, 3)) > 0.5
    both, either = (found.pixels & known).sum(), (found.pixels | known).sum()
    assert both / either > 0.8
    assert both / found.pixels.sum() > 0.97


def test_fluorescence_is_refused(tmp_path: Path) -> None:
    dark = (255 - tissue_image(600, 400)) // 4
    with (
        open_slide(write_svs(tmp_path / "x.svs", dark, levels=(1,))) as slide,
        pytest.raises(SlideError, match="PG-S14"),
    ):
        find_tissue(slide)
