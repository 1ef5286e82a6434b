"""Weights with a certified bound, and training under one, in pure torch: projections, ADMM's rounds, the barrier."""

from lightning_lipschitz.training.admm import advance
from lightning_lipschitz.training.barrier import Interior, Start, start_inside
from lightning_lipschitz.training.consensus import Consensus, ConsensusProblem
from lightning_lipschitz.training.decisions import ScaledLayer, scaled_layer
from lightning_lipschitz.training.last_layer import LastLayer, last_layer
from lightning_lipschitz.training.projection import nearby, nearest, project, require_reachable
from lightning_lipschitz.training.result import Nearest

__all__ = [
    "Consensus",
    "ConsensusProblem",
    "Interior",
    "LastLayer",
    "Nearest",
    "ScaledLayer",
    "Start",
    "advance",
    "last_layer",
    "nearby",
    "nearest",
    "project",
    "require_reachable",
    "scaled_layer",
    "start_inside",
]
