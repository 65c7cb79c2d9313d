"""`pathgen demo`: the main job on slides made here, from nothing to a report.

It calls what the commands call, and writes the same steps as commands into commands.json, so
that the report can say how to do each of them by hand.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from pathgen import commit
from pathgen.progress import Progress, Silent

SLIDES = 24
COHORT = ("width=2560", "height=2560", "grades=[0,2,5]")
TILE = ("patch_size=128", "mpp=0.75")
#: Less of what takes longest, so that two slow cores are done in minutes.
PRETRAIN = (
    "dino.optim.steps=240", "autoencoder.optim.steps=1000", "ldm.optim.steps=300",
    "ldm.optim.batch_size=10", "augment.max_sources=160",
)  # fmt: skip


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Slides -> tiles -> all stages -> features -> k-NN and MIL -> report.html; its path.

    Every step keeps what is finished, so that a second call goes on where the first stopped.
    """
    progress = progress or Silent()
    folder = commit.writable_folder(out)
    steps = _Steps(folder, seed, device, workers, progress)
    steps.slides()
    steps.tiles()
    steps.pretrain()
    steps.features()
    steps.knn()
    steps.mil()
    return steps.report()


class _Steps:
    def __init__(self, out: Path, seed: int, device: str, workers: int, progress: Progress) -> None:
        self.out, self.seed, self.device, self.workers = out, seed, device, workers
        self.progress = progress
        self.run = out / "runs" / "tiny"
        self.encoders = {
            "untrained": self.run / "dino" / "initial",
            "DINO": self.run / "dino",
            "Gen-DINO": self.run / "gen-dino",
        }

    def slides(self) -> None:
        from pathgen.config import load_config
        from pathgen.synthetic import CohortConfig, make_slides

        config = load_config(CohortConfig, overrides=COHORT)
        make_slides(
            self.out / "slides",
            SLIDES,
            self.seed,
            config,
            workers=self.workers,
            progress=self.progress,
        )

    def tiles(self) -> None:
        from pathgen.config import load_config
        from pathgen.tiling import TileConfig, tile

        config = load_config(TileConfig, overrides=TILE)
        tile(
            [self.out / "slides"],
            self.out / "tiles",
            config,
            workers=self.workers,
            progress=self.progress,
        )

    def pretrain(self) -> None:
        from pathgen.pretraining import pretrain

        pretrain(
            self.out / "tiles",
            self.run,
            "tiny",
            overrides=PRETRAIN,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )

    def features(self) -> None:
        from pathgen.data.sources import open_sources
        from pathgen.extract import ExtractConfig, extract_features, load_encoder

        sources = open_sources([self.out / "tiles"])
        for name, place in self.encoders.items():
            extract_features(
                load_encoder(place, device=self.device),
                sources,
                self.out / "features" / _file_name(name),
                ExtractConfig(device=self.device),
                progress=self.progress,
            )

    def knn(self) -> None:
        from pathgen.evaluate.knn import evaluate_knn

        labels = self._patch_labels()
        for name in self.encoders:
            values = evaluate_knn(
                [self.out / "features" / _file_name(name)],
                None,
                labels=labels,
                seed=self.seed,
                title=name,
            )
            commit.write_json(
                commit.writable_folder(self.out / "evaluation") / f"knn-{_file_name(name)}.json",
                values,
            )

    def mil(self) -> None:
        from pathgen.evaluate.mil import train_mil
        from pathgen.train.mil import MILTrainConfig

        train_mil(
            [self.out / "features" / "gen-dino"],
            self.out / "slides" / "labels.csv",
            self.out / "mil",
            MILTrainConfig(device=self.device),
            folds=3,
            seed=self.seed,
            progress=self.progress,
        )

    def report(self) -> Path:
        from pathgen.report import write_report

        commit.write_json(self.out / "commands.json", self._commands())
        return write_report(self.out, progress=self.progress)

    def _patch_labels(self) -> Path:
        """What kind of tissue each patch shows, read off the truth beside the slides."""
        from pathgen.stores import find_stores
        from pathgen.stores.patches import PatchStore
        from pathgen.synthetic import SlideTruth

        rows: list[Sequence[object]] = []
        for path in find_stores(self.out / "tiles", kind="patches"):
            with PatchStore.open(path) as store:
                truth = SlideTruth.load(self.out / "slides" / f"{store.name}.svs")
                coords = store.coords()
                side = store.attrs["patch_size_level0"]
                for (x, y), label in zip(coords, truth.patch_labels(coords, side), strict=True):
                    if label >= 0:
                        rows.append((store.name, int(x), int(y), truth.class_names[label]))
        target = self.out / "slides" / "patch_labels.csv"
        with commit.draft(target) as temporary, temporary.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["slide", "x", "y", "label"])
            writer.writerows(rows)
        return target

    def _commands(self) -> list[dict[str, str]]:
        cohort, stages = (
            " ".join(f"--set {setting}" for setting in settings) for settings in (COHORT, PRETRAIN)
        )
        tile = " ".join(
            f"--{key.replace('_', '-')} {value}"
            for key, value in (setting.split("=") for setting in TILE)
        )
        steps = [
            ("Draw the slides", f"demo-slides -o slides/ -n {SLIDES} --seed {self.seed} {cohort}"),
            ("Tile them", f"tile slides/ -o tiles/ {tile}"),
            (
                "Pretrain",
                f"pretrain tiles/ -o runs/tiny --recipe tiny --seed {self.seed} {stages}",
            ),
        ]
        for name, place in self.encoders.items():
            inside = place.relative_to(self.out)
            features = f"features/{_file_name(name)}"
            steps.append(
                (f"Features: {name}", f"extract-features tiles/ --encoder {inside} -o {features}")
            )
            steps.append(
                (
                    f"k-NN: {name}",
                    f"evaluate knn {features} --labels slides/patch_labels.csv --seed {self.seed} "
                    f"--title {name} -o evaluation/knn-{_file_name(name)}.json",
                )
            )
        steps += [
            (
                "Slide classifier",
                "train-mil features/gen-dino --labels slides/labels.csv -o mil/ --folds 3 "
                f"--seed {self.seed}",
            ),
            ("This page", "report ."),
        ]
        return [{"title": title, "command": f"pathgen {text}"} for title, text in steps]


def _file_name(name: str) -> str:
    return name.lower()
