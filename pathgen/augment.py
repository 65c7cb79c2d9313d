"""Self-augmentation: draw new patches from the embeddings of real ones (Gen-SIS, arXiv 2412.01672).

The whole plan is made first; then each feature store's share of it is drawn into one store, all
of it or nothing. Only embeddings go in, never real pixels; the sheet alone shows some of those.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from pathgen.commit import discard, lock, sweep, writable_folder, write_json
from pathgen.config import Config
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.errors import ConfigError, NoInputError, RunError, StoreError
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.encoder import Encoder
from pathgen.models.interpolation import slerp
from pathgen.models.ldm import EmbeddingConditionedLDM, Sampler
from pathgen.models.weights import weights_id
from pathgen.progress import Progress, Silent, Task
from pathgen.provenance import Provenance
from pathgen.stores.augmentations import Recipe, SelfAugmentationStore, recipe_columns
from pathgen.stores.codec import encode_patch
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchRef
from pathgen.train.autoencoder import load_images
from pathgen.train.engine import find_device
from pathgen.train.ldm import check_alignment, one_encoder
from pathgen.train.sheets import Picture, to_pixels, write_sheet

#: What a stream of chance is for; numbers are part of every result and never change.
SOURCES, GENERATIVE, INTERPOLATED, PAIRS, SHEET = range(5)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class AugmentConfig(Config):
    """How many synthetic images each real patch gets, and how they are drawn."""

    generative: int = Field(default=1, ge=0)
    """Variations a patch."""
    interpolated: int = Field(default=1, ge=0)
    """Blends a patch, each with another one."""
    max_sources: int | None = Field(default=None, ge=1)
    """Draw for a random sample of this many patches only; None: for all."""
    alphas: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Shares of the primary that a blend may have, each as likely."""
    steps: int = Field(default=50, ge=1)
    guidance: float = Field(default=2.0, ge=0)
    sampler: Sampler = "ddim"
    batch_size: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)
    format: Literal["h5", "zarr"] = "h5"

    @model_validator(mode="after")
    def _fits(self) -> AugmentConfig:
        if not self.generative + self.interpolated:
            raise ValueError("generative and interpolated are both 0: there is nothing to draw")
        if not self.alphas or not all(0 < alpha < 1 for alpha in self.alphas):
            raise ValueError("alphas lie between 0 and 1, both excluded; 1 is what generative does")
        return self


# --- the plan --------------------------------------------------------------------------------


def plan_recipes(features: Sequence[FeatureStore], config: AugmentConfig) -> list[Recipe]:
    """Every image to be drawn, store by store and patch by patch; first variations, then blends.

    A blend's secondary is any other patch of all stores, each as likely. Equal features and
    config give an equal plan; how the images are batched has no part in it.

    Raises:
        NoInputError: no patches, or a single one where blends are asked for.
    """
    refs = [PatchRef(str(s.source["id"]), row) for s in features for row in range(len(s))]
    count = len(refs)
    if not count:
        raise NoInputError("no embeddings to draw from", hint="extract features first")
    if config.interpolated and count < 2:
        raise NoInputError(
            "a blend needs two patches", where="augment.interpolated", why="there is only one",
            hint="give more patches or set augment.interpolated=0",
        )  # fmt: skip
    chosen = np.arange(count)
    if config.max_sources is not None and config.max_sources < count:
        sample = _chance(config, SOURCES).choice(count, config.max_sources, replace=False)
        chosen = np.sort(sample)

    shape = (len(chosen), config.generative)
    variation_seeds = _chance(config, GENERATIVE).integers(2**63 - 1, size=shape)
    chance, shape = _chance(config, INTERPOLATED), (len(chosen), config.interpolated)
    blend_seeds = chance.integers(2**63 - 1, size=shape)
    # One of the count - 1 others: from the primary's own place on, the numbers move up by one.
    others = chance.integers(max(count - 1, 1), size=shape)
    others += others >= chosen[:, None]
    # As the store keeps them, so that a recipe read back equals the planned one.
    alphas = np.asarray(config.alphas, np.float32)[chance.integers(len(config.alphas), size=shape)]

    recipes = []
    for place, index in enumerate(chosen.tolist()):
        primary = refs[index]
        recipes += [Recipe.generative(primary, seed) for seed in variation_seeds[place].tolist()]
        blends = (others[place].tolist(), alphas[place].tolist(), blend_seeds[place].tolist())
        recipes += [
            Recipe(primary, refs[other], alpha, seed)
            for other, alpha, seed in zip(*blends, strict=True)
        ]
    return recipes


def _chance(config: AugmentConfig, purpose: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, purpose])


# --- the drawing -----------------------------------------------------------------------------


