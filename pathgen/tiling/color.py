"""The color profile (ICC) of a slide: which one it has, and its colors as sRGB.

Scanners differ in the colors they give the same stain; some say in a profile how theirs are meant
to be seen. The transform is the one OpenSlide's manual gives for display: from the embedded profile
to sRGB by Little CMS, with the profile's own rendering intent.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling.slide import SlideReader, open_slide

#: TIFF's tag for an ICC profile.
_ICC_TAG = 34675


def color_profile(slide: str | Path | SlideReader) -> bytes | None:
    """The ICC profile embedded in a slide, its path or an open one; None where there is none.

    Empty bytes where there is one that cannot be read.

    Raises:
        NoInputError, SlideError: as `open_slide`, for a path.
    """
    if isinstance(slide, str | Path):
        with open_slide(slide) as opened:
            return color_profile(opened)
    find = _FINDERS.get(getattr(slide, "reader", ""))
    return None if find is None else find(slide)


class ToSrgb:
    """Pixels of a slide with a profile, as sRGB.

    Raises:
        ValueError: the profile cannot be read, or is not one of RGB colors.
    """

    def __init__(self, profile: bytes) -> None:
        from PIL import ImageCms

        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            intent = ImageCms.Intent(ImageCms.getDefaultIntent(source))
            self._transform = ImageCms.buildTransform(
                source, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent
            )
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            raise ValueError(str(error)) from error

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB uint8 (n, height, width, 3) to the same."""
        from PIL import Image, ImageCms

        if not images.size:
            return images
        count, height, width, _ = images.shape
        tall = Image.fromarray(images.reshape(count * height, width, 3))
        ImageCms.applyTransform(tall, self._transform, inPlace=True)
        return np.asarray(tall).reshape(images.shape)


def describe_profile(profile: bytes | None) -> dict[str, Any] | None:
    """Of a profile: ``name`` (null where it cannot be read), ``bytes``, ``digest`` (BLAKE2b)."""
    if profile is None:
        return None
    digest = hashlib.blake2b(profile, digest_size=8).hexdigest()
    return {"name": _name(profile), "bytes": len(profile), "digest": digest}


def _name(profile: bytes) -> str | None:
    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return None
    return name.strip().encode("utf-8", "replace").decode("utf-8")


def _of_openslide(slide: Any) -> bytes | None:
    from PIL import ImageCms

    try:
        profile = slide.handle.color_profile
    except (ImageCms.PyCMSError, OSError):
        return b""
    return None if profile is None else bytes(profile.tobytes())


def _of_file(slide: Any) -> bytes | None:
    import tifffile

    with tifffile.TiffFile(slide.path) as tiff:
        return _of_page(tiff.pages.first)


def _of_page(page: Any) -> bytes | None:
    tag = page.tags.get(_ICC_TAG)
    return None if tag is None else bytes(tag.value)


def _of_tiffslide(slide: Any) -> bytes | None:
    return _of_page(slide.handle.slide.ts_tifffile.pages.first)


def _of_dicom(slide: Any) -> bytes | None:
    paths: Any = getattr(slide.handle.base, "OpticalPathSequence", None) or []
    profile = getattr(paths[0], "ICCProfile", None) if len(paths) else None
    return bytes(profile) if profile else None


def _of_flat(slide: Any) -> bytes | None:
    from PIL import Image

    with Image.open(slide.path) as image:
        profile = image.info.get("icc_profile")
    return bytes(profile) if profile else None


_FINDERS: Mapping[str, Callable[[Any], bytes | None]] = {
    "openslide": _of_openslide,
    "native": _of_file,
    "tiffslide": _of_tiffslide,
    "dicom": _of_dicom,
    "flat": _of_flat,
}
