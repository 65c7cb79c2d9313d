"""The training loop of every stage; what differs between them is a `Stage`.

A step: draw from (seed, step), forward and backward for each part of the global batch, gradients
averaged over parts and processes, clip, update, average the weights. Around it: checkpoints,
logs, pictures, stop signals, and the watch over numbers that are not finite.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pathgen import parallel
from pathgen.models.chance import holding
from pathgen.parallel import Share
from pathgen.progress import Progress, Silent, Task
from pathgen.runs import Run, Stateful
from pathgen.train.engine import Engine, StopRequest, not_compiled, not_finite, stopped
from pathgen.train.eventfile import EventFile
from pathgen.train.optimize import Optimizer
from pathgen.train.sheets import Picture, write_sheet

Batch = TypeVar("Batch")
#: Scalars on the device by name: "loss" is minimized, all are logged.
Terms = Mapping[str, Tensor]


class Objective(NamedTuple, Generic[Batch]):
    """A loss and who is to lower it. Most stages have one; an adversary is a second one."""

    optimizer: Optimizer
    loss: Callable[[Batch, int, Share], Terms]
    """of a batch at a step: means over the rows it is given"""


class Stage(ABC, Generic[Batch]):
    """What a method tells `train`.

    Attributes:
        engine: device, precision, seeds.
        steps: of the whole training.
        batch_size: patches of a step, all processes together.
        parts: by name, all that a checkpoint must hold; modules among them are trained in
            training mode.
    """

    engine: Engine
    steps: int
    batch_size: int
    parts: dict[str, Stateful]

    @property
    @abstractmethod
    def objectives(self) -> Sequence[Objective[Batch]]:
        """What a step does, in this order."""

    @abstractmethod
    def batches(self, start: int, share: Share) -> Iterator[Batch]:
        """Rows `share` of the global batch of each step from `start` on, on the device."""

    @abstractmethod
    def schedule(self, step: int) -> dict[str, float]:
        """Set the rates of a step; what of them is to be logged."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """What is called in a forward pass, for torch.compile, channels-last and recomputing."""
        return ()

    def part(self, batch: Batch, rows: slice) -> Batch:
        """Some rows of a batch, for gradient accumulation."""
        if isinstance(batch, tuple) and all(isinstance(x, Tensor) for x in batch):
            return type(batch)(*(x[rows] for x in batch))  # type: ignore[return-value]
        raise NotImplementedError(f"{type(self).__name__} does not say how to split a batch")

    def before(self, batch: Batch, step: int) -> None:
        """Once a step, under autocast, before the first loss. `batch` is this process's."""

    def frozen(self, step: int) -> Iterable[nn.Parameter]:
        """Parameters that stay as they are in this step."""
        return ()

    def after(self, step: int) -> None:
        """Once a step, when the weights have changed: teachers, averages, centers follow."""

    def facts(self, batch: Batch) -> dict[str, float]:
        """Numbers to log that need no device: means over the processes are shown."""
        return {}

    def pictures(self, batch: Batch, step: int) -> Mapping[str, Sequence[Sequence[Picture]]]:
        """Sheets by name for a person to look at, made by process 0 alone."""
        return {}


def train(stage: Stage[Any], run: Run, progress: Progress | None = None) -> None:
    """Train to the end, or on from the run's last checkpoint.

    Raises:
        RunError: PG-T03, the loss or a gradient is not finite; PG-T04, checkpoints do not fit;
            PG-T06, the batch cannot be shared out; PG-T08, another process failed.
        Stopped: asked to stop by a signal, after a checkpoint.
    """
    progress = progress or Silent()
    share = parallel.share_of(stage.batch_size)
    with StopRequest() as stop:
        problem = stage.engine.prepare(stage.networks)
        if problem is not None:
            progress.say(f"{run.provenance.stage}: not compiled, so slower: {problem}")
        loop = _Loop(stage, run, share)
        start = run.restore(**stage.parts)
        with progress.task(run.provenance.stage, stage.steps, start) as task:
            loop.go(start, stop, task)


