"""Work on slides on a Dask cluster: one that runs already, or SLURM jobs started for it.

The workers run the same function on the same slides as local processes do, and write the stores
themselves; so they must see the slides and the output folder under the same paths, and have the
same pathgen. All of that is checked before a worker's first slide.
"""

from __future__ import annotations

import difflib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self
from uuid import uuid4

from pathgen import __version__, commit
from pathgen.errors import ClusterError, ConfigError
from pathgen.extras import need
from pathgen.progress import Progress
from pathgen.tiling.pool import Crashed

#: Seconds in which a scheduler must answer and have a worker.
PATIENCE = 30.0

#: How workers are started: one thread each, as what a slide changes for its reading (warnings, the
#: levels of loggers, libraries' threads) is the whole process's, and a time limit ends all of it.
WORKERS = "dask worker ADDRESS --nthreads 1 --nworkers N"

#: Of distributed, which is imported on use and has no types.
Client = Any
Function = Callable[[Any], Any]
Results = Generator[tuple[int, Any | Crashed], None, None]

#: Options of ``--slurm`` -> names that dask-jobqueue has for them. `workers` is the number of jobs.
SLURM_OPTIONS = {
    "partition": "queue", "account": "account", "walltime": "walltime", "memory": "memory",
    "cores": "cores", "interface": "interface", "scratch": "local_directory",
    "logs": "log_directory", "python": "python",
}  # fmt: skip
#: Those that become lines ``#SBATCH --name=value``.
SBATCH_OPTIONS = ("qos", "constraint", "nodelist", "exclude", "reservation", "gres")


class Errand(Protocol):
    """A piece of work that travels to a worker, as `attempt.Job` is."""

    def absolute(self) -> Self:
        """With no relative path, as a worker's current folder is another."""
        ...

    @property
    def place(self) -> Path | None:
        """What a worker must be able to see; None where that is no path, as of a URL."""
        ...

    def hung(self, limit: float) -> None:
        """Leave word that it took more than `limit` seconds: its worker ends now."""
        ...


@dataclass(frozen=True)
class Machines:
    """Where to work: ``Machines.dask("tcp://host:8786")`` or ``Machines.slurm("partition=cpu")``.

    `connect` gives a client; `wait` is how many seconds its first worker may take, None = any.
    """

    connect: Callable[[], AbstractContextManager[Client]]
    wait: float | None

    @classmethod
    def dask(cls, address: str) -> Machines:
        """A scheduler that runs already.

        Raises:
            MissingExtraError: PG-E01, distributed is not installed.
        """
        need("distributed", "cluster")
        return cls(partial(_connect, address), PATIENCE)

    @classmethod
    def slurm(cls, text: str) -> Machines:
        """SLURM jobs, one a worker, that are started now and end with the work.

        Args:
            text: ``partition=cpu,workers=32,memory=8GB,walltime=12:00:00``; see `slurm_options`.

        Raises:
            MissingExtraError: PG-E01, dask-jobqueue is not installed.
            ConfigError: PG-C01, an option cannot be understood.
        """
        need("dask_jobqueue", "cluster")
        jobs, options = slurm_options(text)
        return cls(partial(_submit, jobs, options), None)

    @contextmanager
    def runner(
        self, out: Path | None, limit: float | None, progress: Progress
    ) -> Iterator[tuple[Callable[[Function, Sequence[Errand]], Results], int]]:
        """A function that works like `run_all` on the cluster, and how many workers there are.

        Args:
            out: the output folder, in which a file is laid for the workers to see; None for a
                plan, which has none.
            limit: seconds a slide may take before its worker is stopped.

        Raises:
            ClusterError: PG-E03, no scheduler or no worker; PG-E04, PG-E05 as `_Fit.check` and
                `_one_thread`.
        """
        with self.connect() as client:
            _await_workers(client, self.wait, progress)
            slots = sum(client.nthreads().values())
            if out is None:
                yield partial(_run, client, _Fit(__version__, None), limit), slots
                return
            probe = commit.draft_path(out / "probe")
            probe.write_bytes(b"")
            try:
                yield partial(_run, client, _Fit(__version__, probe), limit), slots
            finally:
                probe.unlink(missing_ok=True)


