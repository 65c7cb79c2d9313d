"""`pathgen pretrain --dry-run`: two real steps of every stage, and nothing left of them.

The networks have the recipe's sizes and the patches are the user's; only the batches are small
(`BATCH`), the training is two steps long, no checkpoint is written, and the folder it all happens
in is temporary. What does not fit, or does not fit together, shows here rather than after a night.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pathgen.config import merge
from pathgen.data.sources import Images, PatchSource, Rows, open_sources
from pathgen.errors import NoInputError, Stopped
from pathgen.plan import StagePlan, plan_pretrain
from pathgen.pretraining import STAGES, Flow, PretrainConfig, check_stages, resolve
from pathgen.progress import Progress, Silent
from pathgen.runs import Run, Stateful

STEPS = 2
#: Images a step, and patches in all where a blend needs no third.
BATCH = 2


@dataclass(frozen=True)
class Rehearsed:
    """One stage: what two steps took here, and what the whole of it would cost."""

    plan: StagePlan
    seconds: float
    """of the second step, 0 where there is none; of drawing, with its share of decoding and
    embedding"""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self.plan), "seconds_per_step_here": self.seconds, "batch_here": BATCH}


def rehearse(
    inputs: str | Path | Sequence[str | Path],
    recipe: str | Path = "tiny",
    *,
    stages: Sequence[str] = STAGES,
    progress: Progress | None = None,
    **choices: Any,
) -> list[Rehearsed]:
    """Two steps of each of `stages`, and of those before them, in a folder that is removed.

    Args:
        inputs, recipe: as for `pathgen.pretrain`; the same errors are raised, and whatever two
            steps of the training raise.
        choices: what `pathgen.pretraining.resolve` takes besides.
    """
    check_stages(stages)
    config = resolve(recipe, **choices)
    paths = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    sources = open_sources([Path(path) for path in paths])
    wanted = [stage for stage in STAGES if stage in stages and stage not in config.given]
    plans = plan_pretrain(config, sum(map(len, sources)), wanted)
    watch = _Watch(progress or Silent())
    last = max(STAGES.index(stage) for stage in wanted) if wanted else -1
    with TemporaryDirectory(prefix="pathgen-dry-run-") as folder:
        flow = _Rehearsal(Path(folder), two_steps(config), sources, True, watch)
        try:
            for stage in STAGES[: last + 1]:
                if stage not in config.given:
                    watch.say(f"{stage}: {STEPS} steps of {BATCH} images")
                    flow.do(stage)
        except Stopped:  # by a signal; there is nothing to go on from
            raise KeyboardInterrupt from None
    # A batch is drawn as a whole; a pretrained autoencoder takes no step at all.
    return [
        Rehearsed(
            plan, watch.seconds.get(plan.stage, 0.0) / (STEPS if plan.stage == "augment" else 1)
        )
        for plan in plans
    ]


def two_steps(config: PretrainConfig) -> PretrainConfig:
    """The same networks, losses and options; `STEPS` steps of `BATCH` images."""
    run = {"workers": 0, "accumulate": 1, "pictures_every": 0, "log_every": 1}
    optim = {"steps": STEPS, "batch_size": BATCH, "warmup_steps": 0}
    dino = {"optim": optim, "run": run, "freeze_last_layer_epochs": 0}
    changes: Mapping[str, Any] = {
        "dino": dino,
        "gen_dino": {**dino, "views": {"neighbor_share": 0.0}},  # of a few, none touch
        "autoencoder": {"optim": optim, "run": run, "discriminator_start": 0},
        "ldm": {"optim": optim, "run": run},
        "features": {"batch_size": BATCH, "workers": 0},
        "augment": {
            "steps": STEPS,
            "max_sources": None,
            "batch_size": BATCH,
            "filter": {"min_cosine": None, "min_quantile": None},
            "check": {"images": 0, "pairs": 0},
        },
    }
    return PretrainConfig.model_validate(merge(config.model_dump(), changes))


class _Unsaved(Run):
    """A run without checkpoints: the states of an E-LDM are many GB."""

    def save(self, step: int, *, keep: int = 2, **parts: Stateful) -> Path:
        return self.path


class _Rehearsal(Flow):
    """DINO sees all patches; the stages that embed, encode or draw every patch see a few."""

    runs = _Unsaved
    sheet = False

    def do(self, stage: str) -> None:
        everything, few = self.sources, max(BATCH, self.config.augment.interpolated_sources)
        # Synthetic images from elsewhere are of patches anywhere among all.
        if stage != "dino" and not self.config.from_augment:
            self.sources = [_Few(everything, few)]
        try:
            super().do(stage)
        finally:
            self.sources = everything


class _Few:
    """The first `count` of all patches, as one source."""

    def __init__(self, sources: Sequence[PatchSource], count: int) -> None:
        places = ((source, row) for source in sources for row in range(len(source)))
        self._places = list(islice(places, count))
        if not self._places:
            raise NoInputError("no patches to train on", hint="run `pathgen tile` first")
        self.id, self.name, self.path = "dry-run", "dry-run", self._places[0][0].path

    def __len__(self) -> int:
        return len(self._places)

    def images(self, rows: Rows = slice(None)) -> Images:
        numbers = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows)]
        return [self._image(*self._places[number]) for number in numbers]

    def _image(self, source: PatchSource, row: int) -> NDArray[np.uint8]:
        return source.images([row])[0]


class _Watch:
    """A `Progress` that also takes the time of every step, by the stage's name."""

    def __init__(self, shown: Progress) -> None:
        self.shown = shown
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        self.shown.say(text)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[_Watched]:
        with self.shown.task(title, total, done) as task:
            watched = _Watched(task)
            yield watched
        self.seconds[title] = watched.last()


class _Watched:
    def __init__(self, task: Any) -> None:
        self.inner, self.times = task, [time.perf_counter()]

    def advance(self, count: int = 1, note: str = "") -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.inner.advance(count, note=note)

    def last(self) -> float:
        spans = [after - before for before, after in pairwise(self.times)]
        return spans[-1] if spans else 0.0
