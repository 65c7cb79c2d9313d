"""Device, precision, seeds and stop signals."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import numpy as np
import pytest
import torch

from pathgen.errors import ConfigError
from pathgen.runs import RunConfig
from pathgen.train.engine import Engine, StopRequest, choose_precision, find_device


def test_a_device_that_is_not_there_is_named() -> None:
    assert find_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError) as caught:
            find_device(name)
        assert caught.value.code == "PG-C05"


def test_precision_on_the_cpu_is_single_unless_asked() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == "fp32"
    assert choose_precision("bf16", cpu) == "bf16"
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_precision("fp16", cpu)


def test_engines_of_different_precision_live_one_after_the_other() -> None:
    x = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)) * 2:
        engine = Engine(RunConfig(device="cpu", precision=precision))
        with engine.autocast():
            assert (x @ x).dtype == dtype


def test_a_seed_decides_every_generator_and_each_step_its_own() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    engine = Engine(RunConfig(device="cpu", seed=5))
    first = draw()
    Engine(RunConfig(device="cpu", seed=5))
    assert draw() == first
    engine.at_step(3)
    third = draw()
    engine.at_step(4)
    assert draw() != third
    engine.at_step(3)
    assert draw() == third


def test_a_second_interrupt_is_immediate() -> None:
    def interrupt_twice() -> None:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


def test_a_worker_killed_by_the_same_signal_is_part_of_stopping() -> None:
    stop = StopRequest()

    def loader() -> Any:
        yield 1
        stop.request()
        raise RuntimeError("DataLoader worker exited unexpectedly")

    assert list(stop.batches(loader())) == [1]
    with pytest.raises(RuntimeError, match="other"):
        list(StopRequest().batches(_failing()))


def _failing() -> Any:
    yield 1
    raise RuntimeError("other")
