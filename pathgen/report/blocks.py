"""What a page is made of: sections of plain blocks, which the template turns into HTML.

Text in a block is text: the template escapes it. Only `Markup`, which the functions of
`pathgen.report.figures` return, goes in as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from markupsafe import Markup

State = Literal["done", "empty", "failed", "running", "missing", ""]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Note:
    """Something is missing or damaged, said where it would have stood."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Heading:
    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Stats:
    """A few numbers in large type: (number, what it counts)."""

    kind: ClassVar[str] = "stats"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text under `head`; columns in `numeric` stand to the right, `state` is a badge."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    state: int | None = None
    tall: bool = False
    """scrolls on screen; all of it is printed"""


@dataclass(frozen=True)
class Image:
    """A picture as a data URI, with its own size in pixels."""

    uri: Markup
    width: int
    height: int


@dataclass(frozen=True)
class Figure:
    """An inline SVG or an image, and a sentence on how to read it."""

    kind: ClassVar[str] = "figure"
    content: Markup | Image
    alt: str
    caption: str


@dataclass(frozen=True)
class Card:
    """One slide of a gallery; without an image it says why."""

    title: str
    text: str
    state: State
    image: Image | None = None


@dataclass(frozen=True)
class Gallery:
    kind: ClassVar[str] = "gallery"
    caption: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Code:
    """Something to copy."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True)
class Details:
    """Folded away until asked for; needs no script."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence[Block]


Block = Text | Note | Heading | Stats | Table | Figure | Gallery | Code | Details


@dataclass
class Section:
    """One part of the page. `facts` go into the summary at its top."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        self.blocks += blocks
