"""Checkpoints written whole or not at all.

Lightning writes a checkpoint to the folder for temporary files and moves it. Where that folder is on another file
system, moving is copying, and a process that is killed meanwhile leaves half a file in place of the last good one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_lipschitz._lightning import TorchCheckpointIO, Trainer
from lightning_lipschitz.written import written_whole


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way of writing, by way of a file beside the target.

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
        with written_whole(path, make_folder=True) as part:
            super().save_checkpoint(checkpoint, part, storage_options)


def install(trainer: Trainer) -> None:
    """Let the Trainer write checkpoints in this way, unless somebody chose another one."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
