"""The demo itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lightning_lipschitz.demo.data import load_digits
from lightning_lipschitz.demo.figure import draw
from lightning_lipschitz.demo.tables import print_tables
from lightning_lipschitz.demo.training import Epoch, Trained, train_clip, train_margin, train_plain, train_scale
from lightning_lipschitz.errors import ArgumentError, MissingExtraError

try:
    import tensorboard  # noqa: F401
except ImportError as error:
    raise MissingExtraError("The demo", "tensorboard", "demo") from error


@dataclass(frozen=True)
class Demo:
    """The rows of its two tables: the epochs of plain training; plain, margin, scale and CLIP side by side."""

    epochs: tuple[Epoch, ...]
    outcomes: tuple[Trained, ...]


def run(data_dir: str | None = None, epochs: int = 30, output: str | os.PathLike[str] = "demo_output") -> Demo:
    """Train the same classifier plainly, for certified accuracy, under a bound, with CLIP; print what is proved of it.

    Args:
        data_dir: folder of MNIST's IDX files, for which fewer epochs do; None for scikit-learn's digits.
        epochs: length of each training.
        output: folder for the picture, the TensorBoard logs with their checkpoints, and the certificates.

    Returns:
        The rows of the tables.

    Raises:
        ArgumentError, WeightFileError, MissingExtraError: before any training.
    """
    if not isinstance(epochs, int) or epochs < 1:
        raise ArgumentError("epochs", epochs, "an integer >= 1")
    data, folder = load_digits(data_dir), Path(output)
    plain, rows = train_plain(data, epochs, folder)
    others = (train(data, epochs, folder) for train in (train_margin, train_scale, train_clip))
    outcomes = plain, *others
    picture = draw(rows, outcomes, data.name, folder / "demo.png")
    print_tables(rows, outcomes, picture, folder)
    return Demo(tuple(rows), outcomes)
