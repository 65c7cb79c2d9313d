"""The same slides on Dask workers give the same bytes; what a cluster may lack is said."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs

from pathgen import commit
from pathgen.errors import ClusterError, ConfigError
from pathgen.tiling import TileConfig, tile
from pathgen.tiling.attempt import Job, Outcome
from pathgen.tiling.cluster import Machines, _Fit, slurm_cluster, slurm_options

distributed = pytest.importorskip("distributed")
SMALL = TileConfig(patch_size=128, thumbnail_px=256)
ROOT = Path(__file__).resolve().parents[1]
ENV = {
    **os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and two workers, each a process of its own, as on a cluster."""
    place = tmp_path_factory.mktemp("dask")
    file = place / "scheduler.json"
    quiet: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": ENV,
        "cwd": place,
    }
    quiet["start_new_session"] = True
    dask = [sys.executable, "-m", "distributed.cli"]
    words = [f"{dask[2]}.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    processes = [subprocess.Popen([*dask[:2], *words, "--scheduler-file", str(file)], **quiet)]
    for _ in range(2):
        words = [f"{dask[2]}.dask_worker", "--scheduler-file", str(file), "--nthreads", "1"]
        words += ["--no-dashboard", "--death-timeout", "30", "--host", "127.0.0.1"]
        processes.append(subprocess.Popen([*dask[:2], *words], **quiet))  # type: ignore[call-overload]
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


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides")
    for i in range(4):
        write_svs(root / f"{i}.svs", tissue_image(900, 700, seed=i))
    write_svs(root / "glass.svs", np.full((600, 800, 3), 240, np.uint8))
    (root / "text.svs").write_text("no slide\n" * 99)
    return root


def hashes(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("events.jsonl", ".pathgen-lock")
    }


def dies_on_glass(job: Job) -> Outcome:
    from pathgen.tiling.attempt import attempt

    if job.task.slide.name == "glass":
        os._exit(1)
    return attempt(job)


def hangs_on_glass(job: Job) -> Outcome:
    from pathgen.tiling.attempt import attempt

    if job.claims is not None and job.claims.told(job.task.slide.name) is None:
        time.sleep(60 * (job.task.slide.name == "glass"))
    return attempt(job)


def test_two_dask_workers_change_no_byte(
    scheduler: str, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = tile(slides, tmp_path / "alone", SMALL, workers=0)
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere, and relative paths mean it
    report = tile(slides, "dask", SMALL, machines=Machines.dask(scheduler))
    assert report.rows == truth.rows
    assert hashes(tmp_path / "dask") == hashes(tmp_path / "alone")
    events = (tmp_path / "dask/events.jsonl").read_text().splitlines()
    assert len(events) == 6
    plan = tile(slides, tmp_path / "p", SMALL, machines=Machines.dask(scheduler), plan=True)
    assert plan.counts["candidates"] == truth.counts["candidates"]
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("worked", "limit", "what"),
    [(dies_on_glass, None, "Reader crashed"), (hangs_on_glass, 4.0, "Reader hung")],
)
def test_a_slide_that_ends_its_workers_has_a_row(
    scheduler: str, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    worked: Any, limit: float | None, what: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("pathgen.tiling.batch.attempt", worked)
    report = tile(
        [slides / "0.svs", slides / "glass.svs"], tmp_path / "out", SMALL,
        machines=Machines.dask(scheduler), slide_timeout=limit,
    )  # fmt: skip
    assert [row.reason for row in report.rows] == ["ok", "PG-S13"]
    assert report.rows[1].message.startswith(what)


def test_nobody_at_the_address(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathgen.tiling.cluster.PATIENCE", 1.0)
    for address in ("tcp://127.0.0.1:9", "no address"):
        with pytest.raises(ClusterError, match="PG-E03") as caught:
            tile(slides, tmp_path / "out", SMALL, machines=Machines.dask(address))
        assert caught.value.exit_code == 9


def test_a_worker_must_fit(tmp_path: Path) -> None:
    from pathgen import __version__

    probe = tmp_path / "probe"
    with pytest.raises(ClusterError, match=r"PG-E04.*0\.0\.0 here"):
        _Fit("0.0.0", None).check(None)
    with pytest.raises(ClusterError, match=r"PG-E05.*drive that all machines share"):
        _Fit(__version__, probe).check(None)
    probe.touch()
    with pytest.raises(ClusterError, match=r"PG-E05.*unmounted"):
        _Fit(__version__, probe).check(tmp_path / "unmounted/a.svs")
    _Fit(__version__, probe).check(tmp_path / "gone.svs")  # a row will say so


# SLURM: no SLURM is here; what sbatch would get is looked at, and a stand-in runs it


def test_options_stand_in_the_job_script() -> None:
    pytest.importorskip("dask_jobqueue")
    jobs, options = slurm_options(
        "partition=cpu,workers=32,memory=8GB,cores=2,walltime=12:00:00,account=path,qos=low"
    )
    assert jobs == 32
    with slurm_cluster(options) as cluster:
        script = cluster.job_script()
    for line in ("-p cpu", "-A path", "--mem=8G", "--cpus-per-task=2", "-t 12:00:00", "--qos=low"):
        assert f"#SBATCH {line}" in script
    assert sys.executable in script
    assert "--nthreads 1" in script
    assert "--nworkers 2" in script


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partition", "KEY=VALUE"),
        ("partiton=cpu", "did you mean 'partition'"),
        ("workers=0", "from 1 on"),
        ("workers=two", "from 1 on"),
        ("cores=1,cores=2", "twice"),
    ],
)
def test_a_wrong_option_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="(?i)" + words):
        slurm_options(text)


SBATCH = """#!/bin/sh
cp "$1" {place}/job.sh
sh {place}/job.sh >> {place}/log 2>&1 &
echo $! >> {place}/pids
echo "Submitted batch job $!"
"""


def test_jobs_are_submitted_and_ended(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch and scancel of ours run the job on this machine."""
    pytest.importorskip("dask_jobqueue")
    for name, text in (("sbatch", SBATCH), ("scancel", "#!/bin/sh\nkill $1\n")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(place=tmp_path))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    machines = Machines.slurm(f"partition=cpu,workers=1,memory=1GB,scratch={tmp_path}")
    report = tile(slides / "0.svs", tmp_path / "out", SMALL, machines=machines)
    assert report.counts["done"] == 1
    assert (tmp_path / "pids").read_text().strip()
    with pytest.raises(KeyboardInterrupt), machines.connect():
        raise KeyboardInterrupt


def test_without_slurm_nothing_is_waited_for(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", str(tmp_path))
    machines = Machines.slurm("partition=cpu,interface=lo")
    with pytest.raises(ClusterError, match=r"PG-E03.*no `sbatch`") as caught:
        tile(slides / "0.svs", tmp_path / "out", SMALL, machines=machines)
    assert caught.value.exit_code == 9


@pytest.mark.parametrize("late", [False, True], ids=["at the start", "came later"])
def test_a_worker_with_several_threads_is_refused(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """They would have slides in one process, which a time limit ends as a whole."""
    if late:
        monkeypatch.setattr("pathgen.tiling.cluster._check_workers", lambda *_: None)
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    with distributed.LocalCluster(**options, dashboard_address=":0") as cluster:
        machines = Machines.dask(cluster.scheduler_address)
        with pytest.raises(ClusterError, match=r"PG-E04.*several threads.*--nthreads 1") as caught:
            tile(slides / "0.svs", tmp_path / "out", SMALL, machines=machines)
    assert caught.value.exit_code == 9
    assert not list((tmp_path / "out").glob("*.h5"))
