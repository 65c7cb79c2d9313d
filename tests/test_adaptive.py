"""Adaptive views: noise by the foreground of each patch, kept with the image and used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers_augment import CONFIG, Parts, make_parts
from torch import Tensor

from pathgen.augment import AugmentConfig, Conditions, plan_recipes
from pathgen.augment.adaptive import foreground_shares, with_levels, with_noise
from pathgen.augment.settings import AdaptiveConfig
from pathgen.data.patches import PatchDataset
from pathgen.errors import ConfigError
from pathgen.models.genview import remaining
from pathgen.stores import PatchRef, Recipe, SelfAugmentationStore

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, PATCH = 16, 4
NOISY = AugmentConfig(**CONFIG.model_dump() | {"adaptive": {"noise": True}})


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.getbasetemp())


class Colors(torch.nn.Module):
    """An encoder whose tokens are the mean colors of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.config = AugmentConfig().model_copy(update={"image_size": SIZE})
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def tokens(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, PATCH).flatten(2).transpose(1, 2)


class Stained:
    """Patches of white glass of which so many of 16 squares are pink tissue."""

    id, name, path = "p" * 16, "stained", None

    def __init__(self, squares: Sequence[int]) -> None:
        self.squares = squares

    def __len__(self) -> int:
        return len(self.squares)

    def images(self, rows: Any) -> list[np.ndarray[Any, Any]]:
        made = []
        for row in np.asarray(rows).tolist():
            image = np.full((16, PATCH, PATCH, 3), 240, np.uint8)
            image[: self.squares[row]] = (200, 80, 150)
            grid = image.reshape(4, 4, PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4)
            made.append(grid.reshape(SIZE, SIZE, 3))
        return made


def test_the_share_is_that_of_tissue_whatever_the_sign_of_the_direction() -> None:
    squares = [0, 2, 4, 6, 8, 10, 12, 16]
    patches: Any = PatchDataset([Stained(squares)])  # type: ignore[list-item]
    # 58 of 128 squares are tissue: the quantile falls between the two colors.
    config = AdaptiveConfig(quantile=0.53)
    found = foreground_shares(Colors(), patches, np.arange(8), config)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, np.array(squares) / 16)
    few = foreground_shares(Colors(), patches, np.array([7, 2]), config)  # type: ignore[arg-type]
    np.testing.assert_allclose(few, [1, 0.25])


def test_each_recipe_has_the_level_of_its_primary(parts: Parts) -> None:
    plan = plan_recipes(parts.features, CONFIG)
    made = with_levels(plan, parts.features, parts.encoder, parts.sources, NOISY.adaptive)
    assert [recipe._replace(noise_level=0.0) for recipe in made] == plan
    shares = foreground_shares(
        parts.encoder, PatchDataset(parts.sources), np.arange(8), NOISY.adaptive
    )
    refs = [PatchRef(source.id, row) for source in parts.sources for row in range(len(source))]
    table = {0.0: 0, 0.25: 100, 0.5: 200, 0.75: 300, 1.0: 400}  # 2 x 2 tokens
    expected = {ref: table[share] for ref, share in zip(refs, shares.tolist(), strict=True)}
    assert [recipe.noise_level for recipe in made] == [expected[r.primary] for r in made]
    assert len(set(expected.values())) > 1


def test_noise_keeps_the_promised_cosine_and_is_each_images_own(parts: Parts) -> None:
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(64, 256), dim=1)
    ref = PatchRef("a", 0)
    plain = [Recipe.generative(ref, seed) for seed in range(64)]
    assert with_noise(unit, plain) is unit
    noisy = [r._replace(noise_level=300.0 if r.seed % 2 else 0.0) for r in plain]
    made = with_noise(unit, noisy)
    assert torch.equal(made[0::2], unit[0::2])
    cosine = (made * unit).sum(1)[1::2]
    promised = float(remaining(torch.tensor(300)).sqrt())
    assert float(cosine.mean()) == pytest.approx(promised, abs=0.02)
    alone = with_noise(unit[5:6], noisy[5:6])
    torch.testing.assert_close(alone, made[5:6])
    again = with_noise(unit[5:6], [noisy[5]._replace(seed=99)])
    assert not torch.allclose(again, alone)


def test_the_level_is_stored_with_the_image_and_makes_it_again(
    parts: Parts, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("noisy")
    paths = parts.augment(out, NOISY, sources=parts.sources)
    store = SelfAugmentationStore.open(paths[0])
    plan = with_levels(
        plan_recipes(parts.features, NOISY), parts.features, parts.encoder, parts.sources,
        NOISY.adaptive,
    )  # fmt: skip
    assert store.recipes() == plan[: len(store)]
    levels = store.noise_levels()
    assert levels.dtype == np.float32
    assert levels.tolist() == [recipe.noise_level for recipe in plan[: len(store)]]
    row = int(levels.argmax())
    recipe = store.recipes([row])[0]
    asked = Conditions(parts.features).of([recipe])
    plain = Conditions(parts.features).of([recipe._replace(noise_level=0.0)])
    assert not torch.allclose(asked, plain, atol=1e-3)
    latents = parts.ldm.sample(asked, steps=2, guidance=NOISY.guidance, seeds=[recipe.seed])
    with torch.no_grad():
        image = (parts.autoencoder.decode(latents)[0] * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(image - store.images([row])[0]).max() <= 1


@pytest.mark.parametrize("missing", ["encoder", "sources"])
def test_what_adaptive_noise_needs_is_said(
    missing: str, parts: Parts, tmp_path_factory: pytest.TempPathFactory
) -> None:
    more: dict[str, Any] = {"sources": parts.sources} | {missing: None}
    with pytest.raises(ConfigError, match="adaptive noise needs"):
        parts.augment(tmp_path_factory.mktemp("none"), NOISY, **more)
