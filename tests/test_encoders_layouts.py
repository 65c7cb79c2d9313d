"""Files of transformers are read without it: what comes out is what it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_encoders_zoo import patches, random_encoder, tiny

from pathgen.encoders import load_encoder
from pathgen.encoders.published import PublishedEncoder
from pathgen.encoders.zoo import Published
from pathgen.errors import ConfigError, MissingExtraError, RunError

transformers = pytest.importorskip("transformers")

COMMON = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}


def saved(kind: str, folder: Path, **settings: Any) -> Any:
    """A network of transformers with random weights, as it saves itself."""
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}Model")(
        getattr(transformers, f"{kind}Config")(**{**COMMON, **settings})
    ).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.ndim == 1 else 0.2)
    network.save_pretrained(folder)
    return network


def theirs(network: Any, row: Published) -> np.ndarray:
    """Vectors by transformers' own forward pass, of patches that need no resizing."""
    images = torch.from_numpy(patches(row.image_size)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (row.mean, row.std))
    with torch.no_grad():
        tokens = network(pixel_values=(images - mean) / std).last_hidden_state
    registers = getattr(network.config, "num_register_tokens", 0)
    if row.vector == "cls":
        return np.asarray(tokens[:, 0])
    return np.asarray(torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], dim=1))


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # the kind and settings of transformers; the row as the table has it
    "phikon": ("ViT", {"intermediate_size": 96}, {"layout": "vit", "norm_eps": 1e-12}),
    "phikon-v2": ("Dinov2", {}, {"layout": "dinov2", "settings": {"init_values": 1.0}}),
    "midnight": (
        "Dinov2", {"use_swiglu_ffn": True},
        {"layout": "dinov2", "swiglu": True, "vector": "cls+mean", "dim": 48,
         "settings": {"init_values": 1.0, "mlp_ratio": 5.33334}},
    ),
    "hibou": (
        "Dinov2WithRegisters", {"use_swiglu_ffn": True},
        {"layout": "dinov2", "swiglu": True, "settings": {
            "init_values": 1.0, "mlp_ratio": 5.33334, "reg_tokens": 4, "no_embed_class": True}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "trained_at"),  # transformers' ViT takes images of the size that it was made for
    [(case, 32) for case in CASES] + [(case, 56) for case in CASES if case != "phikon"],
)
def test_a_file_of_transformers_gives_its_vectors(
    case: str, trained_at: int, tmp_path: Path
) -> None:
    """Also where the network was trained on larger images than it is shown."""
    kind, settings, changes = CASES[case]
    network = saved(kind, tmp_path / "tiny", image_size=trained_at, **settings)
    positions = "bicubic-antialias" if "Registers" in kind else "bicubic"
    changes = {**changes, "settings": {**SIZES, **changes.get("settings", {})}}
    row = tiny(positions=positions, **changes)
    encoder = PublishedEncoder.load(row, tmp_path / "tiny" / "model.safetensors")
    np.testing.assert_allclose(encoder.encode(patches(32)), theirs(network, row), atol=2e-4)


def test_the_rows_have_the_rules_that_were_tested() -> None:
    from pathgen.encoders import public_encoders

    rows = public_encoders()
    pairs = (("phikon", "phikon"), ("phikon-v2", "phikon-v2"), ("midnight-12k", "midnight"),
             ("hibou-b", "hibou"), ("hibou-l", "hibou"))  # fmt: skip
    for name, case in pairs:
        row, changes = rows[name], CASES[case][2]
        assert row.layout == changes["layout"]
        assert row.vector == changes.get("vector", "cls")
        registers = 4 if case == "hibou" else 0
        assert ("reg4" in row.network) == bool(registers)
        assert row.positions == ("bicubic-antialias" if registers else "bicubic")


# --- hf:OWNER/NAME ---------------------------------------------------------------------------


PIXELS = {
    "size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "resample": 3,
}  # fmt: skip


