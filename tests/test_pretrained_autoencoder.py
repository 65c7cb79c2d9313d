"""Published autoencoders: every class of diffusers, from what its own save_pretrained writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from torch import Tensor

from pathgen.errors import ConfigError
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.runs import load_model, save_model

CONVOLUTIONS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
}  # fmt: skip
#: As published ones are: scaled and shifted latents, codes of another width than the latents.
BUILT: Mapping[str, Callable[[], Any]] = {
    "kl": lambda: AutoencoderKL(
        **CONVOLUTIONS, latent_channels=4, scaling_factor=0.18215, shift_factor=0.5
    ),
    "vq": lambda: VQModel(
        **CONVOLUTIONS, latent_channels=3, vq_embed_dim=5, num_vq_embeddings=16
    ),
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ),
    "dc": lambda: AutoencoderDC(
        latent_channels=8, attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16), decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
    ),
}  # fmt: skip
#: What each class itself encodes pixels in [-1, 1] to.
ENCODED: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "kl": lambda network, pixels: network.encode(pixels).latent_dist.mode(),
    "vq": lambda network, pixels: network.encode(pixels).latents,
    "tiny": lambda network, pixels: network.encode(pixels).latents,
    "dc": lambda network, pixels: network.encode(pixels).latent,
}


def network_of(kind: str) -> Any:
    torch.manual_seed(0)
    return BUILT[kind]().eval()


def loaded_from(place: Path, **settings: Any) -> Autoencoder:
    return Autoencoder(
        AutoencoderConfig(image_size=32, pretrained=str(place), **settings)
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", BUILT)
def test_pretrained_weights_are_taken_and_then_travel_alone(kind: str, tmp_path: Path) -> None:
    network, images = network_of(kind), torch.rand(2, 3, 32, 32)
    network.save_pretrained(tmp_path / "weights")
    loaded = loaded_from(tmp_path / "weights")
    assert loaded.config.kind == kind
    save_model(tmp_path / "model", loaded)
    (tmp_path / "weights").rename(tmp_path / "gone")
    again = load_model(tmp_path / "model", Autoencoder)
    with torch.no_grad():
        theirs = ENCODED[kind](network, images * 2 - 1)
        pictures = (network.decode(theirs).sample + 1) / 2
        assert loaded.latent_shape == theirs.shape[1:]
        for model in (loaded, again):
            assert torch.equal(model.encode(images), theirs)
            torch.testing.assert_close(model.decode(theirs), pictures.clamp(0, 1))
        loaded.measure([images])
        torch.testing.assert_close(loaded.encode(images).std(), torch.tensor(1.0), atol=0.1, rtol=0)
        torch.testing.assert_close(loaded.decode(loaded.encode(images)), pictures.clamp(0, 1))


def test_their_own_scaling_has_no_effect(tmp_path: Path) -> None:
    network, images = network_of("kl"), torch.rand(2, 3, 32, 32)
    latents = []
    for factor in (1.0, 0.18215):
        network.register_to_config(scaling_factor=factor)
        network.save_pretrained(tmp_path / str(factor))
        model = loaded_from(tmp_path / str(factor))
        model.measure([images])
        latents.append(model.encode(images).detach())
    assert torch.equal(*latents)


@pytest.mark.parametrize(("kind", "subfolder"), [("kl", "vae"), ("vq", "vqvae")])
def test_a_pipeline_folder_is_searched(kind: str, subfolder: str, tmp_path: Path) -> None:
    network, images = network_of(kind), torch.rand(1, 3, 32, 32)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LDMPipeline"}))
    network.save_pretrained(tmp_path / subfolder)
    loaded = loaded_from(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), ENCODED[kind](network, images * 2 - 1))


def test_only_known_classes_are_built(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ConfigError, match="unknown class"):
        loaded_from(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    network_of("kl").save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ConfigError, match="safetensors"):
        loaded_from(tmp_path)


def test_a_place_without_an_autoencoder_is_said(tmp_path: Path) -> None:
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            loaded_from(place)


@pytest.mark.parametrize(
    ("settings", "message"), [({"fold": 2}, "plain images"), ({"image_size": 33}, "divisible")]
)
def test_what_the_weights_do_not_fit_is_said(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    network_of("tiny").save_pretrained(tmp_path)
    config = {"image_size": 32, "pretrained": str(tmp_path), **settings}
    with pytest.raises(ConfigError, match=message):
        Autoencoder(AutoencoderConfig(**config))
