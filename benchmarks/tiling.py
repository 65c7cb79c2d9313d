"""How fast slides become stores, beside plain OpenSlide: a ratio, measured in one run.

    python benchmarks/tiling.py SLIDE... --mpp 0.5 --patch-size 256 --repeat 3

For each slide, by turns and in one process: `pathgen.tile` (read, score, filter, encode, seal,
verify) and what a script does by hand (read_region of the same patches, nothing else). The ratio
is hand over pathgen, of the medians: above 1 pathgen is faster. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

import pathgen
from pathgen.tiling import TileConfig


def by_pathgen(slide: Path, config: TileConfig) -> tuple[float, np.ndarray, dict[str, float]]:
    """Seconds, level-0 positions kept, and the geometry of the patches."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        report = pathgen.tile(slide, folder, config, workers=0)
        if not report.done:
            raise SystemExit(f"{slide.name}: {report.rows[0].reason}. {report.rows[0].message}")
        seconds = time.perf_counter() - start
        with pathgen.open_store(report.stores[0]) as store:
            return seconds, store.coords(), dict(store.attrs)


def by_hand(slide: Path, coords: np.ndarray, facts: dict[str, float]) -> float:
    """Seconds to read the same patches with OpenSlide and Pillow, one after the other."""
    side, level = int(facts["patch_size"]), int(facts["read_level"])
    start = time.perf_counter()
    with openslide.OpenSlide(slide) as raw:
        size = round(facts["patch_size_level0"] / raw.level_downsamples[level])
        for x, y in coords:
            region = raw.read_region((int(x), int(y)), level, (size, size)).convert("RGB")
            if size != side:
                region = region.resize((side, side), Image.Resampling.BOX)
            np.asarray(region)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--patch-size", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    config = TileConfig(mpp=arguments.mpp, patch_size=arguments.patch_size)
    print("| slide | patches | pathgen tile, patches/s | read_region alone, patches/s | ratio |")
    print("|---|---|---|---|---|")
    for slide in arguments.slides:
        ours, theirs, kept = [], [], 0
        for _ in range(arguments.repeat):
            seconds, coords, facts = by_pathgen(slide, config)
            ours.append(seconds)
            theirs.append(by_hand(slide, coords, facts))
            kept = len(coords)
        one, other = statistics.median(ours), statistics.median(theirs)
        print(
            f"| {slide.name} | {kept} | {kept / one:.0f} | {kept / other:.0f} | {other / one:.2f} |"
        )


if __name__ == "__main__":
    main()
