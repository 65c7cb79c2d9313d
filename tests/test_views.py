"""Gen-DINO's crops are what Gen-SIS says, and the same however they are made."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import make_patches, noise
from helpers_views import SMALL, World, equal, tensors

from pathgen.config import build
from pathgen.data.loading import Order
from pathgen.data.views import ViewConfig, ViewMaker, view_loader
from pathgen.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_shapes_and_ranges(world: World) -> None:
    views = world.maker(**build(ViewConfig, SMALL).model_dump())(0, np.arange(12))
    assert [tuple(x.shape) for x in views.global_crops] == [(12, 3, 16, 16)] * 2
    assert [tuple(x.shape) for x in views.local_crops] == [(12, 3, 8, 8)] * 4
    assert views.blend is not None
    assert views.blend.image.shape == views.blend.secondary.shape == (8, 3, 16, 16)
    for view in tensors(views)[:8]:
        assert view.dtype == torch.float32
        assert 0 <= float(view.min()) <= float(view.max()) <= 1


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
