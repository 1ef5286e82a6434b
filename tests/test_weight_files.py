"""Which files are chains of matrices, and which are refused, by name; and what they may take of memory."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from lightning_lipschitz import lower_bound
from lightning_lipschitz.cli import main
from lightning_lipschitz.errors import NoChainError, WeightFileError
from lightning_lipschitz.weight_files import read_weights

rng = np.random.default_rng(0)


class Named(nn.Module):
    """Layers under names of the user's choice; no forward is looked at."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def pruned():
    layer = nn.Linear(6, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def old(norm, layer):
    with pytest.warns((FutureWarning, UserWarning)) if norm is weight_norm else torch.no_grad():
        return norm(layer)


def tied():
    model = Named(body=nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
    model.layers = nn.ModuleList([model.body[0], model.body[2]])
    return model


def swapped():
    return Named(fc2=nn.Linear(6, 6), fc1=nn.Linear(6, 6))


CHAINS = {
    "a sequence": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)),
    "without biases": lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)),
    "a sequence under a name": lambda: Named(net=nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))),
    "a list": lambda: Named(layers=nn.ModuleList(nn.Linear(6, 6) for _ in range(12))),
    "numbered names": lambda: Named(fc1=nn.Linear(6, 8), fc2=nn.Linear(8, 7), fc3=nn.Linear(7, 3)),
    "one layer": lambda: nn.Linear(6, 3),
    "one layer under a name": lambda: Named(head=nn.Linear(6, 3)),
}
REFUSED = {
    "names without an order": (lambda: Named(a=nn.Linear(6, 8), b=nn.Linear(8, 6), head=nn.Linear(6, 3)), "head"),
    "a body and a head": (lambda: Named(body=nn.Sequential(nn.Linear(6, 8)), head=nn.Linear(8, 3)), "head"),
    "an encoder and a decoder": (
        lambda: Named(encoder=nn.Sequential(nn.Linear(6, 2)), decoder=nn.Sequential(nn.Linear(2, 6))),
        r"decoder\.0",
    ),
    "two heads": (lambda: Named(fc1=nn.Linear(6, 8), fc2=nn.Linear(8, 3), fc3=nn.Linear(8, 1)), r"fc3\.weight"),
    "blocks of several layers": (
        lambda: Named(blocks=nn.ModuleList(Named(up=nn.Linear(6, 8), down=nn.Linear(8, 6)) for _ in range(2))),
        "names give no order",
    ),
    "blocks of one layer": (
        lambda: Named(blocks=nn.ModuleList(Named(linear=nn.Linear(6, 6)) for _ in range(2))),
        "names give no order",
    ),
    "registered in another order": (swapped, "fc2"),
    "tied": (tied, "names give no order"),
    "batch norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), r"1\.(run|num)"),
    "batch norm without gains": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3)),
        r"1\.(running|num_batches)",
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)), r"1\.weight"),
    "PReLU": (lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(8), nn.Linear(8, 3)), r"1\.weight"),
    "pruned": (lambda: nn.Sequential(pruned(), nn.ReLU(), nn.Linear(8, 3)), r"weight_(orig|mask)"),
    "spectral norm, old": (lambda: nn.Sequential(spectral_norm(nn.Linear(6, 3))), "weight_(orig|u|v)"),
    "weight norm, old": (lambda: nn.Sequential(old(weight_norm, nn.Linear(6, 3))), "weight_[gv]"),
    "spectral norm, new": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 3))), "parametri"),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 3))), "parametri"),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)), r"0\.weight"),
    "pointwise convolution": (lambda: nn.Sequential(nn.Conv1d(6, 3, 1)), r"0\.weight"),
    "bilinear": (lambda: nn.Bilinear(3, 3, 2), "weight"),
    "recurrent": (lambda: nn.LSTM(6, 3), "(weight|bias)_[ih]h_l0"),
    "attention": (lambda: nn.MultiheadAttention(6, 2), "in_proj_(weight|bias)"),
    "a parameter of its own": (
        lambda: Named(net=nn.Sequential(nn.Linear(6, 3)), scale=nn.Parameter(torch.ones(()))),
        "scale",
    ),
    "weights of a loss": (
        lambda: Named(net=nn.Sequential(nn.Linear(6, 3)), loss=nn.CrossEntropyLoss(weight=torch.ones(3))),
        r"loss\.weight",
    ),
}
FORMATS = {
    "w.pt": torch.save,
    "w.ckpt": lambda state, path: torch.save({"state_dict": state, "epoch": 1}, path),
    "w.safetensors": lambda state, path: save_file(
        {name: value.contiguous().clone() for name, value in state.items()}, path
    ),
    "w.npz": lambda state, path: np.savez(path, **{name: value.numpy() for name, value in state.items()}),
}


