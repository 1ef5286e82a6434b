"""Tensors from files of PyTorch and safetensors, of no more memory than the size of the file accounts for."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_lipschitz.archive import SMALL, allowed, refuse_beyond
from lightning_lipschitz.errors import MissingExtraError, NoChainError
from lightning_lipschitz.real import real_array
from lightning_lipschitz.weight_files.chains import Listing


def load_torch(path: str | os.PathLike[str]) -> Any:
    """The content of a file of ``torch.save``, on the CPU; tensors and plain values only.

    Raises:
        OSError: there is no such file.
        ValueError: it holds anything else, is damaged, or would take far more memory than its size.
    """
    limit = allowed(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                refuse_beyond(sum(info.file_size for info in archive.infolist()), limit)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "it is damaged, or holds more than tensors and plain values; such files are not read"
        ) from error
    except ValueError:
        raise
    except Exception as error:  # torch and zipfile raise many kinds on bytes that are not theirs
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error


def numbers_of(tensor: torch.Tensor, name: str, limit: int) -> npt.NDArray[np.float64]:
    """A tensor's numbers as float64, of at most ``limit`` bytes.

    Raises:
        ValueError: they are more; a view can repeat one number without end.
        ArgumentError: they are not real, or are not there.
    """
    refuse_beyond(8 * tensor.numel(), limit)
    return real_array(tensor, f"`{name}`")


@contextmanager
def torch_listing(path: Path) -> Iterator[Listing]:
    """A state dict, or a checkpoint with one under ``state_dict``."""
    content, limit = load_torch(path), allowed(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError("it holds no state dict, neither itself nor under `state_dict`")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise NoChainError(str(name), None, f"is no tensor but of type {type(value).__name__}")
        if str(name).endswith("weight") and not value.is_floating_point():
            raise NoChainError(name, tuple(value.shape), f"is of {value.dtype}: no real weight as it is")
    refuse_beyond(sum(8 * value.numel() for value in content.values()), limit)
    shapes = {name: tuple(value.shape) for name, value in content.items()}
    yield Listing(shapes, lambda name: numbers_of(content[name], name, limit), module=True)


@contextmanager
def safetensors_listing(path: Path) -> Iterator[Listing]:
    """Tensors by name, in no order."""
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise MissingExtraError("Reading .safetensors files", "safetensors", "safetensors") from error
    limit = allowed(path)
    with open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > min(SMALL, path.stat().st_size):
            raise ValueError("its header is longer than the file, or than 16 MiB")
    with safe_open(path, framework="pt") as file:
        shapes, types = {}, {}
        for name in file.keys():  # noqa: SIM118  # no mapping
            part = file.get_slice(name)
            shapes[name], types[name] = tuple(part.get_shape()), str(part.get_dtype())
        for name in shapes:
            if name.endswith("weight") and not types[name].startswith(("F", "BF")):
                raise NoChainError(name, shapes[name], f"is of {types[name]}: no real weight as it is")
        yield Listing(shapes, lambda name: numbers_of(file.get_tensor(name), name, limit), ordered=False, module=True)
