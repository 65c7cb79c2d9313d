"""Long files and large canvases are slides; forged sizes are not."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import ClassVar

import openslide
import pytest

from pathgen.errors import SlideError
from pathgen.tiling import open_slide
from pathgen.tiling.readers.check import check_slide


def code_of(path: Path) -> str:
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    return caught.value.code


def test_ndpi_beyond_its_offsets_is_left_to_openslide(tmp_path: Path) -> None:
    """Above 4 GiB the first offset of an NDPI has 8 bytes; its low half points anywhere."""
    path = tmp_path / "long.ndpi"
    with path.open("wb") as file:
        file.write(b"II*\0" + struct.pack("<Q", 2**32 + 64))
        file.truncate(2**32 + 4096)  # a hole: takes no space
    assert check_slide(path) == "TIFF"
    assert code_of(path) in ("PG-S02", "PG-S05")  # what those say that try, OpenSlide first
    with path.open("r+b") as file:
        file.truncate(4096)
    assert code_of(path) in ("PG-S03", "PG-S05")


class Canvas:
    """Stands for an open slide of that size."""

    level_count, level_downsamples = 1, (1.0,)
    properties: ClassVar[dict[str, str]] = {"openslide.vendor": "mirax"}
    associated_images: ClassVar[dict[str, object]] = {}

    def __init__(self, size: tuple[int, int]) -> None:
        self.dimensions, self.level_dimensions = size, (size,)

    def set_cache(self, cache: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("size", "data", "good"),
    [((200_000, 400_000), 8_000_000, True), ((200_000, 400_000), 10, False),
     ((2**21, 2000), 8_000_000, False)],
    ids=["empty canvas", "nothing there", "too wide"],
)  # fmt: skip
def test_size_is_judged_by_all_files_of_a_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], data: int, good: bool
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/Slidedat.ini").write_text("[GENERAL]")
    with (tmp_path / "m/Data0000.dat").open("wb") as file:
        file.truncate(data)
    (tmp_path / "m.mrxs").write_bytes(b"\xff\xd8\xff\xe0")
    monkeypatch.setattr(openslide, "OpenSlide", lambda path: Canvas(size))
    if good:
        assert open_slide(tmp_path / "m.mrxs").size == size
    else:
        assert code_of(tmp_path / "m.mrxs") == "PG-S06"
