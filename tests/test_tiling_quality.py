"""Quality scores: what is sharp, pen, black, glass or folded is said to be so, and only that."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from pathgen.synthetic.optics import PEN_INKS, Renderer
from pathgen.synthetic.spec import SlideSpec
from pathgen.synthetic.tissue import draw_scene
from pathgen.synthetic.truth import BLUR_BIT, FOLD_BIT, PEN_BIT, SlideTruth
from pathgen.tiling import open_slide
from pathgen.tiling.quality import QUALITIES, quality_scores
from pathgen.tiling.stain import Color

SIDE = 64  # pixels, and um
GLASS = (245, 243, 244)
#: Optical densities by R, G, B of what is no pen: hematoxylin, eosin, both, blood, DAB, melanin.
NO_PEN = [
    (0.65, 0.70, 0.29), (0.56, 0.72, 0.41), (0.07, 0.99, 0.11), (0.22, 0.80, 0.56),
    (0.60, 0.95, 0.40), (0.13, 0.60, 0.42), (0.27, 0.57, 0.78), (0.45, 0.62, 0.75),
]  # fmt: skip


def cut(pixels: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """Squares (n, side, side, 3) of an image, row by row."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    whole = pixels[: rows * side, : columns * side]
    return np.ascontiguousarray(
        whole.reshape(rows, side, columns, side, -1).swapaxes(1, 2).reshape(-1, side, side, 3)
    )


def solid(density: tuple[float, float, float]) -> NDArray[np.uint8]:
    light = np.array(GLASS) * 10 ** -np.array(density)
    return np.full((1, SIDE, SIDE, 3), np.rint(light), np.uint8)


def auc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    truth = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    return float(roc_auc_score(truth, np.r_[positive, negative]))


@pytest.fixture(scope="module")
def drawn() -> list[tuple[NDArray[np.uint8], Color, dict[str, NDArray[np.float64]]]]:
    """Patches of 64 um at 1 um per pixel, glass, and the true share of each thing in them."""
    found = []
    for seed, artifact in enumerate(("pen", "pen", "blur", "blur", "folds", "folds", None)):
        spec = SlideSpec(
            width=1536, height=1536, mpp=0.5, seed=31 + seed, tissue_share=0.7,
            **({artifact: True} if artifact else {}),
        )  # fmt: skip
        renderer = Renderer(draw_scene(spec))
        truth = SlideTruth.of(renderer)
        pixels = Image.fromarray(renderer.block(0, 0, 1536, 1536)).reduce(2)
        half = SIDE // 2  # the truth is at 2 um
        maps = {"tissue": truth.tissue}
        for name, bit in (("pen", PEN_BIT), ("blur", BLUR_BIT), ("fold", FOLD_BIT)):
            maps[name] = truth.artifacts & bit > 0
        count = 768 // SIDE
        shares = {
            name: one[: count * half, : count * half].reshape(count, half, count, half)
            .mean((1, 3)).ravel()
            for name, one in maps.items()
        }  # fmt: skip
        white = np.rint(renderer.scanner.white).astype(int).tolist()
        found.append((cut(np.asarray(pixels)), tuple(white), shares))
    return found


@pytest.mark.parametrize(
    ("score", "thing", "sign", "least"),
    [("focus", "blur", -1, 0.985), ("pen", "pen", 1, 0.99), ("fold", "fold", 1, 0.8)],
)
def test_scores_find_what_was_drawn(drawn, score: str, thing: str, sign: int, least: float) -> None:
    with_, without = [], []
    for patches, glass, share in drawn:
        values = sign * quality_scores(patches, 1.0, glass)[score]
        tissue = share["tissue"] > 0.8
        with_.append(values[tissue & (share[thing] > (0.9 if thing == "blur" else 0.3))])
        without.append(values[tissue & (share[thing] == 0)])
    positive, negative = np.concatenate(with_), np.concatenate(without)
    assert len(positive) > 5
    assert len(negative) > 100
    assert auc(positive, negative) > least


def test_blur_lowers_focus_step_by_step(drawn) -> None:
    patches, glass, share = drawn[-1]
    sharp = patches[share["tissue"] > 0.8]
    values = []
    for sigma in (0, 0.5, 1, 2, 4):
        filter_ = ImageFilter.GaussianBlur(sigma)
        blurred = np.stack([np.asarray(Image.fromarray(one).filter(filter_)) for one in sharp])
        values.append(quality_scores(blurred, 1.0, glass)["focus"])
    for finer, coarser in pairwise(values):
        assert (finer > coarser).mean() > 0.98


def test_a_pale_stain_is_not_out_of_focus(drawn) -> None:
    patches, glass, share = drawn[-1]
    strong = patches[share["tissue"] > 0.8].astype(np.float32)
    pale = np.rint(np.array(glass) - 0.35 * (np.array(glass) - strong)).clip(0, 255)
    one, other = (quality_scores(p.astype(np.uint8), 1.0, glass)["focus"] for p in (strong, pale))
    assert np.median(other / one) == pytest.approx(1, abs=0.12)


