"""The command line, as a user runs it; and every weight file format."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
import torch
from safetensors.torch import save_file

from lightning_lipschitz.cli import main
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.weight_files import read_weights
from tests.helpers import DATA, TWO_BY_TWO, lipsdp_weights

WEIGHTS = [np.array(w) for w in TWO_BY_TWO]


def state():
    """Layers 2 and 10: the order of their names is not that of their numbers."""
    tensors = {"net.2.weight": WEIGHTS[0], "net.2.bias": np.zeros(2), "net.10.weight": WEIGHTS[1]}
    return {name: torch.tensor(value) for name, value in tensors.items()}


def cell():
    array = np.empty((1, 2), dtype=object)
    array[0, 0], array[0, 1] = WEIGHTS
    return {"weights": array}


WRITERS = {
    "w.npz": lambda path: np.savez(path, *WEIGHTS),
    "w.mat": lambda path: scipy.io.savemat(path, cell()),
    "w.pt": lambda path: torch.save(state(), path),
    "w.ckpt": lambda path: torch.save({"state_dict": state(), "epoch": 3}, path),
    "w.safetensors": lambda path: save_file(state(), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_certified_and_verified(tmp_path, capsys, name):
    weights, certificate = str(tmp_path / name), str(tmp_path / "c.npz")
    WRITERS[name](weights)
    assert main(["certify", weights, "--json", "--output", certificate]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["upper_bound"] == pytest.approx(4 / 3**0.5, rel=2e-6)
    assert main(["verify", certificate, weights]) == 0
    assert repr(found["upper_bound"]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("w.txt", lambda p: p.write_text("1 2"), "one of the endings"),
        ("none.npz", lambda p: None, "does not exist"),
        ("w.npz", lambda p: p.write_text("text"), "not a NumPy archive"),
        ("w.pt", lambda p: p.write_bytes(b"text"), "cannot be read"),
        ("w.mat", lambda p: p.write_bytes(b"text"), "cannot be read"),
        ("w.safetensors", lambda p: p.write_bytes(b"text"), "cannot be read"),
        ("e.npz", lambda p: np.savez(p, bias=np.ones(3)), "no weight matrix"),
        ("c.pt", lambda p: torch.save({"conv.weight": torch.ones(1, 1, 3, 3)}, p), "conv.weight"),
        ("o.npz", lambda p: np.savez(p, np.array([{}, {}], dtype=object), allow_pickle=True), "cannot be read"),
    ],
)
def test_wrong_files_are_one_line_on_stderr(tmp_path, capsys, name, write, says):
    write(tmp_path / name)
    assert main(["certify", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_certificate_of_other_weights_is_refused(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", *WEIGHTS)
    np.savez(tmp_path / "b.npz", *(1.001 * w for w in WEIGHTS))
    assert main(["certify", str(tmp_path / "a.npz"), "--output", str(tmp_path / "c.npz")]) == 0
    assert main(["verify", str(tmp_path / "c.npz"), str(tmp_path / "b.npz")]) == 2
    assert "another network" in capsys.readouterr().err


def test_the_installed_command(tmp_path):
    np.savez(tmp_path / "a.npz", *WEIGHTS)
    command = [sys.executable, "-m", "lightning_lipschitz", "certify", str(tmp_path / "a.npz"), "--slopes", "0", "0.25"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "verified" in done.stdout
    assert float(done.stdout.split()[0]) < 4 / 3**0.5


PUBLISHED = [
    ("random", ["--method", "lipsdp-neuron"], 36.48223),
    ("random", ["--method", "lipsdp-layer"], 39.83862),
    ("random", ["--method", "lipsdp-neuron", "--split-size", "2"], 37.66814),
    ("random", ["--method", "norm-product"], 43.30557),
    ("mnist", ["--method", "lipsdp-neuron"], 24.36635),
    ("mnist", ["--method", "lipsdp-layer"], 26.25597),
    ("mnist", ["--method", "norm-product"], 31.50351),
]


@pytest.mark.parametrize(("name", "options", "figure"), PUBLISHED)
def test_published_figures_from_the_published_files(name, options, figure, tmp_path, capsys):
    lipsdp_weights(name)  # skips where the data is not given
    weights, output = str(DATA / "lipsdp" / f"{name}_weights.mat"), str(tmp_path / "proof.npz")
    assert main(["certify", weights, "--json", "--output", output, *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["certified"] is True
    assert printed["upper_bound"] == pytest.approx(figure, rel=1e-5)
    assert main(["verify", output, weights]) == 0
    assert f"proved: {printed['upper_bound']!r} is an upper bound" in capsys.readouterr().out


def test_errors_of_the_package_have_a_base():
    with pytest.raises(LipschitzError):
        read_weights("weights.txt")
