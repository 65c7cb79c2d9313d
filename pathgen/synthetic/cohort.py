"""One slide, or a cohort of slides with labels, patients and truth."""

from __future__ import annotations

import csv
import io
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from pathgen import commit
from pathgen.config import Config, build
from pathgen.errors import ConfigError, DataError, StorageError
from pathgen.progress import Progress, Silent
from pathgen.synthetic.optics import Renderer
from pathgen.synthetic.spec import SlideSpec, Style
from pathgen.synthetic.tissue import draw_scene
from pathgen.synthetic.truth import SlideTruth, read_facts, truth_folder
from pathgen.synthetic.writer import write_svs

ARTIFACTS = ("pen", "blur", "fat", "folds")


class CohortConfig(Config):
    """What the slides of a cohort have in common, and how often each artifact occurs.

    `pen`, `blur`, `fat` and `folds` are rates 0..1 per slide; `n_empty` blank slides come on top
    of the n labeled ones; `second_slide` is the share of patients who own two slides.
    """

    width: int = 3072
    height: int = 3072
    mpp: float = 0.5
    objective: float = 20.0
    style: Style | Literal["mixed"] = "resection"
    tissue_share: float = 0.5
    tile: int = 256
    levels: tuple[int, ...] = (1, 4, 16)
    grades: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    pen: float = Field(default=0.15, ge=0, le=1)
    blur: float = Field(default=0.15, ge=0, le=1)
    fat: float = Field(default=0.3, ge=0, le=1)
    folds: float = Field(default=0.15, ge=0, le=1)
    n_empty: int = Field(default=0, ge=0)
    second_slide: float = Field(default=0.25, ge=0, le=1)
    stain_variation: float = Field(default=1.0, ge=0, le=2)
    scanner_variation: float = Field(default=1.0, ge=0, le=2)

    @field_validator("grades")
    @classmethod
    def _known(cls, grades: tuple[int, ...]) -> tuple[int, ...]:
        if not grades or any(not 0 <= grade <= 5 for grade in grades):
            raise ValueError("grades are numbers from 0 to 5")
        return grades


def make_slide(path: Path, spec: SlideSpec) -> SlideTruth:
    """Write one slide to `path` and its truth beside it, in ``truth/<stem>/``.

    The same spec gives the same bytes. Raises ConfigError (PG-C01) where the grade does not fit
    the area, StorageError where the folder cannot be written.
    """
    path = Path(path)
    commit.writable_folder(path.parent)
    renderer = Renderer(draw_scene(spec))
    truth = SlideTruth.of(renderer)
    with commit.draft(path) as draft:
        write_svs(draft, renderer)
        # The slide's own name comes last: where it stands, its truth is there too.
        truth.save(path, draft.stat().st_size)
    return truth


def make_slides(
    out: Path,
    n: int = 12,
    seed: int = 0,
    config: CohortConfig | None = None,
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Write `n` slides into `out`, with labels.csv (slide, label, patient) and truth/.

    Slides already there with the same spec are kept. Grades are as even as n allows; blank
    slides have no label. Raises StorageError (PG-O02) for a slide of the same name made
    otherwise, unless `overwrite`. Returns `out`.
    """
    out, config, progress = Path(out), config or CohortConfig(), progress or Silent()
    if n < 1:
        raise ConfigError("a cohort has at least one slide", where=f"n={n}")
    commit.writable_folder(out)
    commit.sweep(out)
    plan = plan_cohort(n, seed, config)
    missing = {
        name: spec for name, spec in plan.items() if overwrite or not _is_there(out, name, spec)
    }
    with progress.task("slides", total=len(plan), done=len(plan) - len(missing)) as task:
        if workers <= 1:
            for name, spec in missing.items():
                make_slide(out / f"{name}.svs", spec)
                task.advance(note=name)
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                jobs: dict[Future[int], str] = {
                    pool.submit(_make, out / f"{name}.svs", spec): name
                    for name, spec in missing.items()
                }
                try:
                    for job in as_completed(jobs):
                        job.result()
                        task.advance(note=jobs[job])
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    commit.write_text(out / "labels.csv", _labels(plan))
    return out


def plan_cohort(n: int, seed: int, config: CohortConfig) -> dict[str, SlideSpec]:
    """Spec by slide name, in order. Grade, stain and artifacts are drawn apart from each other."""
    rng = np.random.default_rng([seed, 1])
    grades = rng.permutation(np.resize(rng.permutation(config.grades), n))
    names = _names(n, config.second_slide, np.random.default_rng([seed, 2]))
    seeds = np.random.default_rng([seed, 3]).integers(0, 2**31, n + config.n_empty)
    chance = np.random.default_rng([seed, 4])
    plan = {}
    for i, name in enumerate(names):
        rates = zip(ARTIFACTS, chance.random(4), strict=True)
        artifacts = {which: bool(draw < getattr(config, which)) for which, draw in rates}
        style, quality = chance.random(), int(chance.integers(75, 93))
        plan[name] = _spec(config, int(seeds[i]), style, quality, int(grades[i]), artifacts)
    for i in range(config.n_empty):
        artifacts = {"empty": True, "pen": bool(chance.random() < config.pen)}
        name = f"blank-{i + 1:03}"
        plan[name] = _spec(config, int(seeds[n + i]), chance.random(), 85, None, artifacts)
    return plan


def _spec(
    config: CohortConfig,
    seed: int,
    style: float,
    quality: int,
    grade: int | None,
    artifacts: dict[str, bool],
) -> SlideSpec:
    shared = set(CohortConfig.model_fields) & set(SlideSpec.model_fields) - set(ARTIFACTS)
    values: dict[str, Any] = {name: getattr(config, name) for name in shared}
    values |= artifacts
    if config.style == "mixed":
        values["style"] = "biopsy" if style < 0.5 else "resection"
    return build(SlideSpec, {**values, "grade": grade, "seed": seed, "jpeg_quality": quality})


def _names(n: int, second_slide: float, rng: np.random.Generator) -> list[str]:
    """``case-001-a``, ... ; the part before the last dash is the patient."""
    names: list[str] = []
    patient = 0
    while len(names) < n:
        patient += 1
        slides = "ab" if rng.random() < second_slide else "a"
        names += [f"case-{patient:03}-{letter}" for letter in slides]
    return names[:n]


def _labels(plan: dict[str, SlideSpec]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "label", "patient"])
    writer.writerows(
        (name, spec.grade, name.rpartition("-")[0]) for name, spec in plan.items() if not spec.empty
    )
    return text.getvalue()


def _is_there(out: Path, name: str, spec: SlideSpec) -> bool:
    """The slide stands whole with this spec. A damaged one is made again; another one is not."""
    slide = out / f"{name}.svs"
    if not slide.exists():
        return False
    try:
        facts = read_facts(truth_folder(slide))
    except DataError:
        facts = {}
    if facts.get("spec") == spec.model_dump(mode="json"):
        return bool(facts["slide_bytes"] == slide.stat().st_size)
    raise StorageError(
        "another slide has this name", code="PG-O02", where=slide,
        why="it was made with other settings, or not by pathgen",
        hint="choose another --out, or --overwrite",
    )  # fmt: skip


def _make(path: Path, spec: SlideSpec) -> int:
    return make_slide(path, spec).grade
