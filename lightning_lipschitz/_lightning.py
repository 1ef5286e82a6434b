"""The only place that chooses between ``lightning.pytorch`` and ``pytorch_lightning``.

The two packages hold different classes with the same names. The callbacks here work in the Trainer of either (it asks for
methods, not types); what must not happen is that two modules of this package choose differently.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytorch_lightning as pl
elif "pytorch_lightning" not in sys.modules and "lightning.pytorch" in sys.modules:
    import lightning.pytorch as pl
else:
    try:
        import pytorch_lightning as pl
    except ImportError:
        import lightning.pytorch as pl

Callback = pl.Callback
LightningModule = pl.LightningModule
Trainer = pl.Trainer
if TYPE_CHECKING:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException
else:
    MisconfigurationException = __import__(
        f"{pl.__name__}.utilities.exceptions", fromlist=["MisconfigurationException"]
    ).MisconfigurationException

__all__ = ["Callback", "LightningModule", "MisconfigurationException", "Trainer", "pl"]
