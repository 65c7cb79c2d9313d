"""From a scene to pixels: Beer-Lambert through two stains, then a scanner.

I = white * 10 ** -(c_H v_H + c_E v_E), per color channel. Stain vectors lie between those of
Ruifrok & Johnston (Anal Quant Cytol Histol 2001) and the reference values of Macenko et al.
(ISBI 2009), and are shaken per slide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pathgen.synthetic.noise import Field, periodic, ramp, texture, upsample
from pathgen.synthetic.nuclei import StampBank
from pathgen.synthetic.spec import SlideSpec
from pathgen.synthetic.tissue import Scene

RUIFROK_JOHNSTON = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])  # H, E by R, G, B
MACENKO = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
PEN_INKS = np.array(  # OD by R, G, B: blue, green, black, red
    [[1.30, 0.75, 0.18], [1.10, 0.28, 0.85], [1.10, 1.10, 1.05], [0.12, 0.95, 0.80]]
)
BANK = 1024  # level-0 pixels before a texture repeats
POINT_HALO, POINT_ARM, POINT_HALF = 30, 24, 2  # level-0 pixels


@dataclass(frozen=True)
class Stain:
    """Unit OD vectors (2, 3), H then E by R, G, B; amounts (2,) scale their concentrations."""

    vectors: NDArray[np.float64]
    amounts: NDArray[np.float64]


@dataclass(frozen=True)
class Scanner:
    """White point (3,) in 0..255, contrast on OD, point spread in um, noise in gray levels."""

    white: NDArray[np.float64]
    contrast: float
    blur: float
    noise: float


def draw_stain(spec: SlideSpec) -> Stain:
    """The slide's stain; depends on the seed and never on the grade."""
    rng, strength = spec.rng("stain"), spec.stain_variation
    mix = np.clip(0.5 + strength * rng.uniform(-0.35, 0.35, (2, 1)), 0, 1)
    vectors = (1 - mix) * _unit(RUIFROK_JOHNSTON) + mix * _unit(MACENKO)
    vectors = _unit(np.maximum(vectors + strength * rng.normal(0, 0.022, (2, 3)), 0.01))
    amounts = np.exp(np.clip(strength * rng.normal(0, 0.16, 2), -0.45, 0.45))
    return Stain(vectors, amounts)


def draw_scanner(spec: SlideSpec) -> Scanner:
    """The slide's scanner; depends on the seed and never on the grade."""
    rng, strength = spec.rng("scanner"), spec.scanner_variation
    white = 243 + strength * (rng.uniform(-6, 6) + rng.normal(0, 2.0, 3))
    return Scanner(
        white=np.clip(white, 225, 252),
        contrast=float(math.exp(strength * rng.normal(0, 0.06))),
        blur=float(np.clip(0.35 + strength * rng.uniform(-0.15, 0.25), 0.15, 0.9)),
        noise=float(np.clip(1.3 + strength * rng.uniform(-0.8, 1.4), 0.2, 5)),
    )


