"""How fast training is, as a share of what the device can do; beside a plain loop on the CPU.

    python benchmarks/training.py                  # CPU, about three minutes on two calm cores
    python benchmarks/training.py --size gpu       # one GPU, bf16, some minutes with compiling

Each line is images/s and the share of the rate of one large matrix product, measured before and
after in the same precision: share = images/s x FLOPs an image / rate. The stages are the real
ones, run as `pathgen pretrain` runs them; only checkpoints are left out, and the first steps
(compiling, warming up) are not counted.

FLOPs an image, a multiply-add being two; `pathgen.plan` counts them over the networks:
    F        ViT of L blocks, width d, on N tokens: 2 L (12 N d^2 + 2 N^2 d) + the patch embedding
    H        head: 2 (d h + h^2 + h b + b K)
    DINO     3 (2 F_224 + 8 F_96 + 10 H) + 2 F_224 + 2 H                  ViT-S/16: 114 GFLOP
    E-LDM    3 forwards of the denoiser
    draw     forwards of the denoiser x steps x 2 for guidance, + decoder + F_224 to embed anew
    extract  F_224                                                       ViT-S/16: 9.2 GFLOP
On the CPU `ratio` is against benchmarks/plain_dino.py (needs lightly), the two taking turns on
equal tensors ("step") and on the same JPEG files ("whole loop"); above 1 pathgen is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pathgen.config import merge
from pathgen.data.sources import PatchSource, open_sources
from pathgen.data.views import Views
from pathgen.extract import extract_features, load_encoder
from pathgen.parallel import Share
from pathgen.plan import denoising_flops, extraction_flops, plan_pretrain
from pathgen.pretraining import Flow, PretrainConfig, resolve
from pathgen.progress import Silent
from pathgen.runs import Run, Stateful
from pathgen.train.dino import _Dino
from pathgen.train.engine import choose_precision, find_device
from pathgen.train.loop import train

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Titles of what takes the steps of `Size`.
TRAINED = ("step", "whole loop", "dino", "ldm")


@dataclass(frozen=True)
class Size:
    """What is measured, and how long."""

    recipe: str
    settings: dict[str, Any]
    batch: int
    images: int
    product: int
    """side of the matrices"""
    warm: int
    """steps that do not count"""
    steps: int
    rounds: int


#: An autoencoder that nothing is expected of: one step, so that the next stages have theirs.
_STUB = {
    "optim": {"steps": 1, "batch_size": 2}, "held_out": 0, "perceptual_weight": 0.0,
    "discriminator_weight": 0.0,
}  # fmt: skip
SIZES = {
    "cpu": Size(
        "vit-tiny-imagenet",
        {
            "dino": {
                "encoder": {"name": "vit_small_patch16_224"}, "head": {"prototypes": 65536},
                "views": {"local_crops": 8},
            },
            "autoencoder": {"model": {"block_out_channels": [32, 32, 32, 32]}, **_STUB},
            "ldm": {"model": {"embedding_dim": 384}, "optim": {"batch_size": 4}},
            "augment": {"max_sources": 3, "interpolated": 0, "steps": 5, "batch_size": 1,
                        "check": {"images": 0, "pairs": 0}},
            "features": {"batch_size": 8},
        },
        batch=4, images=32, product=2048, warm=1, steps=2, rounds=2,
    ),
    "gpu": Size(
        "vits16-imagenet",
        {
            "autoencoder": _STUB,
            "ldm": {"optim": {"batch_size": 64}},
            "augment": {"max_sources": 256, "interpolated": 0, "batch_size": 64,
                        "check": {"images": 0, "pairs": 0}},
            "features": {"batch_size": 512},
        },
        batch=256, images=8192, product=8192, warm=10, steps=30, rounds=1,
    ),
}  # fmt: skip


class Unsaved(Run):
    """A run that keeps no checkpoint: writing them is not what is measured."""

    def save(self, step: int, *, keep: int = 2, **parts: Stateful) -> Path:
        return self.path


class Stages(Flow):
    runs = Unsaved
    sheet = False


class Stopwatch(Silent):
    """Takes the time of each advance of every task, by title."""

    def __init__(self, device: torch.device, warm: int) -> None:
        self.device, self.warm = device, warm
        self.spans: dict[str, list[tuple[float, int]]] = {}
        """seconds and units of work"""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Any]:
        watch, times, counts = self, [time.perf_counter()], [0]
        warm = self.warm if title in TRAINED else 1

        class _Task:
            def advance(self, count: int = 1, note: str = "") -> None:
                counts.append(count)
                ends = len(counts) - 1 == warm or sum(counts) >= total
                if watch.device.type == "cuda":
                    if not ends:  # steps are queued; only the ends of a series are waited for
                        times.append(times[-1])
                        return
                    torch.cuda.synchronize()
                times.append(time.perf_counter())

        yield _Task()
        kept = list(zip(pairwise(times), counts[1:], strict=True))[warm:]
        spans = [(after - before, count) for (before, after), count in kept]
        if self.device.type == "cuda":
            spans = [(sum(s for s, _ in spans), sum(n for _, n in spans))]
        self.spans.setdefault(title, []).extend(spans)

    def rate(self, title: str) -> float:
        """Units a second, by the median span."""
        return statistics.median(count / seconds for seconds, count in self.spans[title])


class _SameViews(_Dino):
    """DINO on the same tensors at every step: no loader."""

    views: Views

    def batches(self, start: int, share: Share) -> Iterator[Views]:
        return (self.views for _ in range(start, self.steps))


def product_rate(device: torch.device, precision: str, side: int) -> float:
    """FLOP/s of a product of two large square matrices, by the best of some."""
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        start, repeats = time.perf_counter(), 10 if device.type == "cuda" else 1
        for _ in range(repeats):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * side**3 / best


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def draw_images(folder: Path, count: int) -> Path:
    """JPEG files of 256 px: soft blobs of color under fine noise, about as large as tissue."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for i in range(min(count, 256)):
        coarse = Image.fromarray(rng.integers(60, 230, (24, 24, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(pixels + rng.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:05d}.jpg", quality=90)
    for i in range(256, count):
        (folder / "images" / f"{i:05d}.jpg").hardlink_to(folder / "images" / f"{i % 256:05d}.jpg")
    return folder


def configured(size: Size, device: str, workers: int) -> PretrainConfig:
    """The recipe with batches of this size and `warm` + `steps` steps."""
    run = {"workers": workers, "device": device, "pictures_every": 0, "tensorboard": False,
           "log_every": 1_000_000}  # fmt: skip
    steps = {"steps": size.warm + size.steps, "warmup_steps": 0}
    dino = {"optim": {**steps, "batch_size": size.batch}, "run": run, "freeze_last_layer_epochs": 0}
    common = {
        "dino": dino, "autoencoder": {"run": run}, "ldm": {"optim": steps, "run": run},
        "features": {"workers": workers, "device": device},
    }  # fmt: skip
    values = merge(resolve(size.recipe).model_dump(exclude={"gen_dino"}), common)
    return PretrainConfig.model_validate(merge(values, size.settings))


def dino_steps(
    config: PretrainConfig, sources: Sequence[PatchSource], folder: Path, watch: Stopwatch,
    views: Views | None,
) -> None:  # fmt: skip
    """Some steps of DINO by the real loop: on `views` alone, or on what the loader makes."""
    stage: _Dino = (_Dino if views is None else _SameViews)(config.dino, sources, ())
    if isinstance(stage, _SameViews) and views is not None:
        stage.views = views
    name = "step" if views is not None else "whole loop"
    run = Unsaved.start(folder / name, name, config.dino, {}, overwrite=True)
    train(stage, run, watch)


def against_lightly(
    size: Size, config: PretrainConfig, sources: Sequence[PatchSource], folder: Path,
    watch: Stopwatch, views: Views, workers: int,
) -> dict[str, float]:  # fmt: skip
    """Seconds a step of the plain loop over ours, by medians; the two take turns."""
    import plain_dino

    encoder = config.dino.encoder
    step = plain_dino.training_step(encoder.name, 384, config.dino.head.prototypes)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.mean, encoder.std))
    same = [(x - mean) / std for x in (*views.global_crops, *views.local_crops)]
    loader = plain_dino.batches(sources[0].path, size.batch, workers)
    taken: dict[str, list[float]] = {"step": [], "whole loop": []}
    for _ in range(size.rounds):
        for name, given in (("step", views), ("whole loop", None)):
            dino_steps(config, sources, folder, watch, given)
            for number in range(size.warm + size.steps):
                start = time.perf_counter()
                step(same if given is not None else next(loader))
                if number >= size.warm:
                    taken[name].append(time.perf_counter() - start)
    return {name: watch.rate(name) * statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="cpu")
    parser.add_argument("--device", help="default: cuda for the gpu size, else cpu")
    parser.add_argument("--workers", type=int, help="loader processes; default: 0, on a GPU 12")
    parser.add_argument("--batch", type=int, help="patches a DINO step")
    parser.add_argument("--images", type=Path, help="folder of JPEG or PNG patches; default: drawn")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--no-lightly", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    size = SIZES[given.size]
    changes = {"batch": given.batch, "rounds": given.rounds}
    size = Size(**{**vars(size), **{k: v for k, v in changes.items() if v is not None}})
    name = given.device or ("cuda" if given.size == "gpu" else "cpu")
    workers = given.workers if given.workers is not None else 12 if name != "cpu" else 0
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(size, name, workers, Path(folder), given.images, not given.no_lightly)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(
    size: Size, name: str, workers: int, folder: Path, images: Path | None, lightly: bool
) -> dict[str, Any]:
    """Print one line a measurement; all of them."""
    device, config = find_device(name), configured(size, name, workers)
    precision = choose_precision("auto", device)
    sources = open_sources([images or draw_images(folder / "data", size.images)])
    count, figures = sum(map(len, sources)), dict[str, Any]()
    watch = Stopwatch(device, size.warm)
    plans = {plan.stage: plan for plan in plan_pretrain(config, count, ["dino", "ldm", "augment"])}
    dino = plans["dino"].flops / plans["dino"].steps / size.batch
    pictures = min(count, config.augment.max_sources or count) * config.augment.generative

    def rate() -> float:
        return product_rate(device, precision, size.product)

    def tell(what: str, flops: float, work: Callable[[], float]) -> None:
        before = rate()
        speed = work()
        peak = (before + rate()) / 2
        share = speed * flops / peak
        figures[what] = {"images_per_second": speed, "flops": flops, "share": share, "peak": peak}
        print(f"{what:12} {speed:10,.2f} images/s  {flops / 1e9:9,.1f} GFLOP an image  "
              f"{share:6.1%} of {peak / 1e12:,.3f} TFLOP/s", flush=True)  # fmt: skip

    print(f"{device_name(device)}, {precision}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}, DINO batch {size.batch}, {workers} loader processes")  # fmt: skip
    views = config.dino.views
    same = Views(
        [torch.rand(size.batch, 3, views.global_size, views.global_size, device=device)
         for _ in range(2)],
        [torch.rand(size.batch, 3, views.local_size, views.local_size, device=device)
         for _ in range(views.local_crops)],
        None,
    )  # fmt: skip

    flow = Stages(folder / "run", config, sources, False, watch)

    def step() -> float:
        dino_steps(config, sources, folder, watch, same)
        return watch.rate("step") * size.batch

    def loop() -> float:
        flow.do("dino")
        return watch.rate("dino") * size.batch

    tell("DINO step", dino, step)
    tell("DINO loop", dino, loop)
    if lightly and device.type == "cpu":
        watch.spans.clear()
        ratios = against_lightly(size, config, sources, folder, watch, same, workers)
        figures["ratio to lightly"] = ratios
        print("  ".join(f"ratio to lightly, {k}: {v:.2f}" for k, v in ratios.items()), flush=True)

    flow.do("autoencoder")

    def ldm() -> float:
        flow.do("ldm")
        return watch.rate("ldm") * config.ldm.optim.batch_size

    def draw() -> float:
        flow.do("augment")
        return watch.rate("augment")

    def extract() -> float:
        encoder = load_encoder(folder / "run" / "dino", device=name)
        watch.spans.pop("features", None)
        extract_features(encoder, sources, folder / "features", config.features, progress=watch)
        return watch.rate("features")

    tell("E-LDM step", 3 * denoising_flops(config.ldm.model), ldm)
    tell("synthesis", plans["augment"].flops / pictures, draw)
    tell("extraction", extraction_flops(config.dino.encoder), extract)
    return figures


if __name__ == "__main__":
    main()
