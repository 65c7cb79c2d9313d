"""Shared by all tests: the real data where it is, and calm numerics."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Shared machines are slow now and then; speed is a matter for benchmarks/, not for tests. The
# examples are the same in every run, so that a change is blamed for what it broke and for nothing
# else; HYPOTHESIS_PROFILE=explore looks for new ones.
_SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)  # fmt: skip
settings.register_profile("pathgen", _SETTINGS, derandomize=True, database=None)
settings.register_profile("explore", _SETTINGS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pathgen"))

# Several test processes with a thread each are faster than one with several.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real slides and patches; the test is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip("the real slides and patches (../shared/data) are not here")
    return DATA


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products are faster without threads, and bits do not depend on their number."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