def detached(model):
    return {name: value.detach() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_read(name, form, tmp_path):
    if name == "one layer" and form == "w.npz":
        pytest.skip("`weight` and `bias` are names of NumPy users as well")
    model = CHAINS[name]()
    FORMATS[form](detached(model), tmp_path / form)
    expected = [value for value in model.state_dict().values() if value.ndim == 2]
    found = read_weights(tmp_path / form)
    assert len(found) == len(expected)
    assert all(np.array_equal(one, other.numpy()) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_chain_is_refused_by_name(name, form, tmp_path):
    make, says = REFUSED[name]
    if (name, form) in ORDERLESS:
        pytest.skip("the order of the file is not there to be contradicted, or the names are NumPy's")
    FORMATS[form](detached(make()), tmp_path / form)
    with pytest.raises(NoChainError, match=f"{says}.*certify"):
        read_weights(tmp_path / form)


ORDERLESS = {("registered in another order", "w.safetensors")} | {
    (name, "w.npz") for name in ("bilinear", "recurrent", "attention")
}


@pytest.mark.parametrize("tensor", [torch.ones(2, 2, dtype=torch.complex64), torch.ones(2, 2, dtype=torch.int8)])
def test_weights_that_are_no_real_numbers(tensor, tmp_path):
    torch.save({"0.weight": tensor}, tmp_path / "w.pt")
    save_file({"0.weight": tensor}, tmp_path / "w.safetensors") if not tensor.is_complex() else None
    for path in tmp_path.iterdir():
        with pytest.raises(NoChainError, match=r"0\.weight"):
            read_weights(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"0.weight": torch.ones(2, 2).to_sparse()}, "0.weight"),
        ({"0.weight": torch.ones(2, 2, device="meta")}, "0.weight"),
        ({"0.weight": torch.ones(2, 2), "note": "hello"}, "note"),
        ({"0.weight": torch.ones(2, 2), 5: torch.ones(2, 2)}, "5"),
        ({"model": {"0.weight": torch.ones(2, 2)}}, "no state dict"),
        ([torch.ones(2, 2)], "no state dict"),
        ({"0.weight": torch.ones(1, 1).expand(10**6, 10**6)}, "MiB"),
    ],
)
def test_state_dicts_of_other_things(content, says, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightFileError, match=says):
        read_weights(tmp_path / "w.pt")


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    torch.save({"0.weight": torch.ones(2, 2), "x": Evil()}, tmp_path / "w.pt")
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"0.weight": Evil()}))
    np.savez(tmp_path / "w.npz", np.array([Evil()], dtype=object), allow_pickle=True)
    for path in tmp_path.iterdir():
        with pytest.raises(WeightFileError, match="cannot be read"):
            read_weights(path)
    assert "unpickled" not in capsys.readouterr().out


