"""One line for a terminal, the same line and a small table for Jupyter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from html import escape

#: Rows that are shown of a long table.
ROWS = 30


class Shown(ABC):
    """Says what it is: `line` in a terminal, with `html` below it in a notebook."""

    @property
    @abstractmethod
    def line(self) -> str:
        """What it is, with numbers and units."""

    def html(self) -> str:
        """What stands below the line in a notebook; nothing by default."""
        return ""

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.line)}</p>{self.html()}"


def joined(parts: Iterable[str]) -> str:
    """``128 slides · 3 problems``: the parts that are not empty."""
    return " · ".join(part for part in parts if part)


def html_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The first `ROWS` rows, escaped."""
    cells = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"]
    for row in rows[:ROWS]:
        texts = ("" if value is None else str(value) for value in row)
        cells.append(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>")
    more = len(rows) - ROWS
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    return f"<table>{''.join(cells)}</table>{rest}"
