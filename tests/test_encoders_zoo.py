"""The table of public encoders, its networks, and what they are shown of a patch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pathgen.encoders import mpp_note, named, public_encoders
from pathgen.encoders.network import Network
from pathgen.encoders.pixels import normalized, prepared
from pathgen.encoders.published import PublishedEncoder
from pathgen.encoders.zoo import Published, unknown
from pathgen.errors import ConfigError

#: Millions of parameters, from the model cards.
PUBLISHED_SIZES = {
    "uni": 303.4, "uni2-h": 681.4, "virchow": 631.2, "virchow2": 631.2, "phikon": 85.8,
    "phikon-v2": 303.4, "hibou-b": 85.7, "hibou-l": 303.7, "lunit-dino": 21.7,
}  # fmt: skip
#: In thousands of millions: these are rounded more.
LARGE = {"h-optimus-0": 1.13, "h-optimus-1": 1.13, "prov-gigapath": 1.13, "midnight-12k": 1.14}


def reduced(row: Published, **settings: Any) -> Published:
    """The same row with a network that takes no time."""
    if row.vector in ("pooled", "third"):
        return row
    return row.model_copy(update={"settings": {**row.settings, "depth": 1, **settings}})


def random_encoder(row: Published, seed: int = 0) -> PublishedEncoder:
    torch.manual_seed(seed)
    network = Network(row)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.ndim == 1 else 0.1)
    return PublishedEncoder(row, network)


def patches(side: int = 224, n: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


# --- the table -------------------------------------------------------------------------------


def test_the_encoders_asked_for_are_there() -> None:
    asked = {
        "uni", "uni2-h", "conch", "conch-v1.5", "virchow", "virchow2", "h-optimus-0",
        "h-optimus-1", "prov-gigapath", "phikon", "phikon-v2", "lunit-dino", "lunit-dino-s8",
        "midnight-12k", "hibou-b", "hibou-l", "resnet50", "resnet50-trunc", "kaiko-vitb8",
    }  # fmt: skip
    assert asked <= set(public_encoders())
    assert {name for name, row in public_encoders().items() if not row.mpp} == {
        "resnet50",
        "resnet50-trunc",
    }


def test_a_name_means_one_encoder() -> None:
    names = [name for row in public_encoders().values() for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))
    for other, name in (
        ("UNI2", "uni2-h"),
        ("conch_v15", "conch-v1.5"),
        ("Midnight", "midnight-12k"),
    ):
        found = named(other)
        assert found is not None
        assert found.name == name
    assert named("uno") is None


def test_a_typo_is_met_with_the_right_name() -> None:
    for typo, name in (("virchov2", "virchow2"), ("phicon", "phikon"), ("my-plugn", "my-plugin")):
        error = unknown(typo, ["my-plugin"])
        assert isinstance(error, ConfigError)
        assert f"{name!r}" in str(error)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        public_encoders()["uni"] = public_encoders()["conch"]  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        public_encoders()["uni"].dim = 3  # type: ignore[misc]


def test_weights_that_may_not_be_sold_are_marked() -> None:
    for row in public_encoders().values():
        closed = any(word in row.license.lower() for word in ("nc", "non-commercial", "research"))
        assert row.commercial != closed, row.name
        assert row.access.startswith("https://")
        assert row.citation


def test_the_card_is_plain_values() -> None:
    for row in public_encoders().values():
        assert json.loads(json.dumps(row.card)) == row.card
        assert row.card["license"] == row.license
        assert row.card["source"].endswith(row.hub)
        assert row.license in row.said()
        assert ("no commercial use" in row.said()) != row.commercial


# --- the networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(public_encoders()))
def test_a_network_gives_vectors_of_its_length(name: str) -> None:
    row = reduced(public_encoders()[name])
    with torch.device("meta"), torch.no_grad():
        vectors = Network(row).eval()(torch.zeros(2, 3, row.image_size, row.image_size))
    assert vectors.shape == (2, row.dim)


@pytest.mark.parametrize("name", [*PUBLISHED_SIZES, *LARGE])
def test_a_network_has_the_published_number_of_parameters(name: str) -> None:
    row = public_encoders()[name]
    counts = []
    for depth in (1, 2):
        with torch.device("meta"):
            network = Network(reduced(row, depth=depth))
        counts.append(sum(p.numel() for p in network.parameters()))
    blocks = {"vit_small": 12, "vit_base": 12, "vit_large": 24, "vit_huge": 32, "vit_giant": 40}
    family = "_".join(row.network.split("_")[:2])
    depth = row.settings.get("depth", blocks[family])
    total = counts[0] + (depth - 1) * (counts[1] - counts[0])
    if name in LARGE:
        assert abs(total / 1e9 - LARGE[name]) < 0.0075
    else:
        assert round(total / 1e6, 1) == PUBLISHED_SIZES[name]


def tiny(**changes: Any) -> Published:
    values: dict[str, Any] = {
        "name": "tiny", "title": "Tiny", "hub": "someone/tiny", "network": "vit_small_patch16_224",
        "settings": {"embed_dim": 24, "depth": 2, "num_heads": 3}, "image_size": 32,
        "vector": "cls", "dim": 24, "interpolation": "bicubic", "license": "MIT",
        "commercial": True, "gated": False, "citation": "",
    }  # fmt: skip
    changes["settings"] = {**values["settings"], **changes.get("settings", {})}
    return Published(**{**values, **changes})


@pytest.mark.parametrize("registers", [0, 4])
def test_class_token_and_mean_leave_out_the_registers(registers: int) -> None:
    row = tiny(vector="cls+mean", dim=48, settings={"reg_tokens": registers})
    encoder = random_encoder(row)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        tokens = encoder.network.trunk.forward_features(images).numpy()
        found = encoder.network(images).numpy()
    assert tokens.shape == (3, 1 + registers + 4, 24)
    expected = np.concatenate([tokens[:, 0], tokens[:, -4:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_third_stage_is_what_the_fourth_is_fed() -> None:
    row = public_encoders()["resnet50-trunc"]
    torch.manual_seed(0)
    trunk = (network := Network(row).eval()).trunk
    images, seen = torch.rand(1, 3, 64, 64), []
    trunk.layer4.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        trunk(images)
        found = network(images)
    np.testing.assert_array_equal(found, seen[0].flatten(2).mean(dim=2))


def _norm(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    centered = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return centered * state[f"{name}.weight"] + state[f"{name}.bias"]


@pytest.mark.parametrize("layout", ["conch", "conch-v1.5"])
def test_conch_pools_as_written_out(layout: str) -> None:
    """softmax(q k' / sqrt(d)) v over eight heads, in float64."""
    row = tiny(layout=layout, vector="attention", dim=16)
    encoder = random_encoder(row)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = encoder.network.trunk.forward_features(images).double().numpy()
        found = encoder.network(images).numpy()
    state = {k: v.double().numpy() for k, v in encoder.network.state_dict().items()}
    pool = "attn_pool_contrast"
    query = _norm(state[f"{pool}.query"], state, f"{pool}.ln_q")
    keys = _norm(tokens, state, f"{pool}.ln_k")
    if layout == "conch":
        maps = [state[f"{pool}.attn.{p}_proj_weight"] for p in "qkv"]
        q_bias, k_bias, v_bias = np.split(state[f"{pool}.attn.in_proj_bias"], 3)
        out, out_bias = (state[f"{pool}.attn.out_proj.{p}"] for p in ("weight", "bias"))
    else:
        maps = [state[f"{pool}.to_q.weight"], *np.split(state[f"{pool}.to_kv.weight"], 2)]
        q_bias, k_bias, v_bias = np.zeros((3, 16))
        out, out_bias = state[f"{pool}.to_out.weight"], np.zeros(16)
    q = query @ maps[0].T + q_bias
    k, v = keys @ maps[1].T + k_bias, keys @ maps[2].T + v_bias
    pooled = np.empty((2, 16))
    for image in range(2):
        for head in range(8):
            part = slice(2 * head, 2 * head + 2)
            scores = q[0, part] @ k[image, :, part].T / np.sqrt(2)
            weights = np.exp(scores) / np.exp(scores).sum()
            pooled[image, part] = weights @ v[image, :, part]
    expected = _norm(pooled @ out.T + out_bias, state, "ln_contrast")
    np.testing.assert_allclose(found, expected, atol=1e-4)


# --- the pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (300, 401), (100, 90)])
def test_pixels_are_torchvisions(interpolation: str, height: int, width: int) -> None:
    given = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.7, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    theirs = v2.Compose([
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Resize(64, interpolation=v2.InterpolationMode(interpolation), antialias=True),
        v2.CenterCrop(56), v2.Lambda(lambda image: image.clamp(0, 1)),
        v2.Normalize(mean.tolist(), std.tolist()),
    ])(Image.fromarray(given))  # fmt: skip
    tensor = torch.from_numpy(given).permute(2, 0, 1)[None]
    ours = prepared(tensor, 64, 56, interpolation)  # type: ignore[arg-type]
    ours = normalized(ours, mean.view(3, 1, 1), std.view(3, 1, 1))[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_patch_of_the_right_size_is_only_normalized() -> None:
    encoder = random_encoder(tiny(mean=(0.7, 0.6, 0.5), std=(0.1, 0.2, 0.3)))
    given = patches(32)
    plain = (given.astype(np.float64) / 255 - [0.7, 0.6, 0.5]) / [0.1, 0.2, 0.3]
    with torch.no_grad():
        images = torch.from_numpy(plain.transpose(0, 3, 1, 2)).float()
        expected = encoder.network(images).numpy()
    found = encoder.encode(given)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_ids_tell_apart_what_gives_other_vectors() -> None:
    first = random_encoder(tiny())
    assert random_encoder(tiny()).id == first.id
    assert random_encoder(tiny(), seed=1).id != first.id
    assert random_encoder(tiny(mean=(0.1, 0.1, 0.1))).id != first.id
    assert random_encoder(tiny(interpolation="bilinear")).id != first.id
    assert random_encoder(tiny(license="other")).id == first.id


def test_mixed_precision_is_near_and_not_equal() -> None:
    encoder = random_encoder(tiny())
    exact = encoder.encode(patches(32))
    encoder.precision = "bf16"
    near = encoder.encode(patches(32))
    assert near.dtype == np.float32
    assert not np.array_equal(near, exact)
    np.testing.assert_allclose(near, exact, atol=0.2)


# --- the scale -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mpp", "size", "said"),
    [
        ("uni", 0.5, 224, False),
        ("uni", 0.5, 256, False),  # 0.57 once it is resized
        ("uni", 0.5, 512, True),  # 1.14 once it is resized
        ("uni", 1.0, 224, True),
        ("uni", 0.25, 448, False),
        ("conch-v1.5", 0.5, 512, False),
        ("virchow2", 2.0, 224, False),
        ("virchow2", 8.0, 224, True),
        ("resnet50", 4.0, 224, False),
        ("uni", None, 224, False),
    ],
)
def test_a_scale_far_from_the_trained_one_is_said(
    name: str, mpp: float | None, size: int, said: bool
) -> None:
    note = mpp_note(public_encoders()[name].card, mpp, size)
    assert bool(note) == said
    assert not said or f"{name} is meant for" in note


def test_the_yaml_is_part_of_the_package() -> None:
    import pathgen.encoders

    assert (Path(pathgen.encoders.__file__).parent / "zoo.yaml").is_file()