@pytest.mark.parametrize("vector", ["", "cls+mean", "mean"])
def test_any_vision_transformer_of_the_library(vector: str, tmp_path: Path) -> None:
    folder = tmp_path / "someone" / "net"
    network = saved("Dinov2WithRegisters", folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    spec = "hf:someone/net" + (f",{vector}" if vector else "")
    encoder: Any = load_encoder(spec, "cpu", weights=tmp_path)
    row = tiny(mean=(0.5,) * 3, std=(0.25,) * 3, vector="cls+mean", dim=48)
    both = theirs(network, row)
    expected = {"": both[:, :24], "mean": both[:, 24:], "cls+mean": both}[vector]
    inner = np.pad(patches(32), ((0, 0), (4, 4), (4, 4), (0, 0)))  # the center of 40 px
    found = encoder.encode(inner)
    assert encoder.dim == found.shape[1]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert encoder.card["interpolation"] == "bicubic"
    other = load_encoder("hf:someone/net,mean", "cpu", weights=tmp_path)
    assert (encoder.id == other.id) == (vector == "mean")


def test_a_head_that_the_file_lacks_is_not_made_up(tmp_path: Path) -> None:
    """transformers fills what is not there with random numbers."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "someone" / "net"
    saved("ViT", folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    file = folder / "model.safetensors"
    whole = load_file(file)
    ids = set()
    for state in (whole, {k: v for k, v in whole.items() if not k.startswith("pooler.")}):
        save_file(state, file, {"format": "pt"})
        ids |= {load_encoder("hf:someone/net", "cpu", weights=tmp_path).id for _ in range(2)}
    assert len(ids) == 1  # no vector needs the pooler
    name = next(name for name in whole if name.startswith("layernorm."))
    save_file({k: v for k, v in whole.items() if k != name}, file, {"format": "pt"})
    with pytest.raises(RunError, match=name):
        load_encoder("hf:someone/net", "cpu", weights=tmp_path)
    odd = {**PIXELS, "resample": 1}
    (folder / "preprocessor_config.json").write_text(json.dumps(odd))
    save_file(whole, file, {"format": "pt"})
    with pytest.raises(ConfigError, match="filter 1"):
        load_encoder("hf:someone/net", "cpu", weights=tmp_path)


@pytest.mark.parametrize("said", [{"crop_pct": 0.9}, {"crop_pct": 0.95}, {"crop_pct": None}, {}])
def test_a_timm_repository_is_resized_as_timm_does(said: dict[str, Any]) -> None:
    from timm.data import create_transform, resolve_data_config
    from timm.models import PretrainedCfg

    from pathgen.encoders.hub import _row

    config = {"architecture": "vit_small_patch16_224", "num_features": 24, "pretrained_cfg": said}
    row = _row("lab/net", config, "")
    given = {k: v for k, v in said.items() if v is not None}
    rule = resolve_data_config(pretrained_cfg=PretrainedCfg(**given).to_dict())
    resize, crop = create_transform(**rule).transforms[:2]
    assert (row.resize, row.image_size) == (resize.size, crop.size[0])
    assert (row.mean, row.std, row.interpolation) == (
        rule["mean"], rule["std"], rule["interpolation"]
    )  # fmt: skip


def test_a_timm_repository_says_itself_what_it_is(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    encoder = random_encoder(tiny(mean=(0.5,) * 3))
    folder = tmp_path / "models--lab--net" / "snapshots" / "1"
    folder.mkdir(parents=True)
    state = {k.removeprefix("trunk."): v for k, v in encoder.network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = {
        "architecture": "vit_small_patch16_224", "num_features": 24, "global_pool": "token",
        "model_args": {"embed_dim": 24, "depth": 2, "num_heads": 3},
        "pretrained_cfg": {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.8,
                           "mean": [0.5] * 3, "std": [0.229, 0.224, 0.225], "license": "mit"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    found: Any = load_encoder("hf:lab/net", "cpu", weights=tmp_path)
    assert found.card["license"] == "mit"
    assert found.card["resize"] == 40
    inner = np.pad(patches(32), ((0, 0), (4, 4), (4, 4), (0, 0)))
    np.testing.assert_array_equal(found.encode(inner), encoder.encode(patches(32)))


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "lab" / "net"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModel": "x"}}')
    with pytest.raises(ConfigError, match="llama"):
        load_encoder("hf:lab/net", "cpu", weights=tmp_path)
    for spec in ("hf:net", "hf:lab/net,best"):
        with pytest.raises(ConfigError, match="hf:OWNER/NAME"):
            load_encoder(spec, "cpu", weights=tmp_path)
    with pytest.raises(MissingExtraError, match=r"config\.json"):
        load_encoder("hf:lab/other", "cpu", weights=tmp_path)
