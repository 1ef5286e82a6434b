"""Weight matrices from files: NumPy, MATLAB (LipSDP's layout), PyTorch state dicts and checkpoints, safetensors.
Nothing is unpickled."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_lipschitz.errors import ArgumentError, LipschitzError, MissingExtraError, ShapeError, WeightFileError

Array = npt.NDArray[np.float64]
Named = list[tuple[str, npt.NDArray[Any]]]


def read_weights(path: str | os.PathLike[str]) -> list[Array]:
    """The weight matrices in a file, first layer first, shape (outputs, inputs) each, float64.

    Vectors are taken for biases and left out: they play no part in a global bound. The order is that of the file; in
    safetensors, which keeps none, that of the names, numbers counted as numbers.

    * ``.npz``: every matrix in it.  * ``.mat``: the cell array ``weights`` (LipSDP), or every matrix.
    * ``.pt``, ``.pth``, ``.ckpt``: a state dict, or a checkpoint with one under ``state_dict``.  * ``.safetensors``.

    Raises:
        FileNotFoundError: there is no such file.
        WeightFileError: another kind of file, damaged, or without a matrix.
        ShapeError: a tensor that is neither a matrix nor a vector, such as a convolution kernel.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ArgumentError("WEIGHTS", path.name, f"a file with one of the endings {', '.join(_READERS)}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        named = reader(path)
    except LipschitzError:
        raise
    except Exception as error:  # each library raises its own kinds on a file that is not its format
        reason = str(error).partition("\n")[0]
        raise WeightFileError(path, f"it cannot be read: {reason}") from error
    matrices = [_matrix(name, tensor) for name, tensor in named if np.ndim(tensor) > 1]
    if not matrices:
        raise WeightFileError(path, "it holds no weight matrix.")
    return matrices


def _matrix(name: str, tensor: npt.NDArray[Any]) -> Array:
    if tensor.ndim != 2:
        raise ShapeError(f"`{name}`", tensor.shape, "a matrix; give such a model to `certify` as a module")
    return np.asarray(tensor, dtype=np.float64)


def _read_npz(path: Path) -> Named:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a NumPy archive")
    with np.load(path, allow_pickle=False) as archive:
        return [(name, archive[name]) for name in archive.files]


def _read_mat(path: Path) -> Named:
    from scipy.io import loadmat

    found = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    if "weights" in found:
        return [
            (f"weights{{{k}}}", np.asarray(value, dtype=float)) for k, value in enumerate(found["weights"].ravel(), 1)
        ]
    return [(name, np.asarray(value, dtype=float)) for name, value in found.items()]


def _read_torch(path: Path) -> Named:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError("it holds no state dict")
    return [(str(name), value.double().numpy()) for name, value in content.items() if isinstance(value, torch.Tensor)]


def _read_safetensors(path: Path) -> Named:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtraError("Reading .safetensors files", "safetensors", "safetensors") from error
    tensors = load_file(path)
    return [(name, tensors[name].double().numpy()) for name in sorted(tensors, key=_natural)]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


_READERS: dict[str, Callable[[Path], Named]] = {
    ".npz": _read_npz,
    ".mat": _read_mat,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".ckpt": _read_torch,
    ".safetensors": _read_safetensors,
}
