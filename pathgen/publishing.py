"""`pathgen publish`: a trained encoder as a folder to hand on.

    config.json  model.safetensors    what `load_encoder` and timm's ``local-dir:`` both read
    README.md                         the card: data, recipe, figures, use, limits, license

The first two are what every run has in its `model/`; what publishing adds is the card, and the
refusal of anything unfinished. Names of slides and places of files stay out of the card.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pathgen import __version__
from pathgen.commit import draft, writable_folder
from pathgen.config import read_yaml
from pathgen.errors import ConfigError, RunError, StorageError
from pathgen.modelfiles import MODEL_FORMAT, read_object
from pathgen.progress import counted
from pathgen.runs import Run, save_model

if TYPE_CHECKING:
    from pathgen.models.encoder import Encoder

#: Below a pretraining run, best first.
STAGES = ("gen-dino", "dino")
CONTENTS = ("config.json", "model.safetensors", "README.md")
NO_LICENSE = "FILL IN"
METHODS = {
    "dino": "DINO (arXiv 2104.14294)",
    "gen-dino": "Gen-DINO, DINO with self-augmentations (Gen-SIS, arXiv 2412.01672)",
}


def publish(
    run: str | Path,
    out: str | Path,
    *,
    license: str | None = None,
    metrics: Sequence[str | Path] = (),
    overwrite: bool = False,
) -> Path:
    """Write the encoder of a finished run, with its card, to the new folder `out`.

    Args:
        run: a folder of `pathgen pretrain` (its Gen-DINO encoder, or its DINO encoder where that
            stage was never begun), or one of these stages.
        license: under which the weights are given away; without it the card has a gap to fill.
        metrics: JSON files of `pathgen evaluate`, for the card.
        overwrite: replace an encoder that was published to `out` before.

    Returns:
        `out`.

    Raises:
        RunError: PG-T04, no run of an encoder is there, or it is not finished.
        StorageError: PG-O21, something else is at `out`.
        ConfigError: PG-C01, a file of metrics cannot be read.
    """
    from pathgen.encoders import load_trained

    out, stage = Path(out), _stage(Path(run))
    _free(out, overwrite)
    figures = {Path(path).stem: _figures(Path(path)) for path in metrics}
    encoder = load_trained(stage.path, device="cpu")
    facts = _Facts.of(stage, encoder, figures)
    writable_folder(out.parent)
    with draft(out) as folder:
        save_model(folder, encoder)
        (folder / "README.md").write_text(card(facts, out.name, license), encoding="utf-8")
    return out


@dataclass(frozen=True)
class _Facts:
    """All that a card says."""

    stage: str
    encoder: Encoder
    run_id: str
    metrics: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, encoder: Encoder, figures: Mapping[str, Any]) -> _Facts:
        """Of a stage, and of the pretraining around it when there is one."""
        whole = run.path.parent
        if not (whole / "data.json").is_file():
            settings = {run.provenance.stage: read_yaml(run.path / "config.yaml")}
            return cls(run.provenance.stage, encoder, run.id, run.metrics,
                       settings=settings, figures=figures)  # fmt: skip
        drawn = whole / "augment" / "metrics.json"
        if run.provenance.stage == "gen-dino" and drawn.is_file():
            figures = {"synthetic images": read_object(drawn), **figures}
        return cls(
            run.provenance.stage, encoder, run.id, run.metrics,
            data=read_object(whole / "data.json"), settings=read_yaml(whole / "config.yaml"),
            figures=figures,
        )  # fmt: skip


def card(facts: _Facts, name: str, license: str | None) -> str:
    """The README of a published encoder, Markdown with the front matter of model hubs."""
    encoder, config = facts.encoder, facts.encoder.config
    side = config.image_size
    weights = sum(p.numel() for p in encoder.parameters())
    head = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "license": license or "other",
        "tags": ["timm", "pathgen", "self-supervised", facts.stage],
    }
    front = yaml.safe_dump(head, sort_keys=False)
    parts = [
        f"---\n{front}---\n\n# {name}",
        f"A `{config.name}` that turns an image into {encoder.dim} numbers: {weights / 1e6:.1f} M "
        f"parameters, {side} px, trained without labels by {METHODS[facts.stage]}, with pathgen "
        f"{__version__}.",
        "## How to load\n\n" + _loading(encoder),
        "## Training data\n\n" + _data(facts),
        "## Training\n\n" + _training(facts),
        "## Figures\n\n" + _tables({"training": facts.metrics, **facts.figures}),
        "## Use and limits\n\n" + USE,
        "## License\n\n" + (license or f"{NO_LICENSE}: the license of these weights, and what the "
                            "owners of the training images allow. Until then: none is given."),
        f"Encoder `{encoder.id}` of run `{facts.run_id}`.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


USE = """\
Meant as a frozen feature extractor for research: k-NN search, linear heads, multiple-instance
learning on slides. It is no medical device and was not validated for diagnosis.

