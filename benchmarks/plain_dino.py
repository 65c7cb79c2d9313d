"""DINO as lightly's documentation writes it: the loop that benchmarks/training.py compares with.

Its projection head, loss, transform, data set and momentum update; timm's ViT; AdamW. One process,
float32, nothing tuned.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import timm
import torch
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.dino_transform import DINOTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader

warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated", FutureWarning)
Step = Callable[[Sequence[Tensor]], None]


class Dino(nn.Module):
    """Student and teacher, each a backbone and a head."""

    def __init__(self, name: str, dim: int, prototypes: int) -> None:
        super().__init__()
        backbone = timm.create_model(name, num_classes=0, dynamic_img_size=True, drop_path_rate=0.1)
        self.student_backbone = backbone
        self.student_head = DINOProjectionHead(dim, 2048, 256, prototypes)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = DINOProjectionHead(dim, 2048, 256, prototypes)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)

    def forward(self, x: Tensor) -> Tensor:
        features = self.student_backbone(x).flatten(start_dim=1)
        logits: Tensor = self.student_head(features)
        return logits

    def forward_teacher(self, x: Tensor) -> Tensor:
        features = self.teacher_backbone(x).flatten(start_dim=1)
        logits: Tensor = self.teacher_head(features)
        return logits


def training_step(name: str, dim: int, prototypes: int) -> Step:
    """A function of the views of a batch, globals first: forward, backward, update, teacher."""
    model = Dino(name, dim, prototypes).train()
    criterion = DINOLoss(output_dim=prototypes, warmup_teacher_temp_epochs=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(views: Sequence[Tensor]) -> None:
        update_momentum(model.student_backbone, model.teacher_backbone, m=0.996)
        update_momentum(model.student_head, model.teacher_head, m=0.996)
        teacher_out = [model.forward_teacher(view) for view in views[:2]]
        student_out = [model.forward(view) for view in views]
        loss = criterion(teacher_out, student_out, epoch=0)
        loss.backward()
        model.student_head.cancel_last_layer_gradients(current_epoch=0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def batches(folder: Path, batch_size: int, workers: int) -> Iterator[Sequence[Tensor]]:
    """Views of shuffled images, epoch after epoch: 2 of 224 px, 8 of 96."""
    dataset = LightlyDataset(str(folder), transform=DINOTransform(n_local_views=8))
    loader = DataLoader(
        dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return (batch[0] for _ in itertools.count() for batch in loader)
