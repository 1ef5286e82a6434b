"""What a certificate speaks about: a model as a graph of maps over flat vectors, and a network of explicit matrices.

NumPy only.
"""

from lightning_lipschitz.graph.convolution import Convolution
from lightning_lipschitz.graph.graph import Graph
from lightning_lipschitz.graph.nodes import (
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
