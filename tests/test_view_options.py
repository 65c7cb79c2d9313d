"""Parts of a batch, views finished elsewhere, and Gen-DINO's options beyond the paper."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import make_augmentations, make_patches, noise
from helpers_views import PLAIN, SMALL, World, equal, tensors

from pathgen.augment import AugmentConfig, plan_recipes
from pathgen.config import build, parse_yaml
from pathgen.data import colors
from pathgen.data.neighbors import Neighbors
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import ImageFolder
from pathgen.data.views import ViewConfig, ViewMaker, Views, finish, view_loader
from pathgen.errors import ConfigError, NoInputError
from pathgen.parallel import Share
from pathgen.stores import PatchRef, PatchStore, Recipe

EVERYTHING = {
    **SMALL, "preset": "pathology", "dis_pairs": "all", "neighbor_share": 0.5,
    "synthetic_strength": 0.5, "hue": 0.1, "gray": 0.2, "solarize": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


# --- rows of a batch, and devices ------------------------------------------------------------


def rows_of(views: Views, first: int, stop: int) -> list[torch.Tensor]:
    """By plain indexing, as `tensors` lists them."""
    found = [x[first:stop] for x in (*views.global_crops, *views.local_crops)]
    blend = views.blend
    assert blend is not None
    own = (blend.rows >= first) & (blend.rows < stop)
    if own.any():
        others = [view[own] for views in blend.others for view in views]
        found += [blend.image[own], *others, blend.shares[own], blend.rows[own] - first]
    return found


@pytest.mark.parametrize(("first", "stop"), [(0, 12), (0, 5), (5, 12), (9, 12), (3, 4)])
def test_rows_are_what_they_are_in_the_whole_batch(world: World, first: int, stop: int) -> None:
    maker = world.maker(**build(ViewConfig, EVERYTHING).model_dump())
    whole = maker(3, np.arange(12))
    part = maker(3, np.arange(12), slice(first, stop))
    for made in (part, whole.part(slice(first, stop))):
        expected = rows_of(whole, first, stop)
        assert len(tensors(made)) == len(expected)
        assert all(map(torch.equal, tensors(made), expected))
        assert made.blended == whole.blended == 8 / 12
        assert made.indices is not None
        assert made.indices.tolist() == list(range(first, stop))
        share = Share(min(first, 8), min(stop, 8), 8)  # the first eight have a blend
        assert (made.blend is None) == (share.size == 0)
        assert made.blend is None or made.blend.share == share


def test_processes_take_their_rows_of_the_same_batches(world: World) -> None:
    config = build(ViewConfig, EVERYTHING)
    settings = {"batch_size": 6, "seed": 3, "steps": 2}
    loaders = [
        view_loader(config, world.sources, world.augmentations, rows=rows, **settings)
        for rows in (slice(None), slice(0, 3), slice(3, 6))
    ]
    for whole, *parts in zip(*loaders, strict=True):
        for view in range(2):
            together = torch.cat([part.global_crops[view] for part in parts])
            assert torch.equal(together, whole.global_crops[view])
        found = [len(part.blend.rows) for part in parts if part.blend is not None]
        assert whole.blend is not None
        assert sum(found) == len(whole.blend.rows)


def test_finishing_what_was_sent_gives_the_same_bits(world: World) -> None:
    maker = world.maker(**build(ViewConfig, EVERYTHING).model_dump())
    cuts = maker.cut(0, np.arange(12))
    sent = pickle.loads(pickle.dumps(cuts))  # noqa: S301 - our own bytes
    assert all(view.images.dtype == torch.uint8 for view in sent.views)
    views = finish(sent, maker.config, torch.device("cpu"))
    assert equal(views, maker(0, np.arange(12)))
    assert equal(views, finish(cuts, maker.config))  # finishing left the cuts as they were


def test_batched_on_a_device_the_colors_are_those_of_one_by_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = world.maker(**build(ViewConfig, EVERYTHING).model_dump())
    alone = maker(1, np.arange(12))
    monkeypatch.setattr(colors, "_one_by_one", colors._together)
    for one, other in zip(tensors(alone), tensors(maker(1, np.arange(12))), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


# --- blends ----------------------------------------------------------------------------------


def test_pixel_blends_are_the_mixed_patches_by_the_stored_alpha(world: World) -> None:
    maker = world.maker(blend="pixel", global_scale=(1, 1), global_size=32)
    beside = world.maker(global_scale=(1, 1), global_size=32)(2, np.arange(12))
    views = maker(2, np.arange(12))
    blend = views.blend
    assert blend is not None
    assert beside.blend is not None
    real = maker.patches.images(np.arange(12))
    for image, row in zip(blend.image, blend.rows.tolist(), strict=True):
        recipe = world.blends[row]
        first, second = real[row].astype(float), real[11 - row].astype(float)
        mixed = recipe.alpha * first + (1 - recipe.alpha) * second
        assert np.abs(255 * image.permute(1, 2, 0).numpy() - mixed).max() < 0.51
    # Nothing else changes: the same secondary, alpha, rows and ordinary views.
    assert torch.equal(blend.secondary, beside.blend.secondary)
    assert torch.equal(blend.shares, beside.blend.shares)
    assert torch.equal(blend.rows, beside.blend.rows)
    assert all(map(torch.equal, views.global_crops, beside.global_crops))


def test_pixel_blends_of_patches_of_two_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sources = [
        make_patches(tmp_path / f"{size}.h5", np.full((1, size, size, 3), 10 * size, np.uint8),
                     str(size)) for size in (16, 24)
    ]  # fmt: skip
    refs = [PatchRef(source.id, 0) for source in sources]
    made = make_augmentations(
        tmp_path / "made.h5", noise(rng, 1, 16), [Recipe(*refs, 0.25, 1)], [s.id for s in sources]
    )
    config = build(ViewConfig, {**PLAIN, "blend": "pixel"})
    views = ViewMaker(config, sources, [made], seed=0)(0, np.array([0]))
    assert views.blend is not None
    assert torch.allclose(255 * views.blend.image, torch.tensor(0.25 * 160 + 0.75 * 240))


def test_a_blend_can_be_left_out_also_in_yaml(world: World) -> None:
    """A bare off is false in YAML."""
    config = build(ViewConfig, {**SMALL, **parse_yaml("blend: off", "test")})
    assert config.blend == "off"
    views = world.maker(**config.model_dump())(0, np.arange(12))
    assert views.blend is None
    assert views.blended == 0


def test_all_pairs_show_the_second_source_really_and_generatively(world: World) -> None:
    maker = world.maker(dis_pairs="all", local_crops=0)
    bright = np.zeros(8)
    for step in range(5):
        blend = maker(step, np.arange(12)).blend
        assert blend is not None
        ((first, second),) = blend.others
        assert (first.mean((1, 2, 3)) < 0.45).all()
        bright += (second.mean((1, 2, 3)) > 0.55).numpy()
        one = world.maker(local_crops=0)(step, np.arange(12)).blend
        assert one is not None
        assert torch.equal(one.secondary, first)
    # Items 0 to 7 are blended with 11 to 4, and even items alone have variations.
    assert bright.tolist() == [0, 5] * 4
    none = world.maker(dis_pairs="all", local_crops=0, synthetic_share=0)(0, np.arange(12)).blend
    assert none is not None
    assert (none.others[0][1].mean((1, 2, 3)) < 0.45).all()


# --- strength --------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["dino", "pathology"])
def test_at_strength_0_synthetic_views_are_whole_and_plain_and_real_ones_stay(
    world: World, preset: str
) -> None:
    settings = build(ViewConfig, {**SMALL, "preset": preset, "global_scale": (0.3, 0.9)})
    full, weak = (
        world.maker(**settings.model_copy(update={"synthetic_strength": s}).model_dump())(
            1, np.arange(12)
        )
        for s in (1.0, 0.0)
    )
    plain = world.maker(**{
        **settings.model_dump(), "global_scale": (0.9, 0.9), "jitter": 0, "stain": 0, "gray": 0,
        "blur": (0, 0, 0), "solarize": 0,
    })(1, np.arange(12))  # fmt: skip
    assert weak.synthetic is not None
    for view in range(2):
        shown = weak.synthetic[:, view]
        assert torch.equal(weak.global_crops[view][~shown], full.global_crops[view][~shown])
        assert torch.equal(weak.global_crops[view][shown], plain.global_crops[view][shown])
    assert weak.blend is not None
    assert plain.blend is not None
    assert torch.equal(weak.blend.image, plain.blend.image)
    assert not torch.equal(weak.blend.secondary, plain.blend.secondary)


def test_half_the_strength_is_between() -> None:
    """Crops of a ramp from dark to bright: the larger the crop, the larger its range."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (1, 64, 64, 3))

    class Ramps:
        id = name = "ramps"
        path = Path("ramps")

        def __len__(self) -> int:
            return 64

        def images(self, rows: np.ndarray) -> np.ndarray:
            return np.repeat(ramp, len(rows), 0)

    from pathgen.data.cuts import PER_VIEW, cut

    uniform = np.random.default_rng(0).random((64, PER_VIEW))
    ranges = []
    for strength in (1.0, 0.5, 0.0):
        config = build(ViewConfig, {**PLAIN, "global_scale": (0.1, 1.0)})
        images = Ramps().images(np.arange(64))
        made = cut(images, uniform, np.full(64, strength), config, 0).images.float()
        ranges.append((made.amax((1, 2, 3)) - made.amin((1, 2, 3))).mean().item())
    assert ranges[0] < ranges[1] < ranges[2]


