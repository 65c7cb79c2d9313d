"""Does Gen-DINO beat DINO on real, labelled patches? The study behind docs/gen-sis.md.

    python benchmarks/gensis_gain/run.py ../shared/data/patches -o runs/gain --size cpu --jobs 2
    python benchmarks/gensis_gain/run.py ../shared/data/patches -o runs/gain --size gpu --minutes 9

For each set and seed: DINO, autoencoder, E-LDM and synthetic images once, then every arm of
`arms.py`, judged by k-NN and a linear probe on patches that no training saw. Labels are for judging
alone. All settings are written to settings.json before the first run, and another study is refused
in the same folder. Each piece is kept when finished: the same command goes on where it stopped
(exit code 85 after --minutes). Ends with study.json, table.md, curves.png and sheets.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from arms import ARMS, SIZES, StudyConfig, settings
from pieces import Piece, Place, pieces
from results import write_results
from work import Crew

from pathgen import commit
from pathgen.errors import RunError, Stopped
from pathgen.progress import clock


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets, each with train/ and test/")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--recipe", type=Path, help="in place of the size's own")
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--patches", type=int, help="unlabelled patches to train on")
    parser.add_argument("--set", dest="settings", action="append", metavar="KEY=VALUE")
    parser.add_argument("--device")
    parser.add_argument("--workers", type=int, help="processes that load patches, for each job")
    parser.add_argument("--jobs", type=int, default=1, help="pieces at a time")
    parser.add_argument("--minutes", type=float, help="stop after so many, with checkpoints")
    parser.add_argument("--only", nargs="+", metavar="PIECE", help="these pieces alone")
    parser.add_argument("--list", action="store_true", help="the pieces and which are finished")
    return parser.parse_args()


def asked(arguments: argparse.Namespace) -> StudyConfig:
    """The size's study with the flags laid over it."""
    names = ("recipe", "sets", "seeds", "arms", "patches", "settings", "device", "workers")
    given = {name: getattr(arguments, name) for name in names}
    values = {name: value for name, value in given.items() if value is not None}
    return StudyConfig(**{**SIZES[arguments.size].model_dump(), **values})


def write_down(study: StudyConfig, out: Path) -> str:
    """Keep the settings, or see that they are those kept; their digest."""
    values, path = settings(study), out / "settings.json"
    if not path.exists():
        commit.write_json(path, values)
    found = str(commit.read_json(path)["digest"])
    if found != values["digest"]:
        raise RunError(
            "this folder holds another study", where=out,
            why=f"its settings have digest {found}, those asked for {values['digest']}",
            hint="choose another --out",
        )  # fmt: skip
    return found


def show(todo: list[Piece], out: Path) -> None:
    for piece in todo:
        print("done" if piece.marker(out).exists() else "    ", piece.name)


def main() -> int:
    arguments = parsed()
    study = asked(arguments)
    every = pieces(study)
    chosen = [p for p in every if not arguments.only or p.name in arguments.only]
    if arguments.list:
        show(chosen, arguments.out)
        return 0
    place = Place(arguments.data.resolve(), arguments.out.resolve())
    print(f"settings {write_down(study, place.out)}", flush=True)
    place.prepare(study)
    crew = Crew(study, place, arguments.jobs, arguments.minutes)
    try:
        seconds = crew.work(chosen)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 85
    print(f"{len(chosen)} pieces; this run took {clock(seconds)}")
    if all(piece.marker(place.out).exists() for piece in every):
        print(write_results(study, place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
