"""The weights of any model that is read as explicit matrices: the parameters on which these depend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.linearised import Linearised
from lightning_lipschitz.extraction.undisturbed import name_of, unwrapped
from lightning_lipschitz.extraction.units import NotLinearisedError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.weights.maps import not_yet
from lightning_lipschitz.weights.parametrization import Parametrization, Plain, owner, parametrization_of
from lightning_lipschitz.weights.stored import StoredWeights

LARGEST = 4000  # entries of (x, z): a factorisation takes seconds from there on
SMALLER = "Hold a submodule to the bound, or train with `CLIPMixin`, which has no such limit."
_AGREEMENT = 1e-6  # relative, of the matrices read in float64 and in the model's own dtype; coarser with its dtype
_DEPENDENCE = 1e-9  # relative derivative below which matrices do not depend on a parameter: biases, but for rounding


def graph_weights(model: nn.Module, example_input: Any = None, *, extractor: Extractor | None = None) -> StoredWeights:
    """The parameters on which the matrices of a network depend: kernels, gains of batch norm, shared weights.

    Args:
        model: any module that :class:`~lightning_lipschitz.extraction.Extractor` reads.
        example_input: as there.
        extractor: of the same model, if there is one already.

    Raises:
        ProjectionError: it is too large; a layer norm with weights, or another such normalisation; a parametrised
            weight, or one that is frozen in part. Names the submodule.
        LipschitzError: as the extractor.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten())
        >>> weights = graph_weights(model, torch.zeros(1, 1, 5))
        >>> weights.names, [tuple(weight.shape) for weight in weights.read()]
        (('0',), [(2, 1, 3)])
    """
    model = unwrapped(model)
    extractor = extractor or Extractor(model, example_input)
    network = extractor.network()
    _require_size(model, network)
    try:
        linearised = extractor.linearised()
        found = _acting(model, linearised)
    except NotLinearisedError as error:
        raise not_yet(error) from error
    stored = _thawed(model, _parametrizations(model, found))
    names = dict.fromkeys(owner(model, name)[0] for each in stored for name in each.names)
    weights = StoredWeights(model, extractor, stored, tuple(names), is_chain=False)
    _check(weights, network, linearised)
    return weights


def _require_size(model: nn.Module, network: Network) -> None:
    size = sum(network.sizes)
    if size > LARGEST:
        reason = f"its {size} inputs and units are more than the {LARGEST} that explicit matrices allow so far."
        raise ProjectionError("", name_of(model), reason, SMALLER)


def _check(weights: StoredWeights, network: Network, linearised: Linearised) -> None:
    """The differentiable map gives the matrices of the extractor."""
    given = [weight.double().cpu() for weight in weights.read()]
    if not given:
        raise ProjectionError("", name_of(weights.model), "it has no weights.", "There is nothing to project.")
    tensors = {name: tensor.detach().cpu() for name, tensor in weights.tensors().items()}
    resolution = max(torch.finfo(tensor.dtype).eps for tensor in tensors.values())
    with torch.no_grad():
        doubles = weights.encode(given, {name: tensor.double() for name, tensor in tensors.items()})
        found = torch.cat(linearised(doubles)).numpy()
    expected = network.rows()
    allowed = max(_AGREEMENT, 8 * resolution) * np.abs(expected).max(initial=0.0)
    wrong = np.flatnonzero(np.abs(found - expected).max(axis=1, initial=0.0) > allowed)
    if len(wrong):
        rows = [layer.name for layer in network.layers for _ in range(layer.size)] + [""] * network.output.size
        path = rows[wrong[0]]
        raise ProjectionError(path, name_of(weights.model), "it is not supported yet.", "Please report this.")


def _acting(model: nn.Module, linearised: Linearised) -> list[tuple[str, ...]]:
    """Names of the parameters, with those of the same tensor together, on which the matrices depend anywhere: found
    by derivatives at a random place."""
    names: dict[int, list[str]] = {}
    values: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            names.setdefault(id(parameter), []).append(name)
            if id(parameter) not in values:
                value = parameter.detach().cpu().double()
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                values[id(parameter)] = (value + 0.1 * (1.0 + value.abs()) * noise).requires_grad_()
    if not values:
        return []
    with torch.enable_grad():
        rows = linearised({name: values[key] for key, group in names.items() for name in group})
    used = [each for each in rows if each.requires_grad]
    seeds = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in used]
    given = torch.autograd.grad(used, list(values.values()), seeds, allow_unused=True) if used else [None] * len(values)
    sizes = [0.0 if each is None else float(each.abs().max()) for each in given]
    least = _DEPENDENCE * max(sizes)
    return [tuple(group) for group, size in zip(names.values(), sizes, strict=True) if size > least]


def _parametrizations(model: nn.Module, parameters: Sequence[tuple[str, ...]]) -> list[Parametrization]:
    found: dict[tuple[str, ...], Parametrization] = {}
    for names in parameters:
        path, module, tensor = owner(model, names[0])
        each = parametrization_of(path, module, tensor)
        if isinstance(each, Plain):
            each = Plain(names[0], names[1:])
        found[each.names] = each
    return list(found.values())


def _thawed(model: nn.Module, stored: Sequence[Parametrization]) -> list[Parametrization]:
    """Those that may give way. A wholly frozen model is one at rest; of a partly frozen one, the frozen ones stay."""
    trained = [[model.get_parameter(name).requires_grad for name in each.names] for each in stored]
    if not any(map(any, trained)):
        return list(stored)
    for each, flags in zip(stored, trained, strict=True):
        if any(flags) and not all(flags):
            path, module, _ = owner(model, each.names[0])
            advice = f"Freeze or train {' and '.join(f'`{name}`' for name in each.names)} together."
            raise ProjectionError(path, type(module).__name__, "its weight is frozen in part.", advice)
    return [each for each, flags in zip(stored, trained, strict=True) if all(flags)]
