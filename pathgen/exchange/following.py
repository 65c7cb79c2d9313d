"""What a person runs next, with the tool that an export is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from pathgen.errors import DataError
from pathgen.exchange.entries import Entry, encoder_folders
from pathgen.exchange.trident import job_folder


def commands(form: str, out: Path, entries: Sequence[Entry], suffix: str | None) -> tuple[str, ...]:
    """The tool's own commands, or what to do in it. Words in capitals are to be filled in."""
    place = quote(str(out))
    if form in ("clam", "clam-pixels"):
        return _clam(place, entries, suffix) if form == "clam" else ()
    if form == "trident":
        return _trident(place, entries)
    if form == "torchmil":
        labels = f", labels_path={str(out / 'labels')!r}" if _labeled(entries) else ""
        return (
            "in Python: torchmil.datasets.ProcessedMILDataset("
            f"features_path={str(out / 'features')!r}{labels}, "
            f"coords_path={str(out / 'coords')!r})",
        )
    if form == "anndata":
        files = sorted(path.relative_to(out) for path in out.rglob("*.h5ad"))
        return tuple(f"in Python: anndata.read_h5ad({str(out / path)!r})" for path in files[:1])
    if form == "stamp":
        folders = sorted(set(encoder_folders(entries).values()))
        clini = quote(str(out / "clini_table.csv")) if _labeled(entries) else "CLINI_TABLE"
        return (
            "stamp --config config.yaml crossval, with in config.yaml: "
            f"clini_table: {clini}, slide_table: {quote(str(out / 'slide_table.csv'))}, "
            f"feature_dir: {quote(str(out / (folders[0] if folders else '')))}, "
            "ground_truth_label: label",
        )
    if form == "slideflow":
        return (
            f"in Python: slideflow.Project(PROJECT, annotations={str(out / 'annotations.csv')!r})",
        )
    if form == "webdataset":
        return (f"in Python: webdataset.WebDataset(sorted(glob.glob({str(out / '*.tar')!r})))",)
    if form == "folder":
        return (f"in Python: torchvision.datasets.ImageFolder({str(out)!r})",)
    if form == "qupath":
        first = quote(str(next(iter(sorted(out.glob("*.geojson*"))), out)))
        return (f"open the slide in QuPath and drop {first} on it",)
    return ()


def _labeled(entries: Sequence[Entry]) -> bool:
    return any(entry.label is not None for entry in entries)


def _clam(place: str, entries: Sequence[Entry], suffix: str | None) -> tuple[str, ...]:
    patches = next((entry for entry in entries if entry.patches is not None and len(entry)), None)
    if patches is None or any(entry.features for entry in entries):
        return ()  # the features are there; CLAM names its tasks in its main.py
    slide = patches.geometry.slide
    ending = suffix or (slide.suffix if slide else None) or "SUFFIX"
    return (
        f"python extract_features_fp.py --data_h5_dir {place} --data_slide_dir SLIDES "
        f"--csv_path {place}/process_list_autogen.csv --feat_dir FEATS --slide_ext {ending} "
        f"--target_patch_size {patches.geometry.size}",
    )


def _trident(place: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    """One a job folder; the name of one that is no whole magnification goes in by itself."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.features:  # they are there
            continue
        try:
            size = entry.geometry.trident(entry.name)
        except DataError:
            continue
        overlap = entry.geometry.overlap
        job = job_folder(size, overlap)
        found[job] = (
            f"python run_batch_of_slides.py --task feat --wsi_dir SLIDES --job_dir {place} "
            f"--patch_encoder uni_v1 --mag {size.nominal:g} --patch_size {size.size}"
            + (f" --overlap {overlap}" if overlap else "")
        )
    return tuple(found[job] for job in sorted(found))
