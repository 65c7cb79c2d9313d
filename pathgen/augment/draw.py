"""Follow the plan: one store of synthetic patches for each store of features."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pathgen.augment.judge import draw_sheet, likeness_metrics
from pathgen.augment.paint import Conditions, Painter
from pathgen.augment.plan import AugmentConfig, plan_recipes
from pathgen.commit import discard, lock, read_json, sweep, writable_folder, write_json
from pathgen.data.sources import PatchSource
from pathgen.errors import ConfigError, RunError, StoreError
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.encoder import Encoder
from pathgen.models.ldm import EmbeddingConditionedLDM
from pathgen.models.weights import weights_id
from pathgen.progress import Progress, Silent, Task
from pathgen.provenance import Provenance, digest
from pathgen.stores.augmentations import Recipe, SelfAugmentationStore, recipe_columns
from pathgen.stores.codec import encode_patch
from pathgen.stores.features import FeatureStore
from pathgen.train.engine import find_device
from pathgen.train.ldm import one_encoder


def augment(
    ldm: EmbeddingConditionedLDM,
    autoencoder: Autoencoder,
    encoder: Encoder | None,
    features: Sequence[FeatureStore],
    out: Path,
    config: AugmentConfig | None = None,
    *,
    sources: Sequence[PatchSource] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Path]:
    """Draw the plan: a `SelfAugmentationStore` for each feature store, under the same name.

    A source with more than `config.shard` images gets several, ``name-00000.h5`` and so on: each
    is there whole or not at all, and a stopped run goes on with the first that is missing.

    Each image depends on its recipe and the models. Its place in a batch changes it by no more
    than the rounding of float32 sums, which may tip a few pixel values by 1; so `batch_size`
    counts as a setting in the stores' provenance. Stores that are there already, made with the
    same models, features and settings, are kept. Also writes `metrics.json` (the cosines),
    `done.json` (with the names of the stores) and, with `sources`, `sheet.png`.

    Args:
        encoder: the one that made `features`; draws are embedded anew with it. None: no cosine.
        sources: the real patches, row for row those of `features`, for the sheet only.

    Returns:
        Paths of the stores, in the order of `features` and, within one, of the patches.

    Raises:
        NoInputError: no embeddings. RunError: PG-T04, the features are not of the encoder that
            the diffusion model was trained on. StoreError: PG-O18, `out` holds other images.
        ConfigError: PG-C05, no such device; the models do not fit each other.
    """
    config, progress, out = config or AugmentConfig(), progress or Silent(), Path(out)
    recipes = plan_recipes(features, config)
    check_models(ldm, autoencoder, encoder, features)
    facts = {
        "encoder": one_encoder(features), "ldm": weights_id(ldm),
        "autoencoder": weights_id(autoencoder), "guidance": config.guidance,
        "steps": config.steps, "sampler": config.sampler,
    }  # fmt: skip
    works = _works(out, features, recipes, config, facts)
    paths = [work.path for work in works]
    place = find_device(device)
    autoencoder = autoencoder.to(place).eval()
    painter = Painter(ldm.to(place).eval(), autoencoder, Conditions(features), config)
    if encoder is not None:
        encoder = encoder.to(place).eval()

    out = writable_folder(out)
    with lock(out):
        sweep(out)
        missing = works if overwrite else [work for work in works if not work.is_done()]
        stores = [path.relative_to(out).as_posix() for path in paths]
        result = {"stage": "augment", "images": len(recipes), **facts, "stores": stores}
        if missing or _finished(out) != result:
            discard(out / "done.json")
            done = len(recipes) - sum(len(work.recipes) for work in missing)
            with progress.task("augment", len(recipes), done) as task:
                for work in missing:
                    work.do(painter, encoder, facts, task)
            if sources is not None:
                draw_sheet(out / "sheet.png", painter, features, sources)
            write_json(out / "metrics.json", likeness_metrics(paths, painter.conditions, config))
            write_json(out / "done.json", result)
    return paths


def _finished(out: Path) -> Any:
    path = out / "done.json"
    return read_json(path) if path.exists() else None


class _Work:
    """One store to make: where, with which provenance, and from which recipes."""

    def __init__(self, path: Path, provenance: Provenance, recipes: list[Recipe]) -> None:
        self.path, self.provenance, self.recipes = path, provenance, recipes

    def is_done(self) -> bool:
        """Whether the store is there. Raises StoreError (PG-O18) when it is another one."""
        if not self.path.exists():
            return False
        with SelfAugmentationStore.open(self.path) as store:
            found = store.id
        if found != self.provenance.id:
            raise StoreError(
                "another augmentation store has this name", code="PG-O18", where=self.path,
                why=f"it has id {found}, asked for {self.provenance.id}: models, features or "
                "settings differ", hint="choose another --out, or --overwrite",
            )  # fmt: skip
        return True

    def do(
        self,
        painter: Painter,
        encoder: Encoder | None,
        facts: Mapping[str, Any],
        task: Task,
    ) -> None:
        """Draw everything, then let the store appear."""
        # Only those its recipes speak of: a list of all slides in each store grows as a square.
        named = (ref.store for recipe in self.recipes for ref in (recipe.primary, recipe.secondary))
        sources = list(dict.fromkeys(named))
        size = painter.autoencoder.config.image_size
        batch = painter.config.batch_size
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with SelfAugmentationStore.create(
            self.path, size, self.provenance, sources=sources, facts=facts
        ) as writer:
            for first in range(0, len(self.recipes), batch):
                recipes = self.recipes[first : first + batch]
                images = painter.draw(recipes)
                writer.append(
                    image=[encode_patch(image, "png") for image in images],
                    cosine=painter.likeness(encoder, images, recipes),
                    **recipe_columns(recipes, sources),
                )
                task.advance(len(recipes))


def check_models(
    ldm: EmbeddingConditionedLDM,
    autoencoder: Autoencoder,
    encoder: Encoder | None,
    features: Sequence[FeatureStore],
) -> None:
    """Raise RunError PG-T04 or ConfigError unless models and features belong together."""
    made_by = one_encoder(features)
    for whose, known in (
        ("the diffusion model was trained on", ldm.config.encoder_id),
        ("the given encoder is", encoder.id if encoder is not None else ""),
    ):
        if known and known != made_by:
            raise RunError(
                "features are of another encoder", where="features",
                why=f"they are of {made_by}, {whose} {known}",
                hint="extract features with the encoder that the diffusion model was trained on",
            )  # fmt: skip
    theirs = ldm.config.autoencoder_id
    if theirs and theirs != weights_id(autoencoder):
        raise RunError(
            "latents are of another autoencoder", where="autoencoder",
            why=f"the diffusion model was trained on those of {theirs}, this one is "
            f"{weights_id(autoencoder)}",
            hint="train the diffusion model again: pathgen pretrain --stages ldm --overwrite",
        )  # fmt: skip
    if ldm.latent_shape != autoencoder.latent_shape:
        raise ConfigError(
            "diffusion model and autoencoder do not fit", where="latent shape",
            why=f"{ldm.latent_shape} and {autoencoder.latent_shape}",
        )  # fmt: skip


def _works(
    out: Path,
    features: Sequence[FeatureStore],
    recipes: Sequence[Recipe],
    config: AugmentConfig,
    facts: Mapping[str, Any],
) -> list[_Work]:
    """The stores to make, at most `config.shard` images each."""
    inputs = {role: str(facts[role]) for role in ("encoder", "ldm", "autoencoder")}
    # Any patch may be the second half of a blend, so all features count: as one digest.
    inputs["features"] = digest([store.id for store in features])
    works = []
    for name, store, own in zip(
        _names(features), features, _shares(features, recipes), strict=True
    ):
        parts = [own[i : i + config.shard] for i in range(0, len(own), config.shard)] or [[]]
        for number, part in enumerate(parts):
            place = {"of": store.id, "part": f"{number} of {len(parts)}"}
            provenance = Provenance(
                stage="augment", config=config.model_dump(mode="json"), inputs={**inputs, **place}
            )
            suffix = f"-{number:05d}" if len(parts) > 1 else ""
            works.append(_Work(out / f"{name}{suffix}.{config.format}", provenance, part))
    return works


def _names(features: Sequence[FeatureStore]) -> list[str]:
    """Names of the feature stores below the folder they share, without suffix."""
    root = os.path.commonpath([store.path.resolve().parent for store in features])
    return [store.path.resolve().relative_to(root).with_suffix("").as_posix() for store in features]


def _shares(features: Sequence[FeatureStore], recipes: Sequence[Recipe]) -> list[list[Recipe]]:
    """The recipes of each store's own patches."""
    shares: dict[str, list[Recipe]] = {str(store.source["id"]): [] for store in features}
    for recipe in recipes:
        shares[recipe.primary.store].append(recipe)
    return list(shares.values())
