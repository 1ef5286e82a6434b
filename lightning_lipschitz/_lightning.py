"""The only place that chooses between ``lightning.pytorch`` and ``pytorch_lightning``.

The two packages hold different classes with the same names. A callback works in the Trainer of either (the Trainer asks
for methods, not for types); ``isinstance`` and the command line, which asks for subclasses, need the one that the user
imported. So: the package that is loaded already, ``pytorch_lightning`` where that does not decide.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from lightning_utilities.core.rank_zero import rank_zero_warn
    from pytorch_lightning.plugins.io import TorchCheckpointIO
    from pytorch_lightning.utilities.seed import isolate_rng
else:
    if "pytorch_lightning" not in sys.modules and "lightning.pytorch" in sys.modules:
        import lightning.pytorch as pl
    else:
        try:
            import pytorch_lightning as pl
        except ImportError:
            import lightning.pytorch as pl
    # Attributes of `pl.utilities`, so that the choice is written once.
    MisconfigurationException = pl.utilities.exceptions.MisconfigurationException
    TorchCheckpointIO = pl.plugins.io.TorchCheckpointIO
    rank_zero_warn = pl.utilities.rank_zero.rank_zero_warn
    isolate_rng = pl.utilities.seed.isolate_rng

Callback = pl.Callback
LightningModule = pl.LightningModule
Trainer = pl.Trainer


def isolated_rng() -> AbstractContextManager[None]:
    """Put the global random streams back as they were, when the block ends; no GPU is woken up for it."""
    found: AbstractContextManager[None] = isolate_rng(include_cuda=torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    return found


__all__ = [
    "Callback",
    "LightningModule",
    "MisconfigurationException",
    "TorchCheckpointIO",
    "Trainer",
    "isolated_rng",
    "pl",
    "rank_zero_warn",
]
