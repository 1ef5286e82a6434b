"""Checkpoints written whole or not at all.

Lightning writes a checkpoint to the folder for temporary files and moves it. Where that folder is on another file
system, moving is copying, and a process that is killed meanwhile leaves half a file in place of the last good one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning_lipschitz._lightning import TorchCheckpointIO, Trainer


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own, by way of a file beside the target.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
        >>> torch.load(path), [file.name for file in path.parent.iterdir()]
        ({'epoch': 1}, ['last.ckpt'])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        beside = f"{path}.part"
        try:
            super().save_checkpoint(checkpoint, beside, storage_options)
            _flush(beside)
            os.replace(beside, path)
        finally:
            Path(beside).unlink(missing_ok=True)


def install(trainer: Trainer) -> None:
    """In place of Lightning's own, and of nothing else."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def _flush(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
