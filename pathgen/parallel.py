"""Several processes that train one model: which one this is, and how they agree.

`torchrun` and `accelerate launch` start them and say so in the environment. A batch is drawn for
all of them and each takes its rows (`Share`), so what is trained does not depend on their number.
Process 0 alone writes; the others wait for it. Started alone, every function here is free.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pathgen.errors import PathgenError, RunError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

#: Others wait as long as process 0 needs to draw images or extract features.
PATIENCE = timedelta(days=30)
GO, STOP, FAILED = range(3)


class Share(NamedTuple):
    """Rows `first` to `stop` - 1 of a global batch of `total`: what one forward pass sees."""

    first: int
    stop: int
    total: int

    @property
    def size(self) -> int:
        """Rows of its own."""
        return self.stop - self.first

    @property
    def rows(self) -> slice:
        """Its rows within the global batch."""
        return slice(self.first, self.stop)

    @property
    def is_whole(self) -> bool:
        """Whether nobody else has rows of this batch."""
        return self.size == self.total

    def parts(self, count: int) -> list[Share]:
        """As `count` shares of equal size, in order. Raises RunError PG-T06 when it cannot be."""
        if self.size % count:
            raise RunError(
                "batch cannot be shared out evenly", code="PG-T06", where="optim.batch_size",
                why=f"{self.size} patches for {count} parts",
                hint="make optim.batch_size a multiple of processes x run.accumulate",
            )  # fmt: skip
        step = self.size // count
        starts = range(self.first, self.stop, step)
        return [Share(start, start + step, self.total) for start in starts]


def whole(total: int) -> Share:
    """All rows of a batch."""
    return Share(0, total, total)


def count() -> int:
    """How many processes train together; 1 unless a launcher said otherwise."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Number of this process among all, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine: which GPU is its own."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


def local_count() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def leads() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def share_of(batch_size: int) -> Share:
    """The rows of a global batch that are this process's.

    Raises RunError PG-T06 when they cannot be shared out evenly.
    """
    if batch_size % count():
        raise RunError(
            "batch cannot be shared out evenly", code="PG-T06", where="optim.batch_size",
            why=f"{batch_size} patches for {count()} processes",
            hint="batch_size counts the patches of all processes: make it a multiple of them",
        )  # fmt: skip
    return whole(batch_size).parts(count())[rank()]


@functools.cache
def _control() -> Any:
    """The group for words between processes: over gloo, on the CPU, and patient."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        with_gpus = _has_gpu_each() and dist.is_nccl_available()
        if with_gpus:
            torch.cuda.set_device(local_rank())
        dist.init_process_group("cpu:gloo,cuda:nccl" if with_gpus else "gloo")
        atexit.register(_leave)
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def _has_gpu_each() -> bool:
    """Whether every process on this machine can have a GPU; on the CPU there may be more."""
    import torch

    here = local_count()
    return torch.cuda.is_available() and here <= torch.cuda.device_count()


def join() -> None:
    """Meet the other processes, once; without others nothing happens."""
    if count() > 1:
        _control()


def _leave() -> None:
    import torch.distributed as dist

    with suppress(RuntimeError, ValueError):  # the others may be gone
        dist.destroy_process_group()


def wait() -> None:
    """Until every process has come here."""
    agree(GO)


def agree(word: int) -> int:
    """The greatest word that any process says here: `GO`, `STOP` or `FAILED`."""
    if count() == 1:
        return word
    import torch
    import torch.distributed as dist

    said = torch.tensor([word])
    dist.all_reduce(said, dist.ReduceOp.MAX, group=_control())
    return int(said)


def first(work: Callable[[], T]) -> T:
    """What `work` gives in process 0, while the others wait; an error there is one everywhere.

    The result must be picklable.
    """
    if count() == 1:
        return work()
    import torch.distributed as dist

    group = _control()
    box: list[Any] = [None]
    if leads():
        try:
            box = [("result", work())]
        except PathgenError as error:
            box = [("error", error)]
        except BaseException:
            dist.broadcast_object_list([("error", lost())], src=0, group=group)
            raise
    dist.broadcast_object_list(box, src=0, group=group)
    kind, value = box[0]
    if kind == "error":
        raise value
    result: T = value
    return result


def mean(values: Tensor) -> Tensor:
    """Mean over the processes of a tensor, in place, on its device."""
    if count() > 1:
        import torch.distributed as dist

        join()
        dist.all_reduce(values)
        values /= count()
    return values


def lost() -> RunError:
    return RunError(
        "another process of this training failed", code="PG-T08",
        hint="its own message is above or below this one",
    )  # fmt: skip
