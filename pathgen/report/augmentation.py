"""Synthetic views in the section of a run: what was drawn, how near it keeps to what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pathgen.report import figures
from pathgen.report.blocks import Block, Details, Figure, Heading, Note, Section, Table, Text
from pathgen.report.collect import Found, Unreadable, read_object
from pathgen.report.text import DASH, as_float, number

KINDS = {"generative": "views of one patch", "interpolated": "blends"}
COSINES = {
    **KINDS, "interpolated": "blends of two", "random_pair": "two real patches at random",
    "reconstruction": "real patches, decoded from their latents",
}  # fmt: skip
COMPARED = {**KINDS, "real": "real patches (the floor)"}
CLOSER = {
    "source": "its source", "primary": "the primary", "secondary": "the secondary",
    "nearer": "the nearer of the two",
}  # fmt: skip
MEASURES = {
    "fid": "FID", "kid": "KID", "kid_sd": "sd", "precision": "precision", "recall": "recall"
}  # fmt: skip
SPACES = {"pixels": "pixels, at 32 px", "embedding": "embedding"}


def augmentation(section: Section, found: Found, place: Path) -> None:
    """All that metrics.json and the pictures of an augment stage say."""
    try:
        metrics = read_object(place / "metrics.json", found.root)
    except Unreadable as problem:
        section.add(Note(str(problem)))
        return
    _counts(section, metrics)
    _likeness(section, found, place, metrics)
    _closeness(section, metrics)
    _interpolation(section, found, place, metrics)
    _sets(section, metrics)
    _copies(section, found, place, metrics)


def _counts(section: Section, metrics: Mapping[str, Any]) -> None:
    """What the filter did, where there was one, and what others would do."""
    counts, rule = _object(metrics, "counts"), _object(metrics, "filter")
    if not counts:
        return
    limit = as_float(rule.get("min_cosine"))
    text = f"{number(counts.get('kept'))} of {number(counts.get('planned'))} planned images stayed"
    if limit is None:
        text += "; no filter was asked for."
    else:
        text += (
            f": the filter asked for a cosine of {number(limit)} or more, "
            f"{number(counts.get('resampled'))} images were drawn again and "
            f"{number(counts.get('dropped'))} dropped, in {number(counts.get('attempts'))} draws."
        )
    section.add(Text(text))
    rows = [
        [str(row.get("of", "")).replace("_", " "), number(as_float(row.get("quantile"))),
         number(as_float(row.get("min_cosine"))), number(as_float(row.get("share")))]
        for row in _rows(rule.get("would_fail"))
    ]  # fmt: skip
    if rows:
        table = Table(
            "Share of the images below limits that suggest themselves: quantiles of the cosine of "
            "two real patches at random, and of real patches with their reconstructions.",
            ["quantile of", "at", "least cosine", "share below"], rows,
            numeric=frozenset({1, 2, 3}),
        )  # fmt: skip
        section.add(Details("What a filter would drop", [table]))


def _likeness(section: Section, found: Found, place: Path, metrics: Mapping[str, Any]) -> None:
    """Cosine of each drawn image's own embedding to the embedding it was drawn from."""
    rows: list[tuple[str, float, float | None, float | None]] = []
    for key, title in COSINES.items():
        spread = _object(metrics, key)
        mean = as_float(spread.get("mean"))
        if mean is not None:
            rows.append((title, mean, as_float(spread.get("q05")), as_float(spread.get("q95"))))
    if not rows:
        section.add(Note(f"{found.name(place)}/metrics.json holds no re-embedding cosines."))
        return
    lowest = min(value if low is None else low for _, value, low, _ in rows)
    section.add(
        Figure(
            figures.bars(rows, "cosine", limits=(min(0.0, lowest * 1.1), 1.0)),
            "Mean cosine of re-embedded synthetic images with their condition",
            "Synthetic images were embedded again: the cosine with what they were drawn from, its "
            "mean and the range from the 5th to the 95th percentile. A model that ignores its "
            "condition is no better than two real patches at random; real patches that went "
            "through the autoencoder alone are about the best that can be reached.",
        )
    )


def _closeness(section: Section, metrics: Mapping[str, Any]) -> None:
    closer = _object(metrics, "closer_to_source")
    rows = [
        [KINDS.get(kind, kind), CLOSER.get(to, to), number(as_float(share)),
         number(_object(closer, kind).get("images"))]
        for kind in closer
        for to, share in _object(closer, kind).items()
        if to != "images"
    ]  # fmt: skip
    if rows:
        section.add(
            Table(
                "Share of comparisons in which an image's embedding is closer to a source than to "
                "a random other patch. One half is chance.",
                ["images", "closer to", "share", "looked at"], rows, numeric=frozenset({2, 3}),
            )
        )  # fmt: skip


