"""Extraction on a Dask cluster: one slide or store is one task, encoders are loaded once a worker.

How workers are found and checked is in `pathgen.tiling.cluster`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pathgen import claims as sharing_claims
from pathgen import commit
from pathgen.data.sources import open_located
from pathgen.encoders import named
from pathgen.errors import ConfigError, PathgenError, SlideError
from pathgen.extract.bench import Bench
from pathgen.extract.config import ExtractConfig
from pathgen.extract.encoding import encodings
from pathgen.extract.flow import run_pieces
from pathgen.extract.origins import Origin, Slide, Stored, Unread
from pathgen.extract.report import EncoderReport, ExtractReport, spare_ledgers, write_ledgers
from pathgen.progress import Progress, Silent
from pathgen.tiling.batch import CRASHES
from pathgen.tiling.cluster import Machines
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.pool import Crashed


@dataclass(frozen=True)
class Errand:
    """One origin to be encoded, wherever it is taken."""

    slide: Slide | None
    store: Path | None
    """where it is no slide"""
    encoders: tuple[str | Path, ...]
    weights: Path | None
    out: Path
    config: ExtractConfig
    overwrite: bool

    def absolute(self) -> Errand:
        """With no relative path, as a worker's current folder is another."""
        slide = self.slide
        if slide is not None:
            slide = Slide(slide.task.absolute())
        config = self.config
        if config.normalize.target is not None:
            target = str(Path(config.normalize.target).absolute())
            normalize = config.normalize.model_copy(update={"target": target})
            config = config.model_copy(update={"normalize": normalize})
        return replace(
            self, slide=slide, store=self.store and self.store.absolute(), config=config,
            encoders=tuple(map(_absolute, self.encoders)),
            weights=self.weights and self.weights.absolute(), out=self.out.absolute(),
        )  # fmt: skip

    @property
    def place(self) -> Path | None:
        """What a worker must be able to see."""
        return self.store if self.slide is None else self.slide.task.place

    def hung(self, limit: float) -> None:
        """Nobody else waits for word of it."""


def _absolute(encoder: str | Path) -> str | Path:
    file, colon, function = str(encoder).rpartition(":")
    if file.endswith(".py"):
        return f"{Path(file).absolute()}{colon}{function}"
    path = Path(encoder)
    return type(encoder)(path.absolute()) if path.exists() else encoder


@dataclass(frozen=True)
class Done:
    """Of each encoder its name, dim and folder, and the row of the origin."""

    heads: tuple[tuple[str, int, Path], ...]
    rows: tuple[LedgerRow, ...]
    errors: tuple[PathgenError, ...]


def encode_one(errand: Errand) -> Done:
    """On a worker. Raises what would end a run on one machine."""
    bench = _bench(
        errand.encoders, errand.weights, errand.out, errand.config.model_dump_json()
    )  # fmt: skip
    origin: Origin | None = errand.slide
    if origin is None:
        assert errand.store is not None
        origin = Stored(open_located(errand.store), errand.config)
    config = errand.config
    if multiprocessing.current_process().daemon:  # as below Dask's nanny: it may start no process
        config = config.model_copy(update={"workers": 0})
    piece = bench.piece(origin)
    piece.look(errand.overwrite)
    if not piece.is_settled:
        with (
            Silent().task("", 1) as bar,
            closing(run_pieces(bench, [piece], config, bar, errand.out, [0])) as run,
        ):
            for _ in run:
                pass
    rows = tuple(piece.rows[i] for i in range(len(bench.folders)))
    return Done(tuple(bench.heads), rows, tuple(piece.errors))


@lru_cache(maxsize=1)
def _bench(encoders: tuple[str | Path, ...], weights: Path | None, out: Path, config: str) -> Bench:
    settings = ExtractConfig.model_validate_json(config)
    return Bench(encodings(encoders, settings, weights), out)


def extract_elsewhere(
    encoders: Sequence[Any],
    origins: Sequence[Origin],
    out: Path,
    config: ExtractConfig,
    weights: Path | None,
    machines: Machines,
    overwrite: bool,
    progress: Progress,
) -> ExtractReport:
    """`extract` on other machines.

    Raises:
        ConfigError: PG-C01, an encoder that is not given by name. ClusterError: PG-E03 to PG-E05.
    """
    for one in encoders:
        if not isinstance(one, str | Path):
            raise ConfigError(
                "encoders for other machines are given by name", where=type(one).__name__,
                why="each worker loads them itself", hint="give a run, a model folder or a name",
            )  # fmt: skip
        row = named(one) if isinstance(one, str) else None
        if row is not None:  # workers have nobody to tell
            progress.say(row.said())
    out = commit.writable_folder(out.absolute())
    if len(encoders) == 1:  # folders of several are known when a worker has loaded them
        spare_ledgers([out])
    errands = {
        i: Errand(
            origin if isinstance(origin, Slide) else None,
            origin.source.path if isinstance(origin, Stored) else None,
            tuple(encoders), weights, out, config, overwrite,
        )
        for i, origin in enumerate(origins) if not isinstance(origin, Unread)
    }  # fmt: skip
    numbers = list(errands)
    answers: dict[int, Done | Crashed] = {}
    with (
        sharing_claims.join(out, {}, alone=True, kind=sharing_claims.Claims),
        machines.runner(out, None, progress) as (run, _),
        progress.task("features", len(origins), len(origins) - len(errands)) as bar,
        closing(run(encode_one, [errands[i] for i in numbers])) as results,
    ):
        for at, result in results:
            answers[numbers[at]] = result
            bar.advance(note=origins[numbers[at]].name)
        report = _gathered(origins, answers, out)
        spare_ledgers([one.path for one in report.encoders])
        write_ledgers(report.encoders)
        commit.sweep(out)
    return report


def _gathered(
    origins: Sequence[Origin], answers: dict[int, Done | Crashed], out: Path
) -> ExtractReport:
    errors: list[PathgenError] = []
    made = [answer for answer in answers.values() if isinstance(answer, Done)]
    rows: list[tuple[LedgerRow, ...]] = []
    heads = made[0].heads if made else ()
    for i, origin in enumerate(origins):
        answer = answers.get(i)
        if isinstance(answer, Done):
            rows.append(answer.rows)
            errors += answer.errors
            continue
        error: PathgenError
        if isinstance(origin, Unread):
            error = origin.error
        else:
            assert isinstance(answer, Crashed)
            what, hint = CRASHES[answer.kind]
            error = SlideError(what, code="PG-S13", where=origin.name, why=answer.why, hint=hint)
        errors.append(error)
        rows.append((origin.failed(error),) * len(heads))
    if not heads:
        raise errors[0]
    reports = [
        EncoderReport(name, dim, folder, tuple(row[k] for row in rows))
        for k, (name, dim, folder) in enumerate(heads)
    ]
    return ExtractReport(out, tuple(reports), tuple(errors))