def test_nothing_to_see_has_no_focus() -> None:
    rng = np.random.default_rng(0)
    glass = np.clip(rng.normal(244, 1.2, (20, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    scores = quality_scores(np.concatenate([glass, solid((0.2, 0.4, 0.2))]), 1.0, GLASS)
    assert scores["focus"][-1] == 0
    assert scores["focus"].max() < 0.35
    assert scores["white"][:20].min() == 1
    noise = rng.integers(0, 256, (1, 256, 256, 3)).astype(np.uint8)
    assert quality_scores(noise, 1.0)["focus"][0] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("density", NO_PEN)
@pytest.mark.parametrize("amount", [0.2, 0.5, 1.0])
def test_stains_and_pigments_are_no_pen(density, amount: float) -> None:
    scores = quality_scores(solid(tuple(amount * d for d in density)), 1.0, GLASS)
    assert scores["pen"][0] == 0
    assert scores["black"][0] == 0


@pytest.mark.parametrize("ink", PEN_INKS.tolist())
def test_ink_is_pen_and_no_fold(ink) -> None:
    scores = quality_scores(solid(tuple(ink)), 1.0, GLASS)
    assert scores["pen"][0] == 1
    assert scores["white"][0] == 0
    if ink[0] > ink[1]:  # red ink and folded eosin look alike in 8 um squares
        assert scores["fold"][0] == 0


def test_black_white_and_fold_of_plain_colors() -> None:
    shade = {
        "black": (1.4, 1.4, 1.4), "white": (0.01, 0.02, 0.01), "fold": (0.45, 1.2, 0.5),
        "flat": (0.2, 0.45, 0.2),
    }  # fmt: skip
    for name, density in shade.items():
        scores = quality_scores(solid(density), 1.0, GLASS)
        assert [scores[n][0] for n in ("black", "white", "fold")] == [
            float(name == n) for n in ("black", "white", "fold")
        ]


def test_glass_is_judged_by_the_slide_not_by_255() -> None:
    gray = np.full((1, SIDE, SIDE, 3), 208, np.uint8)
    assert quality_scores(gray, 1.0, (208, 208, 208))["white"][0] == 1
    assert quality_scores(gray, 1.0, (255, 255, 255))["white"][0] == 0


def test_a_share_is_counted_by_pixels() -> None:
    image = solid((0.2, 0.45, 0.2))
    image[0, :16] = np.rint(np.array(GLASS) * 10 ** -PEN_INKS[0])
    image[0, 48:] = GLASS
    scores = quality_scores(image, 1.0, GLASS)
    assert scores["pen"][0] == pytest.approx(0.25)
    assert scores["white"][0] == pytest.approx(0.25)


@given(
    st.integers(0, 2**31), st.integers(0, 70), st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.floats(0.25, 8),
)  # fmt: skip
def test_each_patch_is_scored_alone_and_in_range(
    seed: int, count: int, shape: tuple[int, int], mpp: float
) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (count, 1, 1, 3))
    images = np.clip(base + rng.normal(0, 20, (count, *shape, 3)), 0, 255).astype(np.uint8)
    scores = quality_scores(images, mpp, (240, 241, 242))
    assert tuple(scores) == QUALITIES
    for name, values in scores.items():
        assert values.shape == (count,)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        if name != "focus":
            assert (values <= 1).all()
    if count:
        row = int(rng.integers(count))
        alone = quality_scores(images[row : row + 1], mpp, (240, 241, 242))
        assert all(alone[name][0] == scores[name][row] for name in QUALITIES)


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        quality_scores(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        quality_scores(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "leica_colon.scn"])
def test_real_tissue_out_of_focus_is_told_at_any_scale(data: Path, name: str) -> None:
    with open_slide(data / "slides" / name) as slide:
        x, y, width, height = slide.bounds
        size = (min(width, 2048), min(height, 2048))
        pixels, mpp = Image.fromarray(slide.read((x, y), 0, size)), slide.mpp
    sharp_at = []
    for scale in (0.8, 1.0, 1.3):
        focus = {}
        for sigma in (0.0, 1.0, 2.0):
            blurred = pixels.filter(ImageFilter.GaussianBlur(sigma / mpp)) if sigma else pixels
            across, down = (round(side * mpp / scale) for side in size)
            patches = cut(np.asarray(blurred.resize((across, down), Image.Resampling.BOX)))
            scores = quality_scores(patches, scale, (244, 244, 244))
            focus[sigma] = scores["focus"][scores["white"] < 0.5]
        assert auc(focus[0.0], focus[1.0]) > 0.97
        assert auc(focus[0.0], focus[2.0]) > 0.99
        sharp_at.append(np.median(focus[0.0]))
    assert max(sharp_at) / min(sharp_at) < 1.25


@pytest.mark.data
def test_real_pen_is_found(data: Path) -> None:
    """A ring of black felt pen around cells; the cells are none, and neither is H&E tissue."""
    with open_slide(data / "slides/csf_mgg_penmarks_quarter.tif") as slide:
        ring = slide.read((6300, 1200), 0, (640, 256))
        cells = slide.read((2600, 3000), 0, (1024, 1024))
    assert np.median(quality_scores(cut(ring), 1.0, (245, 245, 245))["pen"]) > 0.9
    assert quality_scores(cut(cells), 1.0, (245, 245, 245))["pen"].max() < 0.02
    with open_slide(data / "slides/CMU-1-Small-Region.svs") as slide:
        tissue = np.asarray(Image.fromarray(slide.read((0, 0), 0, (2048, 2048))).reduce(2))
    assert quality_scores(cut(tissue), 1.0, (246, 246, 245))["pen"].mean() < 0.02
