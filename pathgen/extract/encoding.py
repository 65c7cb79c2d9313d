"""Encoders as extraction runs them: what they are called, in what they compute, what they give."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.encoders import PatchEncoder, load_encoder, mpp_note
from pathgen.errors import ConfigError, DataError
from pathgen.extract.config import ExtractConfig
from pathgen.progress import Progress

#: What is longer than this would be cut off by some file systems.
_LONGEST_NAME = 80


def encoder_facts(encoder: PatchEncoder) -> dict[str, Any]:
    """name, id and dim, and config and card when there are any: what a feature store says of it.

    The id is that of the weights; the config beside it tells apart equal weights that are run
    at another image size.
    """
    config: Any = getattr(encoder, "config", None)
    values = config.model_dump(mode="json") if hasattr(config, "model_dump") else {}
    card = dict(getattr(encoder, "card", None) or {})
    name = values.get("name") or card.get("name") or type(encoder).__name__
    facts: dict[str, Any] = {"name": name, "id": encoder.id, "dim": encoder.dim}
    if values:
        facts["config"] = values
    if card:
        facts["card"] = card
    return facts


class Encoding:
    """One encoder at work.

    Attributes:
        facts: what its stores say of it.
        precision: what "auto" became.
    """

    def __init__(self, encoder: PatchEncoder, config: ExtractConfig) -> None:
        self.encoder, self.dtype = encoder, config.dtype
        self.facts = encoder_facts(encoder)
        self.device = _device_of(encoder)
        self.precision = _precision(encoder, config.precision, self.device)

    @property
    def settings(self) -> dict[str, Any]:
        """Its part of a store's provenance."""
        settings = {"dtype": self.dtype, "encoder": self.facts.get("config", self.facts["name"])}
        # Left out where it is fp32, as in stores made before there was a choice.
        return settings if self.precision == "fp32" else settings | {"precision": self.precision}

    def encode(self, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[Any]:
        """RGB images, each uint8 (H, W, 3), to vectors (n, dim) of the stored type.

        Images of one size go through together.

        Raises:
            DataError: PG-D06, vectors of another shape, not finite, or too large for the type.
            ConfigError: PG-C05, they do not fit the device together.
        """
        if isinstance(images, np.ndarray):
            return self._checked(self._run(images))
        features = np.empty((len(images), self.encoder.dim), np.float32)
        for shape in sorted({image.shape for image in images}):
            rows = [i for i, image in enumerate(images) if image.shape == shape]
            features[rows] = self._run(np.stack([images[i] for i in rows]))
        return self._checked(features)

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not len(images):
            return np.empty((0, self.encoder.dim), np.float32)
        try:
            with self._computing():
                found = self.encoder.encode(images)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":
                raise
            raise ConfigError(
                "patches do not fit the device together", code="PG-C05", where=str(self.device),
                why=f"{len(images)} of {images.shape[1]} x {images.shape[2]} pixels at once",
                hint=f"use --batch-size {max(1, len(images) // 2)}",
            ) from error  # fmt: skip
        if found.shape != (len(images), self.encoder.dim):
            raise DataError(
                "encoder gives vectors of another shape", code="PG-D06", where=self.facts["name"],
                why=f"{found.shape} where {(len(images), self.encoder.dim)} was due",
            )  # fmt: skip
        return found

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """In the precision that was chosen; the encoder is then as it was."""
        if hasattr(self.encoder, "precision"):  # it knows how
            before, self.encoder.precision = self.encoder.precision, self.precision
            try:
                yield
            finally:
                self.encoder.precision = before
        elif self.precision == "fp32":
            yield
        else:
            import torch

            kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
            with torch.autocast(self.device.type, kind):
                yield

    def _checked(self, features: NDArray[np.float32]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            stored = np.asarray(features, self.dtype)
        if np.isfinite(stored).all():
            return stored
        lost = np.isfinite(features).all()
        raise DataError(
            "encoder gives values that are not finite", code="PG-D06", where=self.facts["name"],
            why=f"they are too large for {self.dtype}" if lost else None,
            hint="store float32" if lost else "check the weights of the encoder"
            + ("" if self.precision == "fp32" else ", or compute in fp32"),
        )  # fmt: skip


def encodings(
    encoders: Sequence[PatchEncoder | str | Path],
    config: ExtractConfig,
    weights: Path | None = None,
    progress: Progress | None = None,
) -> list[Encoding]:
    """Each encoder ready to work; those that are names are loaded.

    Raises:
        ConfigError: PG-C01, none, or one of them twice; PG-C05. As `load_encoder`.
    """
    if not encoders:
        raise ConfigError("no encoder given", where="encoder", hint="see `pathgen encoders`")
    loaded = [
        load_encoder(one, config.device, weights=weights, progress=progress)
        if isinstance(one, str | Path)
        else one
        for one in encoders
    ]
    found = [Encoding(one, config) for one in loaded]
    seen: list[tuple[Any, Any]] = []
    for one in found:
        key = (one.facts["id"], one.facts.get("config"))
        if key in seen:
            raise ConfigError(
                "the same encoder is given twice", where=one.facts["name"],
                hint="name each encoder once",
            )  # fmt: skip
        seen.append(key)
    return found


def scale_notes(
    encodings: Sequence[Encoding], scales: Iterable[tuple[float | None, int | None]]
) -> list[str]:
    """What should be said where patches are far from the scale that an encoder is meant for."""
    pairs = list(dict.fromkeys(scales))
    notes = (
        mpp_note(one.facts.get("card", {}), mpp, side) for one in encodings for mpp, side in pairs
    )
    return [f"note: {note}" for note in notes if note]


def folder_names(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A folder for each of several encoders: its name, with the id where names are equal."""
    names = [
        re.sub(r"[^A-Za-z0-9._-]+", "_", str(one.get("card", {}).get("name") or one["name"]))
        .strip("._")[:_LONGEST_NAME] or "encoder"
        for one in facts
    ]  # fmt: skip
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name}-{str(one['id'])[:8]}"
        for name, one in zip(names, facts, strict=True)
    ]


def _device_of(encoder: PatchEncoder) -> Any:
    """Where a torch encoder's weights are; None for another."""
    parameters = getattr(encoder, "parameters", None)
    if parameters is None:
        return getattr(encoder, "device", None)
    first = next(iter(parameters()), None)
    return None if first is None else first.device


def _precision(encoder: PatchEncoder, wanted: str, device: Any) -> str:
    from pathgen.train.engine import choose_precision

    if wanted == "auto" and not hasattr(encoder, "precision"):
        return "fp32"  # its own code may not expect vectors of another type
    if getattr(device, "type", None) is not None:
        return choose_precision(wanted, device)
    if wanted in ("auto", "fp32") or hasattr(encoder, "precision"):
        return "fp32" if wanted == "auto" else wanted
    raise ConfigError(
        "this encoder computes as it likes", code="PG-C05", where=type(encoder).__name__,
        why=f"{wanted} is for networks of torch", hint="leave the precision at auto",
    )  # fmt: skip
