"""Imports point down: a module may use what stands on a lower line, never its own line or above."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "pathgen"
LAYERS = [
    ["errors"],
    ["extras", "progress", "columns", "parallel"],
    ["commit", "places"],
    ["config", "claims"],
    ["provenance", "recipes", "synthetic"],
    ["checkpoints", "runconfig"],
    ["modelfiles"],
    ["runs", "stores", "models"],
    ["tiling", "data"],
    ["exchange", "datasets"],
    ["train"],
    ["encoders"],
    ["extract"],
    ["evaluate"],
    ["augment", "heatmap"],
    ["pretrainconfig"],
    ["pretraining", "publishing", "report"],
    ["plan", "console", "demo", "doctor", "session"],
    ["rehearsal"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
NEVER = {
    "models": {"stores", "data", "runs", "commit"},
    "stores": {"models", "runs"},
    "tiling": {"models", "runs", "data"},
    "report": {"models", "runs", "train", "tiling"},
}
MODULES = sorted(ROOT.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imported(path: Path) -> set[str]:
    """Parts of pathgen that a module imports, wherever in the file; types alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "pathgen":
                names |= {f"pathgen.{alias.name}" for alias in node.names}
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {
        name.split(".")[1]
        for name in names
        if name.startswith("pathgen.") and not name.startswith("pathgen.__")
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_stands_below_it(path: Path) -> None:
    own = _part(path)
    if own in ("__init__", "__main__"):
        return
    assert own in RANK, f"pathgen.{own} has no place in LAYERS"
    for target in _imported(path) & RANK.keys():
        if target == own:
            continue
        assert RANK[target] < RANK[own], f"{own} (line {RANK[own]}) imports {target}"
        assert target not in NEVER.get(own, set()), f"{own} must not know {target}"


def test_the_rule_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from pathgen.cli import main\n    import pathgen.train.dino\n")
    assert _imported(bad) == {"cli", "train"}


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import pathgen", ["torch", "zarr", "h5py", "numpy", "pydantic"]),
        ("import pathgen.cli", ["torch", "zarr", "h5py", "numpy", "matplotlib"]),
        ("import pathgen.tiling, pathgen.stores.patches, pathgen.report", ["torch", "timm"]),
        ("import pathgen.synthetic", ["torch", "h5py", "zarr"]),
        ("import pathgen.stores.hdf5", ["torch", "zarr"]),
    ],
)
def test_light_imports_stay_light(code: str, unwanted: list[str]) -> None:
    check = f"{code}; import sys; print([n for n in {unwanted!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_neither_torch_nor_stores() -> None:
    check = (
        "import sys\ntry:\n    from pathgen.cli import main; main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'zarr', 'h5py') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_torch_load_is_always_weights_only() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                explicit = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert explicit.get("weights_only") == "True", f"{path.name}:{node.lineno}"


def test_files_can_be_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in MODULES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long
