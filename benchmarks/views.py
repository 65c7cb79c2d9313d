"""Views a second on one core: pathgen's multi-crop against torchvision's transforms.

The peer is what DINO trainings usually do: `torchvision.transforms.v2` on each image alone, with
the same crops, probabilities and strengths, on uint8 tensors and on PIL images. Both start at
256 px patches in memory and end at float32 crops. Time is that of the processor, so that other
work on the machine disturbs little; the best of several rounds counts.

    python benchmarks/views.py [--images 16] [--rounds 5] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from pathgen.config import build
from pathgen.data.views import ViewConfig, ViewMaker

SIDE = 256


class Patches:
    """Smooth random pictures in memory; a `PatchSource`."""

    id = name = "noise"
    path = Path("noise")

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        size = (SIDE, SIDE)
        self.pixels = np.stack(
            [np.asarray(Image.fromarray(image).resize(size)) for image in coarse]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: Any) -> NDArray[np.uint8]:
        return self.pixels[rows]


def torchvision_views(config: ViewConfig, *, pil: bool) -> Callable[[NDArray[np.uint8]], Any]:
    """DINO's augmentation as `torchvision.transforms.v2` says it."""

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> Any:
        jitter = (config.brightness, config.contrast, config.saturation, config.hue)
        kernel = 2 * config.blur_radius + 1
        return v2.Compose([
            v2.RandomResizedCrop(
                size, scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True
            ),
            v2.RandomHorizontalFlip(config.horizontal_flip),
            v2.RandomApply([v2.ColorJitter(*jitter)], config.jitter),
            v2.RandomGrayscale(config.gray),
            v2.RandomApply([v2.GaussianBlur(kernel, config.sigmas)], blur),
            v2.RandomSolarize(128, solarize),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ])  # fmt: skip

    blur = config.blur
    one = view(config.global_size, config.global_scale, blur[0], 0.0)
    two = view(config.global_size, config.global_scale, blur[1], config.solarize)
    local = view(config.local_size, config.local_scale, blur[2], 0.0)

    def views(image: NDArray[np.uint8]) -> Any:
        start = Image.fromarray(image) if pil else torch.from_numpy(image).permute(2, 0, 1)
        return [one(start), two(start), *(local(start) for _ in range(config.local_crops))]

    return views


def rate(make: Callable[[int], object], images: int, rounds: int) -> float:
    """Images a second of processor time, the best round's."""
    make(0)
    best = 0.0
    for number in range(rounds):
        start = time.process_time()
        make(number + 1)
        best = max(best, images / (time.process_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where pathgen's time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    patches, items = Patches(options.images), np.arange(options.images)

    print(f"one core, {SIDE} px -> 2 x 224 + 8 x 96, images/s of processor time")
    rates = {}
    for preset in ("dino", "pathology"):
        maker = ViewMaker(build(ViewConfig, {"preset": preset}), patches, seed=0)
        rates[f"pathgen, {preset}"] = rate(
            lambda step, maker=maker: maker(step, items), options.images, options.rounds
        )
        rates[f"pathgen, {preset}: cut only, for a GPU to finish"] = rate(
            lambda step, maker=maker: maker.cut(step, items), options.images, options.rounds
        )
    for kind, pil in (("tensors", False), ("PIL", True)):
        views = torchvision_views(ViewConfig(), pil=pil)
        rates[f"torchvision v2, dino, {kind}"] = rate(
            lambda _, views=views: [views(image) for image in patches.pixels],
            options.images, options.rounds,
        )  # fmt: skip
    for name, value in rates.items():
        print(f"{name:52s} {value:8.1f}")
    peer = max(value for name, value in rates.items() if "torchvision" in name)
    print(f"pathgen / torchvision, dino: {rates['pathgen, dino'] / peer:.2f}")
    if options.profile:
        maker = ViewMaker(ViewConfig(), patches, seed=0)
        profile = cProfile.Profile()
        profile.runcall(maker, 1, items)
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
