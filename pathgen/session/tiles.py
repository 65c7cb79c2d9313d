"""`pathgen.tile` with plain settings, and a result that can be looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields
from functools import cached_property
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pathgen import commit
from pathgen.config import build, merge
from pathgen.errors import ConfigError, PathgenError
from pathgen.progress import Progress, counted
from pathgen.session.cohort import Cohort
from pathgen.session.drawn import Drawn, read_drawn
from pathgen.session.montage import montage
from pathgen.session.shown import html_table, joined
from pathgen.session.slide import Slide
from pathgen.session.tables import frame
from pathgen.session.waiting import AfterAWhile
from pathgen.stores.patches import PatchStore
from pathgen.tiling.batch import tile as tile_slides
from pathgen.tiling.ledger import LedgerRow, TileReport, to_csv
from pathgen.tiling.presets import preset as preset_values
from pathgen.tiling.task import TileConfig

if TYPE_CHECKING:
    import pandas

    from pathgen.tiling.cluster import Machines

Slides = Slide | Cohort | str | Path | Sequence[str | Path]
#: What a cell was dropped for, as people say it.
CAUSES = {
    "dropped_tissue": "little tissue", "dropped_class": "outside", "dropped_stain": "little stain",
    "dropped_quality": "poor quality", "dropped_damaged": "damaged",
}  # fmt: skip
#: Of patches of which no class covers any.
NO_CLASS = "no class"


class Tiles(TileReport):
    """How tiling went, and the patches that came of it."""

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        rows = [[row.slide, row.state, row.patches, row.message] for row in self.rows]
        table = html_table(("slide", "state", "patches", "message"), rows)
        return f"<p>{escape(self.summary())}</p>{table}"

    def summary(self) -> str:
        """``1,842 patches of 1 slide: Tumor 1,203 · Stroma 639 · dropped 77 (outside 77)``.

        A patch is of the class that covers most of it. Slides without patches are named.
        """
        counts = self.counts
        total = counted(counts["patches"], "patch", "patches")
        head = f"{total} of {counted(counts['slides'], 'slide')}"
        classes = [f"{name} {n:,}" for name, n in self.classes.items()]
        dropped = {cause: counts[name] for name, cause in CAUSES.items() if counts[name]}
        why = ", ".join(f"{cause} {n:,}" for cause, n in dropped.items())
        lost = f"dropped {sum(dropped.values()):,} ({why})" if dropped else ""
        bad = [f"{row.slide} {row.state}: {row.message}" for row in (*self.failed, *self.empty)]
        more = f"and {len(bad) - 3:,} more without patches" if len(bad) > 3 else ""
        parts = joined([*classes, lost, *bad[:3], more])
        return f"{head}: {parts}" if parts else head

    @cached_property
    def classes(self) -> dict[str, int]:
        """Patches by the class that covers most of each; empty without regions."""
        found: Counter[str] = Counter()
        for path in self.stores:
            with PatchStore.open(path) as store:
                names = store.class_names
                if not names or not len(store):
                    continue
                shares = store.class_shares()
                for number, covered in zip(shares.argmax(1), shares.max(1), strict=True):
                    found[names[number] if covered > 0 else NO_CLASS] += 1
        return dict(found.most_common())

    def montage(self, n: int = 64, side: int = 128, seed: int = 0) -> Image.Image:
        """Up to `n` patches drawn at random from all slides, each `side` pixels wide and high."""
        rng = np.random.default_rng(seed)
        sizes = [row.patches for row in self.rows if row.store]
        total = sum(sizes)
        chosen = np.sort(rng.choice(total, min(n, total), replace=False))
        patches: list[Any] = []
        for path, size, end in zip(self.stores, sizes, np.cumsum(sizes), strict=True):
            rows = chosen[(chosen >= end - size) & (chosen < end)] - (end - size)
            if len(rows):
                with PatchStore.open(path) as store:
                    patches += list(store.images(rows))
        return montage(patches, side)

    def table(self) -> pandas.DataFrame:
        """The ledger: one row a slide, indexed by its id."""
        names = [item.name for item in fields(LedgerRow)]
        return frame(map(asdict, self.rows), names, index="slide")

    def to_csv(self, path: str | Path) -> Path:
        """Write the ledger as CSV, as in ``slides.csv`` of the output; returns where it is."""
        path = Path(path)
        commit.write_text(path, to_csv(self.rows))
        return path


def tile(
    slides: Slides,
    out: str | Path,
    config: TileConfig | None = None,
    *,
    mpp: float | None = None,
    size: int | None = None,
    within: Drawn | str | Path | None = None,
    min_overlap: float = 0.5,
    preset: str | None = None,
    masks: str | Path | None = None,
    workers: int | None = None,
    machines: Machines | None = None,
    slide_timeout: float | None = None,
    overwrite: bool = False,
    plan: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Tiles:
    """Cut slides into stain-filtered patches at an exact scale, one store a slide.

    Called again it goes on where it was stopped, and leaves finished stores as they are. All but
    what is said here is as in `pathgen.tiling.tile`.

    Args:
        slides: a `Slide`, a `Cohort`, or paths.
        config: settings as one object; the plain ones here win over it.
        mpp: microns per pixel of the patches.
        size: pixels a side.
        within: regions of one slide, as `pathgen.annotations` gives them, or the file: patches
            outside are dropped, and the share of each class in each patch is stored.
        min_overlap: least share of a patch that one of these classes covers, above 0.
        preset: ``resection``, ``biopsy``, ``tma`` or ``cytology``; `config` and the plain settings
            win over it.
        progress: default: shown on stderr once it takes more than two seconds.
        settings: fields of `TileConfig`, and `mag`, `patch_um` and `step` as in commands.

    Raises:
        ConfigError: PG-C01, no such setting, a wrong value, or `within` for several slides.
        DataError: PG-N06, `within` has no region. Others as `pathgen.tiling.tile`.
    """
    out = Path(out)
    given: dict[str, Any] = {"mpp": mpp, "patch_size": size}
    if isinstance(slides, Slide | Cohort):
        given["slide_mpp"] = slides.slide_mpp
    given = {name: value for name, value in given.items() if value is not None} | settings
    with ExitStack() as stack:
        if within is not None:
            if masks is not None:
                raise ConfigError("regions are given twice", where="within, masks", hint="give one")
            drawn = within if isinstance(within, Drawn) else read_drawn(within)
            given = merge({"masks": _limits(drawn, min_overlap)}, given)
            masks = stack.enter_context(_file_of(drawn, out, plan))
        report = tile_slides(
            _paths(slides), out, _config(config, preset, given), masks=masks, workers=workers,
            machines=machines, slide_timeout=slide_timeout, overwrite=overwrite, plan=plan,
            progress=progress or AfterAWhile(),
        )  # fmt: skip
    return Tiles(**_plain(report))


@contextmanager
def _file_of(drawn: Drawn, out: Path, plan: bool) -> Iterator[Path]:
    """A file of just these regions, in `out` where they had to be repaired.

    A plan, and a call that is refused, leave nothing there.
    """
    name = f"{drawn.path.name.split('.')[0]}.geojson"
    if plan:
        with TemporaryDirectory() as folder:
            yield drawn.kept_at(Path(folder) / name)
        return
    path = out / "annotations" / name
    before = path.exists()
    try:
        yield drawn.kept_at(path)
    except PathgenError:
        if not before and path.exists():
            commit.discard(path)
            with suppress(OSError):  # there is more in them
                path.parent.rmdir()
                out.rmdir()
        raise


def _plain(report: TileReport) -> dict[str, Any]:
    return {item.name: getattr(report, item.name) for item in fields(report)}


def _config(config: TileConfig | None, preset: str | None, given: Mapping[str, Any]) -> TileConfig:
    values = preset_values(preset) if preset else {}
    if config is not None:
        if not values and not given:
            return config
        values = merge(values, config.model_dump(exclude_unset=True))
    if "mag" in given:
        values.pop("mpp", None)
    return build(TileConfig, merge(values, given))


def _limits(drawn: Drawn, min_overlap: float) -> dict[str, Any]:
    if not 0 < min_overlap <= 1:
        raise ConfigError(
            "a share is above 0 and at most 1", where=f"min_overlap={min_overlap}",
        )  # fmt: skip
    return {
        "use": "classes", "frame": drawn.frame,
        "classes": {name: (name,) for name in drawn.classes},
        "min_class": dict.fromkeys(drawn.classes, min_overlap),
    }  # fmt: skip


def _paths(slides: Slides) -> str | Path | Sequence[str | Path]:
    if isinstance(slides, Cohort):
        return slides.given
    if isinstance(slides, Slide):
        if slides.rescaled:
            raise ConfigError(
                "tiling goes by the scale in the file", where=slides.name,
                why="another one was given when it was opened",
                hint="tile a CSV with the columns slide and mpp, which wins over the file's",
            )  # fmt: skip
        return str(slides.path) if not isinstance(slides.path, Path) else slides.path
    return slides
