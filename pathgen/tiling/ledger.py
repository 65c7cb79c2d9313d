"""What became of each slide: exactly one row an input, one state a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pathgen import commit
from pathgen.errors import PathgenError, sentence

if TYPE_CHECKING:
    from pathgen.tiling.forecast import Forecast

State = Literal["done", "empty", "failed"]

#: Reasons that are not error codes.
REASONS = {
    "ok": "patches were kept",
    "no_tissue": "no tissue found",
    "too_small": "smaller than one patch",
    "no_mask": "left out, as masks were given and none for it",
    "same_slide": "another file of a slide that has a row of its own",
    "no_coords": "the imported file names no patch",
    "filtered": "tissue found, but no patch passed the filters",
}


#: Columns that count cells by what they were dropped for, in the order in which it is decided.
DROPPED = (
    "dropped_tissue", "dropped_class", "dropped_stain", "dropped_quality", "dropped_damaged"
)  # fmt: skip


def printable(text: str) -> str:
    """`text` as UTF-8 can hold it: a file name of other bytes comes with lone surrogates."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogatepass")
    return raw.decode("utf-8", "replace")


@dataclass(frozen=True)
class LedgerRow:
    """One slide. Wherever it was read, ``candidates`` are what was dropped and ``patches``.

    Nothing here differs between two equal runs; timings are in events.jsonl.
    """

    slide: str
    state: State
    reason: str
    """one of `REASONS`, or an error code"""
    message: str
    file: str
    candidates: int = 0
    """cells of the grid"""
    dropped_tissue: int = 0
    dropped_class: int = 0
    """with enough tissue, but too little of the classes asked for"""
    dropped_stain: int = 0
    dropped_quality: int = 0
    """with enough stain, but out of focus, or with too much pen, black, white or fold"""
    dropped_damaged: int = 0
    """on tiles that cannot be decoded"""
    ink: float = 0.0
    """share of the tissue, 0..1, that was taken for pen and left out"""
    patches: int = 0
    mpp: float | None = None
    mpp_source: str | None = None
    reader: str | None = None
    """what read the slide"""
    label: str | None = None
    patient: str | None = None
    store: str | None = None
    """relative to the ledger"""
    thumbnail: str | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, str):
                object.__setattr__(self, item.name, printable(value))

    @classmethod
    def failure(cls, slide: str, file: str, error: PathgenError, **known: Any) -> LedgerRow:
        """The row of a slide that `error` kept from being tiled."""
        parts = (error.what, error.why, error.hint)
        message = " ".join(sentence(part) for part in parts if part)
        return cls(slide, "failed", error.code, message, file, **known)


@dataclass(frozen=True)
class TileReport:
    """How a run went; `rows` are in the order of the inputs, sorted by name."""

    rows: tuple[LedgerRow, ...]
    path: Path
    """the output folder"""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """files passed over as no slides: suffix -> count"""
    planned: bool = False
    bytes: int = 0
    """size of the stores; when `planned`, an estimate"""
    kept: int = 0
    """slides that were there already, and were not touched"""
    forecast: Forecast | None = None
    """of a plan; None where no patch could be cut"""

    #: What ``--plan`` shows of each slide.
    plan_columns: ClassVar[tuple[str, ...]] = (
        "slide", "state", "reason", "mpp", "mpp_source", "candidates", "dropped_tissue", "patches",
    )  # fmt: skip

    @property
    def counts(self) -> dict[str, int]:
        """Slides by state, and sums; done + empty + failed == slides."""
        states = [row.state for row in self.rows]
        dropped = (item.name for item in fields(LedgerRow) if item.name.startswith("dropped_"))
        sums = ("candidates", *dropped, "patches")
        return {
            "slides": len(self.rows),
            **{state: states.count(state) for state in ("done", "empty", "failed")},
            **{name: sum(getattr(row, name) for row in self.rows) for name in sums},
        }

    @property
    def done(self) -> tuple[LedgerRow, ...]:
        return tuple(row for row in self.rows if row.state == "done")

    @property
    def empty(self) -> tuple[LedgerRow, ...]:
        return tuple(row for row in self.rows if row.state == "empty")

    @property
    def failed(self) -> tuple[LedgerRow, ...]:
        return tuple(row for row in self.rows if row.state == "failed")

    @property
    def stores(self) -> tuple[Path, ...]:
        """The stores that exist after the run, empty ones included."""
        return tuple(self.path / row.store for row in self.rows if row.store)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``counts``, ``ignored``, ``slides``, and ``forecast`` of a plan."""
        return {
            "counts": self.counts,
            "ignored": dict(sorted(self.ignored.items())),
            "slides": [asdict(row) for row in self.rows],
            **({"forecast": self.forecast.to_dict()} if self.forecast else {}),
        }

    def without_stores(self) -> TileReport:
        """The same rows, none of which points at a store: for a plan."""
        return replace(
            self, rows=tuple(replace(row, store=None, thumbnail=None) for row in self.rows)
        )


def write_ledger(report: TileReport) -> None:
    """Write slides.csv and slides.json into the output folder, each whole or not at all."""
    commit.write_text(report.path / "slides.csv", to_csv(report.rows))
    commit.write_json(report.path / "slides.json", report.to_dict())


def to_csv(rows: Sequence[LedgerRow]) -> str:
    """The rows as CSV text with a header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(LedgerRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue()
