"""Weights -> weights with a certified bound: projections, their multipliers, and the log-determinant barrier."""

from lightning_lipschitz.projection.certified_set import CertifiedSet, Projected, State
from lightning_lipschitz.projection.family import stored_weights
from lightning_lipschitz.projection.graph_weights import GraphWeights
from lightning_lipschitz.projection.model import project
from lightning_lipschitz.projection.multipliers import Solved, solve_multipliers
from lightning_lipschitz.projection.nearest import Nearest, nearest, scaled
from lightning_lipschitz.projection.regularized import Regularized, regularized
from lightning_lipschitz.projection.rounding import Realised, round_and_sign
from lightning_lipschitz.projection.weights import LinearWeights

__all__ = [
    "CertifiedSet",
    "GraphWeights",
    "LinearWeights",
    "Nearest",
    "Projected",
    "Realised",
    "Regularized",
    "Solved",
    "State",
    "nearest",
    "project",
    "regularized",
    "round_and_sign",
    "scaled",
    "solve_multipliers",
    "stored_weights",
]
