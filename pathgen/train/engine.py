"""Device, precision, seeds and signals: what every training loop needs around its steps."""

from __future__ import annotations

import math
import random
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from pathgen import parallel
from pathgen.errors import ConfigError, RunError, Stopped
from pathgen.models.recompute import recompute_activations
from pathgen.runs import Run, RunConfig

Precision = Literal["fp32", "bf16", "fp16"]
T = TypeVar("T")
Net = TypeVar("Net", bound=nn.Module)


class Engine:
    """Where a training computes and how precisely. Making one seeds every global generator.

    Attributes:
        device: where models and batches belong.
        precision: what "auto" became.
        scaler: the loss scaler of fp16, else None.
        step: what `at_step` was last told.
        is_compiled: whether `prepare` compiled anything.

    Raises:
        ConfigError: PG-C05, the device is unknown or absent, or lacks the precision.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.step, self.is_compiled = 0, False
        self.device = find_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        parallel.join()
        # Accelerate keeps one state a process and refuses a second precision; stages differ.
        AcceleratorState._reset_state(reset_partial_state=True)
        mixed = {"fp32": "no"}.get(self.precision, self.precision)
        self._accelerator = Accelerator(
            cpu=self.device.type == "cpu", mixed_precision=mixed, device_placement=False
        )
        torch.backends.cudnn.benchmark = True  # of CUDA alone; there no two runs are equal anyway
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

    @property
    def is_exact(self) -> bool:
        """Whether asking for a number costs nothing: then each step is checked before it counts.

        A GPU would have to stop and wait. There it remembers the first bad step, and is asked
        before anything is logged or kept.
        """
        return self.device.type == "cpu"

    def place(self, network: Net) -> Net:
        """To the device, in place and before anything remembers its tensors. Convolutional
        networks are laid out channels-last on CUDA, where that is faster."""
        network = network.to(self.device)
        if self.device.type == "cuda" and is_convolutional(network):
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def prepare(self, networks: Sequence[nn.Module]) -> str | None:
        """Compile networks as the settings say; why `auto` did not, if it wanted to.

        Those that train come first to recompute their activations, where that is asked for.

        Raises:
            ConfigError: PG-C04, a network cannot recompute activations. RunError: PG-T09, this
            machine cannot compile though it was asked to.
        """
        if self.config.recompute:
            recompute_activations(
                *(n for n in networks if any(p.requires_grad for p in n.parameters()))
            )
        if self.config.compile is False or (
            self.config.compile == "auto" and self.device.type != "cuda"
        ):
            return None
        problem = compile_problem(self.device)
        if problem is None:
            self.is_compiled = True
            # Graphs of earlier stages, of the same classes, would count towards dynamo's limit.
            torch._dynamo.reset()
            for part in (part for network in networks for part in _called(network)):
                part.compile()
        elif self.config.compile is True:
            raise not_compiled(problem)
        return problem


def is_convolutional(network: nn.Module) -> bool:
    """Whether it has convolutions whose windows overlap; a ViT's patch embedding has none."""
    return any(
        isinstance(module, nn.Conv2d) and module.kernel_size > module.stride
        for module in network.modules()
    )


def _called(network: nn.Module) -> list[nn.Module]:
    """What of a network is called as a module: of an autoencoder, its two halves."""
    halves = [getattr(network, name, None) for name in ("encoder", "decoder")]
    found = [half for half in halves if isinstance(half, nn.Module)]
    return found if len(found) == 2 else [network]


def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work here: no compiler, no triton, an old GPU; None if it does."""
    try:
        torch.compile(lambda x: (2 * x + 1).relu())(torch.ones(8, device=device))
    except Exception as error:  # whatever is missing, its own words say it best
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def not_compiled(why: str) -> RunError:
    """The PG-T09 error."""
    return RunError(
        "the network cannot be compiled", code="PG-T09", why=why,
        hint="set run.compile=false, which is slower and gives the same",
    )  # fmt: skip


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
    """``auto``: CUDA, else MPS, else CPU. Raises ConfigError PG-C05 for one that is not there.

    Of several processes each gets the GPU of its number on the machine.
    """
    if parallel.count() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{parallel.local_rank()}"
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


def stopped(run: Run, done: int, steps: int, why: str) -> Stopped:
    """The PG-T07 error, exit code 85, once the checkpoint of `done` steps is on disk."""
    return Stopped(
        f"stopped after step {done} of {steps}", where=run.path, why=why,
        hint="run the same command again, without --overwrite, to go on from here",
    )  # fmt: skip
