"""Who may import whom. The arrows point one way, and the trusted part stays small and free of frameworks."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lightning_lipschitz

ROOT = Path(lightning_lipschitz.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# A room may import itself and the rooms of the levels below it.
LEVELS = [
    {"errors", "digest"},
    {"real", "written", "archive"},
    {"graph"},
    {"certificate"},
    {"functional"},
    {"bounds", "extraction", "_lightning", "weight_files"},
    {"api", "lightning_tools"},
    {"pairwise", "checkpoint_files"},
    {"weights", "metrics", "report"},
    {"training", "differentiable"},
    {"callbacks", "mixins", "checkpoint_report"},
    {"demo"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

TRUSTED = {"errors", "digest", "real", "written", "archive", "graph", "certificate"}
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


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_room_looks_into_the_drawers_of_another(path):
    """A module whose name begins with an underscore is imported by its own room only; `_lightning` is no room's."""
    for full in imports(path):
        package, there, *inside = [*full.split("."), ""]
        if package == "lightning_lipschitz" and there != room(path):
            private = [part for part in inside if part.startswith("_") and not part.endswith("__")]
            assert not private, f"{name(path)} must not import {full}"


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
        if room(path) in {"callbacks", "mixins", "lightning_tools"}:
            assert not {full.split(".")[0] for full in imports(path)} & {"scipy", "cvxpy"}, path


def calls(path):
    """Every call of a module: the name of what is called, the number of positional arguments, the keywords."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield called, len(node.args), {keyword.arg: keyword.value for keyword in node.keywords}


def test_only_the_kernel_signs():
    """One function writes `certified=True`, right behind the proof. Elsewhere a Certificate is made of what is no
    bound, and says so; and nobody exchanges the bound of one or what proves it."""
    makers = {name(path) for path in MODULES for called, _, _ in calls(path) if called == "Certificate"}
    assert makers == {"certificate/signer.py", "bounds/search.py"}
    for path in MODULES:
        for called, positional, keywords in calls(path):
            if called == "Certificate":
                certified = ast.literal_eval(keywords["certified"])
                assert positional == 0
                assert certified is (name(path) == "certificate/signer.py")
            elif called == "replace":
                assert not {"certified", "upper_bound", "network_digest"} & set(keywords), path
            else:
                assert "certified" not in keywords, path


def test_no_class_name_stands_twice():
    found = [
        (node.name, name(path))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    names = [each for each, _ in found]
    assert not [each for each in found if names.count(each[0]) > 1]


def test_docstrings_stand_alone():
    """A first line that begins with "Of" or "The same" needs its neighbour to be read."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            docstring = ast.get_docstring(node) if isinstance(node, documented) else None
            assert not (docstring or "").startswith(("Of ", "The same ")), f"{name(path)}: {docstring}"


def test_modules_do_not_import_each_other_in_a_circle():
    known = {".".join(("lightning_lipschitz", *path.relative_to(ROOT).with_suffix("").parts)): path for path in MODULES}
    graph = {}
    for module, path in known.items():
        read = {full if full in known else full.rpartition(".")[0] for full in imports(path)}
        graph[module] = {each for each in read if each in known and each != module}
    TopologicalSorter(graph).prepare()  # raises for a circle
