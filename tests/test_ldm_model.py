"""The denoisers: UNet and DiT, their condition, their sizes, and the saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed, get_timestep_embedding
from helpers_ldm import DIM, DIT, SMALL, awake, embeddings, small
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pathgen.models.diffusion import Draws
from pathgen.models.dit import Block, DiT, DiTConfig, grid_code, wave_code
from pathgen.models.ldm import EmbeddingConditionedLDM, LDMConfig
from pathgen.models.sampling import Solver, sampling_times
from pathgen.runs import load_model, save_model

KINDS = ("unet", "dit")


def on_meta(**settings: Any) -> EmbeddingConditionedLDM:
    with torch.device("meta"):
        return EmbeddingConditionedLDM(LDMConfig(**settings))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- the condition ---------------------------------------------------------------------------


def test_condition_has_unit_length_and_null_stays_zero() -> None:
    condition = small().condition(torch.cat([embeddings(3) * 7, torch.zeros(1, DIM)]))
    torch.testing.assert_close(condition[:3].norm(dim=1), torch.ones(3))
    assert torch.equal(condition[3], torch.zeros(DIM))
    longer = small(condition_length=4.0).condition(embeddings(3) * 7)
    torch.testing.assert_close(longer, 4 * condition[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_length_of_an_embedding_does_not_matter(kind: str) -> None:
    model, given = small(kind=kind), embeddings(2)
    one, other = (model.sample(e, steps=2, seeds=[1, 2]) for e in (given, given * 4))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_null_condition_is_the_linear_layers_bias(kind: str) -> None:
    model, seen = small(kind=kind), []
    project = model.unet.encoder_hid_proj if kind == "unet" else model.dit.condition
    assert isinstance(project, nn.Linear)
    handle = project.register_forward_hook(
        lambda module, given, out: seen.append((given[0].flatten(1), out.flatten(1)))
    )
    model.sample(embeddings(2), steps=1, guidance=2.0, seeds=[1, 2])
    handle.remove()
    given, projected = seen[0]
    assert given.shape == (4, DIM)  # the guided pair goes through in one pass
    torch.testing.assert_close(given[:2].norm(dim=1), torch.ones(2))
    assert torch.equal(given[2:], torch.zeros(2, DIM))
    torch.testing.assert_close(projected[2:], project.bias.expand(2, -1))


# --- the UNet --------------------------------------------------------------------------------


def test_the_published_unet() -> None:
    """192 channels x (1, 2, 3, 5), 2 blocks a level, one head, one transformer layer wherever the
    latent is 2, 4 or 8 times smaller; one token of Linear(384, 512)."""
    model = on_meta(
        block_out_channels=(192, 384, 576, 960), attention=(False, True, True, True), heads=1,
        layers_per_block=2, latent_channels=3, latent_size=64,
    )  # fmt: skip
    unet = model.unet
    assert parameters(model) == 401_117_699
    assert unet.encoder_hid_proj.weight.shape == (512, 384)
    attends = [hasattr(block, "attentions") for block in unet.down_blocks]
    assert attends == [False, True, True, True]
    assert [hasattr(block, "attentions") for block in unet.up_blocks] == attends[::-1]
    assert [len(block.resnets) for block in unet.down_blocks] == [2] * 4
    layers = [m for m in unet.modules() if type(m).__name__ == "Transformer2DModel"]
    assert all(len(layer.transformer_blocks) == 1 for layer in layers)
    assert all(layer.transformer_blocks[0].attn1.heads == 1 for layer in layers)
    assert all(layer.transformer_blocks[0].attn2.to_k.in_features == 512 for layer in layers)


# --- the DiT ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "millions", "giga"),
    [
        ({}, 33, 6.06),
        ({"width": 768, "depth": 12, "heads": 12}, 130, 23.01),
    ],
)
def test_sizes_of_the_dit_are_the_published_ones(
    sizes: dict[str, int], millions: int, giga: float
) -> None:
    """Parameters in millions and multiply-adds in 10^9 of DiT-S/2 and B/2 on 4 x 32 x 32
    (arXiv 2212.09748, table 4), ours counted on the meta device."""
    model = on_meta(kind="dit", dit=sizes)
    assert parameters(model) / 1e6 == pytest.approx(millions, rel=0.03)
    given = torch.empty(1, 4, 32, 32, device="meta")
    time, condition = torch.zeros(1, device="meta"), torch.empty(1, 384, device="meta")
    with FlopCounterMode(display=False) as counter:
        assert model.denoise(given, time, condition).shape == given.shape
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.01)


def test_an_untrained_dit_says_nothing_and_its_blocks_change_nothing() -> None:
    torch.manual_seed(0)
    model = EmbeddingConditionedLDM(LDMConfig(**DIT))
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0])
    assert not model.denoise(latents, times, model.condition(embeddings(2))).any()
    tokens = torch.randn(2, 16, 16)
    for block in model.dit.blocks:
        assert torch.equal(block(tokens, torch.randn(2, 16)), tokens)


def test_each_square_of_the_latent_is_one_token_and_goes_back_to_its_place() -> None:
    """With weights that copy, what comes out is what went in."""
    torch.manual_seed(0)
    dit = DiT(DiTConfig(width=16, depth=1, heads=1), channels=4, size=6, condition_dim=DIM)
    with torch.no_grad():
        dit.positions.zero_()
        # Channel, row and column of a square, one by one, are the 16 numbers of a token.
        dit.embed.weight.copy_(torch.eye(16).view(16, 4, 2, 2))
        dit.out.weight.copy_(torch.eye(16))
    dit.norm = nn.Identity()  # type: ignore[assignment]
    latents = torch.randn(2, 4, 6, 6)
    answer = dit(latents, torch.zeros(2), torch.zeros(2, DIM))
    torch.testing.assert_close(answer, latents)


def test_codes_of_times_and_places_are_those_of_diffusers() -> None:
    times = torch.tensor([0.0, 1.0, 37.5, 999.0])
    theirs = get_timestep_embedding(times, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(wave_code(times, 256), theirs, atol=1e-4, rtol=1e-4)
    places = get_2d_sincos_pos_embed(
        16, 5, base_size=5, output_type="pt"
    ).float()  # sines before cosines
    quarters = places.unflatten(1, (4, 4))[:, [1, 0, 3, 2]].flatten(1)
    torch.testing.assert_close(grid_code(5, 16), quarters, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_block_is_attention_and_mlp_written_out(qk_norm: bool) -> None:
    """In float64 and numpy, with nothing of torch's."""
    torch.manual_seed(0)
    block = awake(Block(DiTConfig(width=8, depth=1, heads=2, qk_norm=qk_norm))).double()
    tokens, told = torch.randn(1, 5, 8, dtype=torch.double), torch.randn(1, 8, dtype=torch.double)
    weight = {name: value.detach().numpy() for name, value in block.named_parameters()}

    def linear(name: str, x: Any) -> Any:
        return x @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]

    def norm(x: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def unit(x: Any) -> Any:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) if qk_norm else x

    x, c = tokens[0].numpy(), told[0].numpy()
    six = linear("modulation.1", c / (1 + np.exp(-c))).reshape(6, 8)
    shift, scale, gate, shift2, scale2, gate2 = six
    q, k, v = linear("qkv", norm(x) * (1 + scale) + shift).reshape(5, 3, 2, 4).transpose(1, 2, 0, 3)
    logits = np.exp(unit(q) @ unit(k).transpose(0, 2, 1) / 2)
    mixed = (logits / logits.sum(-1, keepdims=True)) @ v
    x = x + gate * linear("project", mixed.transpose(1, 0, 2).reshape(5, 8))
    hidden = linear("mlp.0", norm(x) * (1 + scale2) + shift2)
    hidden = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    x = x + gate2 * linear("mlp.2", hidden)
    torch.testing.assert_close(block(tokens, told)[0], torch.from_numpy(x))


