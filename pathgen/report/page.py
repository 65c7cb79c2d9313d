"""`pathgen report`: one HTML file that needs nothing else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pathgen import __version__, commit
from pathgen.errors import NoInputError, StorageError
from pathgen.places import spare_page
from pathgen.progress import Progress, Silent
from pathgen.report.augmentation import generation_section
from pathgen.report.blocks import Code, Note, Section, Text
from pathgen.report.collect import Found, Unreadable, collect, read_json, read_object
from pathgen.report.comparisons import comparison_section
from pathgen.report.knn import features_section, knn_section
from pathgen.report.slidelevel import mil_section, predictions_section
from pathgen.report.slides import slides_section
from pathgen.report.text import Scrubber
from pathgen.report.training import run_section, stage_section


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    tiles: Path | None = None,
    progress: Progress = Silent(),
) -> Path:
    """Write one page about all that `folder` holds, and return where it is.

    The page has its style and pictures inside, fetches nothing and runs nothing. What is missing
    or damaged has a note in its place. No absolute path, host or user name goes in.

    Args:
        folder: tiles, a run, a stage, features, an evaluation, or a folder with several of them.
        out: the HTML file; default: report.html in `folder`.
        tiles: folder of `tile` whose thumbnails show the slides, where `folder` holds none.

    Raises:
        NoInputError: PG-N01, no such folder or nothing of pathgen's in it, or `tiles` is no
            folder of tiles.
        ConfigError: PG-O19, another program's file is at `out`.
        StorageError: PG-O01, PG-O03, `out` is a folder or cannot be written.
    """
    folder = Path(folder)
    out = folder / "report.html" if out is None else Path(out)
    if out.is_dir():
        raise StorageError("output is a folder", where=out, hint="name a file, as report.html")
    spare_page(out)
    found = collect(folder)
    if tiles is not None:
        found.pictures.append(_tiles_folder(Path(tiles)))
    sections = build_sections(found, progress)
    html = render(found, sections)
    commit.writable_folder(out.parent)
    commit.write_text(out, html)
    return out


def _tiles_folder(folder: Path) -> Path:
    if not (folder / "slides.json").is_file():
        raise NoInputError(
            "not a folder of tiles", where=folder, why="it has no slides.json",
            hint="give the folder that `pathgen tile` wrote",
        )  # fmt: skip
    return folder.resolve()


def build_sections(found: Found, progress: Progress = Silent()) -> list[Section]:
    """A section for each thing found, in the order of the work."""
    jobs = [
        *((slides_section, (found, path, i)) for i, path in enumerate(found.tiles, 1)),
        *((run_section, (found, path, i)) for i, path in enumerate(found.runs, 1)),
        *((stage_section, (found, path, i)) for i, path in enumerate(found.stages, 1)),
        *([(features_section, (found,))] if found.features else []),
        *([(knn_section, (found,))] if found.knn else []),
        *([(generation_section, (found,))] if found.generation else []),
        *((mil_section, (found, path, i)) for i, path in enumerate(found.mil, 1)),
        *((predictions_section, (found, *one, i)) for i, one in enumerate(found.predictions, 1)),
        *((comparison_section, (found, *one, i)) for i, one in enumerate(found.comparisons, 1)),
    ]
    sections: list[Section] = []
    with progress.task("report", len(jobs)) as task:
        for build, arguments in jobs:
            sections.append(build(*arguments))  # type: ignore[operator]
            task.advance(note=sections[-1].title)
    return [*sections, *reproduce_section(found)]


def reproduce_section(found: Found) -> list[Section]:
    """The commands, from commands.json, else from the environment of a run; none if neither."""
    section = Section("reproduce", "Reproduce")
    steps: list[tuple[str, str]] = []
    if (found.root / "commands.json").is_file():
        try:
            steps = _steps(read_json(found.root / "commands.json", found.root))
        except Unreadable as problem:
            section.add(Note(str(problem)))
        else:
            section.add(
                Text("The commands that made this, to be given in order inside an empty folder.")
            )
            if not steps:
                section.add(Note("commands.json names no commands."))
    else:
        places = (*found.runs, *found.stages, *found.mil)
        steps = [step for path in places for step in _command(found, path)]
        if steps:
            section.add(Text("The commands as they were given; folders are shown by name only."))
    section.add(*(Code(title, command) for title, command in steps))
    return [section] if section.blocks else []


def _steps(values: Any) -> list[tuple[str, str]]:
    known = [one for one in values if isinstance(one, Mapping)] if isinstance(values, list) else []
    return [(str(one.get("title", "")), str(one["command"])) for one in known if "command" in one]


def _command(found: Found, place: Path) -> list[tuple[str, str]]:
    try:
        words = read_object(place / "environment.json", found.root).get("command")
    except Unreadable:
        return []  # its own section says so
    if not isinstance(words, Sequence) or isinstance(words, str) or not words:
        return []
    name = Path(str(words[0])).name
    program = "pathgen" if name in ("__main__.py", "pathgen", "pathgen.exe") else name
    return [(found.name(place), shlex.join([program, *(_word(str(word)) for word in words[1:])]))]


def _word(word: str) -> str:
    """A word of a command; of an absolute path or an address only its last part."""
    option, sign, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if re.match(r"[/~\\]|[A-Za-z]:[/\\]|[a-z0-9]+://", value):
        value = re.split(r"[/\\]+", value.rstrip("/\\"))[-1]
    return option + sign + value


def render(found: Found, sections: Sequence[Section]) -> str:
    """The page as HTML. All text is scrubbed and escaped; only the figures go in as they are."""
    scrub = Scrubber(found.root)

    def finalize(value: Any) -> Any:
        return scrub(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=finalize,
    )  # fmt: skip
    source = files("pathgen.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    facts = [fact for section in sections for fact in section.facts]
    html = environment.from_string(source).render(
        title=found.root.name or "pathgen",
        summary="; ".join(facts) + "." if facts else "",
        notes=found.notes,
        sections=sections,
        version=__version__,
    )
    return re.sub(r"\n\s*\n+", "\n", html)
