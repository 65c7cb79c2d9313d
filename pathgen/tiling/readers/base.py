"""What every reader shares: lazy opening, pickling, and one form of error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.tiling.slide import Header, Scale, checked_scale


class BaseReader(ABC):
    """A `SlideReader` over a handle that is opened when first needed, once per process."""

    reader: ClassVar[str]
    #: What the library raises when pixels cannot be read.
    read_errors: ClassVar[tuple[type[Exception], ...]] = (OSError,)

    def __init__(self, path: Path, override: Scale | None = None) -> None:
        self.path = path
        self.override = override
        self._handle: Any = None
        self.header = self._describe()

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
        try:
            return self._read(position, level, size)
        except self.read_errors as error:
            self.close()  # an OpenSlide handle stays broken after one error
            raise SlideError(
                "slide cannot be decoded", code="PG-S04", where=self.name,
                why=f"at level-0 position ({position[0]:.0f}, {position[1]:.0f}): {error}",
                hint="the file is damaged there; get a fresh copy",
            ) from error  # fmt: skip

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