class Renderer:
    """Any block of a scene as pixels. A block does not depend on how the slide is cut up."""

    def __init__(self, scene: Scene) -> None:
        spec = scene.spec
        self.scene, self.stain, self.scanner = scene, draw_stain(spec), draw_scanner(spec)
        rng = spec.rng("texture")
        soft = self.scanner.blur / spec.mpp  # point spread in level-0 pixels
        self.fibers = texture(rng, BANK, max(1.2 / spec.mpp, soft), 9 / spec.mpp)
        self.fibers += 0.5 * texture(rng, BANK, max(4.0 / spec.mpp, soft), 30 / spec.mpp)
        self.grain = texture(rng, BANK, max(0.9 / spec.mpp, soft), max(0.9 / spec.mpp, soft))
        self.cloud = texture(rng, BANK, 5 / spec.mpp, 5 / spec.mpp)
        chromatin = texture(rng, 256, max(0.6 / spec.mpp, soft), max(0.6 / spec.mpp, soft))
        size = float(np.exp(np.clip(rng.normal(0, 0.06), -0.15, 0.15)))
        self.bank = StampBank(rng, spec.mpp, self.scanner.blur, size, chromatin)
        self.noise = (rng.standard_normal((BANK, BANK, 3)) * self.scanner.noise).astype(np.float32)
        self.ink = PEN_INKS[int(spec.rng("ink").integers(len(PEN_INKS)))]
        self.defocus = float(spec.rng("defocus").uniform(1.6, 4.0)) / spec.mpp  # sigma, pixels
        scaled = self.stain.vectors * self.stain.amounts[:, None] * self.scanner.contrast
        self.absorbance = (-math.log(10) * scaled).astype(np.float32)
        self.white = self.scanner.white.astype(np.float32)

    def glass(self, width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
        """A block of bare glass, (height, width, 3) uint8."""
        light = np.broadcast_to(self.white, (height, width, 3))
        return self._digitize(light, 131 * seed, 57 * seed)

    def is_glass(self, x: int, y: int, width: int, height: int) -> bool:
        """No tissue, ink or grid point in the level-0 block."""
        scene, scale = self.scene, self.scene.scale
        rows = slice(max(y // scale - 2, 0), (y + height) // scale + 3)
        columns = slice(max(x // scale - 2, 0), (x + width) // scale + 3)
        if scene.depth[rows, columns].max() > -8:
            return False
        if scene.pen is not None and scene.pen[rows, columns].max() > 0.002:
            return False
        return not len(self._points_near(x, y, width, height))

    def block(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Level-0 pixels of one block, (height, width, 3) uint8; may reach past the slide."""
        scene = self.scene
        if scene.blur is None:
            light = self._light(x, y, width, height)
        else:
            weight = upsample(scene.blur, scene.scale, x, y, width, height)[:, :, None]
            light = self._light(x, y, width, height)
            if weight.max() > 0:
                light = light + weight * (self._defocused(x, y, width, height) - light)
        pixels = self._digitize(light, x, y)
        for px, py in self._points_near(x, y, width, height):
            _cross(pixels, int(px) - x, int(py) - y)
        return pixels

    def _light(self, x: int, y: int, width: int, height: int) -> Field:
        """What reaches the camera, (height, width, 3) float32 in 0..255."""
        h, e = self._concentrations(x, y, width, height)
        light = np.empty((height, width, 3), np.float32)
        ink = None
        if self.scene.pen is not None:
            ink = upsample(self.scene.pen, self.scene.scale, x, y, width, height)
        for channel in range(3):
            density = h * self.absorbance[0, channel]
            density += e * self.absorbance[1, channel]
            if ink is not None:
                density -= ink * np.float32(math.log(10) * self.ink[channel])
            np.exp(density, out=density)
            density *= self.white[channel]
            light[:, :, channel] = density
        return light

    def _defocused(self, x: int, y: int, width: int, height: int) -> Field:
        reach = math.ceil(3 * self.defocus) + 1
        wide = self._light(x - reach, y - reach, width + 2 * reach, height + 2 * reach)
        image = Image.fromarray(np.rint(wide).astype(np.uint8))
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(self.defocus)), np.float32)
        return blurred[reach : reach + height, reach : reach + width]

    def _concentrations(self, x: int, y: int, width: int, height: int) -> tuple[Field, Field]:
        """Hematoxylin and eosin concentrations, each (height, width) float32."""
        scene = self.scene

        def up(field: Field) -> Field:
            return upsample(field, scene.scale, x, y, width, height)

        soft = 0.5 + self.scanner.blur  # um
        outer, lumen = up(scene.outer), up(scene.lumen)
        grain = periodic(self.grain, x, y, width, height)
        cloud = periodic(self.cloud, x, y, width, height)
        # Outlines are a little rough: a perfect curve is what gives a drawing away.
        rough = cloud * np.float32(0.9)
        outer = outer + rough
        lumen = lumen - rough
        h, e = self._stroma(up(scene.along), up(scene.across), grain, cloud)
        cell = ramp(-outer, 0.8 * soft)
        h += cell * (up(scene.hematoxylin) * (1 + 0.30 * grain + 0.18 * cloud) - h)
        e += cell * (up(scene.eosin) * (1 + 0.14 * grain + 0.16 * cloud) - e)
        membrane = np.maximum(1 - np.abs(outer - 0.8) * np.float32(1 / (1.6 + soft)), 0)
        e += membrane * np.float32(0.10)
        nuclei = self.bank.draw(scene.nuclei, x, y, width, height)
        empty = ramp(-lumen, soft)
        kept = 1 - empty
        h *= kept
        e *= kept
        e += empty * up(scene.fill) * (1 + 0.2 * cloud)
        covered = np.minimum(nuclei * np.float32(1.6), 1)
        e *= 1 - 0.15 * covered
        h += nuclei
        tissue = ramp(up(scene.depth) + 1.5 * cloud, soft + 0.5)
        tissue *= up(scene.thickness)
        h *= tissue
        e *= tissue
        return h, e

    def _stroma(
        self, along: Field, across: Field, grain: Field, cloud: Field
    ) -> tuple[Field, Field]:
        """Collagen: fibers looked up in a stretched texture along bent coordinates."""
        per_um = np.float32(1 / self.scene.spec.mpp)
        row = (across * per_um).astype(np.int32) & (BANK - 1)
        column = (along * per_um).astype(np.int32) & (BANK - 1)
        fiber = self.fibers.ravel().take(row * BANK + column)
        e = np.float32(0.25) + np.float32(0.062) * fiber
        e += np.float32(0.025) * cloud + np.float32(0.022) * grain
        gap = np.clip((fiber + 0.5 * cloud + 2.35) * np.float32(1.3), 0.15, 1)  # clefts
        e = np.maximum(e, 0.02) * gap
        h = np.maximum(np.float32(0.045) + np.float32(0.018) * (fiber + grain), 0) * gap
        return h, e

    def _digitize(self, light: Field, x: int, y: int) -> NDArray[np.uint8]:
        height, width = light.shape[:2]
        rows = np.arange(y, y + height) % BANK
        columns = np.arange(x, x + width) % BANK
        if rows[-1] - rows[0] == height - 1 and columns[-1] - columns[0] == width - 1:
            noise = self.noise[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        else:
            noise = self.noise[rows[:, None], columns[None, :]]
        values = light + noise
        values += np.float32(0.5)
        return np.clip(values, 0, 255, out=values).astype(np.uint8)

    def _points_near(self, x: int, y: int, width: int, height: int) -> NDArray[np.int64]:
        points = self.scene.points
        near = (points[:, 0] > x - POINT_HALO) & (points[:, 0] < x + width + POINT_HALO)
        near &= (points[:, 1] > y - POINT_HALO) & (points[:, 1] < y + height + POINT_HALO)
        return points[near]


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _cross(pixels: NDArray[np.uint8], x: int, y: int) -> None:
    """A black cross on a white square, symmetric about the pixel corner (x, y)."""

    def fill(across: int, down: int, value: int) -> None:
        rows = slice(max(y - down, 0), max(y + down, 0))
        columns = slice(max(x - across, 0), max(x + across, 0))
        pixels[rows, columns] = value

    fill(POINT_HALO, POINT_HALO, 250)
    fill(POINT_ARM, POINT_HALF, 5)
    fill(POINT_HALF, POINT_ARM, 5)