def _interpolation(section: Section, found: Found, place: Path, metrics: Mapping[str, Any]) -> None:
    curves = _object(metrics, "interpolation")
    if not curves:
        return
    share, rho = as_float(curves.get("monotone_share")), as_float(curves.get("spearman"))
    caption = (
        f"Images of {number(curves.get('pairs'))} pairs of patches, drawn at six alphas from equal "
        "noise: the cosine of their embeddings to the primary and to the secondary. The difference "
        f"of the two rises at every step for {number(share)} of the pairs; its rank correlation "
        f"with alpha is {number(rho)} in the mean."
    )
    section.add(Heading("From one patch to another"))
    section.add(_picture(found, place / "interpolation.png", "Cosines over alpha", caption))


def _sets(section: Section, metrics: Mapping[str, Any]) -> None:
    sets = _object(metrics, "sets")
    rows = [
        [title, *_measures(_object(sets, kind))]
        for kind, title in COMPARED.items()
        if _object(sets, kind)
    ]
    if not rows:
        return
    section.add(
        Heading("Distance to real patches"),
        Table(
            f"Each set of {number(sets.get('images'))} images beside as many real patches, in the "
            "encoder's space; none of those is among the floor's. Values of another encoder, or of "
            "other numbers of images, cannot be compared.",
            ["set", *MEASURES.values()], rows, numeric=frozenset(range(1, 6)),
        ),
    )  # fmt: skip
    if sets.get("warning"):
        section.add(Note(str(sets["warning"])))


def _copies(section: Section, found: Found, place: Path, metrics: Mapping[str, Any]) -> None:
    copies = _object(metrics, "copies")
    rows = [
        [title, KINDS[kind], *_suspects(_object(_object(copies, space), kind))]
        for space, title in SPACES.items()
        for kind in KINDS
        if _object(_object(copies, space), kind)
    ]
    if not rows:
        return
    section.add(
        Heading("Does it copy?"),
        Table(
            f"Each image and the nearest of {number(copies.get('real'))} real patches. Suspect: as "
            "near as only 1 % of real patches are to their nearest other one. To be near its own "
            "source is what an image is for; to be suspect by pixels and near another patch is to "
            "be remembered.",
            ["by", "images", "suspect", "of its source", "of others", "nearest is its source"],
            rows, numeric=frozenset({2, 3, 4, 5}),
        ),
        _picture(
            found, place / "memorization.png", "Nearest pairs",
            "The synthetic images nearest to a real patch by pixels, each beside that patch, with "
            "the root mean square difference (0 to 1).",
        ),
    )  # fmt: skip


def generation_section(found: Found) -> Section:
    """Results of `pathgen evaluate fid` side by side."""
    section = Section("generation", "Synthetic images beside real ones (FID, KID)")
    rows = [
        [str(values.get("title", DASH)), *_measures(values), number(values.get("n_real")),
         number(values.get("n_synthetic")), number(values.get("dim"))]
        for _, values in found.generation
    ]  # fmt: skip
    section.add(
        Table(
            "On features of the encoder named. Values of different encoders, or of different "
            "numbers of images, cannot be compared.",
            ["set", *MEASURES.values(), "real", "synthetic", "dimensions"], rows,
            numeric=frozenset(range(1, 9)),
        ),
        *(Note(str(values["warning"])) for _, values in found.generation if values.get("warning")),
    )  # fmt: skip
    return section


def _measures(values: Mapping[str, Any]) -> list[str]:
    shown = (as_float(values.get(name)) for name in MEASURES)
    return [DASH if value is None else f"{value:.4g}" for value in shown]


def _suspects(values: Mapping[str, Any]) -> list[str]:
    names = ("suspects", "suspects_of_source", "suspects_of_others", "nearest_is_source")
    shares = [as_float(values.get(name)) for name in names]
    return [DASH if share is None else f"{share:.1%}" for share in shares]


def _picture(found: Found, path: Path, title: str, caption: str) -> Block:
    try:
        return Figure(figures.picture(path), title, caption)
    except figures.BadImage as problem:
        return Note(f"{found.name(path.parent)}/{path.name} {problem}.")


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry that should be an object; empty when it is not."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _rows(values: Any) -> Sequence[Mapping[str, Any]]:
    known = isinstance(values, Sequence) and not isinstance(values, str)
    return [row for row in values if isinstance(row, Mapping)] if known else []
