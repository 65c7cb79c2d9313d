"""Video object segmentation on DAVIS 2017 by passing the first frame's labels on.

The protocol of the DINO paper (arXiv 2104.14294), after Jabri et al. 2020: each patch of a frame
takes the labels of the patches it is most like, in the first frame and in the last few, within a
neighborhood. Nothing is trained. The layout of the distribution: ``ROOT/ImageSets/2017/val.txt``,
``ROOT/JPEGImages/480p/NAME/*.jpg`` and ``ROOT/Annotations/480p/NAME/*.png``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pathgen.data.sources import read_image
from pathgen.errors import DataError, NoInputError
from pathgen.evaluate.natural.images import to_tensor
from pathgen.evaluate.natural.outlines import contour_accuracy, region_similarity
from pathgen.models.encoder import Encoder
from pathgen.progress import Progress, Silent

#: Shorter side of a frame in pixels; the longer one is cut to a multiple of `STEP`.
SIDE, STEP = 480, 64
#: Of an annotation: belongs to no object and is not judged.
VOID = 255


class Propagation(NamedTuple):
    """How labels are passed on; the defaults are the published ones."""

    frames: int = 7
    """frames before the present one that are looked at, besides the first"""
    radius: int = 12
    """how far away, in patches along each axis, labels may come from"""
    neighbors: int = 5
    temperature: float = 0.1


def evaluate_video(
    encoder: Encoder,
    root: Path | str,
    *,
    settings: Propagation | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """J (region similarity) and F (contour accuracy), means over the objects of all videos.

    An object's score is the mean over the frames between the first, which is given, and the
    last, which the benchmark leaves out.

    Raises:
        NoInputError: PG-N01, a list, frames or annotations are absent. DataError: PG-D20, frames
        and annotations do not pair up; PG-D02, an image cannot be read.
    """
    root, progress = Path(root), progress or Silent()
    settings = settings or Propagation()
    names = _video_names(root)
    regions: list[float] = []
    contours: list[float] = []
    videos: dict[str, dict[str, float]] = {}
    with progress.task("videos", len(names)) as task:
        for name in names:
            frames, truth = _read_video(root, name)
            found = segment_video(encoder, frames, truth[0], settings)
            objects = int(truth[0][truth[0] != VOID].max(initial=0))  # as the benchmark counts
            j, f = object_scores(found[1:-1], truth[1:-1], range(1, objects + 1))
            regions += j
            contours += f
            videos[name] = {"j": float(np.mean(j)), "f": float(np.mean(f)), "objects": len(j)}
            task.advance(note=name)
    j_mean, f_mean = float(np.mean(regions)), float(np.mean(contours))
    return {
        "data": root.name,
        "encoder": encoder.id,
        "jf_mean": (j_mean + f_mean) / 2,
        "j_mean": j_mean,
        "f_mean": f_mean,
        "objects": len(regions),
        "videos": videos,
    }


def object_scores(
    found: Sequence[NDArray[np.uint8]],
    truth: Sequence[NDArray[np.uint8]],
    objects: Sequence[int],
) -> tuple[list[float], list[float]]:
    """Mean J and mean F over the frames (H, W), of each of `objects`; void pixels do not count."""
    regions, contours = [], []
    for number in objects:
        pairs = [(f == number, t == number, t == VOID) for f, t in zip(found, truth, strict=True)]
        masks = [(mine & ~void, own) for mine, own, void in pairs]
        regions.append(float(np.mean([region_similarity(a, b) for a, b in masks])))
        contours.append(float(np.mean([contour_accuracy(a, b) for a, b in masks])))
    return regions, contours


@torch.inference_mode()
def segment_video(
    encoder: Encoder,
    frames: Sequence[Path],
    first: NDArray[np.uint8],
    settings: Propagation,
) -> list[NDArray[np.uint8]]:
    """Object numbers (H, W) of every frame; those of the first frame are given and kept."""
    patch = encoder.patch_size
    device = next(encoder.parameters()).device
    start, grid = _tokens(encoder, frames[0], device)
    labels = _small_labels(first, grid).to(device)
    near = neighborhood(grid, settings.radius).to(device)
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.frames)
    found = [first]
    for path in frames[1:]:
        tokens, grid_now = _tokens(encoder, path, device)
        if grid_now != grid:
            raise DataError("frames of different sizes in one video", code="PG-D20", where=path)
        context = [(start, labels), *recent]
        passed = propagate(tokens, context, near, settings)
        recent.append((tokens, passed))
        soft = passed.T.reshape(1, -1, *grid)
        soft = F.interpolate(soft, scale_factor=patch, mode="bilinear")[0]
        chosen = stretch_classes(soft).argmax(0).to(torch.uint8).cpu().numpy()
        height, width = first.shape
        picture = Image.fromarray(chosen).resize((width, height), Image.Resampling.NEAREST)
        found.append(np.asarray(picture))
    return found


def propagate(
    tokens: Tensor,
    context: Sequence[tuple[Tensor, Tensor]],
    near: Tensor,
    settings: Propagation,
) -> Tensor:
    """Labels of one frame from those of others.

    Args:
        tokens: (n, d) of the frame, of unit length.
        context: of other frames, tokens (n, d) and soft labels (n, objects + 1).
        near: (n, n) bool, which places may give labels to which.

    Returns:
        (n, objects + 1): mean of the labels of the most similar places, weighted by
        exp(cosine / temperature).
    """
    others = torch.cat([vectors for vectors, _ in context])  # (c n, d)
    labels = torch.cat([values for _, values in context])  # (c n, objects + 1)
    weight = (tokens @ others.T / settings.temperature).exp()  # (n, c n)
    weight = weight * near.repeat(1, len(context))
    least = weight.topk(min(settings.neighbors, weight.shape[1]), dim=1).values[:, -1:]
    weight = torch.where(weight < least, 0.0, weight)
    return (weight / weight.sum(1, keepdim=True)) @ labels


def neighborhood(grid: tuple[int, int], radius: int) -> Tensor:
    """(n, n) bool for the n = rows * columns places of a grid: within `radius` along both axes."""
    rows, columns = (torch.arange(size) for size in grid)
    near_rows = (rows[:, None] - rows).abs() <= radius
    near_columns = (columns[:, None] - columns).abs() <= radius
    both = near_rows[:, None, :, None] & near_columns[None, :, None, :]
    return both.reshape(len(rows) * len(columns), -1)


def stretch_classes(soft: Tensor) -> Tensor:
    """(classes, H, W), each class to 0-1 by its least and largest value; empty ones stay."""
    low, high = soft.amin((1, 2), keepdim=True), soft.amax((1, 2), keepdim=True)
    stretched = (soft - low) / (high - low).clamp_min(1e-12)
    return torch.where(high > 0, stretched, soft)


def _tokens(encoder: Encoder, path: Path, device: torch.device) -> tuple[Tensor, tuple[int, int]]:
    """Patch tokens (n, d) of unit length, and the grid they lie on."""
    image = to_tensor(read_image(path)).to(device)
    height, width = frame_size(*image.shape[-2:])
    image = F.interpolate(image, (height, width), mode="bilinear")
    tokens = encoder.tokens(image)[0].float()
    return F.normalize(tokens, dim=1), (height // encoder.patch_size, width // encoder.patch_size)


def frame_size(height: int, width: int) -> tuple[int, int]:
    """Height and width that frames are resized to."""
    if height > width:
        return int(SIDE * height / width // STEP * STEP), SIDE
    return SIDE, int(SIDE * width / height // STEP * STEP)


def _small_labels(first: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """(n, objects + 1) one-hot of the nearest label at each place of the grid."""
    objects = int(first[first != VOID].max(initial=0))
    plain = np.where(first == VOID, 0, first).astype(np.uint8)
    small = Image.fromarray(plain).resize((grid[1], grid[0]), Image.Resampling.NEAREST)
    numbers = torch.from_numpy(np.array(small)).long().flatten()
    return F.one_hot(numbers, objects + 1).float()


def _video_names(root: Path) -> list[str]:
    path = root / "ImageSets" / "2017" / "val.txt"
    try:
        names = path.read_text(encoding="utf-8").split()
    except FileNotFoundError as error:
        raise NoInputError(
            "no DAVIS 2017 data here", where=root, why="ImageSets/2017/val.txt is absent",
            hint="give the folder DAVIS that the benchmark unpacks to",
        ) from error  # fmt: skip
    if not names:
        raise NoInputError("no videos are listed", where=path)
    return names


def _read_video(root: Path, name: str) -> tuple[list[Path], list[NDArray[np.uint8]]]:
    frames = sorted((root / "JPEGImages" / "480p" / name).glob("*.jpg"))
    masks = sorted((root / "Annotations" / "480p" / name).glob("*.png"))
    if not frames or [p.stem for p in frames] != [p.stem for p in masks]:
        raise DataError(
            "frames and annotations do not pair up", code="PG-D20", where=name,
            why=f"{len(frames)} frames, {len(masks)} annotations",
        )  # fmt: skip
    if len(frames) < 3:
        raise DataError("too few frames to judge", code="PG-D20", where=name, why=str(len(frames)))
    return frames, [np.asarray(Image.open(path), np.uint8) for path in masks]
