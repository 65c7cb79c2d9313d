"""Patches to vectors: a timm backbone that carries its own pixel normalization."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from pydantic import Field
from timm.models import is_model_in_modules
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.config import Config
from pathgen.errors import ConfigError
from pathgen.models.chance import share_drop_path
from pathgen.models.precision import Precision, autocast
from pathgen.models.weights import weights_id

#: timm modules whose models take any image size when told so.
_VITS = {"vision_transformer", "deit", "eva"}


class EncoderConfig(Config):
    """Which backbone, and how it wants its pixels. The defaults are DINO's ViT-S/16."""

    name: str = "vit_small_patch16_224"
    """a timm model name"""
    image_size: int = Field(default=224, ge=8)
    """side, in pixels, that `Encoder.encode` resizes to; views may have other sides"""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """timm settings on top of the name: patch_size, embed_dim, depth, num_heads, ..."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """stochastic depth while training; the teacher has none"""
    pretrained: bool = False
    """start from timm's published weights, which are downloaded"""


class Features(NamedTuple):
    """What an encoder says of B images."""

    vector: Tensor
    """(B, dim)"""
    tokens: Tensor
    """(B, N, dim), row by row"""


class Encoder(nn.Module):
    """A timm backbone without its classifier. Images come in [0, 1].

    Attributes:
        config: what builds the same architecture again; its `pretrained` is False, as the
            weights travel with the model.
        dim: length of the vectors.
        precision: in what `encode` computes; its vectors are float32 all the same.

    Raises:
        ConfigError: PG-C04, timm does not know the name or cannot build it with these settings.
    """

    #: A model folder holds the weights of this part under timm's own names for them.
    stored_part: ClassVar[str] = "backbone"

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.backbone = _backbone(config)
        share_drop_path(self.backbone)
        self.config = config.model_copy(update={"pretrained": False})
        self.precision: Precision = "fp32"
        width = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        self.dim = int(cast(int, width))
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @classmethod
    def from_timm(cls, name: str, pretrained: bool = True) -> Self:
        """A published model under its timm name, with the pixel statistics it was trained on."""
        published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        values: dict[str, Any] = {"name": name, "drop_path": 0.0, "pretrained": pretrained}
        if published is not None:
            values |= {
                "image_size": published.input_size[-1],
                "mean": tuple(published.mean),
                "std": tuple(published.std),
            }
        return cls(EncoderConfig(**values)).eval()  # type: ignore[return-value]

    @property
    def id(self) -> str:
        """16 hex digits of the weights."""
        return weights_id(self)

    @property
    def patch_size(self) -> int:
        """Side, in pixels, of what one token sees; image sides are multiples of it. 1 for CNNs."""
        embed = getattr(self.backbone, "patch_embed", None)
        size = getattr(embed, "patch_size", 1)
        return int(size[0] if isinstance(size, tuple) else size)

    def stored_facts(self) -> dict[str, Any]:
        """What a model folder's `config.json` says besides, in timm's words.

        With it ``timm.create_model("local-dir:FOLDER", pretrained=True)`` builds the backbone,
        and `timm.data.resolve_model_data_config` finds its pixels' size, mean and spread.
        """
        side, base = self.config.image_size, getattr(self.backbone, "pretrained_cfg", {})
        settings = _settings(self.config)
        classes = settings.pop("num_classes")
        return {
            "architecture": self.config.name,
            "num_classes": classes,
            "num_features": self.dim,
            "model_args": settings,
            "pretrained_cfg": {
                "num_classes": classes,
                "input_size": [3, side, side],
                "fixed_input_size": False,
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "crop_mode": "center",
                "mean": list(self.config.mean),
                "std": list(self.config.std),
                "first_conv": base.get("first_conv"),
                "classifier": base.get("classifier"),
            },
        }

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, dim): the normed class token, or a CNN's pooled map."""
        return cast(Tensor, self.backbone(self._normalize(images)))

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, dim): the normed patch tokens, row by row."""
        return self._tokens(cast(Any, self.backbone).forward_features(self._normalize(images)))

    def features(self, images: Tensor) -> Features:
        """(B, 3, H, W) in [0, 1] -> what `forward` and `tokens` give, from one pass."""
        seen = cast(Any, self.backbone).forward_features(self._normalize(images))
        return Features(cast(Any, self.backbone).forward_head(seen), self._tokens(seen))

    def class_tokens(self, images: Tensor, blocks: int) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, blocks * dim): the last blocks' normed class tokens.

        Raises ConfigError (PG-C04) for a backbone without a class token or as many blocks.
        """
        backbone = cast(Any, self.backbone)
        depth = len(getattr(backbone, "blocks", ()))
        if depth < blocks or not getattr(backbone, "num_prefix_tokens", 0):
            raise ConfigError(
                "this needs class tokens of several blocks", code="PG-C04", where=self.config.name,
                why=f"it has {depth} blocks, {blocks} are asked for, and a class token is needed",
                hint="use a vision transformer with a class token",
            )  # fmt: skip
        layers = backbone.get_intermediate_layers(
            self._normalize(images), n=blocks, return_prefix_tokens=True, norm=True
        )
        return torch.cat([prefix[:, 0] for _, prefix in layers], dim=1)

    def _tokens(self, features: Tensor) -> Tensor:
        if features.ndim == 3:
            patches = features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
            # A ViT that pools by averaging has its last norm here.
            return cast(Tensor, getattr(self.backbone, "fc_norm", nn.Identity())(patches))
        if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    @torch.inference_mode()
    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim) float32, on whatever device the weights are.

        The shorter side is resized to `image_size` (bicubic, antialiased) and the center kept.
        The network is in eval mode during the call.
        """
        device = next(self.parameters()).device
        # From pinned memory the copy runs beside what the GPU does; from other it waits as ever.
        images = torch.from_numpy(np.ascontiguousarray(patches)).to(device, non_blocking=True)
        images = images.permute(0, 3, 1, 2).float() / 255
        was_training = self.training
        self.eval()
        try:
            with autocast(self.precision, device):
                features = self(resize(images, self.config.image_size))
        finally:
            self.train(was_training)
        return cast("NDArray[np.float32]", features.float().cpu().numpy())

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def resize(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, side, side): shorter side resized, then the center."""
    height, width = images.shape[-2:]
    if min(height, width) != side:
        scale = side / min(height, width)
        target = (max(side, round(height * scale)), max(side, round(width * scale)))
        # Bicubic overshoots at edges.
        images = F.interpolate(images, target, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    return images[..., top : top + side, left : left + side]


def _backbone(config: EncoderConfig) -> nn.Module:
    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=1)
        raise ConfigError(
            "timm has no such model", code="PG-C04", where=config.name,
            hint=f"did you mean {close[0]!r}?" if close else "see timm.list_models()",
        )  # fmt: skip
    try:
        return timm.create_model(config.name, pretrained=config.pretrained, **_settings(config))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            "timm cannot build this model", code="PG-C04", where=config.name, why=str(error),
            hint="check encoder.kwargs; a network without stochastic depth needs drop_path: 0",
        ) from error  # fmt: skip


def _settings(config: EncoderConfig) -> dict[str, Any]:
    """What timm is called with besides the name."""
    settings: dict[str, Any] = {"num_classes": 0, **config.kwargs}
    if config.drop_path:
        settings["drop_path_rate"] = config.drop_path
    if is_model_in_modules(config.name, _VITS):
        settings |= {"img_size": config.image_size, "dynamic_img_size": True}
    return settings
