"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from pathgen.cli import app

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"PG-[A-Z]\d\d")


def test_every_error_code_is_documented_and_every_documented_one_exists() -> None:
    used = {
        code
        for path in (ROOT / "pathgen").rglob("*.py")
        for code in CODE.findall(path.read_text(encoding="utf-8"))
    }
    documented = set(CODE.findall((ROOT / "docs" / "errors.md").read_text(encoding="utf-8")))
    assert used == documented


PAGES = ["README.md", "CHANGELOG.md", *(
    str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_every_command_that_a_page_shows_parses(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    shell = "".join(block for language, block in blocks if language in ("", "bash"))
    lines = [line for line in shell.splitlines() if line.startswith("pathgen ")]
    assert len(lines) >= 5 or name != "README.md"
    for line in lines:
        words = line.partition(" #")[0].split()[1:]
        command = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= known, line


def test_the_public_names_exist() -> None:
    import pathgen

    pytest.importorskip("torch")
    for name in pathgen.__all__:
        assert getattr(pathgen, name) is not None
        assert getattr(pathgen, name) is getattr(pathgen, name)


@pytest.mark.parametrize("name", PAGES)
def test_links_between_documents_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
