"""A critic of reconstructions, patch by patch, as VQGAN trains its autoencoder with one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: What the generator's share of the loss is limited to, and kept from a division by zero.
LARGEST, SMALL = 1e4, 1e-4


class PatchDiscriminator(nn.Module):
    """PatchGAN (arXiv 1611.07004): one logit for each overlapping square of an image.

    Halves the image `layers` times; widths double up to eight times `width`. Group norms in place
    of batch norms, so that an image is judged by itself and processes need not agree.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        before = width
        for layer in range(1, layers + 1):
            wide, stride = width * min(2**layer, 8), 2 if layer < layers else 1
            parts += [
                nn.Conv2d(before, wide, 4, stride, 1, bias=False),
                nn.GroupNorm(8, wide),
                nn.LeakyReLU(0.2),
            ]
            before = wide
        self.network = nn.Sequential(*parts, nn.Conv2d(before, 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> logits (B, 1, h, w), high for real."""
        logits: Tensor = self.network(images * 2 - 1)
        return logits


def critic_loss(real: Tensor, made: Tensor) -> Tensor:
    """Hinge loss of the discriminator, from its logits of real and of reconstructed images."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean())


def fooling_loss(made: Tensor) -> Tensor:
    """What the autoencoder adds to its loss, from the logits of its reconstructions."""
    return -made.float().mean()


def adaptive_weight(
    loss: Tensor,
    fooling: Tensor,
    last_layer: Tensor,
    average: Callable[[Tensor], Tensor] = lambda gradients: gradients,
) -> Tensor:
    """|gradient of loss| / |gradient of fooling| at the decoder's last layer, a 0-d tensor.

    VQGAN (arXiv 2012.09841, eq. 7): the two then pull equally hard. Both graphs are kept; the
    weight itself has no gradient. `average` takes gradients to their mean over processes.
    """
    gradients = [
        torch.autograd.grad(part, last_layer, retain_graph=True)[0].float()
        for part in (loss, fooling)
    ]
    norms = average(torch.stack(gradients)).flatten(1).norm(dim=1)
    weight: Tensor = norms[0] / (norms[1] + SMALL)
    return weight.clamp(0, LARGEST).detach()
