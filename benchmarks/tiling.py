"""How fast slides become stores, beside other tools and beside the JPEG decoder itself.

    python benchmarks/tiling.py --peer-python PEERS/bin/python --repeat 5
    python benchmarks/tiling.py --slide SLIDE.svs --mpp 0.25

Builds a slide of its own (benchmarks/bigslide.py) unless one is given. Every program runs as a
whole, start-up included: `pathgen tile` here, the others in the Python of `--peer-python` (see
benchmarks/peers.py), all with as many workers as they take by default. They take turns, so that a
slow minute of the machine is shared by all. The decoder's time is that of libjpeg-turbo decoding
the tiles of the kept patches, and nothing else, in one thread. Prints Markdown tables: speeds with
ratios, workers, and where the time goes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import simplejpeg
from bigslide import build
from peers import PEERS, Job, missing, run

import pathgen
from pathgen.tiling import TileConfig
from pathgen.tiling.readers import open_with

PEER_ROWS = ("plain", "plain, fastslide", "hs2p", "hs2p, tifffile", "hs2p, cucim", "wsi-patching")
COPIES = 4  # slides that two workers share


def by_pathgen(slides: Path, job: Job, workers: int | None, *options: str) -> tuple[float, int]:
    """Seconds of the whole command, and the patches it stored."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pathgen", "tile", str(slides), "-o", folder, "--mpp",
            str(job.mpp), "--patch-size", str(job.patch_size), "-q", *options,
            *(() if workers is None else ("--workers", str(workers))),
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        stores = [pathgen.open_store(path) for path in sorted(Path(folder).glob("*.h5"))]
        return seconds, sum(map(len, stores))


def by_the_decoder(job: Job) -> tuple[float, int]:
    """Seconds that libjpeg-turbo needs for the tiles of the kept patches, in one thread."""
    with tempfile.TemporaryDirectory() as folder:
        config = TileConfig(mpp=job.mpp, patch_size=job.patch_size)
        report = pathgen.tile(job.slide, folder, config, workers=0)
        with pathgen.open_store(report.stores[0]) as store:
            files = store.encoded()
    start = time.perf_counter()
    for data in files:
        simplejpeg.decode_jpeg(data, "RGB")
    return time.perf_counter() - start, len(files)


