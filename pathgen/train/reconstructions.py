"""How good an autoencoder is: on patches, in numbers and in pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pathgen.data.loading import center_square
from pathgen.data.patches import PatchDataset
from pathgen.data.subsets import evenly
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.encoder import Encoder
from pathgen.models.quality import psnr, ssim
from pathgen.train.sheets import Picture, to_pixels

#: Images of a sheet.
SHEET = 12


def load_images(patches: PatchDataset, indices: Sequence[int], size: int) -> Tensor:
    """Patches by number, as `image_loader` shows them: (n, 3, size, size) in [0, 1]."""
    squares = [center_square(image, size) for image in patches.images(indices)]
    return torch.stack(squares).float().div_(255)


def some_images(patches: PatchDataset, size: int, count: int, batch: int = 32) -> Iterator[Tensor]:
    """Batches of up to `count` images, evenly spaced over all patches."""
    indices = evenly(len(patches), count).tolist()
    for first in range(0, len(indices), batch):
        yield load_images(patches, indices[first : first + batch], size)


@torch.no_grad()
def measure_quality(
    model: Autoencoder, patches: PatchDataset, count: int, encoder: Encoder | None = None
) -> dict[str, float]:
    """Means over `count` evenly spaced patches.

    psnr in dB, ssim, and latent_std, the spread of the scaled latents, near 1. With an encoder
    also embedding_cosine: of an image's embedding with that of its reconstruction, which is about
    the best that an E-LDM on these latents can reach.
    """
    device = model.latent_mean.device
    found: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "embedding_cosine": []}
    latents = []
    for batch in some_images(patches, model.config.image_size, count):
        images = batch.to(device)
        scaled = model.encode(images)
        made = model.decode(scaled)
        found["psnr"].append(psnr(images, made))
        found["ssim"].append(ssim(images, made))
        if encoder is not None:
            found["embedding_cosine"].append(_likeness(encoder, images, made))
        latents.append(scaled)
    means = {name: float(torch.cat(values).mean()) for name, values in found.items() if values}
    return means | {"latent_std": float(torch.cat(latents).std())}


@torch.no_grad()
def reconstruction_sheet(model: Autoencoder, patches: PatchDataset) -> list[list[Picture]]:
    """Real patches in the first row, their reconstructions in the second."""
    images = next(some_images(patches, model.config.image_size, SHEET))
    images = images.to(model.latent_mean.device)
    rows = {"real": images, "reconstructed": model.decode(model.encode(images))}
    return [[Picture(name, pixels) for pixels in to_pixels(row)] for name, row in rows.items()]


def _likeness(encoder: Encoder, images: Tensor, made: Tensor) -> Tensor:
    """Cosine of the embeddings of each image and of its reconstruction, as pixels: (B,)."""
    first, second = (torch.from_numpy(encoder.encode(to_pixels(x))) for x in (images, made))
    return F.cosine_similarity(first, second)
