"""Published tensors under the names, and on the grid, of the network that takes them.

Files keep their layout whatever the library that wrote them becomes, so pathgen reads them itself:
no class or code from a download is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F

from pathgen.checkpoints import require_equal_shapes
from pathgen.encoders.network import Network
from pathgen.encoders.zoo import Layout, Positions
from pathgen.errors import RunError

Weights = dict[str, Tensor]

#: Names in files of transformers' ViTModel and Dinov2Model -> timm's.
_TRANSFORMERS = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
#: What a file may hold besides, and a feature needs not.
_BESIDES: Mapping[Layout, str] = {
    "timm": r"^(head|fc)\.|^mask_token$",
    "vit": r"^pooler\.|^embeddings\.mask_token$|^(decoder|classifier|lm_head)\.",
    "dinov2": r"^embeddings\.mask_token$|^classifier\.",
    "conch": r"^(?!visual\.)|^visual\.(attn_pool_caption|ln_caption|proj_contrast|head)",
    "conch-v1.5": r"^$",
}


def fill(network: Network, found: Mapping[str, Any], where: Path) -> None:
    """Give `network` the tensors of a published file, as float32.

    Raises:
        RunError: PG-T04, they are of another architecture; the message has what differs.
    """
    row = network.row
    plain = _unwrapped(found, where)
    kept = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in plain.items()
        if not re.search(_BESIDES[row.layout], name)
    }
    weights = _named(kept, row.layout, network)
    if "trunk.pos_embed" in weights and network.grid is not None:
        weights["trunk.pos_embed"] = on_grid(
            weights["trunk.pos_embed"], network.grid, network.prefix_positions, row.positions
        )
    expected = network.state_dict()
    # Files of before 2018 do not count batches, and inference does not ask.
    for name in expected.keys() - weights.keys():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros((), dtype=torch.int64)
    try:
        require_equal_shapes(expected, weights, where=where)
    except RunError as error:
        raise RunError(
            error.what, where=where, why=error.why,
            hint=f"{row.name} takes the weights of {row.hub}; check that this file is theirs",
        ) from error  # fmt: skip
    network.load_state_dict(weights, assign=True)


def on_grid(embed: Tensor, grid: tuple[int, int], prefix: int, rule: Positions) -> Tensor:
    """Position embeddings (1, prefix + g * g, D) for patches on `grid`; as they are where they fit.

    The rules are those of the authors' own code: timm's (bicubic-antialias), transformers'
    (bicubic), CONCH's (bilinear) and that of DINO, whose factor is a tenth of a patch too large.
    """
    count = embed.shape[1] - prefix
    side = round(max(count, 0) ** 0.5)
    if count == grid[0] * grid[1] or side * side != count:
        return embed  # or not square: then the shapes say that the file is another one
    if rule in ("bicubic-antialias", "bilinear"):
        soft = rule == "bicubic-antialias"
        resampled: Tensor = resample_abs_pos_embed(
            embed, new_size=list(grid), num_prefix_tokens=prefix,
            interpolation="bicubic" if soft else "bilinear", antialias=soft,
        )  # fmt: skip
        return resampled
    patches = embed[:, prefix:].transpose(1, 2).reshape(1, -1, side, side)  # (1, D, g, g)
    if rule == "dino":
        factors = [(length + 0.1) / side for length in grid]
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
    else:
        patches = F.interpolate(patches, size=grid, mode="bicubic")
    return torch.cat([embed[:, :prefix], patches.flatten(2).transpose(1, 2)], dim=1)


def _unwrapped(found: Mapping[str, Any], where: Path) -> Weights:
    """Only the tensors, without the wrappings of training scripts around them."""
    for key in ("state_dict", "model", "teacher"):
        if isinstance(found.get(key), Mapping):
            found = found[key]
    weights = {
        name.removeprefix("module."): t for name, t in found.items() if isinstance(t, Tensor)
    }
    if not weights:
        raise RunError("the file holds no weights", where=where, why="there is no tensor in it")
    return weights


def _named(weights: Weights, layout: Layout, network: Network) -> Weights:
    if layout == "conch":
        return {name.removeprefix("visual."): t for name, t in weights.items()}
    if layout == "conch-v1.5":
        return weights
    if layout in ("vit", "dinov2"):
        weights = _from_transformers(weights, network)
    return {f"trunk.{name}": t for name, t in weights.items()}


def _from_transformers(weights: Weights, network: Network) -> Weights:
    renamed: Weights = {}
    for name, tensor in weights.items():
        for pattern, new in _TRANSFORMERS:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            fused = torch.cat([renamed.pop(part) for part in parts])
            renamed[name.replace(".query.", ".qkv.")] = fused
    if network.prefix_positions == 0 and {"cls_token", "pos_embed"} <= renamed.keys():
        # This network adds positions to patches alone; the class token has taken its own along.
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    return renamed
