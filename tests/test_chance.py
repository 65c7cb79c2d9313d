"""Chance for each sample, whoever computes it, and blocks that are computed twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from diffusers import UNet2DConditionModel
from helpers_dino import tiny
from timm.layers import DropPath as TimmDropPath
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.errors import ConfigError
from pathgen.models.attention import class_attention
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.chance import DropPath, drawn, held, holding, share_drop_path
from pathgen.models.dit import DiT, DiTConfig
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.recompute import recompute_activations
from pathgen.parallel import Share, whole

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(draw: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(3)
    return draw()


def encoder(drop_path: float = 0.5) -> Encoder:
    torch.manual_seed(0)
    settings = tiny().encoder.model_dump() | {"drop_path": drop_path}
    return Encoder(EncoderConfig(**settings)).train()


# --- shares --------------------------------------------------------------------------------


def test_each_share_draws_its_rows_of_the_whole() -> None:
    """Of two views one after the other as well."""
    everyone = seeded(lambda: torch.randn(2, 12, 3))
    found = []
    for share in whole(12).parts(3):
        with holding(share):
            assert held() == share
            part = seeded(lambda: drawn(lambda n: torch.randn(n, 3), 8))
            found.append(part.view(2, 4, 3))
    assert torch.equal(torch.cat(found, 1), everyone)
    assert held().is_whole


def test_rows_that_are_no_whole_views_are_refused() -> None:
    with holding(Share(0, 4, 8)), pytest.raises(ValueError, match="6 samples"):
        drawn(torch.rand, 6)


@pytest.mark.parametrize("scale", [True, False])
def test_stochastic_depth_is_timms_to_the_bit(scale: bool) -> None:
    x = torch.randn(16, 5, 4)
    mine, its = DropPath(0.3, scale).train(), TimmDropPath(0.3, scale).train()
    assert torch.equal(seeded(lambda: mine(x)), seeded(lambda: its(x)))
    assert torch.equal(mine.eval()(x), x)


def test_every_drop_path_of_a_network_is_shared_out() -> None:
    network = timm.create_model("test_convnext", drop_path_rate=0.2)
    before = sum(isinstance(module, TimmDropPath) for module in network.modules())
    names = list(network.state_dict())
    share_drop_path(network)
    assert before > 0
    assert sum(isinstance(module, DropPath) for module in network.modules()) == before
    assert not any(isinstance(module, TimmDropPath) for module in network.modules())
    assert list(network.state_dict()) == names


def test_a_sample_keeps_its_depth_however_the_batch_is_shared_out() -> None:
    model, images = encoder(), torch.rand(8, 3, 32, 32)
    everyone = seeded(lambda: model(images))
    for share in whole(8).parts(2):
        with holding(share):
            part = seeded(lambda rows=share.rows: model(images[rows]))  # type: ignore[misc]
        torch.testing.assert_close(part, everyone[share.rows])


# --- computed twice ------------------------------------------------------------------------


def gradients(network: nn.Module, *inputs: Any) -> dict[str, Tensor]:
    network.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    output = network(*inputs)
    output = getattr(output, "sample", output)
    output.square().mean().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def unet() -> tuple[nn.Module, tuple[Any, ...]]:
    network = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=8,
        attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    return network, (torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 1, 8))


def dit() -> tuple[nn.Module, tuple[Any, ...]]:
    config = DiTConfig(width=16, depth=2, heads=2, patch=2)
    network = DiT(config, channels=4, size=8, condition_dim=6)
    with torch.no_grad():
        for parameter in network.parameters():  # it starts at zero, which hides everything
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network, (torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 6))


def vit() -> tuple[nn.Module, tuple[Any, ...]]:
    return encoder().backbone, (torch.rand(6, 3, 32, 32),)


def kl() -> tuple[nn.Module, tuple[Any, ...]]:
    config = AutoencoderConfig(image_size=16, block_out_channels=(8, 8), norm_groups=4)
    return Autoencoder(config).network, (torch.rand(2, 3, 16, 16),)


@pytest.mark.parametrize("make", [vit, unet, dit, kl])
def test_recomputed_activations_give_equal_gradients(make: Any) -> None:
    """Stochastic depth is drawn alike the second time. Fewer tensors wait for backward."""
    torch.manual_seed(1)
    network, inputs = make()
    network.train()

    def kept() -> int:
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: seen.append(x.numel()) or x, lambda x: x
        ):
            torch.manual_seed(5)
            network(*inputs)
        return sum(seen)

    plain, much = gradients(network, *inputs), kept()
    recompute_activations(network)
    again, less = gradients(network, *inputs), kept()
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert less < 0.7 * much


def test_a_share_is_drawn_alike_the_second_time() -> None:
    """In backward another share may be held, or none."""
    model, images = encoder().backbone, torch.rand(4, 3, 32, 32)
    found = []
    for recomputed in (False, True):
        if recomputed:
            recompute_activations(model)
        model.zero_grad(set_to_none=True)
        torch.manual_seed(5)
        with holding(Share(4, 8, 12)):
            output = model(images)
        with holding(Share(0, 2, 4)):
            output.square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("recomputed", [False, True])
def test_one_compiled_graph_serves_every_share(recomputed: bool) -> None:
    """None again for each part of a batch, nor for each size of whole batches."""
    network = nn.Module()
    network.blocks = nn.Sequential(nn.Sequential(nn.Linear(3, 3), DropPath(0.5)))
    if recomputed:
        recompute_activations(network)
    graphs, images = [], torch.rand(8, 3)

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(network.blocks, backend=backend)
    for share in whole(8).parts(4):
        with holding(share):
            expected = seeded(lambda rows=share.rows: network.blocks(images[rows]))  # type: ignore[misc]
            found = seeded(lambda rows=share.rows: compiled(images[rows]))  # type: ignore[misc]
        assert torch.equal(found, expected)
    assert len(graphs) == 1
    for size in (8, 6, 5, 7):  # at most one for that size, and one for any
        with holding(whole(size)):
            compiled(images[:size])
    assert len(graphs) <= 3


def test_a_network_without_blocks_says_so() -> None:
    with pytest.raises(ConfigError, match=r"PG-C04.*ResNet.*It has no blocks"):
        recompute_activations(timm.create_model("test_resnet"))


def test_diffusers_tiny_autoencoder_is_refused_as_it_computes_something_else_then() -> None:
    config = AutoencoderConfig(kind="tiny", image_size=16, block_out_channels=(8, 8))
    network, images = Autoencoder(config).network.train(), torch.rand(2, 3, 16, 16)
    with pytest.raises(ConfigError, match="PG-C04"):
        recompute_activations(network)
    before = network.encode(images).latents
    network.enable_gradient_checkpointing()
    assert not torch.allclose(network.encode(images).latents, before)  # else it could be allowed


# --- attention -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vit, unet])
def test_attention_is_torchs_fused_one(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    network, inputs = make()
    network(*inputs)
    assert calls


def test_the_class_tokens_attention_is_that_of_its_last_block() -> None:
    model, images = encoder(0.0).eval(), torch.rand(3, 3, 32, 16)
    maps = class_attention(model, images)
    assert maps is not None
    assert maps.shape == (3, 2, 4, 2)
    backbone: Any = model.backbone
    seen: list[Tensor] = []
    hook = backbone.blocks[-1].norm1.register_forward_hook(lambda m, i, o: seen.append(o))
    backbone.forward_features((images - model.mean) / model.std)
    hook.remove()
    model.requires_grad_(False)
    seen = [tokens.detach() for tokens in seen]
    weight, bias = backbone.blocks[-1].attn.qkv.weight.double(), backbone.blocks[-1].attn.qkv.bias
    for image, tokens in enumerate(seen[0].double()):
        q, k, _ = (tokens @ weight.T + bias.double()).split(32, dim=1)
        for head in range(2):
            part = slice(16 * head, 16 * head + 16)
            scores = torch.tensor([float(q[0, part] @ k[j, part]) / 4 for j in range(9)])
            expected = scores.exp() / scores.exp().sum()
            torch.testing.assert_close(maps[image, head].flatten(), expected[1:], atol=1e-5, rtol=0)
    convolutional = Encoder(EncoderConfig(name="test_convnext", image_size=32, drop_path=0))
    assert class_attention(convolutional, images) is None
