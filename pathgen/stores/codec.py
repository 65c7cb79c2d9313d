"""One patch as the bytes of one image file, and back."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen.errors import StoreError

Codec = Literal["jpeg", "png"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


def encode_patch(image: NDArray[np.uint8], codec: Codec = "jpeg", quality: int = 90) -> bytes:
    """An RGB image, uint8 (H, W, 3), as a JPEG (4:4:4) or PNG file.

    Args:
        image: uint8, (H, W, 3).
        codec: ``"png"`` is lossless and about six times as large.
        quality: JPEG quality, 1 to 100; PNG ignores it.

    Raises:
        ValueError: another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a patch is uint8 (H, W, 3); got {image.dtype} {image.shape}")
    pixels = np.ascontiguousarray(image)
    if codec == "jpeg":
        import simplejpeg

        # 4:2:0 would halve the resolution of the stain, which is color.
        return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="444"))
    if codec == "png":
        import imagecodecs

        # libpng's fast level: on tissue as small as Pillow's default, in a fifth of the time.
        return bytes(imagecodecs.png_encode(pixels, level=1))
    raise ValueError(f"codec is jpeg or png; got {codec!r}")


def decode_patch(data: bytes) -> NDArray[np.uint8]:
    """RGB pixels, uint8 (H, W, 3), of a JPEG or PNG file.

    Raises:
        StoreError: PG-O11 when the bytes are cut short, corrupt or neither JPEG nor PNG.
    """
    if data.startswith(_JPEG):
        return _decode_jpeg(data, None)
    if not data.startswith(_PNG):
        raise _undecodable("neither JPEG nor PNG")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise _undecodable(str(error)) from error


def decode_patches(encoded: list[bytes], size: int) -> NDArray[np.uint8]:
    """Square patches, uint8 (n, size, size, 3), of n image files.

    Raises:
        StoreError: PG-O11 when one cannot be decoded or has another size.
    """
    images = np.empty((len(encoded), size, size, 3), np.uint8)
    for i, data in enumerate(encoded):
        if data.startswith(_JPEG):
            image = _decode_jpeg(data, images[i])
        else:
            image = decode_patch(data)
        if image.shape != images.shape[1:]:
            raise _undecodable(f"{image.shape[1]} x {image.shape[0]} pixels instead of {size}")
        if not np.may_share_memory(image, images):
            images[i] = image
    return images


def _decode_jpeg(data: bytes, place: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """The pixels, which lie in `place` if that is given and large enough."""
    import simplejpeg

    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=place))
    except ValueError as error:
        raise _undecodable(str(error)) from error


def _undecodable(why: str) -> StoreError:
    return StoreError("patch cannot be decoded", why=why, hint="make the store again")
