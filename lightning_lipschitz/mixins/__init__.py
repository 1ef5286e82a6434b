"""What a LightningModule inherits."""

from lightning_lipschitz.mixins._config import ClipConfig
from lightning_lipschitz.mixins.clip import CLIPMixin

__all__ = ["CLIPMixin", "ClipConfig"]
