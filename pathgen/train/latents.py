"""Latents of all patches, encoded once into stores.

The diffusion model sees each patch a hundred times; the autoencoder has to see it once.
`pathgen.data.latents` reads them back batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen import commit
from pathgen.data.loading import Steps, center_square, stream
from pathgen.data.sources import PatchSource
from pathgen.errors import DataError, NoInputError, StoreError
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.weights import weights_id
from pathgen.progress import Progress, Silent
from pathgen.provenance import Provenance
from pathgen.stores.latents import LatentStore

#: Images encoded at once. Fixed: a sum over another batch rounds otherwise.
ENCODED = 32

Autocast = Callable[[], AbstractContextManager[None]]


def prepare_latents(
    autoencoder: Autoencoder,
    sources: Sequence[PatchSource],
    folder: Path,
    *,
    mirrors: int = 4,
    autocast: Autocast = nullcontext,
    precision: str = "fp32",
    workers: int = 0,
    shard: int = 50_000,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[LatentStore]:
    """The latents of `sources` in `folder`: what is missing is made, what is there is kept.

    A source with more than `shard` patches has several stores, ``name-00000.h5`` and so on: each
    is there whole or not at all, so a stop costs at most one. Without work to do nothing is
    locked: of several processes one prepares, and then all call this again.

    Args:
        autoencoder: on the device where it is to compute; put in eval mode.
        mirrors: 1: the patches as they are; 2: left-right mirror images too; 4: also upside down
            and both.
        autocast: opens the precision to compute in, as `Engine.autocast`.
        precision: what was asked for, for the provenance: another device may make of "auto" what
            it can.
        workers: processes that decode patches; 0: this one.

    Raises:
        NoInputError: no patches. DataError: PG-D05, two sources have one name; PG-D06, a latent
        is not finite. StoreError: PG-O18, other latents have the name of an output.
    """
    if not sum(len(source) for source in sources):
        raise NoInputError("no patches to encode", hint="run `pathgen tile` first")
    made_by = {
        "id": weights_id(autoencoder), "image_size": autoencoder.config.image_size,
        "mirrors": mirrors, "precision": precision,
    }  # fmt: skip
    parts = [part for source in sources for part in _parts(source, folder, made_by, shard)]
    _distinct(parts)
    missing = parts if overwrite else [part for part in parts if not part.is_done()]
    if missing:
        commit.writable_folder(folder)
        with commit.lock(folder):
            commit.sweep(folder)
            _encode(autoencoder.eval(), parts, missing, autocast, workers, progress or Silent())
    return [LatentStore.open(part.path) for part in parts]


def mirrored(images: Tensor, mirror: int) -> Tensor:
    """(..., H, W) as it is (0), left-right (1), upside down (2) or both (3)."""
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if mirror & bit]
    return images.flip(axes) if axes else images


class _Part:
    """The store of some rows of one source: where it lies and what must stand in it."""

    def __init__(
        self, source: PatchSource, first: int, stop: int, path: Path, made_by: Mapping[str, Any]
    ) -> None:
        self.source, self.first, self.stop, self.path = source, first, stop, path
        self.made_by = made_by
        self.provenance = Provenance(
            stage="latents",
            config={name: made_by[name] for name in ("image_size", "mirrors", "precision")}
            | {"rows": [first, stop]},
            inputs={"autoencoder": str(made_by["id"]), "patches": source.id},
        )

    def __len__(self) -> int:
        return self.stop - self.first

    def batches(self) -> list[NDArray[np.int64]]:
        """Rows of the source that are encoded together."""
        rows = np.arange(self.first, self.stop, dtype=np.int64)
        return [rows[start : start + ENCODED] for start in range(0, len(rows), ENCODED)]

    def is_done(self) -> bool:
        """Whether the store is there. Raises StoreError (PG-O18) when it is another one."""
        if not self.path.exists():
            return False
        with LatentStore.open(self.path) as store:
            found = store.provenance
            if store.id == self.provenance.id and len(store) == len(self):
                return True
        old, new = ({**p.config, **p.inputs} for p in (found, self.provenance))
        why = "; ".join(
            f"{name}: it has {old.get(name)}, asked for {value}"
            for name, value in new.items()
            if old.get(name) != value
        )
        raise StoreError(
            "other latents have this name", code="PG-O18", where=self.path,
            why=why or f"it was made by pathgen {found.pathgen_version} in another way",
            hint="choose another --out, or --overwrite",
        )  # fmt: skip


class _Images(Steps[Tensor]):
    """Step i is the images of the i-th batch of rows, uint8 (n, 3, size, size)."""

    def __init__(self, parts: Sequence[_Part], size: int) -> None:
        self.size = size
        self.wanted = [(part.source, rows) for part in parts for rows in part.batches()]

    def batch(self, step: int) -> Tensor:
        source, rows = self.wanted[step]
        return torch.stack([center_square(image, self.size) for image in source.images(rows)])


@torch.no_grad()
def _encode(
    autoencoder: Autoencoder,
    parts: Sequence[_Part],
    missing: Sequence[_Part],
    autocast: Autocast,
    workers: int,
    progress: Progress,
) -> None:
    device, mirrors = autoencoder.latent_mean.device, int(parts[0].made_by["mirrors"])
    made = _Images(missing, autoencoder.config.image_size)
    images = stream(made, workers=workers, start_step=0, steps=len(made.wanted))
    total, left = sum(map(len, parts)), sum(map(len, missing))
    with progress.task("latents", total, total - left) as task:
        for part in missing:
            source = {"id": part.source.id, "name": part.source.name, "rows": len(part.source)}
            with LatentStore.create(
                part.path, autoencoder.latent_shape, part.provenance, mirrors=mirrors,
                autoencoder={name: part.made_by[name] for name in ("id", "image_size")},
                source=source, first_row=part.first,
            ) as writer:  # fmt: skip
                for rows in part.batches():
                    pixels = next(images).to(device).float().div_(255)
                    latents = []
                    for mirror in range(mirrors):
                        with autocast():
                            latents.append(autoencoder.encode(mirrored(pixels, mirror)).half())
                    values = torch.stack(latents).cpu().numpy()
                    if not np.isfinite(values).all():
                        raise DataError(
                            "autoencoder gives values that are not finite", code="PG-D06",
                            where=part.source.path, hint="check the weights of the autoencoder",
                        )  # fmt: skip
                    writer.append(**{f"latent{i}": value for i, value in enumerate(values)})
                    task.advance(len(rows), note=part.source.name)


def _parts(
    source: PatchSource, folder: Path, made_by: Mapping[str, Any], shard: int
) -> list[_Part]:
    """One for an empty source too: the stores then say that it has no patches."""
    starts = range(0, max(1, len(source)), shard)
    parts = []
    for number, first in enumerate(starts):
        name = f"{source.name}-{number:05d}.h5" if len(starts) > 1 else f"{source.name}.h5"
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                "name of the patches leads out of the output folder", code="PG-D11",
                where=source.name, hint="do not use stores from a source you do not trust",
            )  # fmt: skip
        parts.append(_Part(source, first, min(first + shard, len(source)), path, made_by))
    return parts


def _distinct(parts: Sequence[_Part]) -> None:
    seen: dict[Path, _Part] = {}
    for part in parts:
        other = seen.setdefault(part.path, part)
        if other is not part:
            raise DataError(
                "two sources have one name", code="PG-D05", where=part.source.name,
                why=f"{other.source.path} and {part.source.path}",
                hint="give them different names",
            )  # fmt: skip
