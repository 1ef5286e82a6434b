"""A model as a graph of maps over flat vectors, for models whose explicit matrices do not fit. NumPy only."""

from lightning_lipschitz.structured.convolution import Convolution
from lightning_lipschitz.structured.graph import Graph
from lightning_lipschitz.structured.nodes import (
    Along,
    Concatenation,
    Elementwise,
    Extremum,
    Gather,
    Input,
    Node,
    Scaling,
    Sum,
    VectorUnits,
)

__all__ = [
    "Along",
    "Concatenation",
    "Convolution",
    "Elementwise",
    "Extremum",
    "Gather",
    "Graph",
    "Input",
    "Node",
    "Scaling",
    "Sum",
    "VectorUnits",
]
