"""Gen-SIS on a folder of labelled patches: does training help, and what does it cost?

    python benchmarks/pretrain_patches.py TRAIN TEST --recipe tiny --seeds 0 1 2 -o runs/study

TRAIN and TEST are image folders with one folder a class; the labels are used for judging alone.
For each seed: `pathgen pretrain` on TRAIN, then k-NN (k = 20, cosine) on TEST with the untrained
encoder, DINO's and Gen-DINO's, and once with a color histogram. Prints a Markdown table and
keeps every number in study.json. What is finished is kept, so a broken-off study goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from pathgen import commit, pretrain
from pathgen.data.sources import open_sources
from pathgen.evaluate.knn import ColorHistogram, evaluate_knn
from pathgen.extract import ExtractConfig, extract_features, load_encoder
from pathgen.progress import Progress, for_people

ENCODERS = {"untrained": "dino/initial", "DINO": "dino", "Gen-DINO": "gen-dino"}
TRAINED = ("dino", "autoencoder", "ldm", "gen-dino")


def knn(encoder: Any, name: str, arguments: argparse.Namespace, out: Path) -> float:
    """Test accuracy of an encoder's neighbors among the train patches."""
    places = {}
    for split in ("train", "test"):
        places[split] = out / name / split
        sources = open_sources([getattr(arguments, split)])
        extract_features(encoder, sources, places[split], ExtractConfig(workers=0))
    return float(evaluate_knn(places["train"], places["test"])["accuracy"])


def one_seed(seed: int, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    out = arguments.out / f"seed-{seed}"
    done = out / "result.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    start = time.perf_counter()
    run = pretrain(
        arguments.train, out / "run", arguments.recipe, seed=seed, overrides=arguments.set,
        device=arguments.device, progress=progress,
    ).out  # fmt: skip
    result: dict[str, Any] = {"seed": seed, "minutes": (time.perf_counter() - start) / 60}
    for name, place in ENCODERS.items():
        encoder = load_encoder(run / place, device=arguments.device)
        result[name] = knn(encoder, name, arguments, out / "features")
    for stage in TRAINED:
        metrics = json.loads((run / stage / "metrics.json").read_text())
        result[f"{stage} loss"] = [metrics["loss_first"], metrics["loss_last"]]
    commit.write_json(done, result)
    return result


def show(results: list[dict[str, Any]], color: float) -> None:
    print(f"\ncolor histogram: {color:.3f}\n")
    losses = [f"{stage} loss" for stage in TRAINED]
    print("| seed | " + " | ".join([*ENCODERS, *losses]) + " | minutes |")
    print("|---" * (len(ENCODERS) + len(losses) + 2) + "|")
    for result in results:
        cells = [f"{result[name]:.3f}" for name in ENCODERS]
        cells += ["{:.3f} to {:.3f}".format(*result[name]) for name in losses]
        print(f"| {result['seed']} | " + " | ".join(cells) + f" | {result['minutes']:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    color = knn(ColorHistogram(), "color", arguments, arguments.out)
    results = [one_seed(seed, arguments, for_people()) for seed in arguments.seeds]
    commit.write_json(arguments.out / "study.json", {"color": color, "seeds": results})
    show(results, color)


if __name__ == "__main__":
    main()
