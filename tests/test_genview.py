"""GenView's foreground, noise and weights, held to float64 arithmetic written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray
from torch import Tensor

from pathgen.errors import ConfigError
from pathgen.models.genview import (
    QUANTILE,
    Foreground,
    noise_level,
    noised,
    pair_quality,
    quality_weights,
    remaining,
    saturation,
)

SIDE, DIM = 4, 6


def tokens_of(count: int, seed: int = 0) -> Tensor:
    """Tokens that vary most along the first axis, and there more so inside the grid."""
    chance = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, SIDE * SIDE, DIM, generator=chance)
    inside = torch.zeros(SIDE, SIDE)
    inside[1:-1, 1:-1] = 6
    tokens[:, :, 0] += inside.flatten()
    return tokens + 0.5


def oracle_direction(tokens: Tensor) -> NDArray[np.float64]:
    """First right singular vector of the centered tokens, float64, up to its sign."""
    flat = tokens.flatten(0, 1).double().numpy()
    return np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][0]


def test_the_direction_is_the_first_principal_one_turned_inwards() -> None:
    tokens = tokens_of(20)
    found = Foreground.fit(tokens.split(7))
    axis = oracle_direction(tokens)
    assert abs(float(found.direction.double().numpy() @ axis)) == pytest.approx(1, abs=1e-6)
    projected = found.projection(tokens).view(-1, SIDE, SIDE)
    border = torch.ones(SIDE, SIDE, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert projected[:, ~border].mean() > projected[:, border].mean()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_guide_turns_it_its_own_way(sign: int) -> None:
    tokens = tokens_of(20)
    guide = sign * tokens[:, :, 0]
    found = Foreground.fit(tokens.split(10), guide.split(10))
    assert np.sign(float(found.direction[0])) == sign


@pytest.mark.parametrize("quantile", [QUANTILE, 0.65])
def test_the_threshold_leaves_the_share_asked_for(quantile: float) -> None:
    tokens = tokens_of(50)
    found = Foreground.fit([tokens], quantile=quantile)
    shares = found.share(tokens)
    assert shares.shape == (50,)
    assert float(shares.mean()) == pytest.approx(1 - quantile, abs=2 / tokens[:, :, 0].numel())
    # The mean stays in the projection: shifting all tokens shifts the threshold, not the shares.
    assert torch.equal(Foreground.fit([tokens + 3], quantile=quantile).share(tokens + 3), shares)
    along = (tokens + 3).flatten(0, 1).double().numpy() @ found.direction.double().numpy()
    shifted = Foreground.fit([tokens + 3], quantile=quantile).threshold
    assert shifted == pytest.approx(float(np.quantile(along, quantile)), rel=1e-5)


def test_tokens_without_a_foreground_are_refused() -> None:
    with pytest.raises(ConfigError, match="alike"):
        Foreground.fit([torch.ones(3, SIDE * SIDE, DIM)])
    with pytest.raises(ConfigError, match="border"):
        Foreground.fit([torch.rand(3, 10, DIM)])
    with pytest.raises(ConfigError, match="too few"):
        Foreground.fit([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_levels_are_the_papers_table(dtype: torch.dtype) -> None:
    shares = [0.0, 0.1, 0.2, 0.2001, 0.4, 0.4001, 0.6, 0.6001, 0.8, 0.8001, 1.0]
    levels = noise_level(torch.tensor(shares, dtype=dtype)).tolist()
    assert levels == [0, 0, 0, 100, 100, 200, 200, 300, 300, 400, 400]
    fine = np.linspace(1e-3, 1, 997)
    theirs = np.array([0, 100, 200, 300, 400, 500])[
        np.digitize(fine, [0, 0.2, 0.4, 0.6, 0.8, 1], right=True) - 1
    ]
    assert noise_level(torch.from_numpy(fine)).tolist() == theirs.tolist()


def test_the_noise_schedule_is_that_of_unclip() -> None:
    levels = torch.tensor([1, 100, 200, 300, 400, 999])
    theirs = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod[levels - 1]  # type: ignore[no-untyped-call]
    torch.testing.assert_close(remaining(levels).float(), theirs, rtol=1e-4, atol=1e-6)
    assert remaining(torch.tensor([0, 1000])).tolist() == pytest.approx([1, 0])


def test_noise_on_an_embedding_keeps_the_cosine_it_promises() -> None:
    chance = torch.Generator().manual_seed(0)
    embeddings = 7 * torch.randn(400, 384, generator=chance)
    noise = torch.randn(400, 384, generator=chance)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    for level, expected in ((100, 0.986), (200, 0.944), (300, 0.883), (400, 0.804)):
        made = noised(embeddings, torch.full((400,), level), noise)
        torch.testing.assert_close(made.norm(dim=1), torch.ones(400))
        left = float(remaining(torch.tensor(level)))
        exact = np.sqrt(left) * unit.double().numpy() * np.sqrt(384)
        exact = exact + np.sqrt(1 - left) * noise.double().numpy()
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        np.testing.assert_allclose(made.numpy(), exact, atol=1e-6)
        assert float((made * unit).sum(1).mean()) == pytest.approx(expected, abs=5e-3)
    none = noised(embeddings, torch.zeros(400, dtype=torch.long), noise)
    torch.testing.assert_close(none, unit)


def oracle_quality(first: Tensor, second: Tensor, axis: NDArray[np.float64]) -> list[float]:
    """q of each pair, image by image in float64, straight from the definition."""

    def halves(tokens: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = tokens.double().numpy()
        soft = rows @ axis
        soft = (soft - soft.min()) / (soft.max() - soft.min() + 1e-7)
        front = sum(m * t for m, t in zip(soft, rows, strict=True)) / (soft.sum() + 1e-7)
        back = sum((1 - m) * t for m, t in zip(soft, rows, strict=True)) / ((1 - soft).sum() + 1e-7)
        return front, back

    def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    pairs = [(*halves(a), *halves(b)) for a, b in zip(first, second, strict=True)]
    return [cosine(front, f2) - cosine(back, b2) for front, back, f2, b2 in pairs]


def test_quality_is_the_foregrounds_likeness_less_the_backgrounds() -> None:
    first, second = tokens_of(8, 1), tokens_of(8, 2)
    foreground = Foreground.fit([first, second])
    found = pair_quality(first, second, foreground)
    theirs = oracle_quality(first, second, foreground.direction.double().numpy())
    np.testing.assert_allclose(found.numpy(), theirs, atol=1e-5)
    assert float(found.abs().max()) > 0.01
    torch.testing.assert_close(pair_quality(first, first, foreground), torch.zeros(8))
    grown = first.clone().requires_grad_()
    assert not pair_quality(grown, second, foreground).requires_grad


def test_weights_average_one_over_the_whole_batch() -> None:
    quality = torch.tensor([0.3, -0.2, 0.0, 1.4, -0.9, 0.3], requires_grad=True)
    for gamma in (1.0, 2.0):
        weights = quality_weights(quality, gamma)
        powers = np.exp(gamma * quality.detach().double().numpy())
        np.testing.assert_allclose(weights.numpy(), 6 * powers / powers.sum(), rtol=1e-6)
        assert float(weights.mean()) == pytest.approx(1, abs=1e-6)
        assert not weights.requires_grad
    assert quality_weights(torch.zeros(5)).tolist() == pytest.approx([1] * 5)
    # By halves, as the released code does on two devices, they are others.
    halves = torch.cat([quality_weights(half) for half in quality.split(3)])
    assert not torch.allclose(halves, quality_weights(quality), atol=1e-3)


def test_saturation_is_that_of_hsv_under_each_token() -> None:
    color = pytest.importorskip("skimage.color")
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    found = saturation(images, 4)
    assert found.shape == (2, 6)
    hsv = color.rgb2hsv(images.permute(0, 2, 3, 1).numpy())[..., 1]
    blocks = hsv.reshape(2, 2, 4, 3, 4).mean((2, 4)).reshape(2, 6)
    np.testing.assert_allclose(found.numpy(), blocks, atol=1e-5)
