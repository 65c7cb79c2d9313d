"""A diagnosis as one CSV and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image as Pillow

from pathgen import commit
from pathgen.doctor.checkup import Checkup
from pathgen.doctor.diagnosis import Diagnosis
from pathgen.places import spare_page, spare_table
from pathgen.report.blocks import Card, Gallery, Heading, Image, Section, State, Stats, Table, Text
from pathgen.report.collect import Found
from pathgen.report.page import render
from pathgen.report.text import DASH, count, number

CSV, PAGE = "doctor.csv", "doctor.html"
ROWS_SHOWN = 1000
CARDS = 60
#: States as the page's badges have them.
BADGES: dict[str, State] = {"ok": "done", "look": "empty", "failed": "failed"}


def write_diagnosis(diagnosis: Diagnosis, out: Path, title: str = "slides") -> tuple[Path, Path]:
    """Write doctor.csv and doctor.html into the folder `out`, and return where they are.

    The page has its pictures inside, fetches nothing and runs nothing. No absolute path, host or
    user name goes in.

    Raises:
        ConfigError: PG-O19, files of these names are there that pathgen has not made.
        StorageError: PG-O01, PG-O03, `out` cannot be written.
    """
    spare_table(out / CSV, ("slide", "file", "state", "reason"))
    spare_page(out / PAGE)
    commit.writable_folder(out)
    commit.write_text(out / CSV, diagnosis.to_csv())
    commit.write_text(out / PAGE, render(Found(Path(title)), sections(diagnosis)))
    return out / CSV, out / PAGE


def sections(diagnosis: Diagnosis) -> list[Section]:
    """The page: what to do, what was found, pictures."""
    slides = sorted(diagnosis.slides, key=lambda s: ("failed", "look", "ok").index(s.state))
    overview = Section("overview", "Before tiling")
    counts = diagnosis.counts
    overview.add(
        Stats(
            [(f"{counts['slides']:,}", "slides")]
            + [(f"{counts[state]:,}", word) for state, word in WORDS.items()]
            + [(f"{counts['patches']:,}", "patches with tissue")]
        )
    )
    overview.facts.append(
        f"{count(counts['slides'], 'slide')}: {counts['ok']} ok, {counts['look']} to look at, "
        f"{counts['failed']} failed"
    )
    if diagnosis.forecast is not None:
        text = f"About {_size(diagnosis.forecast.bytes)} of stores. "
        overview.add(Text(text + diagnosis.forecast.sentence()))
    if diagnosis.ignored:
        ignored = ", ".join(f"{n} {kind}" for kind, n in diagnosis.ignored.items())
        overview.add(Text(f"Passed over as no slides: {ignored}."))
    overview.add(*_scales(diagnosis.slides))
    table = Section("slides", "Every slide")
    table.add(_table(slides))
    pictures = Section("pictures", "Tissue and patches")
    pictures.add(*_gallery(slides))
    return [overview, table, *([pictures] if pictures.blocks else [])]


WORDS = {"ok": "ok", "look": "to look at", "failed": "failed"}


def _scales(slides: Sequence[Checkup]) -> list[Heading | Table]:
    """Scanners and scales: a cohort of several is seen at a glance."""
    known = Counter(
        (s.vendor, s.mpp and round(s.mpp, 3), s.mpp_source, s.objective, bool(s.profile))
        for s in slides if s.width is not None
    )  # fmt: skip
    if not known:
        return []
    rows = [
        [vendor or DASH, number(mpp, 3), source or DASH, f"{lens:g}x" if lens else DASH,
         "yes" if profile else "no", f"{n:,}"]
        for (vendor, mpp, source, lens, profile), n in known.most_common()
    ]  # fmt: skip
    return [
        Heading("Scanners and scales"),
        Table(
            "Slides of one study should agree here. The pixel size counts, not the objective.",
            ["vendor", "um per pixel", "said by", "objective", "color profile", "slides"], rows,
            numeric=frozenset({5}),
        ),
    ]  # fmt: skip


def _table(slides: Sequence[Checkup]) -> Table:
    left = (
        f" {ROWS_SHOWN} of {len(slides)} are here, all in {CSV}."
        if len(slides) > ROWS_SHOWN
        else ""
    )
    head = ["slide", "state", "what was found", "pixels", "levels", "um per pixel", "samples read",
            "patches", "stores", "seconds"]  # fmt: skip
    rows = [
        [
            s.slide, s.state, ": ".join(t for t in (_code(s), s.message) if t),
            DASH if s.width is None else f"{s.width:,} x {s.height:,}", s.levels or DASH,
            number(s.mpp, 4) + (f" ({s.mpp_source})" if s.mpp_source else ""),
            f"{s.readable} of {s.reads}" if s.reads else DASH,
            *((DASH,) * 3 if s.state == "failed" else
              (number(s.patches), _size(s.store_bytes), number(s.seconds, 1))),
        ]
        for s in slides[:ROWS_SHOWN]
    ]  # fmt: skip
    return Table(
        "Those with something to look at come first. Patches are those with enough tissue; bytes "
        f"of the store and seconds of one worker go by blocks that were cut.{left}",
        head, rows, numeric=frozenset({6, 7, 8, 9}), state=1, tall=len(rows) > 15,
    )  # fmt: skip


def _code(slide: Checkup) -> str:
    return "" if slide.reason in ("ok", "look") else slide.reason


def _gallery(slides: Sequence[Checkup]) -> list[Gallery]:
    shown = [s for s in slides if s.picture is not None][:CARDS]
    if not shown:
        return []
    left = f" {len(shown)} of {len(slides)} slides." if len(shown) < len(slides) else ""
    cards = [
        Card(s.slide, s.message or count(s.patches, "patch", "patches"), BADGES[s.state],
             _image(s.picture or b""))
        for s in shown
    ]  # fmt: skip
    return [
        Gallery(
            "The outline is the tissue that was found, the grid shows the patches with enough of "
            f"it. Pen, glass and background should lie outside.{left}",
            cards,
        )
    ]


def _image(data: bytes) -> Image:
    with Pillow.open(io.BytesIO(data)) as picture:
        width, height = picture.size
    text = base64.b64encode(data).decode("ascii")
    return Image(Markup(f"data:image/jpeg;base64,{text}"), width, height)


def _size(count_: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count_ < 1000:
            return f"{count_:.0f} {unit}" if unit in ("B", "kB") else f"{count_:.1f} {unit}"
        count_ /= 1000
    return f"{count_:.1f} TB"
