"""Views: each operation is torchvision's, and Gen-DINO's crops are what Gen-SIS says."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import make_augmentations, make_patches, noise
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pathgen.config import build
from pathgen.data import augmentation as ops
from pathgen.data.loading import Order
from pathgen.data.views import ViewConfig, ViewMaker, Views, view_loader
from pathgen.errors import ConfigError, DataError
from pathgen.stores import PatchRef, Recipe

SMALL = {"global_size": 16, "local_size": 8, "local_crops": 4}
#: Only crops: what is seen is the patch itself.
PLAIN = {
    **SMALL, "horizontal_flip": 0, "jitter": 0, "gray": 0, "blur": (0, 0, 0), "solarize": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Float (6, 3, 20, 24) in [0, 1], with black, white and gray pixels among them."""
    generator = torch.Generator().manual_seed(0)
    made = torch.rand((6, 3, 20, 24), generator=generator)
    made[0, :, 0] = 0
    made[0, :, 1] = 1
    made[1, :, 2] = 0.5
    return made


# --- operations against torchvision ----------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "reference", "parameters"),
    [
        (ops.brightness, tv.adjust_brightness, [0.6, 0.8, 1.0, 1.2, 1.4, 0.0]),
        (ops.contrast, tv.adjust_contrast, [0.6, 0.8, 1.0, 1.2, 1.4, 0.0]),
        (ops.saturation, tv.adjust_saturation, [0.8, 0.9, 1.0, 1.1, 1.2, 0.0]),
        (ops.hue, tv.adjust_hue, [-0.5, -0.1, 0.0, 0.03, 0.1, 0.5]),
    ],
)
def test_colors_change_as_in_torchvision(
    images: Tensor,
    operation: Callable[[Tensor, Tensor], Tensor],
    reference: Callable[[Tensor, float], Tensor],
    parameters: list[float],
) -> None:
    expected = torch.stack([reference(x, p) for x, p in zip(images, parameters, strict=True)])
    found = operation(images.clone(), torch.tensor(parameters))
    assert torch.allclose(found, expected, atol=2e-6)


def test_gray_and_solarize_are_torchvisions(images: Tensor) -> None:
    assert torch.allclose(ops.gray(images), tv.rgb_to_grayscale(images, 3), atol=1e-6)
    assert torch.equal(ops.solarize(images), tv.solarize(images, 0.5))


def test_blur_is_torchvisions(images: Tensor) -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 1.9, 2.0])
    expected = [
        tv.gaussian_blur(x, [13, 13], [float(s)]) for x, s in zip(images, sigma, strict=True)
    ]
    assert torch.allclose(ops.blur(images, sigma, 6), torch.stack(expected), atol=1e-5)


def test_blur_does_not_depend_on_the_rest_of_the_batch(images: Tensor) -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 1.9, 2.0])
    alone = ops.blur(images[:1], sigma[:1], 6)
    assert torch.equal(ops.blur(images, sigma, 6)[:1], alone)


def test_crop_is_torchvisions_on_bytes() -> None:
    image = torch.from_numpy(noise(np.random.default_rng(0), 1, 60)[0]).permute(2, 0, 1)
    for box in [(0, 0, 60, 60), (5, 9, 33, 40), (50, 2, 7, 9)]:
        expected = tv.resized_crop(
            image, *box, [16, 16], tv.InterpolationMode.BICUBIC, antialias=True
        )
        difference = ops.crop(image, *box, 16).int() - expected.int()
        assert difference.abs().max() <= 1


def test_turns_are_the_eight_of_the_square() -> None:
    square = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)[:1].expand(8, -1, -1, -1).clone()
    flip = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    quarters = torch.tensor([0, 1, 2, 3] * 2)
    turned = ops.turn(square, flip, torch.zeros(8, dtype=torch.bool), quarters)
    assert len({tuple(x.flatten().tolist()) for x in turned}) == 8
    both = torch.ones(8, dtype=torch.bool)
    assert torch.equal(ops.turn(square, both, both, torch.full((8,), 2)), square)


