"""Follow the plan: one store of synthetic patches for each store of features."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathgen import parallel
from pathgen.augment.adaptive import with_levels
from pathgen.augment.filter import make_rule
from pathgen.augment.judge import measure
from pathgen.augment.paint import Conditions, Painter
from pathgen.augment.plan import AugmentConfig, plan_recipes
from pathgen.augment.works import Work, halt, plan_works
from pathgen.claims import Claims, join
from pathgen.commit import discard, read_json, sweep, writable_folder, write_json
from pathgen.data.sources import PatchSource
from pathgen.errors import ConfigError, RunError
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.encoder import Encoder
from pathgen.models.ldm import EmbeddingConditionedLDM
from pathgen.models.weights import weights_id
from pathgen.progress import Progress, Silent, Task
from pathgen.provenance import digest
from pathgen.stores.features import FeatureStore
from pathgen.train.engine import StopRequest, find_device
from pathgen.train.ldm import one_encoder

#: Seconds until a look at what other processes have finished, at first and at most.
LOOK_AGAIN = 0.2, 5.0


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
    Several processes with equal inputs, on one machine or many, share the work: each store is made
    by one of them, and all return when everything is there. Under torchrun they are its ranks.

    Each image depends on its recipe and the models. Its place in a batch changes it by no more
    than the rounding of float32 sums, which may tip a few pixel values by 1 (in bf16 by more); so
    `batch_size` counts as a setting in the stores' provenance. Stores that are there already, made
    with the same models, features and settings, are kept. Also writes `metrics.json` (see
    `pathgen.augment.judge`), `done.json` (with the names of the stores), and, with `sources`,
    pictures.

    Args:
        encoder: the one that made `features`; draws are embedded anew with it. None: no cosine.
        sources: the real patches, row for row those of `features`, for the search for copies and
            for pictures.
        overwrite: remove the stores of this plan first. No other process may be at work there.

    Returns:
        Paths of the stores, in the order of `features` and, within one, of the patches.

    Raises:
        NoInputError: no embeddings. RunError: PG-T04, the features are not of the encoder that
            the diffusion model was trained on; PG-T10, the filter left no image.
        StoreError: PG-O18, `out` holds other images. BusyError: PG-O06, another process works
            there with other settings. Stopped: PG-T07, by a signal; finished stores are kept.
        ConfigError: PG-C05, no such device or precision; the models do not fit each other; a
            filter without an encoder; adaptive noise without encoder or patches.
    """
    config, progress, out = config or AugmentConfig(), progress or Silent(), Path(out)
    recipes = plan_recipes(features, config)
    check_models(ldm, autoencoder, encoder, features)
    facts = {
        "encoder": one_encoder(features), "ldm": weights_id(ldm),
        "autoencoder": weights_id(autoencoder), "guidance": config.guidance,
        "steps": config.steps, "sampler": config.sampler,
    }  # fmt: skip
    parallel.join()  # of several processes each then has a GPU of its own
    place = find_device(device)
    if config.adaptive.noise:
        judge = None if encoder is None else encoder.to(place)
        recipes = with_levels(recipes, features, judge, sources, config.adaptive)
    works = plan_works(out, features, recipes, config, facts)
    painter = Painter(
        ldm.to(place), autoencoder.to(place), Conditions(features), config,
        None if encoder is None else encoder.to(place).eval(),
    )  # fmt: skip
    studio = _Studio(writable_folder(out), works, painter, facts, features, sources)
    settings = {"images": digest([work.provenance.id for work in works])}
    if overwrite:
        parallel.first(lambda: studio.clear(settings))
    with join(out, settings, kind=Claims) as claims, StopRequest() as stop:
        sweep(out)
        studio.work(claims, stop, progress)
    return [work.path for work in works]


@dataclass(frozen=True)
class _Studio:
    """One process's part in the work on an output folder."""

    out: Path
    works: Sequence[Work]
    painter: Painter
    facts: Mapping[str, Any]
    features: Sequence[FeatureStore]
    sources: Sequence[PatchSource] | None

    @property
    def planned(self) -> int:
        return sum(len(work.recipes) for work in self.works)

    @property
    def result(self) -> dict[str, Any]:
        """What `done.json` holds in the end."""
        check = self.painter.config.check.model_dump(mode="json")
        names = [work.name for work in self.works]
        return {
            "stage": "augment", "images": self.planned, **self.facts, "stores": names,
            "check": check,
        }  # fmt: skip

    def finished(self) -> bool:
        try:
            return bool(read_json(self.out / "done.json") == self.result)
        except FileNotFoundError:  # or just now removed by another process, which measures again
            return False

    def clear(self, settings: Mapping[str, Any]) -> None:
        """Remove what is to be made anew. Raises BusyError when others are at work here."""
        with join(self.out, settings, alone=True, kind=Claims):
            for work in self.works:
                discard(work.path)
            discard(self.out / "done.json")

    def work(self, claims: Claims, stop: StopRequest, progress: Progress) -> None:
        """Make what nobody else makes, wait for the rest, and see that it is measured."""
        # In this order: done.json is written after the stores, so if it is right and one is
        # missing, that one has been removed since.
        there = (self.out / "done.json").exists()
        missing = [work for work in self.works if not work.is_done()]
        if not missing and self.finished():
            return
        if there:
            discard(self.out / "done.json")
        done = self.planned - sum(len(work.recipes) for work in missing)
        with progress.task("augment", self.planned, done) as task:
            self._draw(missing, claims, stop, task)
            pause = LOOK_AGAIN[0]
            while not self.finished():
                halt(stop, self.out)
                if claims.take("measure"):
                    try:
                        self._measure()
                    finally:
                        claims.release("measure")
                else:
                    pause = _wait(task, "others measure", pause)

    def _draw(self, missing: Sequence[Work], claims: Claims, stop: StopRequest, task: Task) -> None:
        if not missing:
            return
        rule = make_rule(self.painter, self.painter.config, self.sources)
        left, pause = list(missing), LOOK_AGAIN[0]
        while left:
            before = len(left)
            for work in tuple(left):
                halt(stop, work.path)
                if work.is_done():
                    task.advance(len(work.recipes))
                elif not claims.take(work.name):
                    continue
                else:
                    try:
                        if not work.is_done():  # else finished between the two looks
                            work.do(self.painter, rule, self.facts, task, stop)
                    finally:
                        claims.release(work.name)
                left.remove(work)
                pause = LOOK_AGAIN[0]
            if left and len(left) == before:
                pause = _wait(task, f"others draw {len(left)} stores", pause)

    def _measure(self) -> None:
        if self.finished():
            return
        paths = [work.path for work in self.works]
        metrics = measure(self.out, paths, self.painter, self.features, self.sources)
        write_json(self.out / "metrics.json", metrics)
        if not metrics["images"]:
            raise RunError(
                "the filter dropped every image", code="PG-T10", where=self.out,
                why=f"{metrics['counts']['dropped']} were below the least cosine",
                hint="metrics.json says what lower limits would drop; then --overwrite",
            )  # fmt: skip
        write_json(self.out / "done.json", self.result)


def _wait(task: Task, what: str, pause: float) -> float:
    """Sleep for a while; how long the next time."""
    task.advance(0, note=f"waiting: {what}")
    time.sleep(pause)
    return min(1.5 * pause, LOOK_AGAIN[1])


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
