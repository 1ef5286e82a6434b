"""Weight matrices from files: NumPy, MATLAB (LipSDP's layout), PyTorch state dicts and checkpoints, safetensors.
Nothing is unpickled, and only what is a chain of matrices is taken for one."""

from lightning_lipschitz.weight_files.chains import described
from lightning_lipschitz.weight_files.reading import read_matrices, read_weights
from lightning_lipschitz.weight_files.tensors import load_torch, numbers_of

__all__ = ["described", "load_torch", "numbers_of", "read_matrices", "read_weights"]
