"""Commands on slides and patches."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathgen.cli import tileoptions as with_
from pathgen.cli.options import (
    AsJson,
    Config,
    Out,
    Quiet,
    Reader,
    Set,
    Verbose,
)
from pathgen.cli.root import app
from pathgen.console import SOME_FAILED, Talk, guarded, shown, size, table
from pathgen.errors import ConfigError
from pathgen.progress import counted

if TYPE_CHECKING:
    from pathgen.tiling import TileConfig
    from pathgen.tiling.cluster import Machines
    from pathgen.tiling.ledger import TileReport

#: What stands for the number in a command that is suggested: no slide is to get a made-up one.
UM = "UM_PER_PIXEL"
#: Empty slides of which the reason is shown; and when no slide has patches.
EMPTY, EMPTY_ALL = 3, 40


@app.command()
@guarded
def info(
    slide: Annotated[
        str, typer.Argument(help="A slide: a file, a folder, or a URL. Or a store of pathgen.")
    ],
    reader: Reader = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """What a slide is: vendor, reader, size, levels, mpp and where it came from, bounds.

    Of a store: its kind, rows, columns, and what it was made from.
    """
    from pathgen.stores.facts import is_store, store_facts
    from pathgen.tiling import slide_info

    if "://" not in slide and is_store(Path(slide)):
        found = store_facts(slide)
        lines = [f"{key:<12} {_plain(value)}" for key, value in found.items()]
        Talk(quiet=False, as_json=as_json).result(found, "\n".join(lines), "")
        return
    facts = slide_info(slide, reader or "auto")
    text = "\n".join(f"{key:<12} {_plain(value)}" for key, value in facts.items())
    following = f"pathgen tile {shown(slide)} -o tiles/"
    if any(problem.startswith(("PG-S07", "PG-S08")) for problem in facts["problems"]):
        following += f" --slide-mpp {UM}"
    elif any(problem.startswith("PG-S") for problem in facts["problems"]):
        following = ""
    Talk(quiet=False, as_json=as_json).result(facts, text, following)


@app.command(epilog="Example: pathgen tile slides/ -o tiles/ --mag 20 --preset biopsy")
@guarded
def tile(
    slides: Annotated[list[str], typer.Argument(help="Folders, slides, globs, URLs, or a CSV.")],
    out: Out,
    mpp: with_.Mpp = None,
    mag: with_.Mag = None,
    patch_size: with_.PatchSize = None,
    patch_um: with_.PatchUm = None,
    overlap: with_.Overlap = None,
    step: with_.Step = None,
    edge: with_.Edge = None,
    align: with_.Align = None,
    slide_mpp: with_.SlideMpp = None,
    reader: with_.Reader = None,
    preset: with_.Preset = None,
    tissue: with_.Method = None,
    masks: with_.Masks = None,
    min_tissue: with_.MinTissue = None,
    min_hematoxylin: with_.MinHematoxylin = None,
    min_focus: with_.MinFocus = None,
    max_pen: with_.MaxPen = None,
    store: with_.Store = None,
    normalize: with_.Normalize = None,
    color: with_.Color = None,
    resume: with_.Resume = True,
    overwrite: with_.Overwrite = False,
    plan: with_.Plan = False,
    workers: with_.Workers = None,
    dask: with_.Dask = None,
    slurm: with_.Slurm = None,
    slide_timeout: with_.SlideTimeout = None,
    config: Config = None,
    settings: Set = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Cut slides into stain-filtered patches at an exact scale, one store a slide."""
    from pathgen.tiling import tile as tile_slides
    from pathgen.tiling.strangers import spare_settings

    talk = Talk(quiet=quiet, as_json=as_json)
    given = {
        "mpp": mpp, "mag": mag, "patch_size": patch_size, "overlap": overlap,
        "min_tissue": min_tissue, "min_hematoxylin": min_hematoxylin,
        "slide_mpp": slide_mpp, "store": store,
        "reader": reader, "patch_um": patch_um, "step": step, "edge": edge, "align": align,
        "tissue": None if tissue is None else {"method": tissue},
        "min_focus": min_focus, "max_pen": max_pen, "color": color,
        "normalize": None if normalize is None else {"method": normalize},
    }  # fmt: skip
    chosen = tile_config(given, preset, config, settings)
    if config is not None:
        spare_settings(config, out, chosen)
    if not quiet:
        tell_columns(slides)
    report = tile_slides(
        slides, out, chosen, masks=masks, workers=workers,
        machines=machines_of(dask, slurm, workers), overwrite=overwrite or not resume, plan=plan,
        slide_timeout=None if slide_timeout is None else slide_timeout * 60,
        progress=talk.progress,
    )  # fmt: skip
    counts = report.counts
    if plan:
        talk.result(report.to_dict(), table(report.to_dict()["slides"], report.plan_columns))
    verb = "would be tiled" if plan else f"in {shown(out)}"
    text = (
        f"{counted(counts['slides'], 'slide')}: {counts['done']} done, {counts['empty']} empty, "
        f"{counts['failed']} failed; {counted(counts['patches'], 'patch', 'patches')} {verb}."
    )
    for row in report.failed:
        print(f"  {row.slide}: {row.message}", file=sys.stderr)
    if not quiet and not as_json:
        _tell_empty(report, out)
    following = f"pathgen pretrain {shown(out)} -o runs/first --recipe tiny"
    if plan:
        text += f" About {size(report.bytes)}."
        if report.forecast is not None:
            text += f" {report.forecast.sentence()}"
        following = "the same command without --plan" if counts["done"] else ""
        if not as_json:
            talk.result({}, text, following)
    else:
        talk.result({**counts, "out": out}, text, following if counts["patches"] else "")
    if counts["failed"]:
        raise typer.Exit(SOME_FAILED)


