"""Stain normalization on request: one look for all slides, fitted once a slide.

What is fitted comes from torchstain (MIT), on stained pixels of a sample of the slide's patches;
all patches of the slide are then changed by it. A fit for each patch would have no answer where
little is stained, and would give neighbors different colors.

Macenko M et al., A method for normalizing histology slides for quantitative analysis, IEEE ISBI
2009:1107-10. Reinhard E et al., Color transfer between images, IEEE Computer Graphics and
Applications 2001;21(5):34-41, here in CIELAB as torchstain has it.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from pathgen.config import Config
from pathgen.errors import ConfigError
from pathgen.extras import need

#: Light of empty glass, and the least optical density (base e) of a stained pixel: torchstain's.
GLASS, STAINED_OD = 240.0, 0.15
_STAINED_LIGHT = GLASS * np.exp(-STAINED_OD) - 1
#: Fewer stained pixels than this are too few to fit.
LEAST_PIXELS = 2000
#: Two stain vectors that are nearly one cannot be told apart.
_WORST_CONDITION = 40.0
_MAX_TARGET_PIXELS = 64_000_000

#: Hematoxylin and eosin by R, G, B (unit vectors of optical density) and their 99th percentiles:
#: those published with the authors' method, which torchstain has too.
MACENKO_REFERENCE: Mapping[str, Any] = {
    "stain_vectors": [[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]],
    "max_concentrations": [1.9705, 1.0308],
}
#: CIELAB mean and standard deviation of the stained pixels of a colon biopsy (H&E) of the Pathology
#: Atlas of S. Balci, CC BY 4.0; of public slides it lies in the middle.
REINHARD_REFERENCE: Mapping[str, Any] = {"mean": [65.0, 18.1, -15.7], "sd": [12.9, 4.2, 5.7]}


class NormalizeConfig(Config):
    """How the colors of patches are made alike; their scores are measured before."""

    method: Literal["none", "macenko", "reinhard"] = "none"
    target: str | None = None
    """an image whose stained pixels give the look; None = the built-in reference"""

    @model_validator(mode="after")
    def _target_of_a_method(self) -> NormalizeConfig:
        if self.target is not None and self.method == "none":
            raise ValueError("a target needs a method: macenko or reinhard")
        return self

    def check(self) -> None:
        """Before the first slide: is torchstain there, and can the target be used?

        Raises:
            MissingExtraError: PG-E01. ConfigError: PG-C01, the target.
        """
        if self.method == "none":
            return
        need("torchstain", "normalize")
        if self.target is not None:
            _target(self.method, self.target, content(self.target))


class Normalizer(ABC):
    """Changes pixels from the colors of `source` to those of `target`."""

    method: str

    def __init__(self, source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        self.source, self.target = source, target

    @staticmethod
    @abstractmethod
    def fit(pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """What describes the colors of stained RGB pixels (n, 3); JSON-ready.

        Raises:
            ValueError: they do not say enough.
        """

    @abstractmethod
    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One image (height, width, 3)."""

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB uint8 (n, height, width, 3) to the same."""
        changed = np.empty_like(images)
        for image, into in zip(images, changed, strict=True):
            into[:] = self._one(image)
        return changed

    @property
    def record(self) -> dict[str, Any]:
        """What was done, JSON-ready."""
        return {"method": self.method, "source": dict(self.source), "target": dict(self.target)}


class Macenko(Normalizer):
    """The optical density of each stain, put together again with the target's stains."""

    method = "macenko"

    def __init__(self, source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        super().__init__(source, target)
        theirs, ours = (np.array(fit["stain_vectors"]).T for fit in (target, source))
        scale = np.array(target["max_concentrations"]) / source["max_concentrations"]
        self._change = (theirs * scale @ np.linalg.pinv(ours)).astype(np.float32)
        self._log = np.log((np.arange(256) + 1) / GLASS).astype(np.float32)
        # Light by its logarithm, from _DARKEST to that of 255.
        logs = np.linspace(_DARKEST, np.log(255.999 / GLASS), _STEPS)
        self._light = (GLASS * np.exp(logs)).astype(np.uint8)
        self._place = np.float32((_STEPS - 1) / (logs[-1] - logs[0]))

    @staticmethod
    def fit(pixels: NDArray[np.uint8]) -> dict[str, Any]:
        from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

        if (pixels <= _STAINED_LIGHT).all(axis=1).sum() < LEAST_PIXELS // 4:
            raise ValueError("too few of its pixels absorb light of every color")
        found = NumpyMacenkoNormalizer()
        try:
            found.fit(pixels[:, None])
            vectors, most = found.HERef, found.maxCRef
            fine = np.isfinite(vectors).all() and np.linalg.cond(vectors) < _WORST_CONDITION
        except np.linalg.LinAlgError as error:
            raise ValueError(str(error)) from error
        if not fine or not (most > 0).all():
            raise ValueError("its two stains cannot be told apart")
        return {"stain_vectors": vectors.T.tolist(), "max_concentrations": most.tolist()}

    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        logs = [self._log[plane] for plane in _planes(image)]
        changed = np.empty_like(image)
        for channel, row in enumerate(self._change):
            place = (_weighted(logs, row) - np.float32(_DARKEST)) * self._place
            changed[..., channel] = self._light.take(_clipped(place))
        return changed


class Reinhard(Normalizer):
    """Mean and spread of each axis of CIELAB, set to the target's.

    Statistics of tissue say nothing of glass, which would turn green or violet: where little or
    no light is absorbed, pixels stay as they are, with a smooth passage.
    """

    method = "reinhard"

    def __init__(self, source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        super().__init__(source, target)
        scale = np.array(target["sd"]) / source["sd"]
        shift = np.array(target["mean"]) - scale * source["mean"]
        # L, a and b are linear in the cube roots of X, Y and Z, so both ways make one matrix.
        back = np.linalg.inv(_LAB)
        self._change = (back * scale @ _LAB).astype(np.float32)
        self._shift = (back @ (scale * _LAB_SHIFT + shift - _LAB_SHIFT)).astype(np.float32)

    @staticmethod
    def fit(pixels: NDArray[np.uint8]) -> dict[str, Any]:
        from torchstain.numpy.normalizers import NumpyReinhardNormalizer

        found = NumpyReinhardNormalizer()
        found.fit(pixels[:, None])
        if not (found.target_stds > 0.1).all():
            raise ValueError("all of its pixels have one color")
        mean, sd = (np.asarray(v, np.float64) for v in (found.target_means, found.target_stds))
        return {"mean": mean.tolist(), "sd": sd.tolist()}

    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        linear, root, gamma = _tables()
        planes = _planes(image)
        light = [linear[plane] for plane in planes]
        roots = [root.take(_step(_weighted(light, row))) for row in _XYZ.astype(np.float32)]
        xyz = []
        for row, shift in zip(self._change, self._shift, strict=True):
            mixed = _weighted(roots, row) + shift
            low = (mixed - np.float32(16 / 116)) / np.float32(7.787)
            xyz.append(np.where(mixed > np.float32(6 / 29), mixed * mixed * mixed, low))
        share = _stained_share()[planes[1]]
        changed = np.empty_like(image)
        for channel, row in enumerate(np.linalg.inv(_XYZ).astype(np.float32)):
            new = gamma.take(_step(_weighted(xyz, row))).astype(np.float32)
            changed[..., channel] = planes[channel] + (new - planes[channel]) * share
        return changed


NORMALIZERS: Mapping[str, type[Normalizer]] = {"macenko": Macenko, "reinhard": Reinhard}
_REFERENCES = {"macenko": MACENKO_REFERENCE, "reinhard": REINHARD_REFERENCE}


def normalizer(config: NormalizeConfig, pixels: NDArray[np.uint8]) -> Normalizer:
    """The change of a slide's colors, from RGB pixels (n, 3) of its patches.

    Raises:
        ValueError: too few of them are stained, or in one color only.
        ConfigError: PG-C01, the target cannot be used. MissingExtraError: PG-E01.
    """
    need("torchstain", "normalize")
    target: Mapping[str, Any] = _REFERENCES[config.method]
    if config.target is not None:
        target = _target(config.method, config.target, content(config.target))
    return NORMALIZERS[config.method](_fitted(config.method, stained(pixels)), target)


def stained(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Those of RGB pixels (n, 3) that absorb green light, as both stains do most."""
    return np.asarray(pixels[pixels[:, 1] <= _STAINED_LIGHT])


def content(target: str) -> str:
    """Digest of the target image's file: what of it belongs to a store's provenance."""
    try:
        return hashlib.blake2b(Path(target).read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        raise _bad_target(target, error.strerror or str(error)) from error


@lru_cache(maxsize=4)
def _target(method: str, path: str, digest: str) -> Mapping[str, Any]:
    """Fit of the target image; `digest` of its file is for the cache."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > _MAX_TARGET_PIXELS:
                    raise ValueError("it is as large as a slide; cut a part out")
                pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        return _fitted(method, stained(pixels))
    except (
        OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise _bad_target(path, str(error)) from error


def _bad_target(path: str, why: str) -> ConfigError:
    return ConfigError(
        "target of the normalization cannot be used", where=path, why=why,
        hint="give an RGB image of well-stained tissue, or leave normalize.target out",
    )  # fmt: skip


def _fitted(method: str, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    from threadpoolctl import threadpool_limits

    if len(pixels) < LEAST_PIXELS:
        raise ValueError(f"{len(pixels)} stained pixels are too few")
    # Sums differ in their last digits by the number of threads.
    with threadpool_limits(1):
        found = NORMALIZERS[method].fit(pixels)
    return {name: np.round(values, 4).tolist() for name, values in found.items()}


# sRGB to XYZ, relative to white D65, and CIELAB: constants of both standards.
_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169],
     [0.019334, 0.119193, 0.950227]]
) / np.array([[0.95047], [1.0], [1.08883]])  # fmt: skip
_LAB = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
_LAB_SHIFT = np.array([-16.0, 0.0, 0.0])
#: Entries of the tables: a step is a tenth of a gray level or less.
_STEPS = 1 << 15
#: Logarithm of light that rounds to black.
_DARKEST = -6.0


def _planes(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.moveaxis(image, -1, 0))


def _weighted(
    planes: Sequence[NDArray[np.float32]], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Sum of three planes. By elements: a matrix product rounds differently by batch and thread,
    and equal runs give equal bytes."""
    total = planes[0] * weights[0]
    total += planes[1] * weights[1]
    total += planes[2] * weights[2]
    return np.asarray(total, np.float32)


def _step(light: NDArray[np.float32]) -> NDArray[np.intp]:
    return _clipped(light * np.float32(_STEPS - 1))


def _clipped(place: NDArray[np.float32]) -> NDArray[np.intp]:
    """Nearest entry of a table of `_STEPS`."""
    return np.asarray(np.clip(place + np.float32(0.5), 0, _STEPS - 1), np.intp)


@lru_cache(maxsize=1)
def _stained_share() -> NDArray[np.float32]:
    """By green level: 1 where stained, 0 at a third of that optical density and below. (256,)"""
    density = -np.log((np.arange(256) + 1) / GLASS)
    return np.clip(1.5 * density / STAINED_OD - 0.5, 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Gray level to light, light to CIELAB's cube root, light to gray level."""
    level = np.arange(256) / 255
    linear = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    light = np.linspace(0, 1, _STEPS)
    root = np.where(light > 0.008856, np.cbrt(light), 7.787 * light + 16 / 116)
    gamma = np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    return linear.astype(np.float32), root.astype(np.float32), (gamma * 255).astype(np.uint8)
