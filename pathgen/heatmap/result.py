"""One slide's heatmap: the numbers per patch, and every form they are given in."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen import commit
from pathgen.errors import ConfigError
from pathgen.heatmap import colors
from pathgen.heatmap.answer import Answer, Spread, Voices
from pathgen.heatmap.drawing import Legend, Panel, compose
from pathgen.heatmap.pixels import NoPixels, Pixels
from pathgen.heatmap.place import Place
from pathgen.heatmap.raster import Raster, rasterize
from pathgen.heatmap.settings import HeatmapConfig

ATTENTION = "attention"
CAVEAT = "Attention shows what the head weighed, not where tumor is. For research, not diagnosis."
#: What evidence is counted in, by target.
UNITS = {
    "classes": "in logits", "ordinal": "in logits", "survival": "in log hazard",
    "regression": "in units of the value",
}  # fmt: skip
#: Pixels of a map that are colored at a time.
BAND = 2**22


@dataclass(frozen=True, eq=False)
class Heatmap:
    """What heads said of a slide, patch by patch. Positions are level-0 pixels.

    attention: (n,) float32, sums to one.
    evidence: (n, k) float32, what each patch adds to the score of each of `outputs`, see
    `answer.Evidence`; None where the head does not tell it.
    """

    slide: str
    source: str
    """id of the patches"""
    place: Place
    attention: NDArray[np.float32]
    evidence: NDArray[np.float32] | None
    outputs: tuple[str, ...]
    answer: Answer
    voices: Voices
    pixels: Pixels = field(default_factory=NoPixels)
    config: HeatmapConfig = field(default_factory=HeatmapConfig)
    notes: tuple[str, ...] = ()
    _tissues: dict[float, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.attention)

    def __repr__(self) -> str:
        return f"Heatmap({self.slide!r}, {len(self):,} patches, {self.answer.sentence()})"

    @cached_property
    def percentile(self) -> NDArray[np.float64]:
        """Attention as its rank within the slide, 0..100, (n,)."""
        return colors.percentiles(self.attention)

    @cached_property
    def spread(self) -> Spread:
        return Spread.of(self.attention)

    @property
    def maps(self) -> tuple[str, ...]:
        """What can be drawn: attention, and a name an evidence map."""
        return (ATTENTION, *(self.outputs if self.evidence is not None else ()))

    def top(self, count: int) -> NDArray[np.int64]:
        """Rows of the patches that weigh most, the first first; ties in the order of patches."""
        return np.argsort(-self.attention, kind="stable")[:count]

    def bottom(self, count: int) -> NDArray[np.int64]:
        """Rows of the patches that weigh least, the least first."""
        return np.argsort(self.attention, kind="stable")[:count]

    def measurements(self) -> dict[str, NDArray[np.floating]]:
        """Name -> (n,): attention (raw), attention percentile, evidence of each output."""
        found: dict[str, NDArray[np.floating]] = {
            "attention": self.attention, "attention percentile": self.percentile,
        }  # fmt: skip
        if self.evidence is not None:
            found |= {f"evidence: {n}": self.evidence[:, i] for i, n in enumerate(self.outputs)}
        return found

    # --- pictures ------------------------------------------------------------------------

    def save(self, path: Path | str, what: str = ATTENTION) -> Path:
        """A PNG of a map beside the tissue; `what` is one of `maps`.

        Raises:
            ConfigError: PG-C01, no such map.
        """
        path = Path(path)
        picture, _ = self.picture(what)
        with commit.draft(path) as draft:
            picture.save(draft, "PNG")
        return path

    def picture(self, what: str = ATTENTION) -> tuple[Image.Image, Panel]:
        """The picture, and where in it the map lies."""
        legend = self.legend(what)
        scale = self._fitting(self.config.longest)
        tissue = self.tissue(scale)
        title = "attention" if what == ATTENTION else f"evidence: {what}"
        below = f"tissue, from {self.pixels.kind}"
        return compose(
            tissue, self.overlay(what, scale, tissue), (below, f"{title} over the tissue"),
            (self.slide, f"{self.answer.sentence()} · {self.voices.sentence()}", *self.notes),
            legend, self.place.frame[:2], scale,
            None if self.place.mpp is None else self.place.mpp[0],  # the bar lies along x
        )  # fmt: skip

    def tissue(self, scale: float) -> NDArray[np.uint8]:
        """RGB of ``place.frame``, without a map; the last one is kept, as several maps share it."""
        if scale not in self._tissues:
            self._tissues.clear()
            self._tissues[scale] = self.pixels.overview(self.place, scale)
        return self._tissues[scale]

    def overlay(
        self, what: str, scale: float, tissue: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """RGB of ``place.frame`` at `scale` level-0 pixels per pixel: colors over gray tissue."""
        kind, values = self._shown(what)
        if tissue is None:
            tissue = self.tissue(scale)
        out = np.empty_like(tissue)
        height, width = tissue.shape[:2]
        rows = max(1, BAND // width)
        for top in range(0, height, rows):
            part = tissue[top : top + rows]
            raster = self._band(values, top, len(part), width, scale)
            shown = raster.values[0]
            opacity = raster.share * self.config.opacity
            if kind == "evidence":  # where nothing speaks for or against, tissue shows
                strength = np.minimum(np.abs(np.nan_to_num(shown, nan=0.5) - 0.5) * 2, 1)
                opacity = opacity * (0.25 + 0.75 * strength)
            out[top : top + rows] = colors.blended(
                colors.faded(part), colors.colored(shown, kind), opacity
            )
        return out

    def _band(
        self, values: NDArray[np.floating], top: int, rows: int, width: int, scale: float
    ) -> Raster:
        """Some rows of the map, from the patches that reach into them."""
        x, y, _, _ = self.place.frame
        frame = (x, y + top * scale, width * scale, rows * scale)
        reach = self.place.coords[:, 1]
        near = (reach < frame[1] + frame[3]) & (reach + self.place.side[1] > frame[1])
        return rasterize(values[near], self.place.coords[near], self.place.side, frame, scale)

    def _shown(self, what: str) -> tuple[colors.Kind, NDArray[np.float64]]:
        """Values (n,) in 0..1 as they are colored."""
        if what == ATTENTION:
            ranked = self.config.attention == "percentile"
            return "attention", self.percentile / 100 if ranked else colors.between(self.attention)
        if what not in self.maps or self.evidence is None:
            raise ConfigError(
                "no such map", where=what, why=f"there are: {', '.join(self.maps)}",
                hint="choose one of these",
            )  # fmt: skip
        column = self.evidence[:, self.outputs.index(what)]
        return "evidence", colors.balanced(column, self.evidence_limit)

    @cached_property
    def evidence_limit(self) -> float:
        """Where the colors of all evidence maps end, in logits."""
        return 1.0 if self.evidence is None else colors.limit_of(self.evidence)

    def legend(self, what: str) -> Legend:
        """How the colors of a map are to be read."""
        if what == ATTENTION:
            return self._attention_legend()
        limit = f"{self.evidence_limit:.3g}"
        many = len(self.outputs) > 1
        return Legend(
            "evidence", ((0, f"against, -{limit}"), (0.5, "0"), (1, f"for, +{limit}")),
            f"evidence for {what}, {UNITS[self.answer.target]}",
            ("What each patch adds to the score of this slide"
             + (", beyond what it adds to the mean class" if many else "")
             + ". The colors end where one patch in a hundred goes beyond"
             + (", in all maps of this slide alike." if many else "."),),
            f"Evidence shows what the head counted for or against {what}, not an outline of it. "
            "For research, not diagnosis.",
        )  # fmt: skip

    def _attention_legend(self) -> Legend:
        if self.config.attention == "percentile":
            title = "attention, as percentile within this slide"
            ticks = ((0, "0, lowest"), (0.5, "50"), (1, "100, highest"))
        else:
            low, high = (self.attention.min(), self.attention.max()) if len(self) else (0, 0)
            title = "attention, raw weight; the weights of all patches sum to one"
            ticks = ((0, f"{low:.3g}"), (0.5, f"{(low + high) / 2:.3g}"), (1, f"{high:.3g}"))
        return Legend("attention", ticks, title, (self.spread.sentence(),), CAVEAT)

    def _fitting(self, longest: int) -> float:
        """Level-0 pixels per pixel of a picture with this longer side; never below one."""
        return max(1.0, max(self.place.frame[2:]) / longest)

    # --- other forms ---------------------------------------------------------------------

    def to_qupath(
        self, path: Path | str, top: int | None = None, *, bounds_shift: bool | None = None
    ) -> Path:
        """GeoJSON tiles for QuPath, of all patches or the `top` that weigh most.

        Above 50,000 tiles the file is compressed and ``.gz`` is added to its name.

        Args:
            bounds_shift: count from the corner of the scanned part, as QuPath does; default: as
                the config says.

        Raises:
            DataError: PG-H03, the bounds are not known.
        """
        from pathgen.heatmap.tiles import write_tiles

        shifted = self.config.bounds_shift if bounds_shift is None else bounds_shift
        return write_tiles(self, Path(path), top, bounds_shift=shifted)

    def to_ome_tiff(self, path: Path | str, kind: str | None = None) -> Path:
        """A pyramidal OME-TIFF: the colored slide (overlay) or float32 channels (values)."""
        from pathgen.heatmap.pyramid import write_overlay, write_values

        kind = kind or self.config.ome
        write = write_values if kind == "values" else write_overlay
        return write(self, Path(path))

    def to_deepzoom(self, path: Path | str) -> Path:
        """``NAME.dzi`` and the folder ``NAME_files`` beside it."""
        from pathgen.heatmap.deepzoom import write_deepzoom

        return write_deepzoom(self, Path(path))

    def montage(self, rows: Sequence[int] | NDArray[np.integer], columns: int = 8) -> Image.Image:
        """These patches as a contact sheet, each with its weight and place.

        Raises:
            DataError: PG-H04, the patches have no pixels here.
        """
        from pathgen.heatmap.sheets import contact_sheet

        return contact_sheet(self, rows, columns)

    def write(self, folder: Path | str) -> Path:
        """All that the config asks for, as ``pathgen heatmap`` leaves it; see `heatmap.files`."""
        from pathgen.heatmap.files import write_folder

        return write_folder(self, Path(folder))

    def facts(self) -> dict[str, Any]:
        """What `prediction.json` says, without the files."""
        side_um = None if self.place.mpp is None else self.place.side[0] * self.place.mpp[0]
        return {
            "slide": self.slide, "patches": len(self), "patch_um": side_um,
            "target": self.answer.target, **self.answer.facts(),
            "heads": list(self.voices.names), "head_ids": list(self.voices.ids),
            "slide_was": self.voices.seen, "said_by": self.voices.sentence(),
            "attention": {
                "patches_with_half": self.spread.half, "highest_times_mean": self.spread.highest,
                "shown_as": self.config.attention,
            },
            "evidence": list(self.outputs) if self.evidence is not None else [],
            "pixels": self.pixels.kind, "notes": list(self.notes),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        picture, _ = self.picture()
        picture.thumbnail((900, 900))
        data = io.BytesIO()
        picture.save(data, "PNG")
        image = base64.b64encode(data.getvalue()).decode()
        said = html.escape(f"{self.slide}: {self.answer.sentence()}")
        return f'<figure><img alt="{said}" src="data:image/png;base64,{image}"></figure>'
