"""What every reader shares: lazy opening, pickling, and one form of error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.tiling.readers.remote import SlidePath
from pathgen.tiling.slide import Header, Scale, checked_scale

if TYPE_CHECKING:
    from pathgen.tiling.readers.tiles import TiledLevel


class BaseReader(ABC):
    """A `SlideReader` over a handle that is opened when first needed, once per process."""

    reader: ClassVar[str]
    #: What the library raises when pixels cannot be read.
    read_errors: ClassVar[tuple[type[Exception], ...]] = (OSError,)

    def __init__(self, path: SlidePath, override: Scale | None = None) -> None:
        self.path: SlidePath = path
        self.override = override
        self._handle: Any = None
        try:
            self.header = self._describe()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _open(self) -> Any:
        """Open the file; SlideError when it cannot be."""

    @abstractmethod
    def _describe(self) -> Header:
        """Read the header, through `self.handle`."""

    @abstractmethod
    def _read(
        self, position: tuple[float, float], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """As `SlideReader.read`; may raise any of `read_errors`."""

    @property
    def handle(self) -> Any:
        if self._handle is None:
            self._handle = self._open()
        return self._handle

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def vendor(self) -> str:
        return self.header.vendor

    @property
    def size(self) -> tuple[int, int]:
        return self.header.size

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        return self.header.level_sizes

    @property
    def downsamples(self) -> tuple[float, ...]:
        return self.header.downsamples

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        return self.header.bounds

    @property
    def objective(self) -> float | None:
        return self.header.objective

    @property
    def associated(self) -> tuple[str, ...]:
        return self.header.associated

    @property
    def scale(self) -> Scale:
        return checked_scale(self.header.scale, self.override, self.name)

    @property
    def mpp(self) -> float:
        return self.scale.mean

    @property
    def mpp_xy(self) -> tuple[float, float]:
        return self.scale.x, self.scale.y

    @property
    def mpp_source(self) -> str:
        return self.scale.source

    def read(
        self, position: tuple[float, float], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        with self._decoding(f"at level-0 position ({position[0]:.0f}, {position[1]:.0f})"):
            return self._read(position, level, size)

    def shrinks(self, level: int) -> tuple[int, ...]:
        """By what `level` can be read smaller than it is, 1 among them."""
        return (1,)

    def read_level(
        self, level: int, box: tuple[int, int, int, int], shrink: int = 1
    ) -> NDArray[np.uint8]:
        """RGB of the pixels x0, y0, x1, y1 of `level` at 1 / `shrink`, counted at that size.

        What lies outside of the slide is white.

        Raises:
            SlideError: PG-S04 when the pixels cannot be decoded.
        """
        if shrink != 1:
            raise ValueError(f"{self.reader} does not read at 1/{shrink}")
        x0, y0, x1, y1 = box
        step = self.downsamples[level]
        return self.read((x0 * step, y0 * step), level, (x1 - x0, y1 - y0))

    def look(
        self, level: int, box: tuple[int, int, int, int], shrink: int = 1
    ) -> NDArray[np.uint8]:
        """As `read_level`, for masks and pictures: what is damaged may be white there, and is then
        counted in `damage`."""
        return self.read_level(level, box, shrink)

    def damage(self, level: int) -> float:
        """Share of the tiles of `level` that `look` could not decode."""
        return 0.0

    def tiles(self, level: int) -> TiledLevel | None:
        """The tiles of `level`, where this reader reads them one by one."""
        return None

    def tile_bytes(self, level: int, indices: Sequence[int]) -> list[bytes]:
        """The bytes of tiles as the slide has them. Raises SlideError PG-S04."""
        raise ValueError(f"{self.reader} does not read tiles one by one")

    @contextmanager
    def _decoding(self, where: str) -> Iterator[None]:
        try:
            yield
        except self.read_errors as error:
            self._recover()
            raise SlideError(
                "slide cannot be decoded", code="PG-S04", where=self.name,
                why=f"{where}: {error}", hint="the file is damaged there; get a fresh copy",
            ) from error  # fmt: skip

    def _recover(self) -> None:
        self.close()  # an OpenSlide handle stays broken after one error

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"
