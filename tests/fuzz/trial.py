"""One program tried: read in both forms, bounded, and its slopes held against the bounds."""

from __future__ import annotations

import random
import traceback
import warnings
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import lightning_lipschitz as ll
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.extraction import trace as tracing
from tests.fuzz.quotients import sample

ROUTES = {"explicit": "norm-product", "composed": "composed"}


@dataclass
class Outcome:
    """What came of a program.

    Args:
        bounds: by route.
        refusals: by route: the type of the error and its sentence.
        findings: what must not be, in words.
        skipped: why no slopes were sampled, where a bound was given.
        largest: the largest share of a bound that a slope reached.
    """

    bounds: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    skipped: str = ""
    largest: float = 0.0


def attempt(program, tightest=False, reweighed=0):
    """Certify by every route and sample; the outcomes of the model and of the same with other weights.

    Args:
        program: to try.
        tightest: try "auto" too, which optimises.
        reweighed: how often to try again with other weights, large, small, equal and zero; no new tracing is needed.
    """
    model, double = program.model(), program.in_double()
    routes = ROUTES | ({"auto": "auto"} if tightest else {})
    with _traced_once():
        outcomes = [_outcome(program, model, double, routes)]
        rng = random.Random(program.seed)
        for _ in range(reweighed if any(True for _ in model.parameters()) else 0):
            _reweigh(rng, model, double)
            outcomes.append(_outcome(program, model, double, ROUTES))
    return outcomes


def _reweigh(rng, model, double):
    """Other values for the parameters, the same in both."""
    change = rng.choice(
        [
            lambda p: p * rng.choice([1e-20, 1e-3, 30.0, 1e8]),
            lambda p: p * 0,
            lambda p: p.sign(),
            lambda p: p.abs() * rng.choice([-1, 1]),
            lambda p: p.flip(0) if p.ndim else -p,
            lambda p: (4 * p).round() / 4,
        ]
    )
    with torch.no_grad():
        for one, two in zip(model.parameters(), double.parameters(), strict=True):
            one.copy_(change(one))
            two.copy_(one)


def _outcome(program, model, double, routes):
    outcome = Outcome()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for route, method in routes.items():
        try:
            options = {"time_limit": 1.0} if method == "auto" else {}
            outcome.bounds[route] = ll.certify(model, program.example(), method=method, **options).upper_bound
        except LipschitzError as error:
            outcome.refusals[route] = (type(error).__name__, str(error))
        except Exception as error:
            told = "".join(traceback.format_exception(error)[-6:])
            outcome.findings.append(f"{route}: {type(error).__name__} is no refusal: {told}")
    after = model.state_dict()
    if not all(torch.equal(each, after[name]) or each.isnan().any() for name, each in before.items()):
        outcome.findings.append("certifying changed the model's tensors")
    if outcome.bounds:
        _hold(program, double, outcome)
    if outcome.findings and before:
        outcome.findings.append(f"with {before}")
    return outcome


def _hold(program, double, outcome):
    """Slopes of the model in float64 against the bounds."""

    def function(x):
        with Promoted():
            return double(x.clone()).reshape(len(x), -1).double()

    generator = torch.Generator().manual_seed(program.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pairs = sample(function, program.shape, generator)
        except Exception as error:
            outcome.skipped = f"{type(error).__name__}: {error}"
            return
        for route, bound in outcome.bounds.items():
            if not bound >= 0:
                outcome.findings.append(f"{route}: the bound is {bound}")
            with torch.no_grad():
                found = pairs.above(function, bound)
            if found is not None:
                slope, u, v = found
                outcome.findings.append(
                    f"{route}: slope {slope!r} is above the bound {bound!r} between\n{u.tolist()}\nand\n{v.tolist()}"
                )
    share = (pairs.rise / pairs.run).nan_to_num(0.0, 0.0, 0.0).max().item()
    least = min(outcome.bounds.values())
    outcome.largest = share / least if least > 0 else 0.0


class Promoted(TorchFunctionMode):
    """Operators that refuse float64 beside a narrower type take all of it in float64.

    ``module.double()`` leaves tensors alone that are neither parameters nor buffers.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call as it stands, or else with everything in float64."""
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if not any(word in str(error) for word in ("dtype", "scalar type", "Type promoting")):
                raise
            return func(*tree_map(_doubled, args), **tree_map(_doubled, kwargs))


def _doubled(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _traced_once():
    """One tracing for all readings of a model: it takes most of the time."""
    known = {}

    def once(model, *args, **kwargs):
        key = id(model)
        if key not in known:
            try:
                known[key] = tracing.trace(model, *args, **kwargs), None
            except Exception as error:
                known[key] = None, error
        made, error = known[key]
        if error is not None:
            raise error
        return made

    return mock.patch("lightning_lipschitz.extraction.extractor.trace", once)


def smallest(program, wrong):
    """The program without every step that can be left out while ``wrong(program)`` stays true."""
    number = len(program.steps) - 1
    while number >= 0:
        shorter = program.without(number)
        try:
            if wrong(shorter):
                program = shorter
        except Exception:  # it does not run without this step
            pass
        number -= 1
    return program
