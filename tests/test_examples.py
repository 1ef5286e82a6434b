"""The examples run, and show what they say."""

import importlib.util
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_clip_regression(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the script does: Lightning's advice on workers
        plain, clip = load("clip_regression").main(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    for fit in plain, clip:
        assert 0.0 < fit.lower <= fit.upper
    assert clip.upper < 0.5 * plain.upper
    assert clip.error < plain.error
    assert "Lipschitz constant <=" in capsys.readouterr().out