class _Pass(nn.Module):
    """An objective's loss as the forward pass of what it trains, as DDP wants it."""

    def __init__(self, objective: Objective[Any]) -> None:
        super().__init__()
        self.network = objective.optimizer.model
        self._loss = objective.loss

    def forward(self, batch: Any, step: int, share: Share) -> dict[str, Tensor]:
        with holding(share):
            return dict(self._loss(batch, step, share))


class _Loop:
    """The state of a training between two steps that no checkpoint needs."""

    def __init__(self, stage: Stage[Any], run: Run, share: Share) -> None:
        self.stage, self.run, self.share = stage, run, share
        self.engine, self.config = stage.engine, stage.engine.config
        self.micro = share.parts(self.config.accumulate)
        self.passes = [_wrapped(objective) for objective in stage.objectives]
        self.bad = torch.full((), -1, dtype=torch.long, device=self.engine.device)
        self.events: EventFile | None = None
        self.saved = -1

    def go(self, start: int, stop: StopRequest, task: Task) -> None:
        if self.config.tensorboard and parallel.leads() and start < self.stage.steps:
            self.events = EventFile(self.run.path / "tensorboard", start)
        self.saved = start or -1
        clock = _Clock(self.stage.batch_size, start)
        batches = stop.batches(self.stage.batches(start, self.share))
        done, steps, note = start, self.stage.steps, ""
        for step in range(start, steps):
            batch = self._fetch(batches, stop)
            if batch is None:
                break
            rates = self.stage.schedule(step)
            terms, norm = self._step(batch, step)
            done = step + 1
            due = step % self.config.log_every == 0 or done == steps
            if due:
                note = self._log(step, terms, norm, self.stage.facts(batch), rates, clock)
            elif self.engine.is_exact and parallel.count() == 1:
                note = f"loss {float(terms['loss']):.3f}"
            self._show(batch, step)
            task.advance(note=note)
            if done == steps or done % self.config.save_every == 0:
                self._keep(done)
        if done < steps:
            self._keep(done)
            raise stopped(self.run, done, steps, stop.reason)

    def _fetch(self, batches: Iterator[Any], stop: StopRequest) -> Any:
        """The next batch; None when any process was asked to stop."""
        try:
            batch = next(batches, None)
        except BaseException:
            parallel.agree(parallel.FAILED)
            raise
        word = parallel.agree(parallel.GO if batch is not None else parallel.STOP)
        if word == parallel.FAILED:
            raise parallel.lost()
        if word == parallel.STOP and batch is not None:
            stop.request("another process was asked to stop")
        return batch if word == parallel.GO else None

    def _step(self, batch: Any, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Every objective once; its terms, means over this process, and the first one's norm."""
        stage, engine = self.stage, self.engine
        engine.at_step(step)
        with engine.autocast():
            stage.before(batch, step)
        terms: dict[str, Tensor] = {}
        norms = []
        for objective, forward in zip(stage.objectives, self.passes, strict=True):
            own = self._backward(forward, batch, step)
            norms.append(objective.optimizer.measure())
            self._watch(own, norms[-1], step, objective.optimizer)
            objective.optimizer.update(stage.frozen(step))
            terms = own | terms  # "loss" is the first one's
        stage.after(step)
        return terms, norms[0]

    def _backward(self, forward: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        """Gradients, averaged over all parts of the global batch; terms, over this process's."""
        count = len(self.micro)
        found: list[dict[str, Tensor]] = []
        for number, share in enumerate(self.micro):
            part = batch
            if count > 1:
                first = share.first - self.share.first
                part = self.stage.part(batch, slice(first, first + share.size))
            self.engine.at_step(step)  # all parts are drawn from one global batch
            with _unsynced(forward, number < count - 1):
                with self.engine.autocast():
                    terms = self._forward(forward, part, step, share)
                self.engine.backward(terms["loss"] / count if count > 1 else terms["loss"])
            found.append({name: value.detach() for name, value in terms.items()})
        if count == 1:
            return found[0]
        return {name: torch.stack([t[name] for t in found]).mean(0) for name in found[0]}

    def _forward(
        self, forward: nn.Module, batch: Any, step: int, share: Share
    ) -> dict[str, Tensor]:
        if not self.engine.is_compiled:
            return forward(batch, step, share)  # type: ignore[no-any-return]
        from torch._dynamo.exc import TorchDynamoException

        try:
            return forward(batch, step, share)  # type: ignore[no-any-return]
        except TorchDynamoException as error:
            raise not_compiled(str(error).strip().splitlines()[0]) from error

    def _watch(self, terms: Terms, norm: Tensor, step: int, optimizer: Optimizer) -> None:
        """Numbers that are not finite: at once where asking is free, else remembered."""
        loss = terms["loss"]
        fine = torch.isfinite(loss)
        if self.engine.scaler is None:  # a gradient may overflow under fp16
            fine = fine & torch.isfinite(norm)
        if not self.engine.is_exact:
            self.bad = torch.where((self.bad < 0) & ~fine, step, self.bad)
            return
        if parallel.mean(fine.float()) < 1:
            optimizer.forget()
            what = f"the loss is {float(loss)}" if not torch.isfinite(loss) else _GRADIENT
            raise not_finite(what, step, self.run)

    def _ask(self) -> None:
        """Raise for a bad step there was, if any; a GPU is waited for."""
        if self.engine.is_exact:
            return
        step = parallel.agree(int(self.bad))
        if step >= 0:
            raise not_finite("the loss or a gradient is not finite", step, self.run)

    def _log(
        self,
        step: int,
        terms: Terms,
        norm: Tensor,
        facts: Mapping[str, float],
        rates: Mapping[str, float],
        clock: _Clock,
    ) -> str:
        """One line in the logs, means over all processes; what to show beside the bar."""
        known = torch.tensor(list(facts.values()), dtype=torch.float32, device=norm.device)
        values = torch.stack([*(term.float() for term in terms.values()), norm.float()])
        numbers = parallel.mean(torch.cat([values, known])).tolist()
        self._ask()
        told = dict(zip([*terms, "gradient_norm", *facts], numbers, strict=True))
        rate = clock.rate(step + 1)
        told |= {**rates, "images_per_second": rate}
        self.run.log(step, **told)
        if self.events is not None:
            self.events.scalars(step, told)
        return f"loss {told['loss']:.3f}  {rate:,.0f} images/s"

    def _show(self, batch: Any, step: int) -> None:
        wanted = self.config.pictures_every
        every = max(100, self.stage.steps // 10) if wanted == "auto" else wanted
        if not every or (step + 1) % every or not parallel.leads():
            return
        with torch.no_grad():
            sheets = self.stage.pictures(batch, step)
        for name, rows in sheets.items():
            path = self.run.path / "pictures" / f"step-{step + 1:08d}-{name}.png"
            write_sheet(path, rows)
            if self.events is not None:
                self.events.picture(step + 1, name, path)

    def _keep(self, done: int) -> None:
        """A checkpoint of steps that are known to be sound."""
        if done == self.saved:
            return
        self._ask()
        self.run.save(done, keep=self.config.keep_checkpoints, **self.stage.parts)
        parallel.wait()  # a process that ends takes those still writing with it
        self.saved = done


_GRADIENT = "a gradient is not finite"


class _Clock:
    """Images a second since the last time it was asked."""

    def __init__(self, batch_size: int, done: int) -> None:
        self.batch_size = batch_size
        self.time, self.done = time.monotonic(), done

    def rate(self, done: int) -> float:
        now = time.monotonic()
        rate = (done - self.done) * self.batch_size / max(now - self.time, 1e-9)
        self.time, self.done = now, done
        return rate


def _wrapped(objective: Objective[Any]) -> nn.Module:
    """With other processes, in DDP: gradients are averaged while backward goes on."""
    module: nn.Module = _Pass(objective)
    if parallel.count() == 1:
        return module
    return DistributedDataParallel(module)


def _unsynced(forward: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    if wanted and isinstance(forward, DistributedDataParallel):
        context: AbstractContextManager[None] = forward.no_sync()  # type: ignore[no-untyped-call]
        return context
    return nullcontext()
