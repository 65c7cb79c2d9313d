"""What is encoded: a store of patches, an image folder, or a slide and how it is tiled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.data.sources import ImageFolder, PatchSource, classes_of
from pathgen.errors import ConfigError, DataError, PathgenError
from pathgen.extract.config import ExtractConfig
from pathgen.extract.outputs import Material
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchStore
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.pixels import Begun, plan_of
from pathgen.tiling.task import TileTask

#: Facts of a patch store that its feature store repeats.
FACTS = (
    "label", "patient", "patch_size", "patch_size_level0", "target_mpp", "level0_mpp", "overlap",
    "slide",
)  # fmt: skip


class Origin(ABC):
    """One thing to be encoded; its feature stores have its name."""

    name: str
    file: str
    """for the ledger"""

    @abstractmethod
    def material(self, store: FeatureStore) -> Material:
        """What a finished `store` of it would be made from.

        Raises:
            PathgenError: it cannot be read now.
        """

    @property
    def weight(self) -> int:
        """Of it in a progress bar."""
        return 1

    @property
    def known(self) -> dict[str, Any]:
        """label and patient."""
        return {}

    @property
    def scale(self) -> tuple[float | None, int | None]:
        """um per pixel of the patches and their side in pixels, where they are known."""
        return None, None

    def failed(self, error: PathgenError) -> LedgerRow:
        return LedgerRow.failure(self.name, self.file, error, **self.known)


class Stored(Origin):
    """A patch store, a store of synthetic images, or an image folder."""

    def __init__(self, source: PatchSource, config: ExtractConfig) -> None:
        self.source, self.config = source, config
        self.name, self.file = source.name, source.path.name

    @property
    def weight(self) -> int:
        return len(self.source)

    @property
    def known(self) -> dict[str, Any]:
        return {name: getattr(self.source, name, None) for name in ("label", "patient")}

    @property
    def scale(self) -> tuple[float | None, int | None]:
        attrs: Mapping[str, Any] = getattr(self.source, "attrs", {})
        return attrs.get("target_mpp"), attrs.get("patch_size")

    def material(self, store: FeatureStore | None = None) -> Material:
        attrs: Mapping[str, Any] = getattr(self.source, "attrs", {})
        facts: dict[str, Any] = {"id": self.source.id, "name": self.source.name}
        facts |= {name: attrs[name] for name in FACTS if attrs.get(name) is not None}
        return Material(
            {"patches": self.source.id}, self.config.changes(), facts, classes_of(self.source)
        )

    def check(self) -> None:
        """Raises ConfigError (PG-C01): its stain cannot be normalized, or is already."""
        if self.config.normalize.method == "none":
            return
        done = (getattr(self.source, "attrs", {}).get("normalization") or {}).get("method", "none")
        if isinstance(self.source, ImageFolder):
            why = "it is fitted once a slide, and a folder of images does not say whose they are"
        elif done != "none":
            why = f"that was done when it was tiled, by {done}"
        else:
            return
        raise ConfigError(
            "stain cannot be normalized here", where=self.source.path, why=why,
            hint="leave --normalize out",
        )  # fmt: skip

    def row(self) -> LedgerRow:
        n = len(self.source)
        return LedgerRow(
            self.name, "done" if n else "empty", "ok" if n else "filtered",
            "" if n else "it holds no patch", self.file, candidates=n, patches=n, **self.known,
        )  # fmt: skip


class Unread(Origin):
    """A store that cannot be opened."""

    def __init__(self, name: str, path: Path, error: PathgenError) -> None:
        self.name, self.file, self.error = name, path.name, error

    def material(self, store: FeatureStore) -> Material:
        raise self.error


@dataclass(frozen=True)
class Slide(Origin):
    """A slide, of which no patch is stored."""

    task: TileTask

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.task.slide.name

    @property
    def file(self) -> str:  # type: ignore[override]
        return self.task.slide.path.name

    @property
    def known(self) -> dict[str, Any]:
        return self.task.known

    @property
    def scale(self) -> tuple[float | None, int | None]:
        return self.task.config.mpp, self.task.config.patch_size

    def material(self, store: FeatureStore) -> Material:
        if self.task.slide.problem:
            raise self.task.slide.problem
        source = (store.source.get("slide") or {}).get("mpp_source")
        return made_from(Begun(plan_of(self.task, source), {"name": self.name}))

    def threaded(self, count: int) -> Slide:
        """With so many threads to decode it."""
        return replace(self, task=replace(self.task, threads=count))


def made_from(begun: Begun) -> Material:
    """What the features of a slide's patches are made from."""
    plan = begun.provenance
    facts = {"id": plan.id, **begun.facts}
    if "slide" in begun.facts:
        facts["name"] = begun.facts["slide"]["name"]
    return Material(plan.inputs, {"tile": plan.config}, facts)


def distinct(origins: Sequence[Origin]) -> None:
    """Raises DataError (PG-D05): two of them have one name, and would have one store."""
    seen: dict[str, Origin] = {}
    for origin in origins:
        if isinstance(origin, Unread):  # its own name for itself is not known
            continue
        other = seen.setdefault(origin.name, origin)
        if other is not origin:
            raise DataError(
                "two sources have one name",
                code="PG-D05",
                where=origin.name,
                why=" and ".join(_place(one) for one in (other, origin)),
                hint="extract them into different folders",
            )


def _place(origin: Origin) -> str:
    return str(origin.source.path) if isinstance(origin, Stored) else origin.file


def places(
    source: PatchSource, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Level-0 (x, y) and (row, column) of patches, (n, 2) each; -1 for image files."""
    if isinstance(source, PatchStore):
        return source.coords(rows), source.grid(rows)
    return np.full((len(rows), 2), -1, np.int64), np.full((len(rows), 2), -1, np.int32)