def test_every_parameter_of_the_dit_learns() -> None:
    model = small(kind="dit", prediction="flow", dit={**DIT["dit"], "qk_norm": True})
    generator = torch.Generator().manual_seed(0)
    model.loss(torch.randn(4, 4, 8, 8), embeddings(4), model.draw(4, generator)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_the_normed_dit_computes_in_low_precision_throughout() -> None:
    """Under autocast too; where precisions are mixed torch warns, which is an error here."""
    model = small(kind="dit", prediction="flow", dit={**DIT["dit"], "qk_norm": True})
    settings: dict[str, Any] = {"steps": 2, "seeds": [1, 2]}
    exactly = model.sample(embeddings(2), **settings)
    roughly = model.sample(embeddings(2), precision="bf16", **settings)
    assert 0 < float((roughly - exactly).norm() / exactly.norm()) < 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", ["v", "flow"])
def test_no_step_waits_for_the_device(kind: str, prediction: Any) -> None:
    """The meta device has no numbers to read: any `.item()` or branch on a value raises there."""
    settings = DIT if kind == "dit" else SMALL
    model = on_meta(**settings | {"prediction": prediction, "min_snr": float(prediction == "v")})
    latents, given = (torch.empty(2, *shape, device="meta") for shape in ((4, 8, 8), (DIM,)))
    times = torch.zeros(2, device="meta", dtype=torch.int64 if prediction == "v" else torch.float32)
    model.loss(latents, given, Draws(times, latents, torch.empty(2, device="meta"))).backward()
    solver = Solver(model.config, sampling_times(model.config, 3), "dpm")
    with torch.no_grad():
        for index, time in enumerate(solver.times):
            predicted = model._guided(latents, time, model.condition(given), 2.0)
            latents = solver.step(index, latents, predicted)
    assert latents.shape == (2, 4, 8, 8)


# --- settings and files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"attention": (True,)},
        {"block_out_channels": (8, 18)},
        {"heads": 3},
        {"latent_size": 7},
        {"condition_dropout": 1.5},
        {"kind": "gan"},
        {"kind": "dit", "latent_size": 7},
        {"kind": "dit", "dit": {"width": 16, "heads": 3}},
        {"kind": "dit", "dit": {"width": 18, "heads": 3}},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LDMConfig(**SMALL | wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_draws_the_same(kind: str, tmp_path: Path) -> None:
    model = small(kind=kind, prediction="flow", encoder_id="abc")
    save_model(tmp_path / "model", model)
    again = load_model(tmp_path / "model", EmbeddingConditionedLDM)
    settings: dict[str, Any] = {"steps": 2, "seeds": [3, 4]}
    assert again.config == model.config
    drawn: Tensor = model.sample(embeddings(2), **settings)
    assert torch.equal(again.sample(embeddings(2), **settings), drawn)
