"""Bounds of one network by several methods, and a count of those that are out of order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from methods import METHODS
from torch import nn

import lightning_lipschitz as ll

SLACK = 1 + 1e-5  # relative gap at which the searches end, and more


def network_of(weights: Sequence[np.ndarray]) -> nn.Sequential:
    """ReLU, no biases: the bounds do not look at them."""
    layers: list[nn.Module] = []
    for w in weights:
        linear = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=torch.float64)
        linear.weight = nn.Parameter(torch.tensor(w))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def bounds_of(
    weights: Sequence[np.ndarray], methods: Sequence[str], model: nn.Module | None = None
) -> dict[str, float]:
    """ "sampled" is the steepest pair found in the network without biases, or in ``model``."""
    inputs = torch.randn(64, weights[0].shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {"sampled": ll.lower_bound(model or network_of(weights), inputs).value}
    for name in methods:
        bound = METHODS[name](weights)
        found[name] = float("nan") if bound is None else bound
    return found


def out_of_order(bounds: dict[str, float]) -> int:
    """How many neighbours among sampled <= neuron <= layer <= product are the wrong way round."""
    order = [bounds[name] for name in ("sampled", "native", "native, layer", "norm product")]
    return sum(not low <= SLACK * high for low, high in pairwise(order))


def medians(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """NaN where a method failed on one of them."""
    return {name: float(np.median([each[name] for each in found])) for name in found[0]}


@dataclass
class Count:
    """Of networks whose bounds were compared, and of neighbours out of order."""

    networks: int = 0
    wrong: int = 0

    def add(self, bounds: dict[str, float]) -> dict[str, float]:
        self.networks, self.wrong = self.networks + 1, self.wrong + out_of_order(bounds)
        return bounds