def slurm_options(text: str) -> tuple[int, dict[str, Any]]:
    """``"partition=cpu,workers=32"`` -> 32 and what dask-jobqueue's SLURMCluster takes.

    Raises:
        ConfigError: PG-C01, an unknown option or a wrong value.
    """
    given: dict[str, str] = {}
    known = ("workers", *SLURM_OPTIONS, *SBATCH_OPTIONS)
    for part in text.split(","):
        key, sign, value = (word.strip() for word in part.partition("="))
        if not (key and sign and value):
            raise ConfigError(
                "--slurm needs KEY=VALUE,KEY=VALUE", where=part or text,
                hint="e.g. --slurm partition=cpu,workers=8,memory=8GB",
            )  # fmt: skip
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                "unknown SLURM option", where=key, why=f"known: {', '.join(known)}",
                hint=f"did you mean {close[0]!r}?" if close else None,
            )  # fmt: skip
        if key in given:
            raise ConfigError("SLURM option given twice", where=key, hint="keep one of them")
        given[key] = value
    jobs = _number("workers", given.get("workers", "1"))
    options: dict[str, Any] = {
        name: given[key] for key, name in SLURM_OPTIONS.items() if key in given
    }
    options["cores"] = _number("cores", given.get("cores", "1"))
    options.setdefault("memory", "4GB")
    # One slide at a time in each job: a slide that brings its process down takes no other along.
    options["processes"] = options["cores"]
    options["job_extra_directives"] = [
        f"--{key}={given[key]}" for key in SBATCH_OPTIONS if key in given
    ]
    return jobs, options


def _number(key: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError("SLURM option has a wrong value", where=f"{key}={text}",
                          why="a number from 1 on is needed")  # fmt: skip
    return int(text)


def _dask() -> Any:
    return import_module("distributed")


def _jobqueue() -> Any:
    """dask-jobqueue takes Ctrl-C for itself when it is imported: that is taken back."""
    before = signal.getsignal(signal.SIGINT)
    module = import_module("dask_jobqueue")
    signal.signal(signal.SIGINT, before)
    return module


@contextmanager
def _connect(address: str) -> Iterator[Client]:
    # What it would print when a scheduler is lost is said in one line here.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        client = _dask().Client(address, timeout=PATIENCE / 3, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            "the Dask scheduler cannot be reached", where=address, why=str(error),
            hint="start it with `dask scheduler`, and give the address it prints",
        ) from error  # fmt: skip
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _submit(jobs: int, options: dict[str, Any]) -> Iterator[Client]:
    if shutil.which("sbatch") is None:  # dask-jobqueue would wait for jobs that never start
        raise ClusterError(
            "SLURM is not on this host", where="--slurm", why="there is no `sbatch` on the PATH",
            hint="run it on a login node, or without --slurm on this machine",
        )  # fmt: skip
    cluster = slurm_cluster(options)
    try:
        # Kept at that number: a job that ends at its time limit is followed by another.
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        client = _dask().Client(cluster, set_as_default=False)
        try:
            yield client
        finally:
            client.close()
    finally:
        # As a context manager it would swallow exceptions, Ctrl-C too. A job that was refused makes
        # it assert that the job runs.
        with suppress(AssertionError):
            cluster.__exit__(None, None, None)


def slurm_cluster(options: dict[str, Any]) -> Any:
    """dask-jobqueue's cluster; its `job_script()` is what sbatch gets."""
    try:
        return _jobqueue().SLURMCluster(scheduler_options={"dashboard_address": ":0"}, **options)
    except (ValueError, RuntimeError, OSError) as error:
        raise ClusterError(
            "no SLURM cluster can be made of these options", where="--slurm", why=str(error),
            hint="see `ip addr` for the interfaces of this host, `sinfo` for partitions",
        ) from error  # fmt: skip


def _await_workers(client: Client, patience: float | None, progress: Progress) -> None:
    if not client.nthreads():
        progress.say("waiting for the first worker")
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError as error:
        raise ClusterError(
            "the Dask scheduler has no workers", where=client.scheduler_info()["address"],
            why=f"none came within {patience:g} seconds",
            hint=f"start some with `{WORKERS}`",
        ) from error  # fmt: skip


