"""Lipschitz constants of PyTorch Lightning models: proved, watched and controlled while they train."""

from lightning_lipschitz.api import certify, lower_bound, verify
from lightning_lipschitz.bounds.lower import LowerBound
from lightning_lipschitz.callbacks import LipschitzCallback
from lightning_lipschitz.certificate import Certificate, Status

__version__ = "0.1.0"

__all__ = ["Certificate", "LipschitzCallback", "LowerBound", "Status", "certify", "lower_bound", "verify"]