- Features were never told a class. What they separate has to be measured on your own task, with
  patients, not patches, held out.
- Scanner, stain and scale leave traces in every feature. At another scale, or on another tissue
  or stain than above, expect less.
- Compare with color alone (a histogram of the same patches) before crediting the encoder."""


def _loading(encoder: Encoder) -> str:
    return f"""\
```python
import pathgen

encoder = pathgen.load_encoder("FOLDER")
features = encoder.encode(patches)  # uint8 (n, H, W, 3) -> float32 (n, {encoder.dim})
```

or, with timm 1.0.16 or later and without pathgen:

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)  # size, mean and spread
transform = timm.data.create_transform(**data, is_training=False)
```"""


def _data(facts: _Facts) -> str:
    if not facts.data:
        return "The run does not say how many patches it was trained on."
    sources, patches = facts.data["sources"], int(facts.data["patches"])
    lines = [f"- {counted(patches, 'patch', 'patches')} of {counted(len(sources), 'source')}"
             " (a source is a slide's patch store, or a folder of images)"]  # fmt: skip
    for key, what in (("target_mpp", "microns per pixel"), ("patch_size", "pixels a side")):
        values = sorted({source[key] for source in sources if source.get(key) is not None})
        said = ", ".join(f"{value:g}" for value in values) if values else "not recorded"
        lines.append(f"- {what}: {said}")
    lines.append("- labels: none were used")
    return "\n".join(lines)


def _training(facts: _Facts) -> str:
    name, note = facts.settings.get("name"), facts.settings.get("note")
    lines = [f"Recipe `{name}`. {note}\n"] if name else []
    text = yaml.safe_dump(_without_places(facts.settings), sort_keys=False, allow_unicode=True)
    lines.append(f"<details><summary>All settings</summary>\n\n```yaml\n{text}```\n\n</details>")
    return "\n".join(lines)


def _tables(groups: Mapping[str, Any]) -> str:
    rows = ["| of | figure | value |", "|---|---|---|"]
    for group, values in groups.items():
        rows += [f"| {group} | {name} | {value} |" for name, value in _flat(values)]
    return "\n".join(rows)


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Numbers and words of nested mappings as (dotted name, text); lists are left out."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, bool | int | str):
            yield name, str(value).replace("|", "/")
        elif isinstance(value, float):
            yield name, f"{value:.4g}"


def _without_places(value: Any) -> Any:
    """Settings without the folders of this machine."""
    if isinstance(value, Mapping):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    is_place = isinstance(value, str) and ("\\" in value or value.startswith(("/", "~", ".")))
    return Path(value.replace("\\", "/")).name if is_place else value


def _stage(path: Path) -> Run:
    """The finished stage to publish. Raises RunError (PG-T04)."""
    begun = (path / stage for stage in STAGES if (path / stage / "provenance.json").is_file())
    folder = next(begun, path)
    run = Run.open(folder)
    stage = run.provenance.stage
    if stage not in STAGES:
        raise RunError(
            "this run has no encoder", where=path, why=f"it is a run of {stage}",
            hint=f"give a run of {' or '.join(STAGES)}, or the folder of `pathgen pretrain`",
        )  # fmt: skip
    if not run.finished:
        other = path / "dino"
        kept = folder.name == "gen-dino" and (other / "done.json").is_file()
        raise RunError(
            "this run is not finished", where=folder, why=f"the {stage} stage is still under way",
            hint="run the same `pathgen pretrain` again to finish it"
            + (f"; or publish {other}" if kept else ""),
        )  # fmt: skip
    return run


def _free(out: Path, overwrite: bool) -> None:
    """Raise StorageError (PG-O21) unless `out` is free, or an encoder that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    ours = out.is_dir() and {path.name for path in out.iterdir()} <= set(CONTENTS)
    ours = ours and (out / "config.json").is_file()
    ours = ours and read_object(out / "config.json").get("format") == MODEL_FORMAT
    if not (ours and overwrite):
        raise StorageError(
            "something is there already", code="PG-O21", where=out,
            why="an encoder published before" if ours else "it is not just a published encoder",
            hint="use --overwrite to replace it, card included" if ours else "choose another --out",
        )  # fmt: skip


def _figures(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("metrics cannot be read", where=path, why=str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError("metrics cannot be read", where=path, why="it is not a JSON object")
    return values
