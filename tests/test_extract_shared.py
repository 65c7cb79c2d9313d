"""Several processes, and machines, make the same stores as one: each source once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import make_patches, noise
from helpers_extract import Means, content
from helpers_tiling import tissue_image, write_svs
from numpy.typing import NDArray

from pathgen import commit
from pathgen.claims import FOLDER
from pathgen.errors import BusyError, ConfigError
from pathgen.extract import ExtractConfig, extract, load_encoder, sharing
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.runs import save_model
from pathgen.tiling import TileConfig

pytestmark = pytest.mark.usefixtures("one_thread")
TESTS = Path(__file__).parent
ENV = {
    **os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),
    "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
}  # fmt: skip
TILE = TileConfig(patch_size=64, thumbnail_px=64)
CONFIG = ExtractConfig(batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, six stores and two slides, one of them none."""
    root = tmp_path_factory.mktemp("shared")
    torch.manual_seed(0)
    kwargs = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
    small = EncoderConfig(
        name="vit_tiny_patch16_224", image_size=32, drop_path=0.0, kwargs=kwargs
    )  # fmt: skip
    save_model(root / "model", Encoder(small).eval())
    rng = np.random.default_rng(0)
    (root / "tiles").mkdir()
    for i in range(6):
        make_patches(root / f"tiles/{i}.h5", noise(rng, 6 + i, 32), str(i))
    write_svs(root / "slides/a.svs", tissue_image(500, 400))
    (root / "slides/b.svs").write_text("no slide\n" * 99)
    return root


def test_two_processes_give_the_bytes_of_one(folder: Path, tmp_path: Path) -> None:
    stores = sorted((folder / "tiles").glob("*.h5"))
    extract(load_encoder(folder / "model", "cpu"), stores, tmp_path / "one", CONFIG)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        str(TESTS / "helpers_extract.py"), str(tmp_path / "two"), str(folder / "model"),
        *map(str, stores),
    ]  # fmt: skip
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [json.loads((tmp_path / f"two-{rank}.json").read_text()) for rank in range(2)]
    assert sum(one["encoded"] for one in said) == sum(range(6, 12))
    assert all(one["encoded"] for one in said)
    assert [one["rows"] for one in said] == [[str(i) for i in range(6)]] * 2
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    names = [name for name in one if name.endswith(".h5")]
    assert len(names) == 6
    for name in names:  # the encoder that counts is called otherwise, which its stores say
        assert vectors(tmp_path / "one" / name) == vectors(tmp_path / "two" / name)
    assert two["features.csv"] == one["features.csv"]
    assert not (tmp_path / "two" / FOLDER).exists()


def vectors(path: Path) -> bytes:
    from pathgen.stores import FeatureStore

    with FeatureStore.open(path) as store:
        return store.features().tobytes() + store.coords().tobytes() + store.grid().tobytes()


def test_two_that_share_return_when_all_is_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One waits for what the other has, and does not do it again."""
    monkeypatch.setattr(sharing, "LOOK_AGAIN", (0.01, 0.02))
    both = threading.Barrier(2, timeout=30)
    reports: dict[int, Any] = {}

    class Together(Means):
        def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
            if not self.seen:
                both.wait()
            return super().encode(patches)

    encoders = Together(), Together()

    def work(i: int) -> None:
        reports[i] = extract(encoders[i], folder / "tiles", tmp_path / "out", CONFIG)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports[0] == reports[1]
    assert encoders[0].seen + encoders[1].seen == sum(range(6, 12))
    assert min(encoder.seen for encoder in encoders) > 0


def test_others_with_other_settings_are_kept_out(folder: Path, tmp_path: Path) -> None:
    begun, end = threading.Event(), threading.Event()

    class Slow(Means):
        def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
            begun.set()
            assert end.wait(30)
            return super().encode(patches)

    thread = threading.Thread(target=extract, args=(Slow(), folder / "tiles", tmp_path, CONFIG))
    thread.start()
    try:
        assert begun.wait(30)
        with pytest.raises(BusyError, match="PG-O06"):
            extract(Means(), folder / "tiles/1.h5", tmp_path, CONFIG)
    finally:
        end.set()
        thread.join()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and a worker, each a process of its own, as on a cluster."""
    pytest.importorskip("distributed")
    place = tmp_path_factory.mktemp("dask")
    file = place / "scheduler.json"
    quiet: dict[str, Any] = {
        "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENV, "cwd": place,
        "start_new_session": True,
    }  # fmt: skip
    begin = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    begin += ["--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    join = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file)]
    join += ["--nthreads", "1", "--no-dashboard", "--death-timeout", "30", "--host", "127.0.0.1"]
    processes = [subprocess.Popen(command, **quiet) for command in (begin, join)]
    try:
        limit = time.monotonic() + 30
        while not file.exists() or not file.read_text().endswith("}"):
            assert time.monotonic() < limit
            time.sleep(0.05)
        yield commit.read_json(file)["address"]
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)


def test_a_dask_worker_changes_no_byte(
    scheduler: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathgen.tiling.cluster import Machines

    dask = Machines.dask(scheduler)
    monkeypatch.chdir(folder)  # the worker is elsewhere, and relative paths mean it
    config = CONFIG.model_copy(update={"workers": 1})  # a worker below a nanny may start none
    for given, tile in (("tiles", None), ("slides", TILE)):
        here = extract("./model", given, tmp_path / "here" / given, CONFIG, tile=tile)
        there = extract(
            "./model", given, tmp_path / "there" / given, config, tile=tile, machines=dask
        )  # fmt: skip
        assert [one.rows for one in there.encoders] == [one.rows for one in here.encoders]
        assert [error.code for error in there.errors] == [error.code for error in here.errors]
    assert content(tmp_path / "there") == content(tmp_path / "here")
    with pytest.raises(ConfigError, match="by name"):
        extract(Means(), "tiles", tmp_path / "x", CONFIG, machines=dask)
