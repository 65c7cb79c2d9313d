"""Other tools on the job of `pathgen tile`, each as a whole program: start to finish, by the clock.

    python benchmarks/peers.py SLIDE... --peer-python PEERS/bin/python --mpp 0.25 --repeat 3

The job: every patch of level 0 with tissue, its pixels stored as JPEG. `--mpp` is that of level 0;
tools that look for a level by microns per pixel are asked for it. Each tool finds tissue and lays
its grid in its own way, so the number of patches differs: compare patches per second.

The tools are in a Python of their own, which may have any of

    openslide-python openslide-bin h5py scikit-image pillow      plain
    tiffslide; fastslide                                         plain, with another reader
    hs2p openslide-python openslide-bin                          hs2p
    tifffile imagecodecs; cucim-cu12                             hs2p, with another backend
    PyTurboJPEG and libturbojpeg (pip installs only the first)   hs2p, for faster JPEG
    wsi-patching torch (0.5.5 does not import without)           wsi-patching

What cannot be imported there is left out, and named. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

PLAIN = Path(__file__).resolve().parent / "plain.py"
LIMIT = 1800  # seconds, for one run
TURBOJPEG = "import turbojpeg; turbojpeg.TurboJPEG()"

#: wsi-patching has no command, and stores PNG; its manual says how to add an encoder. As `.png`
#: is what its writer calls the pixels, the JPEG files have that name too.
WSI_PATCHING = """
import sys
from pathlib import Path
import cv2
from wsi_patching import (
    LowContrastBackgroundFilter, PatchExtractor, PNGEncoder, WebDatasetWriter, WSIGrid,
)

slide, out, mpp, side, codec = sys.argv[1:]

