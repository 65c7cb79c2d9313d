"""Commands that judge an encoder on pictures of the world, as the papers do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathgen.cli.options import (
    AsJson,
    Device,
    LoaderWorkers,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    Verbose,
    need_torch,
    setting,
)
from pathgen.cli.options import Config as ConfigFile
from pathgen.cli.root import evaluate_app
from pathgen.console import Talk, guarded, shown

if TYPE_CHECKING:
    from pathgen.models.encoder import Encoder

Of = Annotated[str, typer.Option("--encoder", help="A run, a stage or model folder, or timm:NAME.")]
OutFile = Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the result.")]


@evaluate_app.command("retrieval")
@guarded
def retrieval(
    root: Annotated[Path, typer.Argument(help="Folder with gnd_roxford5k.pkl (rparis6k), jpg/.")],
    encoder: Of,
    image_size: Annotated[
        int, typer.Option(min=16, help="Longest side in pixels. Published: 224, Paris 512.")
    ] = 224,
    multiscale: Annotated[
        bool, typer.Option("--multiscale", help="Mean over three scales. Published: Paris.")
    ] = False,
    out: OutFile = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Revisited Oxford or Paris buildings: mean average precision, Medium and Hard."""
    need_torch()
    from pathgen.evaluate.natural.retrieval import evaluate_retrieval

    talk = Talk(quiet=quiet, as_json=as_json)
    values = evaluate_retrieval(
        _loaded(encoder, device), root, image_size=image_size, multiscale=multiscale,
        progress=talk.progress,
    )  # fmt: skip
    _say(talk, values, f"mAP Medium {_share(values['map_medium'])}, "
         f"Hard {_share(values['map_hard'])} on {values['data']}.", out)  # fmt: skip


@evaluate_app.command("copies")
@guarded
def copies(
    root: Annotated[Path, typer.Argument(help="Copydays: folder with original/ and strong/.")],
    encoder: Of,
    whitening: Annotated[
        Path | None, typer.Option(help="Folder of other images to learn a whitening from.")
    ] = None,
    distractors: Annotated[
        Path | None, typer.Option(help="Folder of other images to search among.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=16, help="Side in pixels.")] = 320,
    out: OutFile = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Copydays: mean average precision of finding what an image was copied from."""
    need_torch()
    from pathgen.evaluate.natural.copies import evaluate_copies

    talk = Talk(quiet=quiet, as_json=as_json)
    values = evaluate_copies(
        _loaded(encoder, device), root, whitening=whitening, distractors=distractors,
        image_size=image_size, progress=talk.progress,
    )  # fmt: skip
    maps = ", ".join(f"{name} {value:.3f}" for name, value in values["map"].items())
    _say(talk, values, f"mAP among {values['database']:,} images: {maps}.", out)


@evaluate_app.command("video")
@guarded
def video(
    root: Annotated[Path, typer.Argument(help="DAVIS 2017: folder with JPEGImages/480p.")],
    encoder: Of,
    out: OutFile = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """DAVIS 2017: objects followed through videos by their patch tokens, J and F."""
    need_torch()
    from pathgen.evaluate.natural.video import evaluate_video

    talk = Talk(quiet=quiet, as_json=as_json)
    values = evaluate_video(_loaded(encoder, device), root, progress=talk.progress)
    _say(talk, values, f"J&F {values['jf_mean']:.3f}, J {values['j_mean']:.3f}, "
         f"F {values['f_mean']:.3f} over {values['objects']} objects.", out)  # fmt: skip


@evaluate_app.command("probe")
@guarded
def probe(
    learn: Annotated[
        Path, typer.Argument(help="Image folder to learn from, a sub-folder a class.")
    ],
    judge: Annotated[Path, typer.Argument(help="Image folder to be judged on.")],
    encoder: Of,
    out: Out,
    config: ConfigFile = None,
    settings: Annotated[list[str] | None, setting("optim.epochs=10")] = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: LoaderWorkers = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """DINO's linear evaluation: one layer on class tokens of randomly cropped images."""
    need_torch()
    from pathgen.config import load_config
    from pathgen.data.sources import open_sources
    from pathgen.runs import Run
    from pathgen.train.probe import ProbeConfig, train_probe

    talk = Talk(quiet=quiet, as_json=as_json)
    common = {"seed": seed, "device": device, "workers": workers}
    chosen = [f"run.{key}={value}" for key, value in common.items() if value is not None]
    resolved = load_config(ProbeConfig, config, [*(settings or ()), *chosen])
    model = _loaded(encoder, device)
    sides = {"learn": open_sources([learn]), "judge": open_sources([judge])}
    inputs = {f"{role} {i}": s.id for role, sources in sides.items() for i, s in enumerate(sources)}
    run = Run.start(out, "probe", resolved, {"encoder": model.id, **inputs},
                    overwrite=overwrite or not resume)  # fmt: skip
    train_probe(resolved, model, sides["learn"], sides["judge"], run, talk.progress)
    found = run.metrics
    talk.result(
        {"out": out, **found},
        f"Accuracy {found['accuracy_last']:.3f} after the last epoch, {found['accuracy_best']:.3f} "
        f"at best, on {found['n_test']:,} images.", f"pathgen report {shown(out)}",
    )  # fmt: skip


def _loaded(name: str, device: str) -> Encoder:
    from pathgen.encoders import load_trained

    return load_trained(name, device=device)


def _say(talk: Talk, values: dict[str, Any], text: str, out: Path | None) -> None:
    from pathgen import commit

    if out:
        commit.write_json(out, values)
        text += f" All numbers are in {shown(out)}."
    talk.result(values, text)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