def test_the_sentence_says_whose_bound_it_is(tmp_path, capsys):
    model = CHAINS["a sequence"]()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    weights, output = str(tmp_path / "w.pt"), str(tmp_path / "c.npz")
    assert main(["certify", weights, "--slopes", "0", "0.25", "--output", output]) == 0
    told = "chain 6-8-5-3 of these matrices, in this order, with slopes in [0, 0.25]"
    printed = capsys.readouterr().out
    assert told in printed
    assert printed.count("\n") == 1
    assert main(["verify", output, weights, "--slopes", "0", "0.25"]) == 0
    assert told in capsys.readouterr().out
    assert main(["certify", weights, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "6-8-5-3" in printed["of"]
    assert printed["upper_bound"] >= lower_bound(model, torch.randn(8, 6)).value


# Arrays of NumPy

W1, W2 = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
NPZ = {
    "by position": ({"arr_0": W1, "arr_1": W2}, 2),
    "with biases by position": ({"arr_0": W1, "arr_1": np.ones(4), "arr_2": W2, "arr_3": np.ones(2)}, 2),
    "by name": ({"W1": W1, "b1": np.ones(4), "W2": W2, "b2": np.ones(2)}, 2),
    "biases of two dimensions": ({"W1": W1, "b1": np.ones((4, 1)), "W2": W2, "b2": np.ones((1, 2))}, 2),
    "any names, in the order of the file": ({"first": W1, "second": W2}, 2),
    "whole numbers": ({"W": np.array([[1, 2]])}, 1),
    "one layer": ({"weight": W1, "bias": np.ones(4)}, 1),
}


@pytest.mark.parametrize("name", NPZ)
def test_arrays_of_a_chain(name, tmp_path):
    arrays, count = NPZ[name]
    np.savez(tmp_path / "w.npz", **arrays)
    assert len(read_weights(tmp_path / "w.npz")) == count


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"W1": W1, "gamma": np.ones(4), "W2": W2}, "gamma"),
        ({"W1": W1, "b1": np.ones(3), "W2": W2}, "b1"),
        ({"arr_0": W1, "arr_1": np.ones(3)}, "arr_1"),
        ({"W2": W2, "W1": W1}, "W2"),
        ({"W1": W1, "W2": W1}, "W2"),
        ({"W": W1, "running_var": np.ones(4)}, "running_var"),
        ({"kernel": np.ones((2, 2, 3))}, "kernel"),
        ({"W": W1 + 1j}, "W"),
        ({"W": np.array([["1", "2"]])}, "W"),
        ({"W": np.array([[1, 2]], dtype="m8[s]")}, "W"),
        ({"W": np.zeros((2, 2), dtype="U0")}, "W"),
    ],
)
def test_arrays_that_are_no_chain(arrays, says, tmp_path):
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(WeightFileError, match=f"`{says}`"):
        read_weights(tmp_path / "w.npz")


# MATLAB


def cells(*matrices, column=False):
    filled = np.empty((len(matrices), 1) if column else (1, len(matrices)), dtype=object)
    for k, matrix in enumerate(matrices):
        filled.ravel()[k] = matrix
    return filled


