"""The weights of a chain of ``nn.Linear``: the matrices of its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.trace import example
from lightning_lipschitz.extraction.undisturbed import name_of, undisturbed, unwrapped
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.weights.parametrization import parametrization_of
from lightning_lipschitz.weights.stored import StoredWeights


class NotAChainError(ProjectionError):
    """The model is no chain of linear layers; :func:`.graph.graph_weights` reads more."""


def chain_weights(model: nn.Module, example_input: Any = None, *, extractor: Extractor | None = None) -> StoredWeights:
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
        >>> weights = chain_weights(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2))
        >>> weights.names, [tuple(matrix.shape) for matrix in weights.read()]
        (('0', '2'), [(3, 2), (1, 3)])
    """
    model = unwrapped(model)
    extractor = extractor or Extractor(model, example_input)
    linear = _visited(model, example_input)
    network = extractor.network()
    stored = [parametrization_of(path, module) for path, module in linear]
    weights = StoredWeights(model, extractor, stored, [path for path, _ in linear], is_chain=True)
    if _is_partly_frozen(linear) or not _matches(weights, network):
        raise NotAChainError("", name_of(model), "it is no chain of nn.Linear.", "`graph_weights` reads other models.")
    return weights


def _matches(weights: StoredWeights, network: Network) -> bool:
    """Whether every matrix of the network is the weight of the linear layer of the same place, entry by entry."""
    tensors = weights.tensors()
    if not tensors.keys() >= set(weights.parameter_names):  # a mask of pruning, say, makes a weight of others
        return False
    tied = len({id(parameter) for parameter in tensors.values()}) < len(tensors)
    repeated = len(set(weights.names)) < len(weights.names)
    if tied or repeated or not network.is_chain or len(network.affines) != len(weights.names):
        return False
    pairs = zip(network.affines, weights.read(), strict=True)
    return all(np.array_equal(a.terms[0].matrix, w.double().cpu().numpy()) for a, w in pairs)


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
