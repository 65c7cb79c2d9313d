"""The real slides: every reader that takes one shows what OpenSlide shows."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_readers import SAME, far

from pathgen.errors import SlideError
from pathgen.tiling import open_slide
from pathgen.tiling.slide import SlideReader

pytestmark = pytest.mark.data

#: Readers that read a slide as OpenSlide does; the others refuse it by PG-S10.
REAL = {
    "CMU-1-Small-Region.svs": {"native", "tiffslide"},
    "TCGA-CR-7395-01A-01-TS1.svs": {"native", "tiffslide"},
    "boxes.tiff": {"native", "tiffslide"},
    "csf_mgg_penmarks_quarter.tif": {"native", "tiffslide"},
    "duodenum_net_CHR_ihc_quarter.svs": {"native", "tiffslide"},
    "lung_scc_HE3.svs": {"native", "tiffslide"},
    "pancreas_trypsin_ihc_quarter.tif": {"native", "tiffslide"},
    "small_HE_levels.tiff": {"native", "tiffslide"},
    "philips_endometrium.tiff": {"native"},
    "trestle_duodenum.tif": set(),
    "ventana_spleen.bif": set(),
    "leica_colon.scn": set(),
    "test3-DAPI-2-387.ndpi": set(),
    "hamamatsu_vms/slide.vms": set(),
    "mirax_giardia.mrxs": set(),
    "boxes_0.dcm": {"dicom"}, "camelyon_jpeg.dcm": {"dicom"}, "crohn3_crop_dicom": {"dicom"},
    "gcp_jpeg.dcm": {"dicom"}, "hd_sm_image.dcm": {"dicom"},
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_slides(data: Path, name: str) -> None:
    path = data / "slides" / name
    rng = np.random.default_rng(1)
    with ExitStack() as stack:
        other = stack.enter_context(open_slide(path, "openslide"))
        readers: list[SlideReader] = [stack.enter_context(open_slide(path))]
        for reader in ("native", "tiffslide", "dicom"):
            if reader in REAL[name]:
                readers.append(stack.enter_context(open_slide(path, reader)))
            elif reader != "native":  # which takes more than it is chosen for
                with pytest.raises(SlideError, match="PG-S10"):
                    open_slide(path, reader)
        for slide in readers:
            mine, theirs = slide.header, other.header  # type: ignore[attr-defined]
            assert mine == replace(theirs, notes=mine.notes)
            for level in range(len(slide.level_sizes)):
                check_real(slide, other, level, rng)


def check_real(slide: SlideReader, other: SlideReader, level: int, rng: Any) -> None:
    """Parts of a level, from where OpenSlide does not blend: pixel 0, and whole steps from it."""
    width, height = slide.level_sizes[level]
    step = slide.downsamples[level]
    whole = max(1, round(1 / (step % 1))) if step % 1 > 1e-9 else 1
    whole = whole if abs(whole * step % 1) < 1e-9 else 0
    x0, y0, w, h = (round(v / step) for v in slide.bounds)
    for _ in range(4):
        x, y = (
            int(rng.integers(x0, x0 + max(w - 200, 1))),
            int(rng.integers(y0, y0 + max(h - 200, 1))),
        )
        if not whole:  # one read from the corner; only where that is small
            if width * height > 2**22:
                return
            theirs = other.read((0, 0), level, (width, height))
            assert far(slide.read((0, 0), level, (width, height)), theirs) <= SAME
            return
        position = (x // whole * whole * step, y // whole * whole * step)
        theirs = other.read(position, level, (200, 200))
        assert far(slide.read(position, level, (200, 200)), theirs) <= SAME


@pytest.mark.parametrize("version", ["v04", "v05"])
def test_real_ome_zarr_is_its_dicoms_source(data: Path, version: str) -> None:
    folder = data / "slides"
    with (
        open_slide(folder / f"crohn3_crop_{version}.ome.zarr") as crop,
        open_slide(folder / "crohn3_crop_dicom") as whole,
    ):
        assert crop.mpp == whole.mpp == 0.25
        mine = crop.read((0, 0), 0, crop.size).astype(int)
        aligned = np.abs(mine - whole.read((2048, 2048), 0, crop.size)).mean()
        assert aligned < 4  # JPEG at quality 80
        for shift in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            beside = whole.read((2048 + shift[0], 2048 + shift[1]), 0, crop.size)
            assert aligned < np.abs(mine - beside).mean()
