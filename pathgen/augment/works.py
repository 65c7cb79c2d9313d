"""The stores to make, and the making of one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.augment.filter import Drawn, Rule, settle
from pathgen.augment.paint import Painter
from pathgen.augment.plan import AugmentConfig
from pathgen.errors import Stopped, StoreError
from pathgen.progress import Task
from pathgen.provenance import Provenance, digest
from pathgen.stores.augmentations import Recipe, SelfAugmentationStore, recipe_columns
from pathgen.stores.codec import encode_patch
from pathgen.stores.features import FeatureStore
from pathgen.stores.table import TableWriter
from pathgen.train.engine import StopRequest

#: Threads that encode images while the next are drawn: one encodes some 250 of 256 px a second.
ENCODERS = 4
#: Batches that may wait for them.
WAITING = 4


@dataclass(frozen=True)
class Work:
    """One store to make: where, with which provenance, and from which recipes."""

    name: str
    """relative to the output folder"""
    path: Path
    provenance: Provenance
    recipes: Sequence[Recipe]

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
        rule: Rule | None,
        facts: Mapping[str, Any],
        task: Task,
        stop: StopRequest,
    ) -> None:
        """Draw everything, then let the store appear.

        Raises Stopped (PG-T07) after the batch in which a stop was asked for.
        """
        # Only those its recipes speak of: a list of all slides in each store grows as a square.
        named = (ref.store for recipe in self.recipes for ref in recipe.patches)
        sources = list(dict.fromkeys(named))
        mixed = max((len(recipe.patches) for recipe in self.recipes), default=2)
        limit = {} if rule is None else {"min_cosine": rule.min_cosine}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (
            SelfAugmentationStore.create(
                self.path, painter.autoencoder.config.image_size, self.provenance, sources=sources,
                facts={**facts, **limit, "precision": painter.precision}, mixed=mixed,
            ) as writer,
            ThreadPoolExecutor(min(ENCODERS, os.cpu_count() or 1)) as pool,
        ):  # fmt: skip
            shelf = _Shelf(writer, pool, sources, mixed)
            for drawn in settle(painter, self.recipes, rule):
                shelf.put(drawn)
                task.advance(len(drawn))
                if shelf.planned < len(self.recipes):
                    halt(stop, self.path)
            shelf.close()


def halt(stop: StopRequest, where: Path) -> None:
    """Raise Stopped (PG-T07) if a stop was asked for."""
    if stop.requested:
        raise Stopped(
            "stopped while drawing", where=where, why=stop.reason,
            hint="run the same command again, without --overwrite: finished stores are kept",
        )  # fmt: skip


class _Shelf:
    """Images on their way into a store: encoded by other threads, written in order."""

    def __init__(
        self, writer: TableWriter, pool: ThreadPoolExecutor, sources: Sequence[str], mixed: int
    ) -> None:
        self.writer, self.pool, self.sources, self.mixed = writer, pool, sources, mixed
        self.waiting: deque[tuple[list[Drawn], list[Future[bytes]]]] = deque()
        self.planned = self.attempts = self.resampled = 0
        self.dropped: list[Drawn] = []

    def put(self, drawn: Sequence[Drawn]) -> None:
        self.planned += len(drawn)
        self.attempts += sum(one.attempts for one in drawn)
        self.resampled += sum(one.attempts > 1 for one in drawn)
        self.dropped += [one for one in drawn if not one.kept]
        kept = [one for one in drawn if one.kept]
        self.waiting.append(
            (kept, [self.pool.submit(encode_patch, one.image, "png") for one in kept])
        )
        while len(self.waiting) > WAITING:
            self._write()

    def close(self) -> None:
        """Write what waits, and the sum: planned = kept + dropped."""
        while self.waiting:
            self._write()
        lost = len(self.dropped)
        table = {name: values.tolist() for name, values in self._columns(self.dropped).items()}
        self.writer.set_attr("counts", {
            "planned": self.planned, "kept": self.planned - lost, "dropped": lost,
            "resampled": self.resampled, "attempts": self.attempts,
        })  # fmt: skip
        self.writer.set_attr(
            "dropped", {**table, "cosine": [one.cosine for one in self.dropped]} if lost else {}
        )

    def _write(self) -> None:
        drawn, encoded = self.waiting.popleft()
        if drawn:
            self.writer.append(
                image=[future.result() for future in encoded],
                cosine=[one.cosine for one in drawn],
                **self._columns(drawn),
            )

    def _columns(self, drawn: Sequence[Drawn]) -> dict[str, NDArray[np.generic]]:
        return recipe_columns(
            [one.recipe for one in drawn], self.sources, [one.attempts for one in drawn],
            mixed=self.mixed,
        )  # fmt: skip


def plan_works(
    out: Path,
    features: Sequence[FeatureStore],
    recipes: Sequence[Recipe],
    config: AugmentConfig,
    facts: Mapping[str, Any],
) -> list[Work]:
    """The stores to make, at most `config.shard` images each."""
    inputs = {role: str(facts[role]) for role in ("encoder", "ldm", "autoencoder")}
    # Any patch may be the second half of a blend, so all features count: as one digest.
    inputs["features"] = digest([store.id for store in features])
    settings = config.model_dump(mode="json", exclude={"check"})  # that changes no image
    works = []
    for name, store, own in zip(
        _names(features), features, _shares(features, recipes), strict=True
    ):
        parts = [own[i : i + config.shard] for i in range(0, len(own), config.shard)] or [[]]
        for number, part in enumerate(parts):
            place = {"of": store.id, "part": f"{number} of {len(parts)}"}
            provenance = Provenance(stage="augment", config=settings, inputs={**inputs, **place})
            suffix = f"-{number:05d}" if len(parts) > 1 else ""
            file = f"{name}{suffix}.{config.format}"
            works.append(Work(file, out / file, provenance, part))
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
