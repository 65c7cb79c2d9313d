"""What tiling would do and cost, before it is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathgen.progress import counted
from pathgen.session.shown import Shown, html_table, joined
from pathgen.session.tiles import Slides, Tiles, tile
from pathgen.tiling.forecast import minutes

if TYPE_CHECKING:
    import pandas


class TilingPlan(Shown):
    """A call of `tile` that was only planned; `run` makes it."""

    def __init__(self, slides: Slides, out: Path, options: dict[str, Any], report: Tiles) -> None:
        self.slides, self.out, self.options, self.report = slides, out, options, report

    @property
    def line(self) -> str:
        """``113 done · 12 to do · 3 failed · 8,200 patches · about 412.0 MB, 26 minutes``."""
        counts, cost = self.report.counts, self.report.forecast
        kept = self.report.kept
        said = [f"{kept:,} done"] if kept else []
        said.append(f"{counts['done'] + counts['empty'] - kept:,} to do")
        said += [f"{counts['failed']:,} failed"] if counts["failed"] else []
        said.append(counted(counts["patches"], "patch", "patches"))
        if cost is not None:
            said.append(f"about {max(cost.bytes / 1e6, 0.1):,.1f} MB, {minutes(cost.seconds)}")
        return joined(said)

    def html(self) -> str:
        columns = self.report.plan_columns
        rows = [[getattr(row, name) for name in columns] for row in self.report.rows]
        return html_table(columns, rows)

    def table(self) -> pandas.DataFrame:
        """One row a slide, as `Tiles.table`, with the patches it would have before the filters."""
        return self.report.table()

    def run(self, workers: int | None = None) -> Tiles:
        """Tile; errors as `tile`."""
        return tile(self.slides, self.out, workers=workers, **self.options)


def plan_tiles(
    slides: Slides, out: str | Path, *, workers: int | None = None, **options: Any
) -> TilingPlan:
    """Find tissue, count patches and cut a few for a forecast; no patch is written.

    Args:
        options: as of `tile`.

    Raises:
        NoInputError, ConfigError, StorageError: as `tile`.
    """
    report = tile(slides, out, workers=workers, plan=True, **options)
    return TilingPlan(slides, Path(out), options, report)
