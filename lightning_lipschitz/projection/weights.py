"""LinearWeights: which parameters of a model stand behind the matrices of its Network, and how to write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.trace import example
from lightning_lipschitz.extraction.undisturbed import name_of, undisturbed, unwrapped
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.projection.barrier import Start, start_inside
from lightning_lipschitz.projection.certified_set import slopes_of
from lightning_lipschitz.projection.codes import code
from lightning_lipschitz.projection.consensus import Consensus, Problem, advance
from lightning_lipschitz.projection.interior import Inside, Interior
from lightning_lipschitz.projection.nearest import Nearest, nearby, nearest
from lightning_lipschitz.projection.stored import Store, StoredWeights


class NotAChainError(ProjectionError):
    """The model is no chain of linear layers; :class:`.graph_weights.GraphWeights` reads more."""


class LinearWeights(StoredWeights):
    """The matrices of a chain of ``nn.Linear``, first layer first, and the parameters they are made of.

    Plain weights and weight norm (of ``torch.nn.utils`` and of its ``parametrizations``) can be read and written.

    Args:
        model: any module that :class:`~lightning_lipschitz.extraction.Extractor` reads.
        example_input: as there.
        extractor: of the same model, if there is one already.

    Raises:
        NotAChainError: a matrix of the network is not the weight of an ``nn.Linear``, used once, or some are frozen.
        ProjectionError: a weight cannot be written; names the submodule.
        LipschitzError: as the extractor.

    Example:
        >>> import torch
        >>> weights = LinearWeights(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2))
        >>> weights.names, [tuple(matrix.shape) for matrix in weights.read()]
        (('0', '2'), [(3, 2), (1, 3)])
    """

    solves = 1.5

    def __init__(self, model: nn.Module, example_input: Any = None, *, extractor: Extractor | None = None) -> None:
        self._model = unwrapped(model)
        self.extractor = extractor or Extractor(self._model, example_input)
        linear = _visited(self._model, example_input)
        self.names = tuple(path for path, _ in linear)
        network = self.network()
        self._codes = [code(path, module) for path, module in linear]
        self._check(network, _is_partly_frozen(linear))

    def require_reachable(self, max_lipschitz: float) -> None:
        """Always: with zero weights a chain has the bound zero."""

    def nearest(
        self,
        weights: Sequence[Tensor],
        network: Network,
        max_lipschitz: float,
        store: Store,
        **options: Any,
    ) -> Nearest:
        """See :func:`.nearest.nearest`."""
        return nearest(weights, network, max_lipschitz, realise=store, **options)

    def nearby(
        self, weights: Sequence[Tensor], network: Network, multipliers: Multipliers, store: Store, within: float
    ) -> Nearest | None:
        """See :func:`.nearest.nearby`."""
        return nearby(weights, network, multipliers, store, within)

    def advance(self, consensus: Consensus, weights: Sequence[Tensor], network: Network, problem: Problem) -> Consensus:
        """See :func:`.consensus.advance`."""
        return advance(consensus, weights, network, problem)

    def start_inside(self, weights: Sequence[Tensor], network: Network, max_lipschitz: float) -> Start:
        """See :func:`.barrier.start_inside`."""
        return start_inside(weights, network, max_lipschitz)

    def interior(self, multipliers: Sequence[Tensor], max_lipschitz: float, network: Network) -> Inside:
        """See :class:`.interior.Interior`."""
        return Interior(multipliers, max_lipschitz, slopes_of(network))

    def _check(self, network: Network, partly_frozen: bool) -> None:
        """Every matrix of the network is the weight of the linear layer of the same place, entry by entry."""
        stored = self.tensors().keys() >= set(self.parameter_names)  # a mask of pruning, say, makes a weight of others
        tied = len({id(parameter) for parameter in self.tensors().values()}) < len(self.tensors())
        repeated = len(set(self.names)) < len(self.names)
        if (
            stored
            and not partly_frozen
            and not tied
            and not repeated
            and network.is_chain
            and len(network.affines) == len(self._codes)
        ):
            pairs = zip(network.affines, self.read(), strict=True)
            if all(np.array_equal(a.terms[0].matrix, w.double().cpu().numpy()) for a, w in pairs):
                return
        raise NotAChainError(
            "", name_of(self._model), "it is no chain of nn.Linear.", "`GraphWeights` reads other models."
        )


def _visited(model: nn.Module, example_input: Any) -> list[tuple[str, nn.Linear]]:
    """Linear layers in the order in which they are called."""
    calls: list[tuple[str, nn.Linear]] = []
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and "parametrizations" not in path.split("."):
            handles.append(module.register_forward_pre_hook(lambda m, _, path=path: calls.append((path, m))))
    try:
        with undisturbed(model):
            model(example(model, example_input))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _is_partly_frozen(linear: Sequence[tuple[str, nn.Module]]) -> bool:
    """A wholly frozen model is one at rest; a partly frozen one says that some weights must stay."""
    trained = [p.requires_grad for _, module in linear for n, p in module.named_parameters() if "bias" not in n]
    return any(trained) and not all(trained)
