"""The options of `pathgen tile`, in the groups its help shows them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pathgen.cli.options import ReaderName


def _option(group: str, *names: str, **facts: Any) -> Any:
    return typer.Option(*names, rich_help_panel=group, **facts)


def scale(help: str, **facts: Any) -> Any:
    return _option("Scale", help=help, **facts)


def slides(help: str) -> Any:
    return _option("Slides", help=help)


def tissue(help: str, **facts: Any) -> Any:
    return _option("Tissue", help=help, **facts)


def filters(help: str) -> Any:
    return _option("Filters", help=help)


def output(help: str, *names: str) -> Any:
    return _option("Output", *names, help=help)


def machines(help: str, **facts: Any) -> Any:
    return _option("Machines", help=help, **facts)


Mpp = Annotated[float | None, scale("Target microns per pixel. Default 0.5.")]
Mag = Annotated[
    str | None,
    scale("Instead of --mpp, 10 / MAG um: 40x is 0.25, 20x 0.5, 10x 1, 5x 2.", metavar="MAG"),
]
PatchSize = Annotated[int | None, scale("Pixels a side. Default 256.")]
PatchUm = Annotated[float | None, scale("Microns a side, instead of --patch-size.")]
Overlap = Annotated[int | None, scale("Pixels shared by neighbors.")]
Step = Annotated[int | None, scale("Pixels from patch to patch, instead of --overlap.")]
Edge = Annotated[
    Literal["drop", "pad", "shift"] | None,
    scale("A rest smaller than a patch: dropped, padded white, or overlapped."),
]
Align = Annotated[
    Literal["bounds", "native"] | None,
    scale("Start the grid at the scanned bounds, or at the slide's own tiles, which are copied."),
]
SlideMpp = Annotated[
    float | None, slides("Microns per pixel of slides that do not say it plausibly.")
]
Reader = Annotated[
    ReaderName | None,
    slides("What reads the slides. Default auto: the fastest that is right."),
]

Preset = Annotated[
    str | None,
    tissue(
        "Settings for a kind of material; options win over them.",
        metavar="resection|biopsy|tma|cytology",
    ),
]
Method = Annotated[
    Literal["otsu", "saturation", "density", "entropy"] | None,
    tissue("How tissue is found. Default otsu; entropy for pale or IHC slides."),
]
Masks = Annotated[
    Path | None,
    tissue("Tissue or classes from outside: a folder with a mask a slide, or one."),
]
MinTissue = Annotated[float | None, tissue("Least share of tissue, 0..1.")]

MinHematoxylin = Annotated[float | None, filters("Least share of pixels with hematoxylin, 0..1.")]
MinFocus = Annotated[float | None, filters("Least sharpness; about 0.15 drops blurred patches.")]
MaxPen = Annotated[float | None, filters("Largest share of pixels with colors of felt pen, 0..1.")]

Store = Annotated[Literal["h5", "zarr"] | None, output("Default h5.")]
Normalize = Annotated[
    Literal["none", "macenko", "reinhard"] | None,
    output("Stain normalization, one fit a slide. Default none."),
]
Color = Annotated[
    Literal["as-is", "srgb"] | None,
    output("srgb: colors by the profile in the slide. Default as-is."),
]
Resume = Annotated[
    bool, output("Go on where an earlier run stopped (default).", "--resume/--no-resume")
]
Overwrite = Annotated[bool, output("Make it anew, replacing the result.", "--overwrite")]
Plan = Annotated[
    bool, output("Say what would be done, and what it takes by blocks cut now.", "--plan")
]

Workers = Annotated[
    int | None, machines("Processes; 0 works in this one. Default: all cores.", min=0)
]
Dask = Annotated[
    str | None, machines("Work on a Dask cluster, as tcp://scheduler:8786.", metavar="ADDRESS")
]
Slurm = Annotated[
    str | None,
    machines(
        "Start SLURM jobs for the work, as partition=cpu,workers=32,memory=8GB.",
        metavar="KEY=VALUE,...",
    ),
]
SlideTimeout = Annotated[
    float | None,
    machines("Give a slide up after so long. Default: never.", min=0.01, metavar="MINUTES"),
]