# --- neighbors -------------------------------------------------------------------------------


def slide(path: Path, places: list[tuple[int, int]], name: str) -> PatchStore:
    """Patches of 16 px in one color each, 100 + number, at grid places (x, y)."""
    images = np.stack([np.full((16, 16, 3), 100 + i, np.uint8) for i in range(len(places))])
    return make_patches(path, images, name, places=places)


def test_neighbors_touch_on_the_same_slide(tmp_path: Path) -> None:
    places = [(0, 0), (1, 0), (2, 0), (0, 1), (5, 5), (2, 1)]
    stores = [slide(tmp_path / f"{name}.h5", places, name) for name in "ab"]
    neighbors = Neighbors(PatchDataset(stores))
    expected = {0: {1, 3}, 1: {0, 2, 3, 5}, 2: {1, 5}, 3: {0, 1}, 4: {-1}, 5: {1, 2}}
    uniform = np.linspace(0, 0.999, 40)
    for start in (0, 6):
        for item, others in expected.items():
            found = set(neighbors.pick(np.full(40, start + item), uniform).tolist())
            assert found == {other + start if other >= 0 else -1 for other in others}


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_second_global_view_comes_from_beside(tmp_path: Path, share: float) -> None:
    store = slide(tmp_path / "a.h5", [(0, 0), (1, 0), (5, 5)], "a")
    maker = ViewMaker(build(ViewConfig, {**PLAIN, "neighbor_share": share}), store, seed=0)
    beside = 0
    for step in range(60):
        views = maker(step, np.arange(3))
        first, second, *rest = [
            (255 * x.mean((1, 2, 3)) - 100).round().int().tolist()
            for x in (*views.global_crops, *views.local_crops)
        ]
        assert all(view == [0, 1, 2] for view in (first, *rest))
        assert second[2] == 2  # it has no neighbor
        assert set(second[:2]) <= {0, 1}
        beside += (second[0] == 1) + (second[1] == 0)
    assert abs(beside / 120 - share) < 0.15 * (share not in (0, 1)) + 1e-9