class Conditions:
    """Embeddings of all patches, in memory, looked up by patch."""

    def __init__(self, features: Sequence[FeatureStore]) -> None:
        lengths = [len(store) for store in features]
        starts = np.cumsum([0, *lengths]).tolist()
        ids = [str(store.source["id"]) for store in features]
        self._starts = dict(zip(ids, starts, strict=False))
        self.vectors = torch.from_numpy(
            np.concatenate([store.features().astype(np.float32) for store in features])
        )

    def index(self, patch: PatchRef) -> int:
        return int(self._starts[patch.store]) + patch.row

    def of(self, recipes: Sequence[Recipe]) -> Tensor:
        """slerp(primary, secondary, alpha), (B, D) of unit length; alpha 1 is the primary."""
        primary = self.vectors[[self.index(recipe.primary) for recipe in recipes]]
        secondary = self.vectors[[self.index(recipe.secondary) for recipe in recipes]]
        return slerp(primary, secondary, torch.tensor([recipe.alpha for recipe in recipes]))


class Painter:
    """Recipes to pixels: condition, diffusion, decoder, and the encoder as the judge."""

    def __init__(
        self,
        ldm: EmbeddingConditionedLDM,
        autoencoder: Autoencoder,
        conditions: Conditions,
        config: AugmentConfig,
    ) -> None:
        self.ldm, self.autoencoder = ldm, autoencoder
        self.conditions, self.config = conditions, config

    def draw(self, recipes: Sequence[Recipe]) -> NDArray[np.uint8]:
        """uint8 (B, S, S, 3)."""
        with torch.no_grad():
            latents = self.ldm.sample(
                self.conditions.of(recipes), steps=self.config.steps,
                guidance=self.config.guidance, sampler=self.config.sampler,
                seeds=[recipe.seed for recipe in recipes],
            )  # fmt: skip
            return to_pixels(self.autoencoder.decode(latents))

    def likeness(
        self, encoder: Encoder | None, images: NDArray[np.uint8], recipes: Sequence[Recipe]
    ) -> NDArray[np.float32]:
        """Cosine of each image's own embedding with its condition, (B,); nan without encoder."""
        if encoder is None:
            return np.full(len(recipes), np.nan, np.float32)
        own = torch.from_numpy(encoder.encode(images))
        cosine = torch.nn.functional.cosine_similarity(own, self.conditions.of(recipes))
        return np.asarray(cosine.numpy(), np.float32)


def augment(
    ldm: EmbeddingConditionedLDM,
    autoencoder: Autoencoder,
    encoder: Encoder | None,
    features: Sequence[FeatureStore],
    out: Path,
    config: AugmentConfig | None = None,
    *,
    ids: Mapping[str, str] | None = None,
    sources: Sequence[PatchSource] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Path]:
    """Draw the plan: one `SelfAugmentationStore` for each feature store, under the same name.

    Each image depends on its recipe and the models. Its place in a batch changes it by no more
    than the rounding of float32 sums, which may tip a few pixel values by 1; so `batch_size`
    counts as a setting in the stores' provenance. Stores that are there already, made with the
    same models, features and settings, are kept. Also writes `metrics.json` (the cosines),
    `done.json` and, with `sources`, `sheet.png`.

    Args:
        encoder: the one that made `features`; draws are embedded anew with it. None: no cosine.
        ids: ids of the runs behind the models, under `encoder` and `ldm`; by default the
            digests of the weights.
        sources: the real patches, row for row those of `features`, for the sheet only.

    Returns:
        Paths of the stores, in the order of `features`.

    Raises:
        NoInputError: no embeddings. RunError: PG-T04, the features are not of the encoder that
            the diffusion model was trained on. StoreError: PG-O18, `out` holds other images.
        ConfigError: PG-C05, no such device; the models do not fit each other.
    """
    config, progress = config or AugmentConfig(), progress or Silent()
    recipes = plan_recipes(features, config)
    check_models(ldm, autoencoder, encoder, features)
    names = {"encoder": one_encoder(features), "ldm": weights_id(ldm)} | dict(ids or {})
    facts = {
        "encoder": names["encoder"], "ldm": names["ldm"], "autoencoder": weights_id(autoencoder),
        "guidance": config.guidance, "steps": config.steps, "sampler": config.sampler,
    }  # fmt: skip
    place = find_device(device)
    autoencoder = autoencoder.to(place).eval()
    painter = Painter(ldm.to(place).eval(), autoencoder, Conditions(features), config)
    if encoder is not None:
        encoder = encoder.to(place).eval()

    out = writable_folder(Path(out))
    with lock(out):
        sweep(out)
        paths = [out / f"{name}.{config.format}" for name in _names(features)]
        works = [
            _Work(path, _provenance(store, features, config, facts), own)
            for path, store, own in zip(paths, features, _shares(features, recipes), strict=True)
        ]
        missing = works if overwrite else [work for work in works if not work.is_done()]
        if missing or not (out / "done.json").exists():
            discard(out / "done.json")
            done = len(recipes) - sum(len(work.recipes) for work in missing)
            with progress.task("augment", len(recipes), done) as task:
                for work in missing:
                    work.do(painter, encoder, features, facts, task)
            if sources is not None:
                draw_sheet(out / "sheet.png", painter, features, sources)
            write_json(out / "metrics.json", likeness_metrics(paths, painter.conditions, config))
            write_json(out / "done.json", {"stage": "augment", "images": len(recipes), **facts})
    return paths


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
        features: Sequence[FeatureStore],
        facts: Mapping[str, Any],
        task: Task,
    ) -> None:
        """Draw everything, then let the store appear."""
        sources = [str(store.source["id"]) for store in features]
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
    if ldm.latent_shape != autoencoder.latent_shape:
        raise ConfigError(
            "diffusion model and autoencoder do not fit", where="latent shape",
            why=f"{ldm.latent_shape} and {autoencoder.latent_shape}",
        )  # fmt: skip


