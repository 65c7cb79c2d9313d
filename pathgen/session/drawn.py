"""Regions that a person drew in QuPath or ASAP, made fit to be used."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pathgen import commit
from pathgen.errors import DataError, SlideError
from pathgen.progress import counted
from pathgen.session.shown import Shown, html_table, joined
from pathgen.session.tables import frame
from pathgen.session.untangle import GRAIN, area, simple, tidied, untangled
from pathgen.tiling.annotations import Frame
from pathgen.tiling.contours import moved, whole
from pathgen.tiling.masks import read_annotations
from pathgen.tiling.outlines import Polygon

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROBLEMS = ("class", "what", "what was done")
#: RGB of classes as they come.
COLORS = (
    (200, 0, 0), (150, 200, 150), (0, 90, 200), (230, 150, 0), (130, 0, 160), (0, 150, 150),
)  # fmt: skip


class Repair(NamedTuple):
    """One row of `Drawn.problems`."""

    name: str
    """of the class; empty where that is not known"""
    what: str
    done: str


class Drawn(Shown):
    """Polygons by class, none of which crosses itself.

    Attributes:
        path: the file they are from.
        polygons: class -> polygons, in the pixels of `frame`.
        frame: ``bounds``: counted from the corner of the scanned part, as QuPath shows a slide;
            ``canvas``: level-0 pixels as OpenSlide counts them.
        repairs: what was wrong, and what was done about it.
    """

    def __init__(
        self, path: Path, polygons: Mapping[str, Sequence[Polygon]], frame: Frame,
        repairs: Sequence[Repair],
    ) -> None:  # fmt: skip
        self.path, self.frame = path, frame
        self.polygons = {name: tuple(found) for name, found in polygons.items()}
        self.repairs = tuple(repairs)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.polygons)

    @property
    def line(self) -> str:
        """``12 regions: Tumor 8, Stroma 4 · 3 problems``."""
        total = sum(map(len, self.polygons.values()))
        each = ", ".join(f"{name} {len(found):,}" for name, found in self.polygons.items())
        bad = counted(len(self.repairs), "problem") if self.repairs else "no problems"
        return joined([f"{counted(total, 'region')}: {each}", bad])

    def html(self) -> str:
        return html_table(PROBLEMS, self.repairs) if self.repairs else ""

    def problems(self) -> pandas.DataFrame:
        """One row a problem: class, what, what was done."""
        rows = (dict(zip(PROBLEMS, repair, strict=True)) for repair in self.repairs)
        return frame(rows, PROBLEMS)

    def table(self) -> pandas.DataFrame:
        """One row a region: class, area in square pixels, corners, holes, box."""
        columns = ("class", "area_px2", "corners", "holes", "x", "y", "width", "height")
        return frame(self._rows(), columns)

    def to_geojson(self, path: str | Path) -> Path:
        """Write them for QuPath, one annotation a polygon; returns where it is.

        Positions are those of `frame`. Equal regions give equal bytes.
        """
        path = Path(path)
        commit.write_text(path, self._text())
        return path

    def kept_at(self, path: Path) -> Path:
        """Where a file is that holds just these: their own where nothing had to be repaired."""
        if not self.repairs:
            return self.path
        text = self._text()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            commit.write_text(path, text)
        return path

    def plot(self, ax: Axes | None = None) -> Figure:
        """The outlines, y downwards as on the slide."""
        from pathgen.session.canvas import axes_of

        axes, figure = axes_of(ax)
        for number, (name, found) in enumerate(self.polygons.items()):
            color = [v / 255 for v in COLORS[number % len(COLORS)]]
            for place, polygon in enumerate(found):
                for ring in (polygon.exterior, *polygon.holes):
                    closed = np.concatenate([ring, ring[:1]])
                    axes.plot(*closed.T, color=color, label=None if place else name)
                    place = 1  # of a class, one line is in the legend
        if ax is None:
            axes.set(xlabel="x in level-0 pixels", ylabel="y in level-0 pixels", aspect="equal")
            axes.invert_yaxis()
        axes.legend()
        return figure

    def _rows(self) -> Iterator[dict[str, Any]]:
        for name, found in self.polygons.items():
            for polygon in found:
                rings = (polygon.exterior, *polygon.holes)
                sizes = [abs(area(ring)) for ring in rings]
                low, high = polygon.exterior.min(axis=0), polygon.exterior.max(axis=0)
                yield {
                    "class": name, "area_px2": round(sizes[0] - sum(sizes[1:]), 1),
                    "corners": sum(map(len, rings)), "holes": len(polygon.holes),
                    "x": whole(low[0]), "y": whole(low[1]),
                    "width": whole(high[0] - low[0]), "height": whole(high[1] - low[1]),
                }  # fmt: skip

    def _text(self) -> str:
        features = []
        for number, (name, found) in enumerate(self.polygons.items()):
            color = list(COLORS[number % len(COLORS)])
            for polygon in found:
                rings = [moved([*ring.tolist(), ring[0].tolist()], (0, 0))
                         for ring in (polygon.exterior, *polygon.holes)]  # fmt: skip
                features.append({
                    "type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings},
                    "properties": {
                        "objectType": "annotation",
                        "classification": {"name": name, "color": color},
                    },
                })  # fmt: skip
        return json.dumps({"type": "FeatureCollection", "features": features}) + "\n"


def read_drawn(path: str | Path, classes: Sequence[str] | None = None) -> Drawn:
    """`pathgen.annotations`: regions drawn by hand, as GeoJSON of QuPath or XML of ASAP.

    What is broken is repaired or left out, and said in `Drawn.problems`: a feature that is none, a
    position that is not finite, a ring without an area; repeated corners; a ring that crosses
    itself, which becomes simple ones that cover the same by the even-odd rule.

    Args:
        classes: names as they were given in QuPath; None = all. One that the file does not have is
            among the problems.

    Raises:
        SlideError: PG-M02, the file cannot be understood at all.
        DataError: PG-N06, it has none of the classes, or no region.
    """
    path = Path(path)
    faults: list[SlideError] = []
    found = read_annotations(path, faults)
    repairs = [Repair("", f"{fault.where}: {fault.why}", "left out") for fault in faults]
    if found.left_out:
        what = f"{counted(found.left_out, 'point or line', 'points or lines')} without an area"
        repairs.append(Repair("", what, "left out"))
    wanted = list(dict.fromkeys(classes)) if classes is not None else sorted(found.polygons)
    missing = [name for name in wanted if name not in found.polygons]
    if len(missing) == len(wanted):
        has = ", ".join(f"{name} ({len(there)})" for name, there in found.polygons.items())
        raise DataError(
            "no region of these classes" if classes else "no regions in this file",
            where=path.name, why=f"it has {has or 'none'}",
            hint=_meant(missing, list(found.polygons)) or "check the names in QuPath",
        )  # fmt: skip
    for name in missing:
        hint = _meant([name], list(found.polygons))
        repairs.append(Repair(name, "no region of this class", hint or "nothing to use"))
    polygons: dict[str, list[Polygon]] = {}
    for name in wanted:
        if name in found.polygons:
            good = [part for one in found.polygons[name] for part in _repaired(one, name, repairs)]
            polygons[name] = good
    return Drawn(path, {n: p for n, p in polygons.items() if p}, found.frame, _summed(repairs))


def _meant(missing: Sequence[str], there: Sequence[str]) -> str | None:
    folded = {name.casefold(): name for name in there}
    for name in missing:
        close = difflib.get_close_matches(name.casefold(), folded, n=1)
        if close:
            return f"did you mean {folded[close[0]]!r}?"
    return None


def _repaired(polygon: Polygon, name: str, repairs: list[Repair]) -> list[Polygon]:
    """The polygon with simple rings; none without an area, several of one that crosses itself."""
    rings = []
    for ring in (polygon.exterior, *polygon.holes):
        tidy = tidied(ring)
        closed = len(ring) > 1 and (ring[0] == ring[-1]).all()
        if len(tidy) < len(ring) - bool(closed):
            repairs.append(Repair(name, "a ring with repeated corners", "repeats dropped"))
        rings.append(tidy)
    exterior, holes = rings[0], [ring for ring in rings[1:] if len(ring) >= 3]
    if len(exterior) < 3 or (abs(area(exterior)) <= GRAIN and simple([exterior])):
        repairs.append(Repair(name, "a ring without an area", "left out"))
        return []
    if simple([exterior, *holes]):
        return [Polygon(exterior, tuple(holes))]
    repairs.append(Repair(name, "a ring that crosses itself or a hole", "cut into simple ones"))
    return untangled([exterior, *holes])


def _summed(repairs: Sequence[Repair]) -> list[Repair]:
    """Each kind once, with how often it was."""
    return [
        repair if times == 1 else repair._replace(what=f"{repair.what} ({times:,} times)")
        for repair, times in Counter(repairs).items()
    ]
