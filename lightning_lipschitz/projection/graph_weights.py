"""GraphWeights: the weights of any model that is read as explicit matrices, in the coordinates of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.linearised import Linearised
from lightning_lipschitz.extraction.undisturbed import name_of, unwrapped
from lightning_lipschitz.extraction.units import NotLinearisedError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.projection.barrier import Start
from lightning_lipschitz.projection.codes import Code, Plain, code, owner
from lightning_lipschitz.projection.consensus import Consensus, Problem
from lightning_lipschitz.projection.graph_consensus import advance
from lightning_lipschitz.projection.graph_interior import GraphInterior, start_inside
from lightning_lipschitz.projection.graph_map import LARGEST, GraphMap, layer_of_row, not_yet, rows_of
from lightning_lipschitz.projection.graph_nearest import nearby, nearest
from lightning_lipschitz.projection.graph_start import require_reachable
from lightning_lipschitz.projection.interior import Inside
from lightning_lipschitz.projection.multipliers import widened
from lightning_lipschitz.projection.nearest import Nearest
from lightning_lipschitz.projection.stored import Store, StoredWeights

SMALLER = "Hold a submodule to the bound, or train with `CLIPMixin`, which has no such limit."
_AGREEMENT = 1e-6  # relative, of the matrices read in float64 and in the model's own dtype; coarser with its dtype
_DEPENDENCE = (
    1e-9  # relative derivative below which the matrices do not depend on a parameter: biases, but for rounding
)


class GraphWeights(StoredWeights):
    """The parameters on which the matrices of a network depend: kernels, gains of batch norm, shared weights.

    Args:
        model: any module that :class:`~lightning_lipschitz.extraction.Extractor` reads.
        example_input: as there.
        extractor: of the same model, if there is one already.

    Raises:
        ProjectionError: it is too large; the larger of two tensors, a layer norm with weights; a parametrised weight,
            or one that is frozen in part. Names the submodule.
        LipschitzError: as the extractor.

    Example:
        >>> weights = GraphWeights(nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten()), torch.zeros(1, 1, 5))
        >>> weights.names, [tuple(weight.shape) for weight in weights.read()]
        (('0',), [(2, 1, 3)])
    """

    solves = 12.0

    def __init__(self, model: nn.Module, example_input: Any = None, *, extractor: Extractor | None = None) -> None:
        self._model = unwrapped(model)
        self.extractor = extractor or Extractor(self._model, example_input)
        network = self.network()
        self._require_size(network)
        try:
            linearised = self.extractor.linearised()
            parameters = _acting(self._model, linearised)
        except NotLinearisedError as error:
            raise not_yet(error) from error
        self._codes = _thawed(self._model, _codes(self._model, parameters))
        self.names = tuple(dict.fromkeys(owner(self._model, name)[0] for name in self.parameter_names))
        self._check(network, linearised)

    def map(self, tensors: Mapping[str, Tensor] | None = None) -> GraphMap:
        """Weights -> rows, with everything else as in ``tensors``, or as it is now."""
        return GraphMap(self.extractor.linearised(tensors), self._codes, tensors or self.tensors())

    def require_reachable(self, max_lipschitz: float) -> None:
        """See :func:`.graph_start.require_reachable`."""
        require_reachable(self.map(), widened(self.network()), self.read(), max_lipschitz)

    def nearest(
        self, weights: Sequence[Tensor], network: Network, max_lipschitz: float, store: Store, **options: Any
    ) -> Nearest:
        """See :func:`.graph_nearest.nearest`."""
        return nearest(self.map(store.own), weights, network, max_lipschitz, store, **options)

    def nearby(
        self, weights: Sequence[Tensor], network: Network, multipliers: Multipliers, store: Store, within: float
    ) -> Nearest | None:
        """See :func:`.graph_nearest.nearby`, which finds its own multipliers on the way, however far that is."""
        return nearby(self.map(store.own), weights, network, multipliers, store)

    def advance(self, consensus: Consensus, weights: Sequence[Tensor], network: Network, problem: Problem) -> Consensus:
        """See :func:`.graph_consensus.advance`."""
        return advance(consensus, weights, network, problem, self.map())

    def start_inside(self, weights: Sequence[Tensor], network: Network, max_lipschitz: float) -> Start:
        """See :func:`.graph_interior.start_inside`."""
        self._refuse_running_statistics()
        return start_inside(self.map(), weights, network, max_lipschitz, Store(self))

    def interior(self, multipliers: Sequence[Tensor], max_lipschitz: float, network: Network) -> Inside:
        """See :class:`.graph_interior.GraphInterior`."""
        return GraphInterior(self.map(), multipliers, max_lipschitz, network)

    # What can be written

    def _require_size(self, network: Network) -> None:
        size = sum(network.sizes)
        if size > LARGEST:
            reason = f"its {size} inputs and units are more than the {LARGEST} that explicit matrices allow so far."
            raise ProjectionError("", name_of(self._model), reason, SMALLER)

    def _check(self, network: Network, linearised: Linearised) -> None:
        """The differentiable map gives the matrices of the extractor."""
        weights = [weight.double().cpu() for weight in self.read()]
        if not weights:
            raise ProjectionError("", name_of(self._model), "it has no weights.", "There is nothing to project.")
        expected = rows_of(network)
        with torch.no_grad():
            found = torch.cat(GraphMap(linearised, self._codes, self.tensors())(weights)).numpy()
        resolution = max(torch.finfo(tensor.dtype).eps for tensor in self.tensors().values())
        allowed = max(_AGREEMENT, 8 * resolution) * np.abs(expected).max(initial=0.0)
        wrong = np.flatnonzero(np.abs(found - expected).max(axis=1, initial=0.0) > allowed)
        if len(wrong):
            path = layer_of_row(network, int(wrong[0]))
            raise ProjectionError(path, name_of(self._model), "it is not supported yet.", "Please report this.")

    def _refuse_running_statistics(self) -> None:
        for path, module in self._model.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
                reason = "its running statistics move the bound between the steps of training, not yet held strictly."
                advice = "Use `LipschitzADMM`, which certifies what is written."
                raise ProjectionError(path, type(module).__name__, reason, advice)


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


def _codes(model: nn.Module, parameters: Sequence[tuple[str, ...]]) -> list[Code]:
    found: dict[tuple[str, ...], Code] = {}
    for names in parameters:
        path, module, tensor = owner(model, names[0])
        each = code(path, module, tensor)
        if isinstance(each, Plain):
            each = Plain(names[0], names[1:])
        found[each.names] = each
    return list(found.values())


def _thawed(model: nn.Module, codes: Sequence[Code]) -> list[Code]:
    """Those that may give way. A wholly frozen model is one at rest; of a partly frozen one, the frozen ones stay."""
    trained = [[model.get_parameter(name).requires_grad for name in code.names] for code in codes]
    if not any(map(any, trained)):
        return list(codes)
    for each, flags in zip(codes, trained, strict=True):
        if any(flags) and not all(flags):
            path, module, _ = owner(model, each.names[0])
            advice = f"Freeze or train {' and '.join(f'`{name}`' for name in each.names)} together."
            raise ProjectionError(path, type(module).__name__, "its weight is frozen in part.", advice)
    return [each for each, flags in zip(codes, trained, strict=True) if all(flags)]
