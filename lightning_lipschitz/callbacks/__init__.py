"""Callbacks for the Lightning Trainer."""

from lightning_lipschitz.callbacks._stamp import stamped_certificates
from lightning_lipschitz.callbacks.admm import LipschitzADMM
from lightning_lipschitz.callbacks.barrier import LipschitzBarrier
from lightning_lipschitz.callbacks.monitor import LipschitzCallback

__all__ = ["LipschitzADMM", "LipschitzBarrier", "LipschitzCallback", "stamped_certificates"]