def test_stain_jitter_is_in_the_space_of_skimage(images: Tensor) -> None:
    """Scaling one stain scales that stain's density in scikit-image's separation."""
    scale = torch.ones(6, 3)
    scale[:, 0] = torch.tensor([0.8, 0.9, 1.0, 1.05, 1.1, 1.2])
    pale = 0.3 + 0.5 * images  # nothing is clipped
    changed = ops.stain(pale, scale, torch.zeros(6, 3))
    unit = rgb_from_hed / np.linalg.norm(rgb_from_hed, axis=1, keepdims=True)
    for before, after, factors in zip(pale, changed, scale, strict=True):
        old, new = (-np.log10(x.permute(1, 2, 0).double().numpy()) for x in (before, after))
        expected = (old @ np.linalg.inv(unit) * factors.numpy()) @ unit
        assert np.allclose(np.clip(expected, 0, None), new, atol=1e-5)
    assert np.allclose(np.linalg.inv(rgb_from_hed), hed_from_rgb)


def test_stain_shift_adds_density(images: Tensor) -> None:
    pale = 0.3 + 0.5 * images
    shift = torch.tensor([[0.05, 0.0, 0.0]]).expand(6, 3)
    changed = ops.stain(pale, torch.ones(6, 3), shift)
    unit = rgb_from_hed[0] / np.linalg.norm(rgb_from_hed[0])
    added = -(changed / pale).log10().permute(0, 2, 3, 1)
    assert np.allclose(added.numpy(), 0.05 * unit, atol=1e-5)


def test_neutral_parameters_change_nothing(images: Tensor) -> None:
    visible = images.clamp(1 / 255, 1)
    one, zero = torch.ones(6), torch.zeros(6)
    for found in (
        ops.brightness(visible, one),
        ops.contrast(visible, one),
        ops.saturation(visible, one),
        ops.hue(visible, zero),
        ops.stain(visible, torch.ones(6, 3), torch.zeros(6, 3)),
    ):
        assert torch.allclose(found, visible, atol=3e-6)


def test_jitter_goes_in_the_drawn_order(images: Tensor) -> None:
    order = torch.stack(
        [torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    )
    factors = torch.tensor([[0.7, 1.3, 0.8, 0.1]]).expand(6, 4)
    no, yes = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    draw = ops.ColorDraw(
        jitter=yes, factors=factors, order=order, stain=no, stain_scale=torch.ones(6, 3),
        stain_shift=torch.zeros(6, 3), gray=no, blur=no, sigma=torch.ones(6), solarize=no,
    )  # fmt: skip
    found = ops.change_colors(images.clone(), draw, 6)
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for image, one, result in zip(images, order, found, strict=True):
        expected = image
        for number in one.tolist():
            expected = adjust[number](expected, float(factors[0, number]))
        assert torch.allclose(result, expected, atol=1e-5)


# --- crops -----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=8),
    st.integers(0, 2**31),
    st.sampled_from([(0.05, 0.4), (0.4, 1.0), (1.0, 1.0)]),
)
def test_boxes_lie_within_the_image(
    sizes: list[tuple[int, int]], seed: int, scale: tuple[float, float]
) -> None:
    heights, widths = np.array(sizes, np.int64).T
    uniform = np.random.default_rng(seed).random((len(sizes), 2 * ops.ATTEMPTS + 2))
    box = ops.draw_boxes(uniform, heights, widths, scale)
    assert (box.top >= 0).all()
    assert (box.left >= 0).all()
    assert (box.height >= 1).all()
    assert (box.width >= 1).all()
    assert (box.top + box.height <= heights).all()
    assert (box.left + box.width <= widths).all()


def test_boxes_have_the_drawn_area_and_aspect() -> None:
    n = 20_000
    uniform = np.random.default_rng(0).random((n, 2 * ops.ATTEMPTS + 2))
    side = np.full(n, 1000, np.int64)
    box = ops.draw_boxes(uniform, side, side, (0.05, 0.4))
    share = box.height * box.width / 1e6
    aspect = np.log(box.width / box.height)
    assert share.min() > 0.049
    assert share.max() < 0.401
    assert abs(share.mean() - 0.225) < 0.003  # uniform on the range
    assert np.abs(aspect).max() < np.log(4 / 3) + 0.01
    assert abs(aspect.mean()) < 0.005
    middle = box.left / (1000 - box.width)
    assert abs(middle.mean() - 0.5) < 0.01
    assert abs(middle.std() - 12**-0.5) < 0.01


