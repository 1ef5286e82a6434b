"""The last affine layer of a model: its weights and biases times one number are its output times that number.

So a classifier is brought to any bound without a change to what it decides, and at any size: no explicit matrices are
needed for that, only a certificate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_lipschitz.errors import ExtractionError, ProjectionError
from lightning_lipschitz.extraction.check import evaluate
from lightning_lipschitz.extraction.trace import example
from lightning_lipschitz.extraction.undisturbed import clean, name_of, tensors_of, undisturbed, unwrapped
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.weights.parametrization import Plain, owner, parametrization_of

_AGREEMENT = 1e-9  # relative difference between half of the output and the output of half of the layer
_ROUNDINGS = 64.0  # the same in roundings, of a model that insists on a coarser dtype
_SCALES = (1.0, 1e2, 1e4)  # of the random inputs: what saturates or clips shows at some of them
_WIDTH = 0.3  # of the disturbance of a tensor, relative to its root mean square; of zeros, absolute
_ADVICE = (
    "Name the part of the model that ends in an affine layer (`module=`), or hold all weights to the bound"
    " (`LipschitzADMM`, or `project` with `keep='weights'`)."
)


@dataclass(frozen=True)
class LastLayer:
    """The layer whose parameters, all times one number t > 0, make the model's output t times as large.

    Attributes:
        path: dotted name of the module that holds them, "" for the model itself.
        names: of these parameters, as in the model's ``state_dict``; shared ones under all their names. Of a weight
            norm it is the magnitude.
    """

    path: str
    names: tuple[str, ...]

    def scaled(self, tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """The parameters times ``factor``, on the CPU, each rounded once, to its own dtype.

        Args:
            tensors: of the model, by name; may hold more.
            factor: the number.
        """
        given = {name: tensors[name].detach().cpu() for name in self.names}
        return {name: (value.double() * factor).to(value.dtype) for name, value in given.items()}


def last_layer(model: nn.Module, example_input: Any) -> LastLayer:
    """Find the last affine layer of a model, by trial: with half of its weights and biases, the output is half.

    The layers are taken in the order of their calls, the last one first; those that the output does not depend on are
    passed over. The trial is made in evaluation mode, in float64, on random inputs of several magnitudes, and with all
    parameters and buffers disturbed: a branch that is zero today may be trained. What follows the layer may be anything
    that is as homogeneous as a reshape, a pooling, a sum or a ReLU.

    Args:
        model: any module; left as it was found.
        example_input: one batch of its input; only the shape counts.

    Returns:
        The layer.

    Raises:
        ProjectionError: there is none: something else stands behind it, such as a softmax or a skip connection; its
            weights are shared with another layer, frozen, or decided by a parametrisation such as spectral norm.
        ArgumentError: the example input.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())
        >>> last_layer(model, torch.zeros(1, 1, 8, 8))
        LastLayer(path='2', names=('2.weight', '2.bias'))
    """
    model = unwrapped(model)
    with undisturbed(model):
        trial = _Trial(model, example(model, example_input))
        for place in _called(model, trial.x):
            if not trial.depends_on(place):
                continue
            try:
                names = _multiplied(model, place)
                if not trial.is_halved_by(names):
                    raise _refusal(
                        place, "the model's output is not that of its last affine layer times a number", _BEHIND
                    )
            except ProjectionError:
                if place.is_leaf:
                    raise
                continue  # a parameter beside submodules may act anywhere
            _require_trained(model, place, names)
            return LastLayer(place.path, names)
    raise ProjectionError("", name_of(model), "its output is not that of an affine layer, times a number.", _ADVICE)


_BEHIND = "Something stands behind it, such as a softmax or a skip connection, or it shares weights with another layer."


@dataclass(frozen=True)
class _Place:
    """A module that holds parameters of its own.

    Attributes:
        path: its dotted name.
        module: itself.
        parameters: names of its parameters in the model, shared ones under all names.
        is_leaf: whether no other such module is inside it.
    """

    path: str
    module: nn.Module
    parameters: tuple[str, ...]
    is_leaf: bool


def _places(model: nn.Module) -> dict[int, _Place]:
    """The modules that hold parameters of their own, by identity."""
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            tied.setdefault(id(parameter), []).append(name)
    held: dict[int, tuple[str, nn.Module, dict[str, None]]] = {}
    for names in tied.values():
        for name in names:
            path, module, _ = owner(model, name)
            held.setdefault(id(module), (path, module, {}))[2].update(dict.fromkeys(names))
    found = {}
    for key, (path, module, names_of_it) in held.items():
        inside = {id(each) for each in module.modules()} - {key}
        found[key] = _Place(path, module, tuple(names_of_it), not inside & held.keys())
    return found


def _called(model: nn.Module, x: Tensor) -> Iterator[_Place]:
    """The modules with parameters of their own that a forward calls, the one that is left last first."""
    places, handles = _places(model), []
    calls: dict[int, _Place] = {}

    def note(module: nn.Module, *_: Any) -> None:
        calls.pop(id(module), None)
        calls[id(module)] = places[id(module)]

    for place in places.values():
        handles.append(place.module.register_forward_hook(note))
    try:
        evaluate(model, tensors_of(model), x, "no_grad", x.dtype)
    finally:
        for handle in handles:
            handle.remove()
    yield from reversed(calls.values())


class _Trial:
    """Outputs of a model, which is undisturbed, with disturbed tensors.

    Args:
        model: the model.
        given: a batch of its inputs; only shape, dtype and device count.
    """

    def __init__(self, model: nn.Module, given: Tensor) -> None:
        self._model, self._own = model, given.dtype
        generator = torch.Generator().manual_seed(0)
        scales = torch.tensor(_SCALES, dtype=torch.float64).reshape(-1, *[1] * (given.ndim - 1))
        self.x = torch.randn(len(_SCALES), *given.shape[1:], generator=generator, dtype=torch.float64) * scales
        self._tensors = _disturbed(model, tensors_of(model), seed=1)
        try:
            self._full = self._outputs({})
            disturbed = bool(np.isfinite(self._full).any())
        except ExtractionError:
            disturbed = False
        if not disturbed:  # code that checks its tensors
            self._tensors = tensors_of(model)
            self._full = self._outputs({})

    def _outputs(self, tensors: Mapping[str, Tensor]) -> Array:
        found, resolution = evaluate(self._model, {**self._tensors, **tensors}, self.x, "no_grad", self._own)
        self._allowed = max(_AGREEMENT, _ROUNDINGS * resolution if resolution > 1e-12 else 0.0)
        return found

    def depends_on(self, place: _Place) -> bool:
        """Whether other parameters of the module give another output."""
        others = _disturbed(self._model, self._tensors, seed=2, only=place.parameters)
        return not np.array_equal(self._outputs(others), self._full, equal_nan=True)

    def is_halved_by(self, names: Sequence[str]) -> bool:
        """Whether half of these parameters give half of the output, sample by sample."""
        halved = self._outputs({name: 0.5 * self._tensors[name] for name in names})
        usable = np.isfinite(self._full) & np.isfinite(halved)
        size = np.where(usable, np.abs(self._full), 0.0).max(axis=1)
        difference = np.where(usable, np.abs(halved - 0.5 * self._full), 0.0).max(axis=1)
        return bool(usable.any() and (difference <= self._allowed * size).all())


def _disturbed(
    model: nn.Module, tensors: Mapping[str, Tensor], seed: int, only: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Tensors near those given, float64 on their devices; parameters in any direction, buffers (variances, masks)
    towards larger numbers. Shared ones stay equal.
    """
    generator, found, known = torch.Generator().manual_seed(seed), {}, dict[int, Tensor]()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in tensors if only is None else only:
        value = tensors[name].detach()
        if not value.is_floating_point():
            found[name] = value
            continue
        key = id(parameters.get(name, tensors[name]))
        if key not in known:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            noise = noise if name in parameters else noise.abs()
            there = value.cpu().double()
            size = float(there.square().mean().sqrt()) if there.numel() else 0.0
            moved = there + _WIDTH * (size or 1.0) * noise
            known[key] = torch.where(there.isfinite() & moved.isfinite(), moved, there).to(value.device)
        found[name] = known[key]
    return found


