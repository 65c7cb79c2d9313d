"""Patches through encoders into feature stores, one store a source and encoder."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pathgen import claims as sharing_claims
from pathgen import commit, parallel
from pathgen.encoders import PatchEncoder
from pathgen.errors import PathgenError, StorageError
from pathgen.extract.bench import Bench, Piece, work
from pathgen.extract.config import ExtractConfig
from pathgen.extract.encoding import encodings, scale_notes
from pathgen.extract.inputs import Given, slide_origins, stored_origins
from pathgen.extract.items import Feed
from pathgen.extract.origins import Origin, Slide, Stored, distinct
from pathgen.extract.report import (
    LEDGER,
    EncoderReport,
    ExtractReport,
    refuse_mixing,
    spare_ledgers,
    write_ledgers,
)
from pathgen.extract.sharing import share
from pathgen.progress import Progress, Silent, Task
from pathgen.provenance import digest
from pathgen.tiling.pool import default_workers

if TYPE_CHECKING:
    from pathgen.tiling.cluster import Machines
    from pathgen.tiling.task import TileConfig

Encoders = PatchEncoder | str | Path | Sequence[PatchEncoder | str | Path]
#: Threads that decode a slide for an encoder on a GPU, at most.
THREADS = 8


def extract_features(
    encoder: Encoders,
    patches: Given,
    out: Path | str,
    config: ExtractConfig | None = None,
    *,
    tile: TileConfig | None = None,
    masks: str | Path | None = None,
    weights: Path | None = None,
    machines: Machines | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """One vector per patch, in the order of the patches: ``out/<source name>.h5`` each.

    As `extract`, but what failed is raised when the others are done.

    Returns:
        The stores, in the order of the sources; of several encoders, one after the other.

    Raises:
        PathgenError: as `extract`, and the first of what kept a source from being encoded.
    """
    report = extract(
        encoder, patches, out, config, tile=tile, masks=masks, weights=weights, machines=machines,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
    if report.errors:
        first = report.errors[0]
        if len(report.errors) > 1:
            where = report.encoders[0].path / f"{LEDGER}.csv"
            first.add_note(f"{len(report.errors)} sources failed; see {where}")
        raise first
    return report.stores


def extract(
    encoder: Encoders,
    patches: Given,
    out: Path | str,
    config: ExtractConfig | None = None,
    *,
    tile: TileConfig | None = None,
    masks: str | Path | None = None,
    weights: Path | None = None,
    machines: Machines | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExtractReport:
    """One vector per patch and encoder, in the order of the patches.

    Each patch is read and decoded once. One encoder's stores are ``out/<source name>.h5``; of
    several, those of each lie in a folder of its name. Beside them ``features.csv`` and
    ``features.json`` say what became of every source. A source that fails has a row that says
    why, and the others go on.

    A finished store of the same patches, encoder and settings is kept, so that a broken-off run
    goes on with the next source. A source without patches gives a store without features.
    Several processes, on several hosts too, may run the same call on one `out` at the same time:
    they share the sources, and each returns when all are done, with the same report.

    Args:
        encoder: one or several, each by name (see `load_encoder`) or anything with `dim`, `id`
            and `encode`.
        patches: patch stores or image folders, opened or as paths; with `tile`, slides as
            `pathgen.tiling.find_slides` takes them.
        out: folder for the stores.
        tile: the patches are those that `pathgen.tile` would keep with these settings, straight
            from the slides; none is stored.
        masks: with `tile`, as `pathgen.tile` takes them.
        weights: folder of the weights of encoders given by name, where they are not downloaded.
        machines: a Dask cluster to work on; encoders are then given by name.
        overwrite: make stores of other settings anew, instead of refusing. Only feature stores
            are ever replaced.

    Raises:
        NoInputError: PG-N01, no sources. DataError: PG-D03, PG-D05, PG-D11, sources twice, of one
        name, or of a name that leads elsewhere; PG-N06. ConfigError: PG-C01, PG-C04, PG-C05.
        StoreError: PG-O16, PG-O18, another store has the name of an output. StorageError: PG-O01,
        PG-O03. BusyError: PG-O06. ClusterError: PG-E03 to PG-E05.
    """
    config, progress, out = config or ExtractConfig(), progress or Silent(), Path(out)
    origins = origins_of(patches, out, tile, config, masks)
    several = isinstance(encoder, Sequence) and not isinstance(encoder, str)
    encoders: list[Any] = list(cast("Sequence[Any]", encoder)) if several else [encoder]
    if machines is not None:
        from pathgen.extract.machines import extract_elsewhere

        return extract_elsewhere(
            encoders, origins, out, config, weights, machines, overwrite, progress
        )
    bench = Bench(encodings(encoders, config, weights, progress), out)
    for note in scale_notes(bench.encodings, (origin.scale for origin in origins)):
        progress.say(note)
    pieces = [bench.piece(origin) for origin in origins]
    spare_ledgers(bench.folders)
    names = {origin.name for origin in origins}
    for folder, encoding in zip(bench.folders, bench.encodings, strict=True):
        refuse_mixing(folder, encoding, names)
    for piece in pieces:
        piece.look(overwrite)
    total = sum(piece.origin.weight for piece in pieces)
    there = sum(piece.origin.weight for piece in pieces if piece.is_settled)
    with progress.task("features", total, there) as bar:
        if all(piece.is_settled for piece in pieces):
            # What is finished is only read, which needs no right to write.
            report = _report(bench, pieces, out)
            with suppress(StorageError):
                write_ledgers(report.encoders)
            return report
        commit.writable_folder(out)
        agreed = _agreed(bench, pieces, config, overwrite)
        with sharing_claims.join(out, agreed, kind=sharing_claims.Claims) as claims:
            commit.sweep(out)
            share(
                pieces, claims, overwrite, partial(run_pieces, bench, pieces, config, bar, out), bar
            )  # fmt: skip
            report = _report(bench, pieces, out)
            write_ledgers(report.encoders)
            commit.sweep(out)  # of processes that died meanwhile
    return report


def origins_of(
    patches: Given,
    out: Path,
    tile: TileConfig | None,
    config: ExtractConfig,
    masks: str | Path | None,
) -> list[Origin]:
    """What is to be encoded. Raises as `extract`."""
    config.normalize.check()
    if tile is None:
        origins = stored_origins(patches, config)
    else:
        slides = cast("str | Path | Sequence[str | Path]", patches)
        origins = slide_origins(slides, out, tile, config, masks)
    distinct(origins)
    return origins


def run_pieces(
    bench: Bench,
    pieces: Sequence[Piece],
    config: ExtractConfig,
    bar: Task,
    out: Path,
    numbers: Iterable[int],
) -> Generator[int, None, None]:
    """Settle the pieces that `numbers` names."""
    with closing(feed_of(bench, [p.origin for p in pieces], config, out, numbers)) as feed:
        yield from work(feed, pieces, bar)


def feed_of(
    bench: Bench,
    origins: Sequence[Origin],
    config: ExtractConfig,
    out: Path,
    numbers: Iterable[int],
) -> Feed:
    """The patches of some origins, which are all stores or all slides."""
    if any(isinstance(origin, Slide) for origin in origins):
        from pathgen.extract.slidefeed import feed_slides

        busy = max(1, config.workers) * parallel.local_count()
        spare = default_workers() // busy if bench.on_gpu else 1
        slides = [cast(Slide, one).threaded(min(THREADS, max(1, spare))) for one in origins]
        log = partial(_append_event, out)
        return feed_slides(slides, numbers, config.batch_size, config.workers, bench.on_gpu, log)
    from pathgen.extract.feed import feed_stores

    return feed_stores(cast("Sequence[Stored]", origins), numbers, config, bench.on_gpu)


def _append_event(out: Path, slide: str, trace: str) -> None:
    """One line in one write, under a lock: over NFS, appending alone can lose a line."""
    line = (json.dumps({"slide": slide, "state": "failed", "traceback": trace}) + "\n").encode()
    with (out / "events.jsonl").open("ab", buffering=0) as log, commit.locked(log):
        log.write(line)


def _agreed(
    bench: Bench, pieces: Sequence[Piece], config: ExtractConfig, overwrite: bool
) -> Mapping[str, Any]:
    """What processes that share a folder must agree on, lest their ledgers differ."""
    plans = {digest(p.origin.task.config.model_dump(mode="json"))
             for p in pieces if isinstance(p.origin, Slide)}  # fmt: skip
    return {
        "encoders": [one.facts["id"] for one in bench.encodings],
        "settings": [one.settings for one in bench.encodings],
        "normalize": config.changes(),
        "tiling": sorted(plans),
        "sources": f"{len(pieces)} ({digest([piece.origin.name for piece in pieces])})",
        "overwrite": overwrite,
    }


def _report(bench: Bench, pieces: Sequence[Piece], out: Path) -> ExtractReport:
    reports = [
        EncoderReport(name, dim, folder, tuple(piece.rows[i] for piece in pieces))
        for i, (name, dim, folder) in enumerate(bench.heads)
    ]
    errors: list[PathgenError] = [error for piece in pieces for error in piece.errors]
    return ExtractReport(out, tuple(reports), tuple(errors))
