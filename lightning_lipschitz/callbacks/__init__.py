"""Callbacks for the Lightning Trainer."""

from lightning_lipschitz.callbacks.admm import LipschitzADMM
from lightning_lipschitz.callbacks.barrier import LipschitzBarrier
from lightning_lipschitz.callbacks.margin import LipschitzMargin
from lightning_lipschitz.callbacks.monitor import LipschitzCallback
from lightning_lipschitz.callbacks.scale import LipschitzScale
from lightning_lipschitz.checkpoint_files import stamped_certificates

__all__ = [
    "LipschitzADMM",
    "LipschitzBarrier",
    "LipschitzCallback",
    "LipschitzMargin",
    "LipschitzScale",
    "stamped_certificates",
]
