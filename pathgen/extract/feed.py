"""Patches of stores and folders, read, decoded and normalized ahead of the encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from pathgen.data.sources import labels_of
from pathgen.data.workers import deaf_children, start_worker
from pathgen.errors import PathgenError
from pathgen.extract.config import ExtractConfig
from pathgen.extract.items import AHEAD, Block, Feed, Images, ahead, as_it_is, pinned
from pathgen.extract.normalizing import Unchanged, fitted
from pathgen.extract.origins import Stored, places
from pathgen.tiling.normalize import Normalizer


class _Part(NamedTuple):
    """Rows `start` to `stop` - 1 of an origin."""

    origin: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Read:
    part: _Part
    block: Block | None = None
    facts: dict[str, Any] | None = None
    """what is found out about the origin with its first patches"""
    error: PathgenError | None = None


class _Parts(Dataset[Any]):
    """Item (origin, start, stop): these patches, decoded; or why not."""

    def __init__(self, origins: Sequence[Stored], config: ExtractConfig) -> None:
        self.origins, self.config = origins, config
        self._fit: tuple[int, Normalizer | Unchanged] | None = None

    def __getitem__(self, part: _Part) -> _Read:
        try:
            return self._read(_Part(*part))
        except PathgenError as error:  # torch would wrap it and lose the code and the hint
            return _Read(_Part(*part), error=error)

    def _read(self, part: _Part) -> _Read:
        source = self.origins[part.origin].source
        rows = np.arange(part.start, part.stop, dtype=np.int64)
        change = self._change(part.origin)
        images: Images = source.images(rows) if len(rows) else np.empty((0, 1, 1, 3), np.uint8)
        if isinstance(change, Normalizer) and len(rows):
            images = change.apply(np.asarray(images))
        coords, grid = places(source, rows)
        block = Block(images, coords, grid, labels_of(source)[rows].astype(np.int32))
        facts = None if change is None or part.start else {"normalization": change.record}
        return _Read(part, block, facts)

    def _change(self, origin: int) -> Normalizer | Unchanged | None:
        if self.config.normalize.method == "none":
            return None
        if self._fit is None or self._fit[0] != origin:
            source = self.origins[origin].source
            self._fit = origin, fitted(source, self.config.normalize)
        return self._fit[1]


def feed_stores(
    origins: Sequence[Stored], numbers: Iterable[int], config: ExtractConfig, pin: bool
) -> Feed:
    """The patches of those origins that `numbers` names, which is asked as work is taken up."""
    failed: set[int] = set()

    def parts() -> Iterator[_Part]:
        for number in numbers:
            count = len(origins[number].source)
            for start in range(0, max(count, 1), config.batch_size):
                if number in failed:
                    break
                yield _Part(number, start, min(start + config.batch_size, count))

    made = _Parts(origins, config)
    loader: DataLoader[Any] = DataLoader(
        made, batch_size=None, sampler=parts(), collate_fn=as_it_is, num_workers=config.workers,
        multiprocessing_context="spawn" if config.workers else None,
        prefetch_factor=AHEAD if config.workers else None, worker_init_fn=start_worker,
    )  # fmt: skip

    def reads() -> Iterator[_Read]:
        with deaf_children() if config.workers else nullcontext():
            items = iter(loader)
        yield from items

    with closing(ahead(reads, _pinned if pin else as_it_is)) as found:
        for read in found:
            number, origin = read.part.origin, origins[read.part.origin]
            if number in failed:
                continue
            if read.error is not None:
                failed.add(number)
                yield number, read.error
                continue
            if read.part.start == 0:
                material = origin.material()
                facts = {**material.facts, **(read.facts or {})}
                yield number, replace(material, facts=facts)
            assert read.block is not None
            yield number, read.block
            if read.part.stop == len(origin.source):
                yield number, origin.row()


def _pinned(read: _Read) -> _Read:
    return read if read.block is None else replace(read, block=pinned(read.block))
