"""Digits: scikit-learn's bundled ones, or MNIST from its IDX files."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from lightning_lipschitz.errors import MissingExtraError, WeightFileError

_MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True, eq=False)
class Digits:
    """Images, shape (n, height * width), grey values in [0, 1], float32; labels, shape (n,)."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def loaders(self, batch_size: int) -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
        """Shuffled training batches and test batches, each fetched from memory by one index."""
        return _loader(self.train, batch_size, shuffle=True), _loader(self.test, 10 * batch_size, shuffle=False)


def load_digits(data_dir: str | os.PathLike[str] | None = None) -> Digits:
    """scikit-learn's 1,797 digits of 8 x 8 (a fifth held out), or MNIST where a folder with its IDX files is given.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        WeightFileError: an IDX file is missing or damaged.
    """
    return _scikit_learn() if data_dir is None else _mnist(Path(data_dir))


def _scikit_learn() -> Digits:
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError("The digits data set", "scikit-learn", "demo") from error
    images, labels = load(return_X_y=True)
    parts = train_test_split(images / 16.0, labels, test_size=0.2, random_state=0, stratify=labels)
    x, x_test, y, y_test = (torch.from_numpy(part) for part in parts)
    return Digits("scikit-learn digits", (x.float(), y), (x_test.float(), y_test))


def _mnist(folder: Path) -> Digits:
    x, y, x_test, y_test = (_read_idx(_find(folder, name)) for name in _MNIST)
    return Digits("MNIST", (_images(x), torch.from_numpy(y).long()), (_images(x_test), torch.from_numpy(y_test).long()))


def _images(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(values.reshape(len(values), -1)).float() / 255.0


def _find(folder: Path, name: str) -> Path:
    candidates = [folder / sub / (name + ending) for sub in ("", "mnist") for ending in ("", ".gz")]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise WeightFileError(folder / name, "MNIST's IDX file is missing (plain or .gz).")
    return found


def _read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The IDX format: two zero bytes, 8 for unsigned bytes, the number of dimensions, the sizes as big-endian int32."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if content[:3] != b"\0\0\x08" or values.size != shape.prod():
        raise WeightFileError(path, "it is not an IDX file of unsigned bytes, or it is cut short.")
    return values.reshape(shape).copy()


def _loader(data: tuple[Tensor, Tensor], batch_size: int, *, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
    dataset = TensorDataset(*data)
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    return DataLoader(dataset, sampler=BatchSampler(order, batch_size, drop_last=False), batch_size=None)
