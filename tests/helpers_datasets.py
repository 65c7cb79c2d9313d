"""Public data sets in miniature: the folders, file names and columns they are distributed in."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import tifffile
from numpy.typing import NDArray

META = Path(__file__).resolve().parents[2] / "shared" / "data" / "meta"

#: image_id, data_provider, isup_grade, gleason_score
PANDA_ROWS = [
    ("0005f7aaab2800f6170c399693a96917", "karolinska", "0", "0+0"),
    ("0018ae58b01bdadc8e347995b69f99aa", "radboud", "4", "4+4"),
    ("001c62abd11fa4b57bf7a6c603a11bb9", "karolinska", "4", "4+4"),
    ("001d865e65ef5d2579c190a0e0350d8f", "karolinska", "0", "0+0"),
    ("002a4db09dad406c85505a00fb6f6144", "radboud", "0", "negative"),
    ("003d4dd6bd61221ebc0bfb9350db333f", "radboud", "2", "3+4"),
]
PANDA_HEADER = ("image_id", "data_provider", "isup_grade", "gleason_score")


def stub(path: Path, content: str | None = None) -> Path:
    """A file that begins like a TIFF; equal contents are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"II*\0" + (content or path.name).encode())
    return path


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """A CSV with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def panda(root: Path, rows: Sequence[Sequence[str]] = PANDA_ROWS) -> Path:
    """PANDA's folder with stubs; every slide but the last has a mask."""
    write_table(root / "train.csv", PANDA_HEADER, rows)
    for i, row in enumerate(rows):
        stub(root / "train_images" / f"{row[0]}.tiff", "x" * i)
        if i < len(rows) - 1:
            stub(root / "train_label_masks" / f"{row[0]}_mask.tiff")
    return root


def write_pyramid(path: Path, image: NDArray[np.uint8], *, lossy: bool) -> Path:
    """A TIFF as PANDA's: three levels of 1, 4 and 16, tiles of 512, resolution tags of 0.5 um."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        for k in (1, 4, 16):
            small = image[::k, ::k]
            tiff.write(
                small, tile=(512, 512), photometric="rgb", metadata=None,
                compression="jpeg" if lossy else "adobe_deflate",
                resolution=(20_000 / k, 20_000 / k), resolutionunit="CENTIMETER",
                subfiletype=0 if k == 1 else 1,
            )  # fmt: skip
    return path


def write_xlsx(path: Path, sheets: dict[str, list[list[object]]]) -> Path:
    """A workbook as Excel writes it: shared strings, numbers as numbers, a sheet a member."""
    strings: list[str] = []

    def cell(column: int, line: int, value: object) -> str:
        place = f"{chr(ord('A') + column)}{line}"
        if value is None:
            return ""
        if isinstance(value, int | float):
            return f'<c r="{place}"><v>{value}</v></c>'
        if value not in strings:
            strings.append(str(value))
        return f'<c r="{place}" t="s"><v>{strings.index(str(value))}</v></c>'

    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    link = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    kinds = "http://schemas.openxmlformats.org/package/2006/relationships"
    with zipfile.ZipFile(path, "w") as book:
        named = "".join(
            f'<sheet name="{name}" sheetId="{i}" r:id="rId{i}"/>'
            for i, name in enumerate(sheets, 1)
        )
        book.writestr(
            "xl/workbook.xml",
            f'{head}<workbook xmlns="{main}" xmlns:r="{link}"><sheets>{named}</sheets></workbook>',
        )
        links = "".join(
            f'<Relationship Id="rId{i}" Type="t" Target="worksheets/sheet{i}.xml"/>'
            for i in range(1, len(sheets) + 1)
        )
        book.writestr(
            "xl/_rels/workbook.xml.rels",
            f'{head}<Relationships xmlns="{kinds}">{links}</Relationships>',
        )
        for i, rows in enumerate(sheets.values(), 1):
            lines = "".join(
                f'<row r="{y}">' + "".join(cell(x, y, v) for x, v in enumerate(row)) + "</row>"
                for y, row in enumerate(rows, 1)
            )
            book.writestr(
                f"xl/worksheets/sheet{i}.xml",
                f'{head}<worksheet xmlns="{main}"><sheetData>{lines}</sheetData></worksheet>',
            )
        entries = "".join(f"<si><t>{escape(text)}</t></si>" for text in strings)
        book.writestr("xl/sharedStrings.xml", f'{head}<sst xmlns="{main}">{entries}</sst>')
    return path