def likeness_metrics(
    paths: Sequence[Path], conditions: Conditions, config: AugmentConfig
) -> dict[str, Any]:
    """How well the draws keep their condition: cosines of re-embedded images, and what to expect.

    `random_pair` is the cosine of two real patches taken at random: a model that ignores its
    condition is no better.
    """
    cosines, alphas = [], []
    for path in paths:
        with SelfAugmentationStore.open(path) as store:
            cosines.append(store.cosine())
            alphas.append(store.table.read("alpha"))
    cosine, alpha = np.concatenate(cosines), np.concatenate(alphas)
    chance, count = _chance(config, PAIRS), len(conditions.vectors)
    first = chance.integers(count, size=min(10_000, 20 * count))
    second = (first + 1 + chance.integers(max(count - 1, 1), size=len(first))) % count
    vectors = torch.nn.functional.normalize(conditions.vectors, dim=1)
    random_pair = (vectors[first] * vectors[second]).sum(1).numpy()
    return {
        "images": len(cosine),
        "generative": _spread(cosine[alpha == 1]),
        "interpolated": _spread(cosine[alpha < 1]),
        "random_pair": _spread(random_pair),
    }


def _spread(values: NDArray[np.float32]) -> dict[str, float] | None:
    """Count, mean and quantiles; None where nothing was measured."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    quantiles = {f"q{q * 100:02.0f}": float(np.quantile(values, q)) for q in QUANTILES}
    return {"count": len(values), "mean": float(values.mean()), **quantiles}


def _provenance(
    store: FeatureStore,
    features: Sequence[FeatureStore],
    config: AugmentConfig,
    facts: Mapping[str, Any],
) -> Provenance:
    inputs = {role: str(facts[role]) for role in ("encoder", "ldm", "autoencoder")}
    # All of them: any patch may be the second half of a blend.
    inputs |= {f"features {i:05d} {other.name}": other.id for i, other in enumerate(features)}
    return Provenance(
        stage="augment", config=config.model_dump(mode="json"), inputs={**inputs, "of": store.id}
    )


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


# --- the sheet -------------------------------------------------------------------------------


def draw_sheet(
    path: Path,
    painter: Painter,
    features: Sequence[FeatureStore],
    sources: Sequence[PatchSource],
    rows: int = 4,
) -> None:
    """A picture to judge by: real patches beside their variations, and pairs with their blends.

    `rows` rows of one patch and five variations, then `rows` rows from one patch to another over
    blends with alpha 0.8, 0.6, 0.4, 0.2 that start from the same noise.
    """
    check_alignment(sources, features)
    patches, size = PatchDataset(list(sources)), painter.autoencoder.config.image_size
    chance = _chance(painter.config, SHEET)

    def real(index: int) -> NDArray[np.uint8]:
        return to_pixels(load_images(patches, [index], size))[0]

    lines: list[list[Picture]] = []
    for index in chance.choice(len(patches), min(rows, len(patches)), replace=False).tolist():
        seeds = chance.integers(2**63 - 1, size=5).tolist()
        drawn = painter.draw([Recipe.generative(patches.locate(index), seed) for seed in seeds])
        views = [Picture(f"view {i}", image) for i, image in enumerate(drawn, 1)]
        lines.append([Picture("real", real(index)), *views])
    for _ in range(rows if len(patches) > 1 else 0):
        first, second = chance.choice(len(patches), 2, replace=False).tolist()
        seed, alphas = int(chance.integers(2**63 - 1)), (0.8, 0.6, 0.4, 0.2)
        pair = patches.locate(first), patches.locate(second)
        drawn = painter.draw([Recipe(*pair, alpha, seed) for alpha in alphas])
        blends = [Picture(f"alpha {a}", image) for a, image in zip(alphas, drawn, strict=True)]
        lines.append([Picture("real 1", real(first)), *blends, Picture("real 2", real(second))])
    write_sheet(path, lines)