def _multiplied(model: nn.Module, place: _Place) -> tuple[str, ...]:
    """Names of the parameters that are multiplied: all of the module, of a weight norm the magnitude.

    Raises:
        ProjectionError: a parametrisation decides a weight.
    """
    left_out: set[str] = set()
    for name in place.parameters:
        path, module, tensor = owner(model, name)
        stored = parametrization_of(path, module, tensor)
        left_out |= set() if isinstance(stored, Plain) else {stored.direction}
    return tuple(name for name in place.parameters if name not in left_out)


def _require_trained(model: nn.Module, place: _Place, names: Sequence[str]) -> None:
    """A wholly frozen model is one at rest; of a partly frozen one, the frozen weights stay.

    Raises:
        ProjectionError: some of the layer are frozen.
    """
    frozen = [name for name in names if not model.get_parameter(name).requires_grad]
    if frozen and any(parameter.requires_grad for parameter in model.parameters()):
        raise _refusal(place, f"`{clean(frozen[0])}` is frozen", "It would be multiplied.")


def _refusal(place: _Place, reason: str, why: str) -> ProjectionError:
    kind = type(place.module).__name__.removeprefix("Parametrized")
    return ProjectionError(clean(place.path), kind, f"{reason}.", f"{why} {_ADVICE}")