def test_a_synthetic_second_view_is_not_replaced(world: World) -> None:
    plain, beside = world.maker(), world.maker(neighbor_share=1.0)
    one, other = plain(0, np.arange(12)), beside(0, np.arange(12))
    assert one.synthetic is not None
    shown = one.synthetic[:, 1]
    assert shown.any()
    assert torch.equal(one.global_crops[1][shown], other.global_crops[1][shown])
    assert not torch.equal(one.global_crops[1][~shown], other.global_crops[1][~shown])


def test_image_folders_have_no_neighbors(tmp_path: Path) -> None:
    from helpers_data import make_folder

    images = noise(np.random.default_rng(0), 1, 16)
    folder = ImageFolder(make_folder(tmp_path / "images", {"a.png": images[0]}))
    with pytest.raises(ConfigError, match="no neighbors") as caught:
        ViewMaker(build(ViewConfig, {**SMALL, "neighbor_share": 0.1}), folder, seed=0)
    assert caught.value.code == "PG-C12"


# --- three sources ---------------------------------------------------------------------------


def test_three_way_mixtures_come_with_their_sources_and_shares(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    dark = np.stack([np.full((16, 16, 3), 20 * i, np.uint8) for i in range(4)])
    patches = make_patches(tmp_path / "p.h5", dark, "p")
    a, b, c, d = (PatchRef(patches.id, row) for row in range(4))
    recipes = [
        Recipe(a, b, 0.5, 1, tertiary=c, beta=0.25), Recipe.generative(b, 2), Recipe(c, d, 0.75, 3),
    ]  # fmt: skip
    made = make_augmentations(tmp_path / "m.h5", noise(rng, 3, 16), recipes, [patches.id], mixed=3)
    assert made.recipes() == recipes
    assert made.shares().tolist() == [[0.5, 0.25, 0.25], [1, 0, 0], [0.75, 0.25, 0]]
    maker = ViewMaker(build(ViewConfig, {**PLAIN, "blend": "pixel"}), patches, [made], seed=0)
    blend = maker(0, np.arange(4)).blend
    assert blend is not None
    assert blend.rows.tolist() == [0, 2]
    assert torch.equal(blend.shares, torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0]]))
    level = [(255 * view.mean((1, 2, 3))).round().tolist() for (view,) in blend.others]
    assert level == [[20, 60], [40, 60]]
    mixed = (255 * blend.image.mean((1, 2, 3))).round().tolist()
    assert mixed == [0.25 * 20 + 0.25 * 40, 0.75 * 40 + 0.25 * 60]
    # Beside a store of two-way blends, both keep what they say.
    two = make_augmentations(
        tmp_path / "t.h5", noise(rng, 1, 16), [Recipe(b, a, 0.5, 4)], [patches.id]
    )
    both = ViewMaker(build(ViewConfig, PLAIN), patches, [made, two], seed=0)(0, np.arange(4))
    assert both.blend is not None
    assert both.blend.shares.tolist() == [[0.5, 0.25, 0.25], [0.5, 0.5, 0], [0.75, 0.25, 0]]


class Features:
    def __init__(self, name: str, count: int) -> None:
        self.source, self.count = {"id": name}, count

    def __len__(self) -> int:
        return self.count


def test_a_plan_of_three_way_mixtures(tmp_path: Path) -> None:
    stores: list = [Features("a", 3), Features("b", 4)]
    plain = plan_recipes(stores, AugmentConfig(interpolated=300))
    plan = plan_recipes(stores, AugmentConfig(interpolated=300, interpolated_sources=3))
    assert [r._replace(tertiary=None, beta=None) for r in plan] == plain
    thirds = set()
    for recipe in plan:
        assert sum(recipe.shares) == pytest.approx(1, abs=1e-6)
        if recipe.primary != recipe.secondary:
            assert len(set(recipe.patches)) == 3
            assert all(0 <= share < 1 for share in recipe.shares)
            thirds.add((recipe.primary, recipe.secondary, recipe.tertiary))
    assert len(thirds) == 7 * 6 * 5
    with pytest.raises(NoInputError, match="three patches"):
        plan_recipes(stores[:0] + [Features("c", 2)], AugmentConfig(interpolated_sources=3))
