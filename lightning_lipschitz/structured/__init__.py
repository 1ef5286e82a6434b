"""A model as a graph of maps over flat vectors, for models whose explicit matrices do not fit. NumPy only."""

from lightning_lipschitz.structured.convolution import Convolution
from lightning_lipschitz.structured.graph import Graph
from lightning_lipschitz.structured.nodes import (
    Along,
    Bounded,
    Concatenation,
    Elementwise,
    Gather,
    Input,
    Node,
    Scaling,
    Sum,
)

__all__ = [
    "Along",
    "Bounded",
    "Concatenation",
    "Convolution",
    "Elementwise",
    "Gather",
    "Graph",
    "Input",
    "Node",
    "Scaling",
    "Sum",
]