def _tell_empty(report: TileReport, out: Path) -> None:
    """Why slides are empty: of all when none is done, else of the first few."""
    some = EMPTY if report.done else EMPTY_ALL
    for row in report.empty[:some]:
        print(f"  {row.slide}: {row.message}", file=sys.stderr)
    more = len(report.empty) - some
    if more > 0:
        where = "" if report.planned else f"; see {shown(out / 'slides.csv')}"
        print(f"  and {more:,} more that are empty{where}", file=sys.stderr)
    if report.ignored and not report.done:
        passed = ", ".join(f"{n:,} {suffix}" for suffix, n in report.ignored.items())
        print(f"  passed over as no slides: {passed}", file=sys.stderr)


def tell_columns(slides: Sequence[str]) -> None:
    """Say which columns of the lists among `slides` may be misspelled."""
    from pathgen.tiling.lists import LIST_SUFFIXES, doubtful_columns

    for path in map(Path, slides):
        if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
            for doubt in doubtful_columns(path):
                print(f"Note: {doubt}", file=sys.stderr)


def tile_config(
    given: Mapping[str, Any],
    preset: str | None,
    config: Path | None,
    settings: Sequence[str] | None,
) -> TileConfig:
    """The preset, then the file, then --set, then options; a later one wins."""
    from pathgen.config import build, merge, parse_overrides, read_yaml
    from pathgen.tiling import TileConfig
    from pathgen.tiling.presets import preset as preset_values

    options = {key: value for key, value in given.items() if value is not None}
    if {"mpp", "mag"} <= options.keys():
        raise ConfigError(
            "the scale is given twice", where="--mpp and --mag", hint="give one of them"
        )
    values = preset_values(preset) if preset else {}
    for later in (read_yaml(config) if config else {}, parse_overrides(settings or ()), options):
        if "preset" in later:
            raise ConfigError(
                "a preset is no setting", where=f"preset: {later['preset']}",
                hint=f"use --preset {later['preset']}",
            )  # fmt: skip
        for one, other in (("mpp", "mag"), ("mag", "mpp")):
            if one in later:
                values.pop(other, None)
        values = merge(values, later)
    return build(TileConfig, values, where=str(config or ""))


def machines_of(dask: str | None, slurm: str | None, workers: int | None) -> Machines | None:
    """Where ``--dask`` and ``--slurm`` say to work; None = here."""
    if dask is None and slurm is None:
        return None
    from pathgen.tiling.cluster import Machines

    if (dask is None) == (slurm is None) or workers is not None:
        raise ConfigError(
            "several machines to work on", where="--dask, --slurm, --workers",
            hint="give one of them; with --slurm the number of workers goes into it",
        )  # fmt: skip
    return Machines.slurm(str(slurm)) if dask is None else Machines.dask(dask)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "none"
    if isinstance(value, dict) and {"width", "height", "downsample"} <= value.keys():
        return "{width} x {height} (1:{downsample:g})".format(**value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "unknown" if value is None else str(value)
