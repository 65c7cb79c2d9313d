"""A training's log and pictures as TensorBoard reads them, written without TensorFlow.

An event file is a TFRecord file of `tensorflow.Event` protocol buffers: of those fields that are
needed, Event has wall_time (1), step (2), file_version (3), summary (5) and session_log (7);
a Summary.Value has tag (1), simple_value (2) and image (4).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from pathgen.commit import storage_error
from pathgen.exchange.tfrecord import field, varint, write_frame

RGB = 3
START = 1


class EventFile:
    """One file of a run's `tensorboard/`, from step `start` on.

    A run that goes on writes another file. It says that what earlier ones have of `start` and
    later steps is void, so the curves have no double ends.
    """

    def __init__(self, folder: Path, start: int) -> None:
        # TensorBoard wants "tfevents" in the name, and reads files by name.
        self.path = folder / f"events.out.tfevents.{start:010d}.pathgen"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("events.out.tfevents.*.pathgen"):
                if old.name >= self.path.name:  # those steps are about to be done again
                    old.unlink()
        except OSError as error:
            raise storage_error(error, folder) from error
        self._append(0, field(3, b"brain.Event:2"))
        self._append(start, field(7, _number(1, START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        found = (
            _text(1, tag) + struct.pack("<Bf", 2 << 3 | 5, value) for tag, value in values.items()
        )
        self._append(step, field(5, b"".join(field(1, value) for value in found)))

    def picture(self, step: int, tag: str, path: Path) -> None:
        """A PNG file."""
        with Image.open(path) as image:
            width, height = image.size
        sizes = _number(1, height) + _number(2, width) + _number(3, RGB)
        shown = _text(1, tag) + field(4, sizes + field(4, path.read_bytes()))
        self._append(step, field(5, field(1, shown)))

    def _append(self, step: int, what: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + _number(2, step) + what
        try:
            with self.path.open("ab") as file:
                write_frame(file, event)
        except OSError as error:
            raise storage_error(error, self.path) from error


def _number(number: int, value: int) -> bytes:
    return bytes([number << 3]) + varint(value)


def _text(number: int, text: str) -> bytes:
    return field(number, text.encode())
