"""What users see first: names, completion, and choices that type hints, checks and documentation agree on."""

import importlib
import inspect
from typing import get_args, get_type_hints

import pytest
import torch

import lightning_lipschitz as ll
from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.cli import main
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.functional import initial_pairs
from tests.helpers import TWO_BY_TWO

# Names

ROOMS = ("", ".callbacks", ".metrics", ".mixins", ".functional", ".certificate", ".extraction", ".weights", ".training")
UNKNOWN = ("LipschitzCallbak", "certified", "_nothing", "__wrapped__")


def room(name):
    return importlib.import_module(f"lightning_lipschitz{name}")


@pytest.mark.parametrize("name", ROOMS)
def test_every_public_name_is_offered_and_there(name):
    module = room(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    assert dir(module) == sorted(dir(module))
    for each in module.__all__:
        assert getattr(importlib.import_module(module.__name__), each) is getattr(module, each)
        assert inspect.getdoc(getattr(module, each))


@pytest.mark.parametrize("name", ROOMS)
def test_star_import_gives_the_public_names(name):
    module, found = room(name), {}
    exec(f"from {module.__name__} import *", found)
    del found["__builtins__"]
    assert found == {each: getattr(module, each) for each in module.__all__}


@pytest.mark.parametrize("name", ROOMS)
def test_an_unknown_name_is_named(name):
    module = room(name)
    for unknown in UNKNOWN:
        with pytest.raises(AttributeError, match=rf"^module '{module.__name__}' has no attribute '{unknown}'$"):
            getattr(module, unknown)
        assert not hasattr(module, unknown)
        assert unknown not in dir(module)
        with pytest.raises(ImportError, match=rf"cannot import name '{unknown}' from '{module.__name__}'"):
            exec(f"from {module.__name__} import {unknown}", {})


@pytest.mark.parametrize("name", [".callbacks", ".metrics", ".mixins"])
def test_the_package_offers_what_its_rooms_do(name):
    shared = set(room(name).__all__) & set(ll.__all__)
    assert shared
    assert all(getattr(ll, each) is getattr(room(name), each) for each in shared)


# Choices: of each argument with a closed set of values, how it is given, the error of any other, and who documents it

X = torch.zeros(2, 2)


def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))


def admm(mode):
    goal = {"weight": 0.1} if mode == "regularize" else {"max_lipschitz": 1.0}
    return ll.LipschitzADMM(mode=mode, **goal)


def drawn(start):
    return initial_pairs(X, 2, start=start, generator=torch.Generator().manual_seed(0))


CHOICES = {
    "callback, method": (ll.LipschitzCallback, "method", lambda v: ll.LipschitzCallback(method=v)),
    "callback, solver": (ll.LipschitzCallback, "solver", lambda v: ll.LipschitzCallback(solver=v)),
    "admm, mode": (ll.LipschitzADMM, "mode", admm),
    "scale, bound": (ll.LipschitzScale, "bound", lambda v: ll.LipschitzScale(1.0, bound=v)),
    "project, keep": (ll.project, "keep", lambda v: ll.project(module(), 9.0, X, keep=v)),
    "certify, method": (ll.certify, "method", lambda v: ll.certify(module(), X, method=v)),
    "certify, solver": (ll.certify, "solver", lambda v: ll.certify(TWO_BY_TWO, solver=v)),
    "pairs, method": (ll.pairwise_bounds, "method", lambda v: ll.pairwise_bounds(module(), X, method=v)),
    "pairs, solver": (ll.pairwise_bounds, "solver", lambda v: ll.pairwise_bounds(module(), X, solver=v)),
    "clip, start": (ll.ClipConfig, "start", lambda v: ll.ClipConfig(start=v)),
    "clip, mode": (ll.ClipConfig, "mode", lambda v: ll.ClipConfig(mode=v)),
    "first pairs, start": (initial_pairs, "start", drawn),
}

WRONG = ("", "AUTO", "lipsdp", "auto ", None, 1, True, ("auto",))


def hint(name):
    """The values that the annotation allows, and the default."""
    owner, argument, _ = CHOICES[name]
    parameter = inspect.signature(owner).parameters[argument]
    hinted = owner.__init__ if owner in (ll.LipschitzCallback, ll.LipschitzADMM, ll.LipschitzScale) else owner
    return get_args(get_type_hints(hinted)[argument]), parameter.default


def accepts(call, value):
    try:
        call(value)
    except (ArgumentError, MisconfigurationException):
        return False
    return True


@pytest.mark.filterwarnings("ignore::lightning_lipschitz.errors.NotABoundWarning")
@pytest.mark.parametrize("name", CHOICES)
def test_type_hints_allow_what_is_accepted(name):
    allowed, default = hint(name)
    every = dict.fromkeys(value for other in CHOICES for value in hint(other)[0])
    assert allowed
    assert default in allowed
    assert {value for value in (*every, *WRONG) if accepts(CHOICES[name][2], value)} == set(allowed)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_choice_is_told_the_right_ones(name, wrong):
    _, argument, call = CHOICES[name]
    with pytest.raises((ArgumentError, MisconfigurationException), match=f"{argument}` must be") as caught:
        call(wrong)
    assert all(repr(value) in str(caught.value) for value in hint(name)[0])
    assert repr(wrong) in str(caught.value)


REFERS = {ll.LipschitzCallback: ll.certify, ll.pairwise_bounds: ll.certify, ll.ClipConfig: initial_pairs}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_documented(name):
    owner, argument, _ = CHOICES[name]
    text = inspect.getdoc(owner) + (inspect.getdoc(REFERS[owner]) if owner in REFERS else "")
    assert f"{argument}:" in text
    assert [value for value in hint(name)[0] if f'"{value}"' not in text] == []


@pytest.mark.parametrize("argument", ["method", "solver"])
def test_the_command_line_offers_the_same_choices(argument, capsys):
    """But for the route that reads modules only."""
    with pytest.raises(SystemExit):
        main(["certify", "w.npz", f"--{argument}", "lipsdp"])
    said = capsys.readouterr().err.partition("choose from")[2]
    listed = {word.strip(" ')\n") for word in said.split(",")}
    assert listed == set(hint(f"certify, {argument}")[0]) - {"composed"}
