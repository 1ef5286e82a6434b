"""Callbacks for the Lightning Trainer."""

from lightning_lipschitz.callbacks.monitor import LipschitzCallback

__all__ = ["LipschitzCallback"]