# --- a small world of patches and synthetic images -------------------------------------------


class World:
    """Two stores of real patches. Even items have two variations, items below 8 one blend.

    Real patches are dark (below 100), variations bright (above 150), blends in between, so a
    plain crop tells where it came from.
    """

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(1)
        real = (noise(rng, 12, 32) * 0.39).astype(np.uint8)
        self.sources = [
            make_patches(folder / "a.h5", real[:5], "a"),
            make_patches(folder / "b.zarr", real[5:], "b"),
        ]
        self.refs = [
            PatchRef(source.id, row) for source in self.sources for row in range(len(source))
        ]
        variations = [
            Recipe.generative(self.refs[i], seed=i) for i in range(0, 12, 2) for _ in range(2)
        ]
        self.blends = [
            Recipe(self.refs[i], self.refs[11 - i], alpha=(i % 4 + 1) / 5, seed=100 + i)
            for i in range(8)
        ]
        recipes = [*self.blends[4:], *variations, *self.blends[:4]]
        bright = 150 + (noise(rng, len(recipes), 24) * 0.4).astype(np.uint8)
        for image, recipe in zip(bright, recipes, strict=True):
            if recipe.primary != recipe.secondary:
                image[:] = 110 + (image - 150) // 4
        names = [source.id for source in self.sources]
        self.augmentations = [
            make_augmentations(folder / "x.h5", bright[:9], recipes[:9], names),
            make_augmentations(folder / "y.h5", bright[9:], recipes[9:], names[::-1]),
        ]

    def maker(self, with_synthetic: bool = True, seed: int = 7, **settings: object) -> ViewMaker:
        config = build(ViewConfig, {**PLAIN, **settings})
        return ViewMaker(
            config, self.sources, self.augmentations if with_synthetic else (), seed=seed
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def equal(one: Views, other: Views) -> bool:
    first, second = ([*v.global_crops, *v.local_crops, *(v.blend or ())] for v in (one, other))
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_shapes_and_ranges(world: World) -> None:
    views = world.maker(**build(ViewConfig, SMALL).model_dump())(0, np.arange(12))
    assert [tuple(x.shape) for x in views.global_crops] == [(12, 3, 16, 16)] * 2
    assert [tuple(x.shape) for x in views.local_crops] == [(12, 3, 8, 8)] * 4
    assert views.blend is not None
    assert views.blend.image.shape == views.blend.secondary.shape == (8, 3, 16, 16)
    for crop in [*views.global_crops, *views.local_crops, *views.blend[:2]]:
        assert crop.dtype == torch.float32
        assert 0 <= float(crop.min()) <= float(crop.max()) <= 1


def test_exactly_one_of_two_globals_is_synthetic(world: World) -> None:
    """Check 8: with p = 1 always one, either as often; a missing image gives two real views."""
    maker, items, firsts = world.maker(), np.arange(12), []
    for step in range(60):
        views = maker(step, items)
        bright = torch.stack([x.mean((1, 2, 3)) > 0.55 for x in views.global_crops], 1)
        assert views.synthetic is not None
        assert torch.equal(bright, views.synthetic)
        assert bright.sum(1).tolist() == [1, 0] * 6  # odd items have no variation
        assert views.missing == 6
        firsts.append(bright[::2, 0])
    assert abs(torch.cat(firsts).float().mean() - 0.5) < 0.1


def test_synthetic_with_the_given_probability(world: World) -> None:
    maker = world.maker(synthetic_share=0.3)
    views = [maker(step, np.arange(12)) for step in range(60)]
    shown = torch.stack([v.synthetic for v in views if v.synthetic is not None])
    assert abs(shown[:, ::2].any(2).float().mean() - 0.3) < 0.08
    assert abs(np.mean([v.missing for v in views]) / 6 - 0.3) < 0.08


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_local_crops_come_from_the_synthetic_image_by_their_share(
    world: World, share: float
) -> None:
    maker = world.maker(local_synthetic_share=share)
    places = torch.zeros(4)
    for step in range(10):
        views = maker(step, np.arange(12))
        bright = torch.stack([x.mean((1, 2, 3)) > 0.55 for x in views.local_crops], 1)
        assert bright.sum(1).tolist() == [round(4 * share), 0] * 6
        places += bright.sum(0)
    assert share in (0.0, 1.0) or (places > 0).all()  # any of them, not always the first


def test_every_variation_is_used(world: World) -> None:
    maker, seen = world.maker(local_crops=0, global_scale=(1, 1)), set()
    for step in range(20):
        views = maker(step, np.array([0]))
        assert views.synthetic is not None
        shown = views.global_crops[int(views.synthetic[0, 1])][0]
        seen.add(tuple(shown.flatten().tolist()))
    assert len(seen) == 2


def test_secondary_and_alpha_are_those_of_the_store(world: World) -> None:
    """Check 5: nothing about the pair is drawn again."""
    maker = world.maker(global_scale=(1, 1))
    for step in range(3):
        blend = maker(step, np.arange(12)).blend
        assert blend is not None
        assert blend.rows.tolist() == list(range(8))
        for image, secondary, alpha, row in zip(*blend, strict=True):
            recipe = world.blends[int(row)]
            assert recipe.primary == world.refs[int(row)]
            assert abs(float(alpha) - recipe.alpha) < 1e-7
            expected = maker.patches.images([world.refs.index(recipe.secondary)])[0]
            whole = ops.crop(torch.from_numpy(expected).permute(2, 0, 1), 0, 0, 32, 32, 16)
            assert torch.equal(secondary, whole / 255)
            assert 0.4 < float(image.mean()) < 0.55  # the blend, not a patch or a variation


def test_rows_of_a_patch_are_those_the_store_finds(world: World) -> None:
    found = world.maker().counterparts
    assert found is not None
    for kind, method in (("generative", "generative"), ("interpolated", "interpolated")):
        lists = getattr(found, kind)
        for item, ref in enumerate(world.refs):
            expected, start = [], 0
            for store in world.augmentations:
                expected += [start + row for row in getattr(store, method)(ref).tolist()]
                start += len(store)
            picked = {int(lists.pick(np.array([item]), np.array([u]))[0]) for u in (0, 0.49, 0.999)}
            assert picked == set(expected or [-1])


@pytest.mark.parametrize("preset", ["dino", "pathology"])
def test_without_synthetic_share_the_views_are_plain_multi_crop(world: World, preset: str) -> None:
    """Check 9, its share of views: p = 0 beside augmentations changes no real view."""
    settings = build(ViewConfig, {**SMALL, "preset": preset, "synthetic_share": 0}).model_dump()
    beside = world.maker(**settings)(3, np.arange(12))
    without = world.maker(False, **settings)(3, np.arange(12))
    assert without.blend is None
    assert without.missing == beside.missing == 0
    for one, other in zip(
        [*beside.global_crops, *beside.local_crops],
        [*without.global_crops, *without.local_crops],
        strict=True,
    ):
        assert torch.equal(one, other)


def test_real_views_stay_when_others_are_synthetic(world: World) -> None:
    settings = build(ViewConfig, {**SMALL, "preset": "pathology"}).model_dump()
    mixed = world.maker(**settings)(3, np.arange(12))
    plain = world.maker(False, **settings)(3, np.arange(12))
    assert mixed.synthetic is not None
    for view in range(2):
        real = ~mixed.synthetic[:, view]
        assert torch.equal(mixed.global_crops[view][real], plain.global_crops[view][real])


def test_augmentations_of_other_patches_are_refused(world: World, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    other = make_patches(tmp_path / "c.h5", noise(rng, 3, 32), "c")
    config = build(ViewConfig, SMALL)
    for sources, said in ((other, "no synthetic image"), (world.sources[0], "not given")):
        with pytest.raises(DataError, match=said) as caught:
            ViewMaker(config, sources, world.augmentations, seed=0)
        assert caught.value.code == "PG-D04"


# --- determinism -----------------------------------------------------------------------------


def test_views_do_not_depend_on_workers_or_restarts(world: World) -> None:
    config = build(ViewConfig, {**SMALL, "preset": "pathology"})
    settings = {"batch_size": 5, "seed": 3, "steps": 6}
    whole = list(view_loader(config, world.sources, world.augmentations, **settings))
    assert len(whole) == 6
    rest = list(
        view_loader(config, world.sources, world.augmentations, workers=2, start_step=2, **settings)
    )
    assert len(rest) == 4
    assert all(map(equal, whole[2:], rest))
    assert not equal(whole[0], whole[1])
    other = next(view_loader(config, world.sources, **{**settings, "seed": 4}))
    assert not torch.equal(other.global_crops[0], whole[0].global_crops[0])


def test_views_do_not_depend_on_threads(world: World) -> None:
    settings = {"global_size": 224, "local_crops": 0, "synthetic_share": 0}
    maker = world.maker(False, **{**ViewConfig().model_dump(), **settings})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = maker(0, np.arange(2))
        torch.set_num_threads(2)
        assert equal(one, maker(0, np.arange(2)))
    finally:
        torch.set_num_threads(threads)


def test_maker_can_be_pickled_after_use(world: World) -> None:
    maker = world.maker()
    before = maker(0, np.arange(4))
    copy = pickle.loads(pickle.dumps(maker))  # noqa: S301 - our own bytes
    assert equal(before, copy(0, np.arange(4)))


def test_global_random_state_is_not_touched(world: World) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    world.maker(**build(ViewConfig, SMALL).model_dump())(0, np.arange(4))
    assert torch.equal(before, torch.get_rng_state())


def test_sample_does_not_depend_on_the_rest_of_the_batch(world: World) -> None:
    settings = build(ViewConfig, {**SMALL, "preset": "pathology"}).model_dump()
    many = world.maker(**settings)(0, np.arange(12))
    few = world.maker(**settings)(0, np.arange(5))
    assert torch.allclose(many.global_crops[0][:5], few.global_crops[0], atol=1e-6)


def test_small_sets_fill_their_batches(world: World) -> None:
    views = next(view_loader(
        build(ViewConfig, SMALL), world.sources[:1], batch_size=8, seed=0, steps=1
    ))  # fmt: skip
    assert views.indices is not None
    assert views.indices.tolist() == Order(5, 8, 0)(0).tolist()
    assert len(views.global_crops[0]) == 8


# --- settings --------------------------------------------------------------------------------


def test_defaults_are_dinos() -> None:
    config = ViewConfig()
    assert (config.global_size, config.global_scale, config.local_size) == (224, (0.4, 1.0), 96)
    assert (config.local_scale, config.local_crops) == ((0.05, 0.4), 8)
    assert (config.brightness, config.contrast, config.saturation, config.hue) == (
        0.4,
        0.4,
        0.2,
        0.1,
    )
    assert (config.jitter, config.gray, config.blur, config.solarize) == (
        0.8,
        0.2,
        (1.0, 0.1, 0.5),
        0.2,
    )
    assert (config.vertical_flip, config.stain) == (0, 0)


def test_blur_keeps_its_share_of_the_crop() -> None:
    assert ViewConfig().sigmas == (0.1, 2.0)
    assert ViewConfig(global_size=56).sigmas == (0.025, 0.5)


def test_a_setting_wins_over_its_preset() -> None:
    config = build(ViewConfig, {"preset": "pathology", "gray": 0.1})
    assert (config.gray, config.hue, config.vertical_flip, config.solarize) == (0.1, 0, 0.5, 0)
    assert build(ViewConfig, config.model_dump()) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": "other"}, {"global_scale": (0.9, 0.4)}, {"blur": (2, 0, 0)}, {"jiter": 0.2},
        {"blur_sigma": (0, 1)}, {"synthetic_share": 1.5},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        build(ViewConfig, wrong)
