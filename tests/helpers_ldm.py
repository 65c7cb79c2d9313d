"""A diffusion model small enough for tests, and what it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pathgen.data.sources import ImageFolder
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.ldm import EmbeddingConditionedLDM, LDMConfig
from pathgen.provenance import Provenance
from pathgen.stores.features import FeatureStore
from pathgen.train.ldm import LDMTrainConfig

DIM = 6
SMALL: dict[str, Any] = {
    "embedding_dim": DIM,
    "context_dim": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention": (False, True),
    "norm_groups": 4,
    "latent_size": 8,
}
#: One level only: what is trained need not be deep.
FLAT = SMALL | {"block_out_channels": (8,), "attention": (True,)}
DIT: dict[str, Any] = {
    "kind": "dit",
    "embedding_dim": DIM,
    "latent_size": 8,
    "dit": {"width": 16, "depth": 2, "heads": 2},
}


def small(**more: Any) -> EmbeddingConditionedLDM:
    """A UNet, or with `kind="dit"` a transformer, that says something: no weight is left at 0."""
    torch.manual_seed(0)
    settings = DIT if more.get("kind") == "dit" else SMALL
    model = EmbeddingConditionedLDM(LDMConfig(**settings | more)).eval()
    return awake(model) if more.get("kind") == "dit" else model


def awake(model: Any) -> Any:
    """The DiT starts with its gates and its answer at zero; here they are open."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return model


def embeddings(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_folder(folder: Path) -> ImageFolder:
    """24 images of two kinds: dark and bright."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(24):
        low = 40 if i % 2 else 180
        coarse = rng.integers(low, low + 60, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((16, 16)).save(folder / f"{i:02}.png")
    return ImageFolder(folder)


def feature_store(
    path: Path, source: ImageFolder, count: int | None = None, encoder: str = "e" * 16
) -> FeatureStore:
    """Embeddings of the given length that say whether the image is dark or bright."""
    count = len(source) if count is None else count
    rng = np.random.default_rng(1)
    vectors = rng.normal(0, 0.1, (count, DIM)).astype(np.float32)
    vectors[:, 0] += np.where(np.arange(count) % 2, -1, 1)
    with FeatureStore.create(
        path,
        DIM,
        Provenance(stage="extract", config={}, inputs={"patches": source.id}),
        encoder={"name": "stand-in", "id": encoder, "dim": DIM},
        source={"id": source.id, "name": source.name},
    ) as writer:
        writer.append(
            features=vectors,
            coords=np.full((count, 2), -1, np.int64),
            label=np.full(count, -1, np.int32),
        )
    return FeatureStore.open(path)


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(image_size=16, block_out_channels=(8, 8), norm_groups=4)
    return Autoencoder(config).eval()


def train_config(**more: Any) -> LDMTrainConfig:
    values: dict[str, Any] = {
        "model": FLAT,
        "optim": {"steps": 12, "batch_size": 6, "lr": 3e-3, "warmup_steps": 2},
        "run": {"device": "cpu", "log_every": 1, "save_every": 1000},
    }
    return LDMTrainConfig.model_validate({**values, **more})