MAT = {
    "a row of cells": ({"weights": cells(W1, W2)}, [W1, W2]),
    "a column of cells": ({"weights": cells(W1, W2, column=True)}, [W1, W2]),
    "one cell": ({"weights": cells(W1)}, [W1]),
    "one cell of one number": ({"weights": cells(np.array([[2.0]]))}, [np.array([[2.0]])]),
    "cells and other variables": ({"weights": cells(W1, W2), "note": "text", "x": {"a": 1}}, [W1, W2]),
    "a matrix called weights": ({"weights": W1}, [W1]),
    "whole numbers": ({"weights": cells(np.array([[1, 2]], dtype=np.int16))}, [np.array([[1.0, 2.0]])]),
    "a matrix": ({"A": W1}, [W1]),
    "numbered": ({"W10": W2, "W9": W1}, [W1, W2]),
    "numbered, with biases": ({"W1": W1, "b1": np.ones((4, 1)), "W2": W2, "b2": np.ones((2, 1))}, [W1, W2]),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", MAT)
def test_layouts_of_matlab(name, compress, tmp_path):
    content, expected = MAT[name]
    scipy.io.savemat(tmp_path / "w.mat", content, do_compression=compress)
    found = read_weights(tmp_path / "w.mat")
    assert len(found) == len(expected)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"weights": np.array([W1], dtype=object)}, r"\(1, 4, 3\) of numbers"),
        ({"weights": np.array([W1[:1]], dtype=object)}, r"\(1, 1, 3\) of numbers"),
        ({"weights": np.array([W1, 2 * W1], dtype=object)}, r"\(2, 4, 3\) of numbers"),
        ({"weights": np.array(W1, dtype=object)}, r"\(4, 3\) of numbers"),
        ({"weights": np.array([1.0, 2.0, 3.0], dtype=object)}, r"\(1, 3\) of single numbers"),
        ({"weights": cells(cells(W1, W2))}, r"weights\{1\}.*a cell array"),
        ({"weights": {"W1": W1}}, "a struct"),
        ({"weights": cells({"a": W1})}, r"weights\{1\}.*a struct"),
        ({"weights": np.empty((1, 0), dtype=object)}, r"\(1, 0\)"),
        ({"weights": cells(W1, np.empty((0, 0)))}, r"weights\{2\}.*\(0, 0\)"),
        ({"weights": cells(W1 * 1j)}, r"weights\{1\}.*complex"),
        ({"weights": W1 * 1j}, "complex"),
        ({"weights": cells(scipy.sparse.csc_array(W1))}, r"weights\{1\}.*sparse"),
        ({"weights": scipy.sparse.csc_array(W1)}, "sparse"),
        ({"weights": cells("text")}, r"weights\{1\}.*text"),
        ({"weights": "text"}, "text"),
        ({"weights": np.ones((2, 3, 4))}, r"\(2, 3, 4\)"),
        ({"weights": cells(np.ones((2, 3, 4)))}, r"weights\{1\}.*\(2, 3, 4\)"),
        ({"weights": cells(W2, W1)}, r"weights\{2\}"),
        ({"A": W1, "B": W2}, "names give no order"),
        ({"W1": W1, "x": np.ones((7, 1))}, "`x`"),
        ({"W1": W1, "note": "text"}, "`note`.*char"),
        ({"W1": W1, "mask": W1 > 0}, "`mask`.*logical"),
        ({"W1": W1, "options": {"a": 1}}, "`options`.*struct"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_layouts_of_matlab_that_are_no_chain(content, says, compress, tmp_path):
    scipy.io.savemat(tmp_path / "w.mat", content, do_compression=compress)
    with pytest.raises(WeightFileError, match=says):
        read_weights(tmp_path / "w.mat")


# Memory

READ = """
import resource, sys, torch
from lightning_lipschitz import errors
from lightning_lipschitz.weight_files import read_weights
from scipy.io import loadmat
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_weights(sys.argv[1])
except errors.WeightFileError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""
SIDE = 4096  # a matrix of 128 MiB


def zeros_npz(path):
    np.savez_compressed(path, np.zeros((SIDE, SIDE)))


def zeros_pt(path):
    buffer = io.BytesIO()
    torch.save({"0.weight": torch.zeros(SIDE, SIDE, dtype=torch.float64)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def repeated_pt(path):
    torch.save({"0.weight": torch.zeros(1, 1).expand(SIDE, SIDE)}, path)


def zeros_mat(path):
    scipy.io.savemat(path, {"weights": cells(np.zeros((SIDE, SIDE)))}, do_compression=True)


def header_safetensors(path):
    path.write_bytes(struct.pack("<Q", 2**31) + b"{}" + bytes(100))


BOMBS = {
    "w.npz": zeros_npz,
    "w.pt": zeros_pt,
    "w.ckpt": repeated_pt,
    "w.mat": zeros_mat,
    "w.safetensors": header_safetensors,
}


@pytest.mark.parametrize("name", BOMBS)
def test_files_that_grow_in_memory_are_refused_before_they_do(name, tmp_path):
    path = tmp_path / name
    BOMBS[name](path)
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    taken, _, told = done.stdout.partition(" ")
    assert "MiB" in told
    assert int(taken) * (1 if sys.platform != "darwin" else 1 / 1024) < 40_000  # KiB


def test_weights_that_compress_well_are_read(tmp_path):
    """Nine of ten are zero; or there are few."""
    sparse = rng.normal(size=(1000, 2000)) * (rng.random((1000, 2000)) < 0.1)
    for matrix in (sparse, np.eye(1000)):
        np.savez_compressed(tmp_path / "w.npz", matrix)
        assert np.array_equal(read_weights(tmp_path / "w.npz")[0], matrix)
        scipy.io.savemat(tmp_path / "w.mat", {"weights": matrix}, do_compression=True)
        assert np.array_equal(read_weights(tmp_path / "w.mat")[0], matrix)
