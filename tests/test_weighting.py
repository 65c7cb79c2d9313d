"""GenView's loss weights from the teacher's own tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_dino import Textures, random_loader, random_views, same, tiny

from pathgen.checkpoints import read_checkpoint
from pathgen.errors import ConfigError
from pathgen.models.dino import StudentTeacher
from pathgen.models.genview import saturation
from pathgen.runs import Run
from pathgen.train import dino as module
from pathgen.train.dino import train_dino
from pathgen.train.weighting import PairWeights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pair() -> StudentTeacher:
    torch.manual_seed(0)
    return StudentTeacher(tiny().encoder, tiny().head)


@pytest.mark.parametrize("guide", ["saturation", "inside"])
def test_weights_are_their_formula_on_the_first_principal_direction(
    pair: StudentTeacher, guide: str
) -> None:
    """By SVD and by loops over samples and tokens in float64."""
    teacher = pair.encoder()
    first, second = random_views(0, 8, blend=False).global_crops
    weigh = PairWeights(teacher.dim, 2.0, guide)
    for _ in range(60):  # the power method, a few steps a batch
        weights = weigh(teacher, first, second)
    with torch.no_grad():
        views = [teacher.tokens(x).double().numpy() for x in (first, second)]
    flat = np.concatenate(views).reshape(-1, teacher.dim)
    axis = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][0]
    if guide == "saturation":
        rises = torch.cat([saturation(x, 8) for x in (first, second)]).double().numpy().ravel()
    else:
        inside = np.zeros((4, 4))
        inside[1:-1, 1:-1] = 1
        rises = np.tile(inside.ravel(), 16)
    axis *= np.sign(((flat - flat.mean(0)) @ axis) @ (rises - rises.mean()))
    assert weigh.direction.double().numpy() @ axis > 0.999
    quality = []
    for one, other in zip(*views, strict=True):
        fore, back = [], []
        for tokens in (one, other):
            m = tokens @ weigh.direction.double().numpy()
            m = (m - m.min()) / (m.max() - m.min() + 1e-7)
            fore.append((m[:, None] * tokens).sum(0))
            back.append(((1 - m)[:, None] * tokens).sum(0))
        cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in (fore, back)]
        quality.append(cosine[0] - cosine[1])
    expected = 8 * np.exp(2 * np.array(quality)) / np.exp(2 * np.array(quality)).sum()
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-4)
    assert weights.std() > 1e-4
    # Equal views are all as good.
    assert torch.allclose(weigh(teacher, first, first), torch.ones(8), atol=1e-5)


def test_weights_enter_the_training_and_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "view_loader", random_loader)
    states = []
    for gamma in (0.0, 5.0, 5.0):
        config = tiny(quality_weight=gamma)
        run = Run.start(tmp_path / str(len(states)), "dino", config, {})
        train_dino(config, [Textures()], run)
        states.append(read_checkpoint(run.checkpoints()[-1])["parts"])
    assert "quality" not in states[0]
    assert same(states[1], states[2])
    assert not same(states[0]["pair"], states[1]["pair"])
    assert states[1]["quality"]["direction"].norm().item() == pytest.approx(1, abs=1e-5)


def test_a_backbone_without_tokens_cannot_be_weighted(tmp_path: Path) -> None:
    config = tiny(
        encoder={"name": "test_convnext", "image_size": 32, "drop_path": 0.1}, quality_weight=1.0
    )
    run = Run.start(tmp_path / "run", "dino", config, {})
    with pytest.raises(ConfigError, match="weighted") as caught:
        train_dino(config, [Textures()], run)
    assert caught.value.code == "PG-C04"
