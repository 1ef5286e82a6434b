"""The matrix inequality of any feed-forward graph in torch, block by block: its log-determinant with derivatives, and
multipliers that are feasible by construction.

Nothing that leaves here is believed: the kernel in :mod:`lightning_lipschitz.certificate` forms its own matrix.
"""

from lightning_lipschitz.bounds.inequality.frequencies import Columns, WarmFrequencies, sweep_frequencies
from lightning_lipschitz.bounds.inequality.log_determinant import Inequality, Point
from lightning_lipschitz.bounds.inequality.structure import Blocks, Structure, blocks_of
from lightning_lipschitz.bounds.inequality.sweep import Swept, sweep, sweep_on
from lightning_lipschitz.bounds.inequality.warm import WarmEigenvalues

__all__ = [
    "Blocks",
    "Columns",
    "Inequality",
    "Point",
    "Structure",
    "Swept",
    "WarmEigenvalues",
    "WarmFrequencies",
    "blocks_of",
    "sweep",
    "sweep_frequencies",
    "sweep_on",
]
