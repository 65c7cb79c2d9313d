"""What two processes do in test_distributed.py, and one alone for comparison.

Run as ``python -m torch.distributed.run --nproc-per-node 2 helpers_distributed.py FOLDER NAME...``
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers_data import make_augmentations, make_patches, noise
from helpers_dino import tiny

from pathgen import parallel
from pathgen.errors import PathgenError
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.provenance import Provenance
from pathgen.runs import Run, RunConfig
from pathgen.stores import PatchRef, PatchStore, Recipe, SelfAugmentationStore
from pathgen.stores.features import FeatureStore
from pathgen.train.autoencoder import AutoencoderTrainConfig, train_autoencoder
from pathgen.train.dino import DinoConfig, train_dino
from pathgen.train.ldm import LDMTrainConfig, train_ldm
from pathgen.train.optimize import OptimConfig

PATCHES, BATCH, STEPS, DIM = 12, 8, 4, 6


def prepare(folder: Path) -> None:
    """12 patches; each has a variation, 5 have a blend; an embedding for each."""
    rng = np.random.default_rng(0)
    patches = make_patches(folder / "patches.h5", noise(rng, PATCHES, 40))
    refs = [PatchRef(patches.id, row) for row in range(PATCHES)]
    recipes = [Recipe.generative(ref, 1) for ref in refs]
    recipes += [Recipe(refs[i], refs[-1 - i], 0.2 + 0.1 * i, 2) for i in range(5)]
    made = folder / "made.h5"
    make_augmentations(made, noise(rng, len(recipes), 40), recipes, [patches.id])
    with FeatureStore.create(
        folder / "features.h5", DIM, Provenance(stage="extract", config={}, inputs={}),
        encoder={"name": "stand-in", "id": "e" * 16, "dim": DIM},
        source={"id": patches.id, "name": patches.name},
    ) as writer:  # fmt: skip
        writer.append(
            features=rng.normal(size=(PATCHES, DIM)).astype(np.float32),
            coords=np.full((PATCHES, 2), -1, np.int64), label=np.full(PATCHES, -1, np.int32),
        )  # fmt: skip


def running(**more: Any) -> RunConfig:
    return RunConfig(
        **{"device": "cpu", "save_every": 2, "log_every": 1, "tensorboard": False} | more
    )


def dino_config(batch_size: int = BATCH, **more: Any) -> DinoConfig:
    """With stochastic depth, blends of some, a center from the first batch, a frozen layer."""
    return tiny(
        optim=OptimConfig(steps=STEPS, batch_size=batch_size, lr=0.02, warmup_steps=1),
        center_start="first_batch", freeze_last_layer_epochs=2, run=running(**more),
    )  # fmt: skip


def ldm_config(**more: Any) -> LDMTrainConfig:
    return LDMTrainConfig.model_validate(
        {
            "model": {
                "embedding_dim": DIM, "context_dim": 8, "block_out_channels": (8, 16),
                "layers_per_block": 1, "attention": (False, True), "norm_groups": 4,
                "latent_size": 8, "condition_dropout": 0.5,
            },
            "optim": {"steps": STEPS, "batch_size": BATCH, "lr": 3e-3, "warmup_steps": 1},
            "run": running(**more),
        }
    )  # fmt: skip


class Hooked(Run):
    """A run that does something in some process when a step is logged."""

    def log(self, step: int, **values: float) -> None:
        super().log(step, **values)
        if step == 1 and self.path.name == "stopped" and parallel.rank() == parallel.count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def dino(folder: Path, name: str, config: DinoConfig) -> Run:
    run = Hooked.start(folder / name, "dino", config, {})
    patches = PatchStore.open(folder / "patches.h5")
    train_dino(config, [patches], run, [SelfAugmentationStore.open(folder / "made.h5")])
    return run


def ldm(folder: Path, name: str, config: LDMTrainConfig) -> Run:
    torch.manual_seed(0)
    small = AutoencoderConfig(image_size=16, block_out_channels=(8, 8), norm_groups=4)
    run = Run.start(folder / name, "ldm", config, {})
    patches, features = (
        PatchStore.open(folder / "patches.h5"), FeatureStore.open(folder / "features.h5")
    )  # fmt: skip
    train_ldm(config, [patches], [features], Autoencoder(small).eval(), run)
    return run


def autoencoder(folder: Path, name: str) -> Run:
    """Noise in the latents, the perceptual term, a critic from step 1 on, held-out patches."""
    torch.manual_seed(0)
    kwargs = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    judge = Encoder(EncoderConfig(image_size=16, kwargs=kwargs))
    config = AutoencoderTrainConfig.model_validate(
        {
            "model": {"image_size": 16, "block_out_channels": (8, 8), "norm_groups": 4},
            "optim": {"steps": STEPS, "batch_size": BATCH, "lr": 3e-3, "warmup_steps": 1},
            "perceptual_weight": 0.5, "discriminator_weight": 0.5, "discriminator_start": 1,
            "discriminator_width": 8, "discriminator_layers": 1, "held_out": 2,
            "run": running(),
        }
    )  # fmt: skip
    run = Run.start(folder / name, "autoencoder", config, {})
    train_autoencoder(config, [PatchStore.open(folder / "patches.h5")], run, encoder=judge)
    return run


def poisoned(folder: Path) -> None:
    """One process gets a patch that is no number."""
    from pathgen.train import dino as module

    real = module.view_loader

    def loader(*args: Any, **settings: Any) -> Any:
        for step, views in enumerate(real(*args, **settings)):
            if step == 3 and parallel.rank() == parallel.count() - 1:
                views.global_crops[0][0] = float("nan")
            yield views

    module.view_loader = loader
    try:
        dino(folder, "poisoned", dino_config())
    finally:
        module.view_loader = real


WORK: dict[str, Any] = {
    "dino": lambda folder: dino(folder, "dino", dino_config()),
    "ldm": lambda folder: ldm(folder, "ldm", ldm_config()),
    "autoencoder": lambda folder: autoencoder(folder, "autoencoder"),
    "stopped": lambda folder: dino(folder, "stopped", dino_config()),
    "shrunk": lambda folder: dino(folder, "shrunk", dino_config()),
    "poisoned": poisoned,
    "odd": lambda folder: dino(folder, "odd", dino_config(batch_size=7)),
}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        said: dict[str, Any] = {}
        try:
            WORK[name](folder)
        except PathgenError as error:
            said = error.to_dict() | {"exit": error.exit_code}
        (folder / f"{name}-{parallel.rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