@dataclass(frozen=True)
class _Fit:
    """What a worker must have: this pathgen, and a look at the output folder and the slides."""

    version: str
    probe: Path | None

    def check(self, slide: Path | None) -> None:
        """Raises ClusterError PG-E04 (another pathgen) or PG-E05 (a folder is not there)."""
        host = commit.here().rpartition("-")[0]
        if __version__ != self.version:
            raise ClusterError(
                "a worker has another version of pathgen", code="PG-E04", where=host,
                why=f"{__version__} there and {self.version} here", hint="install the same version",
            )  # fmt: skip
        for path in (self.probe, slide):
            if path is not None and not os.path.lexists(path) and not _folder_seen(path, slide):
                raise ClusterError(
                    "a worker does not see a folder", code="PG-E05", where=path.parent,
                    why=f"it is not there, or another one, on {host}",
                    hint="slides and --out must lie on a drive that all machines share, "
                    "under the same path",
                )  # fmt: skip


def _folder_seen(path: Path, slide: Path | None) -> bool:
    """A slide may be gone, which is its own row; its whole folder must be there."""
    return path is slide and path.parent.is_dir()


def _run(
    client: Client, fit: _Fit, limit: float | None, function: Function, jobs: Sequence[Errand]
) -> Results:
    """``function(job)`` of each job on the workers, as they finish: (index, result)."""
    if not jobs:
        return
    jobs = [job.absolute() for job in jobs]
    _check_workers(client, fit, next((job.place for job in jobs), None))
    run = uuid4().hex[:8]
    number = {
        client.submit(_work, function, job, fit, limit, key=f"tile-{run}-{i}"): i
        for i, job in enumerate(jobs)
    }
    try:
        for future in _dask().as_completed(list(number), loop=client.loop):
            index = number.pop(future)
            error = _error(future)
            if error is None:
                yield index, future.result()
            elif isinstance(error, _dask().scheduler.KilledWorker):
                lost = error.allowed_failures + 1
                yield index, Crashed("died", f"{lost} workers were lost with it, one after another")
            else:
                raise error
            future.release()
    finally:
        client.cancel(list(number), force=True)


def _error(future: Any) -> BaseException | None:
    from asyncio import CancelledError as Lost
    from concurrent.futures import CancelledError

    if future.status in ("cancelled", "lost"):
        return _lost()
    try:
        error: BaseException | None = future.exception()
    except (CancelledError, Lost):
        return _lost()
    return error


def _lost() -> ClusterError:
    return ClusterError(
        "the Dask scheduler was lost", why="it ended, or the network did",
        hint="start it and run the same command again; finished slides are kept",
    )  # fmt: skip


def _one_thread(worker: str, threads: int) -> None:
    """Raises ClusterError PG-E04 for a worker that would have several slides in one process."""
    if threads > 1:
        raise ClusterError(
            "a worker has several threads", code="PG-E04", where=worker,
            why=f"{threads}, which would work on slides in one process",
            hint=f"start workers with `{WORKERS}`",
        )  # fmt: skip


def _check_workers(client: Client, fit: _Fit, slide: Path | None) -> None:
    for worker, threads in client.nthreads().items():
        _one_thread(worker, threads)
    try:
        answers = client.run(_complaint, fit, slide)
    except ImportError as error:
        raise ClusterError(
            "pathgen is not installed on a worker", code="PG-E04", why=str(error),
            hint=f"install pathgen {__version__} there",
        ) from error  # fmt: skip
    for complaint in answers.values():
        if complaint is not None:
            raise complaint


def _complaint(fit: _Fit, slide: Path | None) -> ClusterError | None:
    try:
        fit.check(slide)
    except ClusterError as error:
        return error
    return None


def _work(function: Function, job: Errand, fit: _Fit, limit: float | None) -> Any:
    """On a worker, which may have come after the others were checked."""
    worker = _dask().get_worker()
    _one_thread(worker.address, worker.state.nthreads)
    fit.check(job.place)
    if limit is None:
        return function(job)
    timer = threading.Timer(limit, _give_up, (job, limit))
    timer.daemon = True
    timer.start()
    try:
        return function(job)
    finally:
        timer.cancel()


def _give_up(job: Errand, limit: float) -> None:
    """A thread cannot be stopped: end the process, which Dask replaces, and leave word why."""
    job.hung(limit)
    os._exit(1)
