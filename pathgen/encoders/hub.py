"""``hf:OWNER/NAME``: any repository of the hub whose `config.json` says what it holds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from timm.models import PretrainedCfg
from torch import Tensor, nn

from pathgen.encoders.pixels import normalized, prepared
from pathgen.encoders.published import PublishedEncoder
from pathgen.encoders.weights import find_file, find_weights
from pathgen.encoders.zoo import Interpolation, Origin, Published, Vector
from pathgen.errors import ConfigError, RunError
from pathgen.extras import need
from pathgen.modelfiles import read_object
from pathgen.models.precision import Precision, autocast
from pathgen.models.weights import weights_id

#: Vectors that may be asked for: ``hf:OWNER/NAME,cls+mean``.
VECTORS: tuple[Vector, ...] = ("cls", "cls+mean", "mean")
#: Model types of transformers whose tokens are the class, registers and patches, in this order.
TYPES = ("vit", "vit_msn", "dinov2", "dinov2_with_registers", "dinov3_vit")
#: PIL's numbers for interpolation, which preprocessors use.
_RESAMPLE: Mapping[int, Interpolation] = {2: "bilinear", 3: "bicubic"}


def from_hub(spec: str, weights: Path | None) -> PublishedEncoder | TransformersEncoder:
    """The encoder of ``OWNER/NAME`` or ``OWNER/NAME,VECTOR``.

    Raises:
        ConfigError: PG-C04, the spec or the configuration of the repository is not understood.
        MissingExtraError: PG-E01, transformers is needed; PG-E02, PG-E06, see `find_weights`.
        RunError: PG-T04, the weights cannot be read or do not fit.
    """
    hub, _, asked = spec.partition(",")
    if hub.count("/") != 1 or asked not in ("", *VECTORS):
        raise ConfigError(
            "encoder is not understood", code="PG-C04", where=f"hf:{spec}",
            hint=f"write hf:OWNER/NAME, or with a vector of {', '.join(VECTORS)} after a comma",
        )  # fmt: skip
    page = f"https://huggingface.co/{hub}"
    origin = Origin(hub.split("/")[1], hub, f"License: see {page}")
    place = find_file(origin, ["config.json"], weights)
    config = read_object(place)
    vector = cast(Vector, asked or "cls")
    if "architecture" in config:
        row = _row(hub, config, asked)
        return PublishedEncoder.load(row, find_weights(origin, weights))
    if config.get("model_type") not in TYPES:
        raise ConfigError(
            "this repository holds no encoder that pathgen knows", code="PG-C04", where=hub,
            why=f"its config.json says model_type {config.get('model_type')!r}; known are "
            f"{', '.join(TYPES)}, and timm's",
            hint="code from the hub is not run: write a Python file and give FILE.py:FUNCTION",
        )  # fmt: skip
    need("transformers", "encoders")
    find_weights(origin, weights)
    pixels = find_file(origin, ["preprocessor_config.json"], weights)
    return TransformersEncoder(hub, place.parent, read_object(pixels), vector)


def _row(hub: str, config: Mapping[str, Any], asked: str) -> Published:
    """A timm repository as a line of the table."""
    # What it does not say is timm's own usual.
    given = config.get("pretrained_cfg") or {}
    about = asdict(PretrainedCfg()) | {k: v for k, v in given.items() if v is not None}
    pool = config.get("global_pool") or "token"
    usual = "cls" if pool in ("token", "") else "pooled"
    side = int(about.get("input_size", (3, 224, 224))[-1])
    try:
        return Published(
            name=hub, title=hub, hub=hub, network=str(config["architecture"]),
            settings=config.get("model_args", {}), vector=asked or usual,  # type: ignore[arg-type]
            dim=int(config["num_features"]) * (2 if asked == "cls+mean" else 1),
            image_size=side, resize=math.floor(side / float(about["crop_pct"])),  # as timm
            mean=about["mean"], std=about["std"], interpolation=about["interpolation"],
            license=about.get("license") or "not said", commercial=False, gated=False, citation="",
        )  # fmt: skip
    except (KeyError, ValidationError) as error:
        raise ConfigError(
            "the config.json of this repository is not understood", code="PG-C04", where=hub,
            why=str(error).splitlines()[0],
        ) from error  # fmt: skip


class TransformersEncoder(nn.Module):
    """A vision transformer of the `transformers` library. Code from the hub is never run."""

    mean: Tensor
    std: Tensor

    def __init__(self, hub: str, folder: Path, pixels: Mapping[str, Any], vector: Vector) -> None:
        from transformers import AutoModel

        super().__init__()
        try:
            self.model, said = AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                "transformers cannot build this model", code="PG-C04", where=hub,
                why=str(error).splitlines()[0],
            ) from error  # fmt: skip
        if hasattr(self.model, "pooler"):
            # No vector needs it, and where the file lacks it, it is random at every load.
            self.model.pooler = None
        lost = sorted(name for name in said["missing_keys"] if not name.startswith("pooler."))
        if lost or said["mismatched_keys"]:
            raise RunError(
                "weights are of another architecture", where=hub,
                why=f"the file lacks {len(lost)} tensors, {lost[0]} first"
                if lost else f"{len(said['mismatched_keys'])} tensors have other shapes",
                hint="transformers would fill them with random numbers; use another repository",
            )  # fmt: skip
        self.name, self.vector, self.pixels = hub, vector, _Pixels(pixels, hub)
        self.registers = int(getattr(self.model.config, "num_register_tokens", 0))
        width = int(self.model.config.hidden_size)
        self.dim = width * 2 if vector == "cls+mean" else width
        self.precision: Precision = "fp32"
        for name, values in (("mean", self.pixels.mean), ("std", self.pixels.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def card(self) -> Mapping[str, Any]:
        """What feature stores say of it."""
        return {
            "name": self.name, "source": f"https://huggingface.co/{self.name}",
            "library": "transformers", "vector": self.vector, "dim": self.dim,
            "license": "not said", **vars(self.pixels),
        }  # fmt: skip

    @cached_property
    def id(self) -> str:
        """16 hex digits of the weights and of what is done before and after them."""
        text = f"{weights_id(self.model)} {self.vector} {sorted(vars(self.pixels).items())}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @torch.inference_mode()
    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim) float32, on whatever device the weights are."""
        device = self.mean.device
        images = torch.from_numpy(np.ascontiguousarray(patches)).to(device).permute(0, 3, 1, 2)
        how = self.pixels
        seen = prepared(images, how.resize, how.image_size, how.interpolation)
        with autocast(self.precision, device):
            out = self.model(pixel_values=normalized(seen, self.mean, self.std))
        tokens = out.last_hidden_state.float()  # (n, 1 + registers + N, D)
        patch_mean = tokens[:, 1 + self.registers :].mean(dim=1)
        parts = {"cls": [tokens[:, 0]], "mean": [patch_mean]}.get(
            self.vector, [tokens[:, 0], patch_mean]
        )
        return cast("NDArray[np.float32]", torch.cat(parts, dim=1).cpu().numpy())


class _Pixels:
    """What a `preprocessor_config.json` says."""

    def __init__(self, values: Mapping[str, Any], hub: str) -> None:
        resize = _side(values.get("size"), 224)
        cut = values.get("do_center_crop") and values.get("crop_size")
        self.image_size: int = _side(cut, resize) if cut else resize
        self.resize: int = max(resize, self.image_size)
        self.mean: list[float] = [float(v) for v in values.get("image_mean", (0.485, 0.456, 0.406))]
        self.std: list[float] = [float(v) for v in values.get("image_std", (0.229, 0.224, 0.225))]
        how = values.get("resample", 2)
        if how not in _RESAMPLE:
            raise ConfigError(
                "the preprocessor_config.json of this repository is not understood",
                code="PG-C04", where=hub, why=f"it resizes by PIL's filter {how}",
                hint="known are 2 (bilinear) and 3 (bicubic)",
            )  # fmt: skip
        self.interpolation: Interpolation = _RESAMPLE[how]


def _side(value: Any, usual: int) -> int:
    if isinstance(value, Mapping):
        value = value.get("shortest_edge") or value.get("height")
    return int(value or usual)
