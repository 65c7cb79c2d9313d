"""The page of a cross-validated table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pathgen import commit
from pathgen.places import spare_page
from pathgen.report.blocks import Heading, Note, Section, Table, Text
from pathgen.report.collect import Found
from pathgen.report.page import render
from pathgen.report.slidelevel import predictions_section

if TYPE_CHECKING:
    from pathgen.session.judged import CrossValidated


def write_page(result: CrossValidated, path: Path) -> Path:
    """Write it, whole or not at all. Errors as `CrossValidated.report`."""
    from pathgen.session.judged import SHOWN

    spare_page(path)
    root = Path(path.name.removesuffix(".html"))
    found = Found(root)
    section = predictions_section(found, root / result.target, result.metrics, 1)
    section.add(*(Note(note) for note in result.notes))
    wrong = result.wrong()
    section.add(Heading("Surest errors"))
    if wrong:
        section.add(Table(
            f"{len(wrong)} of {len(result.slides)} are wrong; those stand first that were surest.",
            ["slide", "truth", "predicted", "p of the predicted"],
            [[slide, truth, said, f"{p:.2f}"] for slide, truth, said, p in wrong[:SHOWN]],
            numeric=frozenset({3}),
        ))  # fmt: skip
    else:
        section.add(Text(f"None of {len(result.slides)} is wrong."))
    method = Section("method", "How this was made")
    method.add(Text(result.method))
    commit.writable_folder(path.parent)
    commit.write_text(path, render(found, [section, method]))
    return path
