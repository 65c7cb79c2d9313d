"""The pieces of a study: each does one thing, is kept when finished, and goes on when it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arms import ARMS, BASELINE, STAGES, StudyConfig, arm_config
from data import slides_of, unlabelled
from numpy.typing import NDArray

from pathgen import commit
from pathgen.data.sources import ImageFolder, open_sources
from pathgen.evaluate.knn import ColorHistogram, knn_predict
from pathgen.evaluate.labelled import load_labelled
from pathgen.evaluate.linear import linear_probe
from pathgen.extract import ExtractConfig, PatchEncoder, extract_features, load_encoder
from pathgen.pretraining import pretrain
from pathgen.progress import Progress
from pathgen.runs import Run
from pathgen.stores.augmentations import SelfAugmentationStore
from pathgen.train.dino import train_dino


@dataclass(frozen=True)
class Piece:
    """One thing to do: a stage that arms share, or an arm. `needs` must be finished before it."""

    set: str
    seed: int
    what: str
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.set}/seed-{self.seed}/{self.what}"

    def marker(self, out: Path) -> Path:
        """The file that says it is finished."""
        folder = out / self.set / f"seed-{self.seed}"
        if self.what.startswith("stage "):
            return folder / "base" / self.what.removeprefix("stage ") / "done.json"
        return folder / self.what / "judged.json"


def pieces(study: StudyConfig) -> list[Piece]:
    """All pieces, in an order in which they can be done one after another.

    Within a seed the sets take turns, so that several jobs find something to do at any time.
    """
    found: list[Piece] = []
    for seed in study.seeds:
        for before, stage in zip((None, *STAGES), STAGES, strict=False):
            for name in study.sets:
                needs = (Piece(name, seed, f"stage {before}").name,) if before else ()
                found.append(Piece(name, seed, f"stage {stage}", needs))
        found += [
            Piece(name, seed, arm, _needs(arm, name, seed))
            for arm in reversed(study.arms)  # those that take longest first
            for name in study.sets
            if seed == seed_of(arm, seed, study)
        ]
    return found


def _needs(arm: str, name: str, seed: int) -> tuple[str, ...]:
    if arm in ("untrained", BASELINE):
        return (Piece(name, seed, "stage dino").name,)
    if ARMS[arm].group == "gen_dino":
        return (Piece(name, seed, f"stage {STAGES[-1]}").name,)
    return ()


def seed_of(arm: str, seed: int, study: StudyConfig) -> int:
    """Whose result stands for an arm at a seed: colors know no chance, so they are judged once."""
    return study.seeds[0] if arm == "color" else seed


@dataclass(frozen=True)
class Place:
    """Where a study reads and writes."""

    data: Path
    out: Path

    def base(self, piece: Piece) -> Path:
        return self.out / piece.set / f"seed-{piece.seed}" / "base"

    def train_on(self, name: str) -> Path:
        """The patches of a set without their classes, once `prepare` has made them."""
        return self.out / name / "unlabelled"

    def prepare(self, study: StudyConfig) -> None:
        """Copy the patches to train on; before the pieces, which share them."""
        for name in study.sets:
            unlabelled(self.data / name / "train", self.train_on(name), study.patches)


def do(piece: Piece, study: StudyConfig, place: Place, progress: Progress) -> None:
    """Do a piece, or go on with it. Raises Stopped when asked to stop, after a checkpoint."""
    if piece.what.startswith("stage "):
        pretrain(
            place.train_on(piece.set), place.base(piece), study.recipe,
            stages=[piece.what.removeprefix("stage ")], overrides=study.settings,
            seed=piece.seed, device=study.device, workers=study.workers, progress=progress,
        )  # fmt: skip
        return
    marker = piece.marker(place.out)
    encoder = encoder_of(piece, study, place, progress)
    commit.write_json(marker, judge(encoder, place.data / piece.set, marker.parent, study))


def encoder_of(piece: Piece, study: StudyConfig, place: Place, progress: Progress) -> PatchEncoder:
    """What an arm is judged by, trained if need be."""
    shared = {"untrained": "dino/initial", BASELINE: "dino"}
    if piece.what == "color":
        return ColorHistogram()
    if piece.what in shared:
        return load_encoder(place.base(piece) / shared[piece.what], device=study.device)
    sources = open_sources([place.train_on(piece.set)])
    synthetic = []
    if ARMS[piece.what].group == "gen_dino":
        folder = place.base(piece) / "augment"
        names = commit.read_json(folder / "done.json")["stores"]
        synthetic = [SelfAugmentationStore.open(folder / name) for name in names]
    config = arm_config(study, piece.what, piece.seed)
    inputs = {f"patches {i}": source.id for i, source in enumerate(sources)}
    inputs |= {f"augmentation {i}": store.id for i, store in enumerate(synthetic)}
    folder = piece.marker(place.out).parent
    run = Run.start(folder / "run", "gen-dino" if synthetic else "dino", config, inputs)
    if not run.finished:
        train_dino(config, sources, run, synthetic, progress=progress)
    return load_encoder(folder / "run", device=study.device)


def judge(encoder: PatchEncoder, data: Path, out: Path, study: StudyConfig) -> dict[str, Any]:
    """k-NN and linear accuracy on the test split, and which test patches were right.

    The penalty of the linear probe is chosen on training patches. Neither looks at test labels.
    """
    splits = {}
    for split in ("train", "test"):
        sources = open_sources([data / split])
        config = ExtractConfig(device=study.device)  # loaders start slower than they read
        extract_features(encoder, sources, out / "features" / split, config)
        splits[split] = load_labelled(out / "features" / split)
    learn, asked = splits["train"], splits["test"]
    probe = linear_probe(learn.x, learn.y, asked.x)
    answers = {
        "knn": knn_predict(learn.x, learn.y, asked.x, k=study.k),
        "linear": probe.predicted,
    }
    right = {name: found == asked.y for name, found in answers.items()}
    return {
        **{name: float(hits.mean()) for name, hits in right.items()},
        "c": probe.c,
        "held_out": {str(c): accuracy for c, accuracy in probe.held_out.items()},
        "converged": probe.converged,
        "right": {name: _bits(hits) for name, hits in right.items()},
        "slides": slides_of(data / "test", ImageFolder(data / "test")),
        "n_train": len(learn),
        "n_test": len(asked),
    }


def _bits(flags: NDArray[np.bool_]) -> str:
    return "".join("01"[flag] for flag in flags.astype(int).tolist())


def bits(rows: Sequence[str]) -> NDArray[np.bool_]:
    """(runs, n) flags from what `judge` keeps of each run."""
    return np.array([[letter == "1" for letter in row] for row in rows])
