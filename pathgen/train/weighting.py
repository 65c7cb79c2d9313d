"""GenView's weights of the loss, from the teacher's own tokens instead of CLIP's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen import parallel
from pathgen.models.encoder import Encoder
from pathgen.models.genview import Foreground, inside, pair_quality, saturation

#: Steps of the power method a batch; the direction of the batch before is where they begin.
STEPS = 3


class PairWeights(nn.Module):
    """How much each sample counts: more where two views share their subject, not the ground.

    GenView (arXiv 2403.12003) with the patch tokens of the teacher. The direction of the
    foreground is the first principal one of the tokens of both views of the whole batch, found
    by the power method from where it was a step before, and turned towards `guide`.

    Args:
        dim: length of a token.
        gamma: 0: all weights 1.
        guide: what foreground is taken for: "saturation", high on stained tissue, or "inside",
            the middle of the view, in natural images.
    """

    direction: Tensor

    def __init__(self, dim: int, gamma: float, guide: str) -> None:
        super().__init__()
        self.gamma, self.guide = gamma, guide
        start = torch.randn(dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("direction", F.normalize(start, dim=0))

    @torch.no_grad()
    def forward(self, teacher: Encoder, first: Tensor, second: Tensor) -> Tensor:
        """Two global views (B, 3, H, W) in [0, 1] -> weights (B,), float32.

        Their mean over the global batch is 1, whatever the number of processes.
        """
        views = [first, second]
        tokens = [teacher.tokens(view).float() for view in views]
        self._follow(torch.cat(tokens), torch.cat([self._guide(teacher, v) for v in views]))
        # The soft map of a pair is stretched in each view: no threshold has a part in it.
        quality = pair_quality(tokens[0], tokens[1], Foreground(self.direction, 0.0))
        raised = (self.gamma * quality).exp()  # within exp(+-2 gamma): no overflow
        return raised / parallel.mean(raised.mean())

    def _guide(self, teacher: Encoder, view: Tensor) -> Tensor:
        if self.guide == "saturation":
            return saturation(view, teacher.patch_size)
        count = (view.shape[-2] // teacher.patch_size) * (view.shape[-1] // teacher.patch_size)
        return inside(count).to(view.device).expand(len(view), -1)

    def _follow(self, tokens: Tensor, guide: Tensor) -> None:
        """One batch's tokens (B, N, D) and guide (B, N)."""
        flat, guide = tokens.flatten(0, 1), guide.flatten().float()
        centered = flat - parallel.mean(flat.mean(0))
        for _ in range(STEPS):
            turned = parallel.mean(centered.T @ (centered @ self.direction))
            self.direction.copy_(F.normalize(turned, dim=0))
        guide = guide - parallel.mean(guide.mean())
        rises = parallel.mean(guide @ (centered @ self.direction))
        self.direction.mul_(torch.where(rises < 0, -1.0, 1.0))
