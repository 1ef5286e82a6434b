"""Who may import whom. The arrows point one way, and the trusted part stays small and free of frameworks."""

import ast
from pathlib import Path

import pytest

import lightning_lipschitz

ROOT = Path(lightning_lipschitz.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# A room may import itself and the rooms of the levels below it.
LEVELS = [
    {"errors", "digest"},
    {"real", "written", "archive"},
    {"network", "structured"},
    {"certificate"},
    {"functional"},
    {"bounds", "extraction", "_lightning", "weight_files"},
    {"api"},
    {"pairwise"},
    {"weights", "metrics", "report"},
    {"training"},
    {"callbacks"},
    {"mixins"},
    {"demo", "checkpoint_files"},
    {"checkpoint_report"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

TRUSTED = {"errors", "digest", "real", "written", "archive", "network", "structured", "certificate"}
FRAMEWORKS = {"torch", "cvxpy", "lightning", "pytorch_lightning", "torchmetrics"}


def room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path):
    """Full names of everything a module imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_arrows_point_one_way(path):
    here = room(path)
    for full in imports(path):
        parts = full.split(".")
        if parts[0] != "lightning_lipschitz":
            continue
        there = parts[1] if parts[1] in LEVEL else "__init__"
        assert there == here or LEVEL[there] < LEVEL[here], f"{here} must not import {full}"


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) in TRUSTED], ids=name)
def test_the_trusted_part_needs_no_framework(path):
    used = {full.split(".")[0] for full in imports(path)}
    assert not used & FRAMEWORKS


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_lightning_enters_by_one_door(path):
    used = {full.split(".")[0] for full in imports(path)}
    if room(path) != "_lightning":
        assert not used & {"lightning", "pytorch_lightning"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_stay_small(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_functions_fit_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False) or ""
            length = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
            assert length <= 50, f"{node.name} has {length} lines"


def test_callbacks_hold_no_mathematics():
    for path in MODULES:
        if room(path) in {"callbacks", "mixins"}:
            assert not {full.split(".")[0] for full in imports(path)} & {"scipy", "cvxpy"}, path


def test_only_the_kernel_signs():
    """`certified=True` is written in three places, each right behind `prove`."""
    writers = {
        name(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "certified" and getattr(node.value, "value", None) is True
    }
    assert writers == {"bounds/composed.py", "bounds/search.py", "training/result.py"}