class JPEGEncoder(PNGEncoder):
    def _encode_one(self, patch):
        pixels = cv2.cvtColor(self._to_uint8_numpy(patch), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()

(
    WSIGrid(slides=[slide], resolution=float(mpp), unit="mpp")
    .then(PatchExtractor(tile_size=int(side), stride=int(side), wsi_edge_policy="drop"))
    .then(LowContrastBackgroundFilter())
    .then(JPEGEncoder() if codec == "jpeg" else PNGEncoder())
    .to(WebDatasetWriter(outdir=Path(out), shard_size=5000))
).materialize()
"""


@dataclass(frozen=True)
class Job:
    slide: Path
    mpp: float
    """of level 0, and of the patches"""
    patch_size: int = 256


@dataclass(frozen=True)
class Run:
    seconds: float
    """by the clock, start-up included"""
    cpu: float
    """seconds of all cores, which other work on the machine changes less"""
    patches: int


@dataclass(frozen=True)
class Peer:
    needs: tuple[str, ...]
    """modules"""
    command: Callable[[Job, str, Path], list[str]]
    """of a job, the Python to run it with, and the empty folder for what it writes"""
    count: Callable[[Path], int]
    """the patches in that folder"""


def _plain(reader: str) -> Peer:
    def command(job: Job, python: str, out: Path) -> list[str]:
        size = str(job.patch_size)
        words = [str(job.slide), str(out / "out.h5"), "--reader", reader, "--patch-size", size]
        return [python, str(PLAIN), *words]

    return Peer((reader, "h5py", "skimage", "PIL"), command, _in_h5)


def _hs2p(backend: str, module: str, workers: int) -> Peer:
    """Its defaults, but for the job, the backend and the previews, which are not drawn."""

    def command(job: Job, python: str, out: Path) -> list[str]:
        slides, config = out / "slides.csv", out / "given.yaml"
        # its tifffile backend does not find what an SVS says of its resolution
        slides.write_text(f"sample_id,image_path,spacing_at_level_0\nslide,{job.slide},{job.mpp}\n")
        asked = {
            "csv": str(slides),
            "output_dir": str(out / "out"),
            "save_tiles": True,
            "tiling": {
                "backend": backend,
                "params": {
                    "requested_spacing_um": job.mpp, "requested_tile_size_px": job.patch_size
                },
                "preview": {"save_mask_preview": False, "save_tiling_preview": False},
            },
            "speed": {
                "num_workers": workers,
                "jpeg_backend": "pil" if _fails(python, TURBOJPEG) else "turbojpeg",
            },
        }  # fmt: skip
        config.write_text(json.dumps(asked))  # which is YAML too
        return [python, "-m", "hs2p", str(config), "--skip-datetime"]

    return Peer(("hs2p", module), command, _in_tars)


def _wsi_patching(codec: str) -> Peer:
    def command(job: Job, python: str, out: Path) -> list[str]:
        words = [str(job.slide), str(out / "out"), str(job.mpp), str(job.patch_size), codec]
        return [python, "-c", WSI_PATCHING, *words]

    return Peer(("wsi_patching",), command, _in_tars)


def _in_h5(folder: Path) -> int:
    import h5py

    with h5py.File(folder / "out.h5") as file:
        return len(file["patches"])


def _in_tars(folder: Path) -> int:
    count = 0
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            count += sum(name.endswith((".jpg", ".png")) for name in tar.getnames())
    return count


#: OpenSlide is what hs2p's manual installs; cuCIM is what it takes first where it is installed;
#: tifffile, meant for masks, is never taken unasked, but reads an SVS with JPEG tiles as well.
PEERS = {
    "plain": _plain("openslide"),
    "plain, tiffslide": _plain("tiffslide"),
    "plain, fastslide": _plain("fastslide"),
    "hs2p": _hs2p("openslide", "openslide", workers=8),
    "hs2p, 1 worker": _hs2p("openslide", "openslide", workers=1),
    "hs2p, tifffile": _hs2p("tifffile", "imagecodecs", workers=8),
    "hs2p, cucim": _hs2p("cucim", "cucim", workers=8),
    "hs2p, cucim, 1 worker": _hs2p("cucim", "cucim", workers=1),
    "wsi-patching": _wsi_patching("jpeg"),
    "wsi-patching, PNG": _wsi_patching("png"),
}


def missing(name: str, python: str) -> str:
    """The module that cannot be imported, so that the peer cannot run there; "" if it can."""
    return next((each for each in PEERS[name].needs if _fails(python, f"import {each}")), "")


def run(name: str, job: Job, python: str) -> Run:
    """Runs it once, in a temporary folder. ValueError, with its last words, if it fails."""
    peer, python = PEERS[name], str(Path(python).absolute())  # a venv's is a link: not resolved
    job = replace(job, slide=job.slide.resolve())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        command = peer.command(job, python, out)
        start, before = time.perf_counter(), _cpu()
        done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=LIMIT)
        seconds, cpu = time.perf_counter() - start, _cpu() - before
        patches = 0 if done.returncode else peer.count(out)
        if not patches:
            words = (done.stdout.strip() or done.stderr.strip()).splitlines() or ["no patches"]
            raise ValueError(f"{name}: exit status {done.returncode}: {words[-1]}")
        return Run(seconds, cpu, patches)


def _cpu() -> float:
    """Of the child processes that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _fails(python: str, code: str) -> bool:
    return subprocess.run([python, "-c", code], capture_output=True).returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--peer-python", required=True, metavar="PATH")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME")
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--patch-size", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    python = arguments.peer_python
    lacking = {name: missing(name, python) for name in arguments.peers}
    for name, module in lacking.items():
        if module:
            print(f"{name}: left out, {python} cannot import {module}")
    if _fails(python, TURBOJPEG):
        print("hs2p: JPEG by Pillow, as there is no PyTurboJPEG with its library")
    print("| slide | tool | patches | seconds, median (each run) | CPU seconds | patches/s |")
    print("|---|---|---|---|---|---|")
    for slide in arguments.slides:
        job = Job(slide, arguments.mpp, arguments.patch_size)
        for name in [each for each in arguments.peers if not lacking[each]]:
            try:
                runs = [run(name, job, python) for _ in range(arguments.repeat)]
            except (ValueError, subprocess.TimeoutExpired) as error:
                print(f"| {slide.name} | {name} | failed: {error} | | | |", flush=True)
                continue
            middle = statistics.median(each.seconds for each in runs)
            cpu = statistics.median(each.cpu for each in runs)
            times = ", ".join(f"{each.seconds:.1f}" for each in runs)
            patches = runs[0].patches
            print(
                f"| {slide.name} | {name} | {patches} | {middle:.1f} ({times}) "
                f"| {cpu:.1f} | {patches / middle:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
