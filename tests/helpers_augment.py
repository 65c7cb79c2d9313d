"""Untrained models that fit each other, features of a few patches, and painters without models."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pathgen.augment import AugmentConfig, CheckConfig, Conditions, augment
from pathgen.data.sources import ImageFolder
from pathgen.extract import extract_features
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.ldm import EmbeddingConditionedLDM, LDMConfig
from pathgen.stores import FeatureStore, Recipe

DIM = 12
#: Images are 16 x 16 and drawn in two steps; next to nothing is measured afterwards.
CONFIG = AugmentConfig(steps=2, batch_size=3, check=CheckConfig(images=0, pairs=0))


class Features:
    """Of a feature store, only what a plan needs."""

    def __init__(self, name: str, vectors: np.ndarray[Any, Any]) -> None:
        self.source, self.vectors = {"id": name, "name": name}, vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def features(self) -> np.ndarray[Any, Any]:
        return self.vectors


def stores(lengths: list[int], seed: int = 0, dim: int = DIM) -> Any:
    rng = np.random.default_rng(seed)
    return [
        Features(f"s{i}", rng.normal(size=(n, dim)).astype(np.float32))
        for i, n in enumerate(lengths)
    ]


class Parts:
    """Models and the features of two folders of patches, 5 and 3."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.sources = []
        for name, count in (("a", 5), ("b", 3)):
            (folder / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{name}{i}.png")
            self.sources.append(ImageFolder(folder / name))
        torch.manual_seed(0)
        vit = {"patch_size": 8, "embed_dim": DIM, "depth": 1, "num_heads": 2}
        self.encoder = Encoder(EncoderConfig(image_size=16, kwargs=vit, drop_path=0)).eval()
        paths = extract_features(self.encoder, self.sources, folder / "features")
        self.features = [FeatureStore.open(path) for path in paths]
        small = {"block_out_channels": (8, 8), "norm_groups": 4}
        self.autoencoder = Autoencoder(AutoencoderConfig(image_size=16, **small)).eval()
        self.ldm = EmbeddingConditionedLDM(
            LDMConfig(
                embedding_dim=DIM,
                context_dim=8,
                layers_per_block=1,
                attention=(False, True),
                latent_size=8,
                encoder_id=self.encoder.id,
                **small,
            )
        ).eval()

    def augment(self, out: Path, config: AugmentConfig = CONFIG, **more: Any) -> list[Path]:
        more.setdefault("encoder", self.encoder)
        return augment(
            self.ldm, self.autoencoder, more.pop("encoder"), more.pop("features", self.features),
            out, config, device="cpu", **more,
        )  # fmt: skip


@functools.cache
def make_parts(folder: Path) -> Parts:
    """One set for all test modules of a process; `folder` is its base of temporary folders."""
    return Parts(folder / "augment-parts")


class Ideal:
    """A painter whose images are their own embeddings, at the condition asked for plus noise."""

    def __init__(self, features: Any, config: AugmentConfig = CONFIG, noise: float = 0.0) -> None:
        self.conditions, self.config, self.noise = Conditions(features), config, noise
        self.encoder, self.device = object(), torch.device("cpu")
        self.batches: list[int] = []

    def draw(self, recipes: list[Recipe]) -> np.ndarray[Any, Any]:
        self.batches.append(len(recipes))
        points = self.conditions.of(recipes).numpy()
        strays = [np.random.default_rng(r.seed).normal(size=points.shape[1]) for r in recipes]
        return np.asarray(points + self.noise * np.array(strays), np.float32)

    def embed(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return images

    def likeness(self, images: np.ndarray[Any, Any], recipes: list[Recipe]) -> Any:
        asked = self.conditions.of(recipes).numpy()
        return (images * asked).sum(1) / np.linalg.norm(images, axis=1)