def in_turns(
    programs: dict[str, Callable[[], tuple[float, int]]], repeat: int
) -> dict[str, tuple[float, int, str]]:
    """Median seconds, patches, and all seconds as text, of each program."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in programs}
    for _ in range(repeat):
        for name, program in programs.items():
            try:
                found[name].append(program())
            except (ValueError, subprocess.SubprocessError) as error:
                print(f"{name}: {error}", file=sys.stderr)
    return {
        name: (
            statistics.median(seconds for seconds, _ in runs), runs[-1][1],
            ", ".join(f"{seconds:.1f}" for seconds, _ in runs),
        )
        for name, runs in found.items() if runs
    }  # fmt: skip


def speeds(job: Job, peers: list[str], python: str | None, repeat: int) -> None:
    encode = ("--set", "copy_tiles=false")
    programs: dict[str, Callable[[], tuple[float, int]]] = {
        "pathgen": lambda: by_pathgen(job.slide, job, None),
        "pathgen, 1 worker": lambda: by_pathgen(job.slide, job, 1),
        "pathgen, re-encoding": lambda: by_pathgen(job.slide, job, None, *encode),
        "pathgen, re-encoding, 1 worker": lambda: by_pathgen(job.slide, job, 1, *encode),
        "libjpeg-turbo alone": lambda: by_the_decoder(job),
    }  # fmt: skip
    for name in peers if python else ():
        lack = missing(name, str(python))
        if lack:
            print(f"{name}: left out, no module {lack}\n")
            continue

        def peer(name: str = name) -> tuple[float, int]:
            done = run(name, job, str(python))
            return done.seconds, done.patches

        programs[name] = peer
    rows = in_turns(programs, repeat)
    own = rows["pathgen"][1] / rows["pathgen"][0]
    print("| program | patches | seconds, median (each) | patches/s | pathgen is faster by |")
    print("|---|---|---|---|---|")
    for name, (seconds, patches, each) in rows.items():
        rate = patches / seconds
        print(f"| {name} | {patches} | {seconds:.2f} ({each}) | {rate:.0f} | {own / rate:.2f} |")
    print()


def workers(job: Job, repeat: int) -> None:
    """One worker and two on copies of the slide."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(COPIES):
            shutil.copyfile(job.slide, Path(folder) / f"{i}{job.slide.suffix}")
        programs = {
            f"{count} worker{'s' if count > 1 else ''}": (
                lambda count=count: by_pathgen(Path(folder), job, count)
            )
            for count in (1, 2)
        }
        rows = in_turns(programs, repeat)  # type: ignore[arg-type]
    one = rows["1 worker"][0]
    print(f"| {COPIES} slides | seconds, median (each) | faster by |\n|---|---|---|")
    for name, (seconds, _, each) in rows.items():
        print(f"| {name} | {seconds:.2f} ({each}) | {one / seconds:.2f} |")
    print()


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Seconds spent in each part of tiling, while the block runs; parts do not overlap."""
    from pathgen.stores import writing
    from pathgen.tiling import cutting, layout, tiler
    from pathgen.tiling.readers import tiles

    places = {
        "reading": [(tiles.TiledLevel, "fetch")],
        "decoding": [(tiles.JpegCodec, "pixels")],
        "finding tissue": [(layout, "_mask")],
        "scoring": [(cutting, "stain_scores"), (cutting, "quality_scores")],
        "encoding": [(cutting, "encode_patch")],
        "writing": [(writing.SealedWriter, "append"), (writing.SealedWriter, "_complete")],
        "thumbnail": [(tiler, "_write_thumbnail")],
    }
    spent = dict.fromkeys(places, 0.0)
    running: list[float] = []

    def timed(part: str, function: Callable[..., object]) -> Callable[..., object]:
        def inner(*given: object, **named: object) -> object:
            start = time.perf_counter()
            running.append(0.0)
            try:
                return function(*given, **named)
            finally:
                took = time.perf_counter() - start
                spent[part] += took - running.pop()
                if running:
                    running[-1] += took

        return inner

    patches = [
        mock.patch.object(owner, name, timed(part, getattr(owner, name)))
        for part, found in places.items()
        for owner, name in found
    ]
    for patch in patches:
        patch.start()
    try:
        yield spent
    finally:
        for patch in patches:
            patch.stop()


def shares(job: Job) -> None:
    """Where the time of one slide goes, in one process that has loaded everything."""
    print("| part | copying tiles | re-encoding |\n|---|---|---|")
    columns = []
    for copy in (True, False):
        config = TileConfig(mpp=job.mpp, patch_size=job.patch_size, copy_tiles=copy)
        with tempfile.TemporaryDirectory() as folder, clocks() as spent:
            start = time.perf_counter()
            pathgen.tile(job.slide, folder, config, workers=0)
            total = time.perf_counter() - start
        columns.append({**spent, "the rest": total - sum(spent.values()), "seconds": total})
    for part in columns[0]:
        cells = [
            f"{column[part]:.2f}"
            if part == "seconds"
            else f"{column[part] / column['seconds']:.0%}"
            for column in columns
        ]
        print(f"| {part} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, help="default: one is built")
    parser.add_argument("--side", type=int, default=32768, help="of the slide that is built")
    parser.add_argument("--mpp", type=float, default=0.25, help="of level 0, and of the patches")
    parser.add_argument("--patch-size", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peer-python", metavar="PATH")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEER_ROWS, metavar="NAME")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide = arguments.slide or build(Path(folder) / "slide.svs", arguments.side)
        job = Job(slide, arguments.mpp, arguments.patch_size)
        with open_with(slide, "auto", None) as opened:
            width, height = opened.size
            size = f"{width} x {height}"
            print(f"{slide.name}: {size}, reader {opened.reader}; {os.cpu_count()} cores\n")
        warm = np.fromfile(slide, np.uint8).sum()  # every program finds the file in memory
        assert warm >= 0
        speeds(job, list(arguments.peers), arguments.peer_python, arguments.repeat)
        workers(job, arguments.repeat)
        shares(job)


if __name__ == "__main__":
    main()
