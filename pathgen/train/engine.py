"""Device, precision, seeds and signals: what every training loop needs around its steps."""

from __future__ import annotations

import math
import random
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from pathgen.errors import ConfigError, RunError, Stopped
from pathgen.runs import Run, RunConfig, Stateful

Precision = Literal["fp32", "bf16", "fp16"]
T = TypeVar("T")


class Engine:
    """Where a training computes and how precisely. Making one seeds every global generator.

    Attributes:
        device: where models and batches belong.
        precision: what "auto" became.
        scaler: the loss scaler of fp16, else None.
        step: what `at_step` was last told.

    Raises:
        ConfigError: PG-C05, the device is unknown or absent, or lacks the precision.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.step = 0
        self.device = find_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        # Accelerate keeps one state a process and refuses a second precision; stages differ.
        AcceleratorState._reset_state(reset_partial_state=True)
        mixed = {"fp32": "no"}.get(self.precision, self.precision)
        self._accelerator = Accelerator(
            cpu=self.device.type == "cpu", mixed_precision=mixed, device_placement=False
        )
        if self._accelerator.num_processes > 1:
            raise RunError(
                "this version trains in one process", code="PG-T06",
                why=f"started as one of {self._accelerator.num_processes}",
                hint="start it without torchrun or accelerate launch",
            )  # fmt: skip
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        seed_everything(config.seed)

    @property
    def scaler(self) -> Any:
        return self._accelerator.scaler

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision for the forward pass; nothing changes under fp32."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def at_step(self, step: int) -> None:
        """Seed for one step, so that what a step draws depends on nothing done before it.

        Resuming is then exact, and an extra forward pass in one step leaves the next alone.
        """
        self.step = step
        seed_everything((self.config.seed * 1_000_003 + step + 1) % 2**32)

    def finite(self, loss: Tensor, step: int, run: Run) -> float:
        """The loss as a number. Raises RunError PG-T03 naming step and last good checkpoint."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise not_finite(f"the loss is {value}", step, run)
        return value


def not_finite(what: str, step: int, run: Run) -> RunError:
    """The PG-T03 error for `step`."""
    good = run.checkpoints()
    last = f"the last good checkpoint is {good[-1].name}" if good else "no checkpoint yet"
    return RunError(
        f"{what} at step {step}", code="PG-T03", where=run.path,
        why=last,
        hint="lower the learning rate or use precision fp32, with another --out",
    )  # fmt: skip


def find_device(name: str) -> torch.device:
    """``auto``: CUDA, else MPS, else CPU. Raises ConfigError PG-C05 for one that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            "unknown device", code="PG-C05", where=name, hint="use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not here.get(device.type, False):
        raise ConfigError(
            "this machine has no such device", code="PG-C05", where=name, hint="use --device auto"
        )
    return device


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """``auto``: bf16 on a CUDA device that computes in it, else fp32."""
    if wanted == "auto":
        fits = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fits else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError(
            "fp16 needs a GPU", code="PG-C05", where="run.precision", hint="use auto or fp32"
        )
    if wanted not in ("fp32", "bf16", "fp16"):
        raise ConfigError("unknown precision", code="PG-C05", where=wanted)
    return wanted  # type: ignore[return-value]


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's global generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class StopRequest:
    """While entered, the first SIGTERM, SIGUSR1 or SIGINT only sets `requested`.

    The loop sees it after its step, saves a checkpoint and raises `Stopped`. A second SIGINT is
    an immediate KeyboardInterrupt. Outside the main thread, where Python allows no handlers,
    `request` is the only way to stop.
    """

    SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")

    def __init__(self) -> None:
        self.requested = False
        self.reason = "asked to stop"
        self._before: dict[int, Any] = {}

    def request(self, reason: str = "asked to stop") -> None:
        """Ask for a stop from the program itself; safe from any thread."""
        self.requested, self.reason = True, reason

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in self.SIGNALS:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not installed from Python cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request(f"received {signal.Signals(number).name}")

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """The loader's batches, until a stop is asked for.

        SIGTERM to the whole process group also ends the loader's workers; what talking to them
        raises then is part of stopping.
        """
        batches = iter(loader)
        while not self.requested:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError):
                if self.requested:
                    return
                raise
            yield batch


def checkpoint(
    run: Run, done: int, steps: int, stop: StopRequest, every: int, **parts: Stateful
) -> None:
    """After `done` of `steps` steps: save when it is time, and end the training when asked to.

    Raises Stopped (PG-T07, exit code 85) once the checkpoint is on disk.
    """
    stopping = stop.requested and done < steps
    if stopping or done == steps or done % every == 0:
        run.save(done, **parts)
    if stopping:
        raise Stopped(
            f"stopped after step {done} of {steps}", where=run.path, why=stop.reason,
            hint="run the same command again, without --overwrite, to go on from here",
        )  # fmt: skip
