"""The examples run, and show what they say."""

import importlib.util
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

import lightning_lipschitz as ll
from lightning_lipschitz.checkpoint_files import prove_checkpoint
from tests.modules import UNAVOIDABLE

EXAMPLES = Path(__file__).parents[1] / "examples"
# LightningCLI uses what jsonargparse has deprecated, and warns of subclasses that it has seen.
PARSER = r"ignore:\s+:DeprecationWarning"

pytestmark = [pytest.mark.filterwarnings(message) for message in UNAVOIDABLE]


@pytest.fixture
def load(monkeypatch):
    """An example as a module, with its folder on the path, as when it is run as a script."""

    def loaded(name):
        path = EXAMPLES / f"{name}.py"
        monkeypatch.syspath_prepend(path.parent)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        return module

    return loaded


def percentages(text):
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_digits(load, capsys):
    model, certificate = load("digits").main(epochs=3)
    assert ll.verify(certificate, model, torch.zeros(2, 64)) == certificate.upper_bound
    printed = capsys.readouterr().out
    bounds = re.findall(r"epoch +\d+: the certified bound is ([\d.]+), the steepest pair found ([\d.]+)", printed)
    assert len(bounds) == 3
    assert all(0 < float(lower) <= float(upper) for upper, lower in bounds)
    assert certificate.upper_bound <= float(bounds[-1][0]) < certificate.upper_bound + 0.01
    one, pairs, plain = percentages(printed)[-3:]
    assert 0 < one < pairs < plain  # proved by one constant, by a constant for each pair, and not proved
    assert plain > 80


def test_checkpoint(load, capsys, tmp_path):
    example = load("checkpoint")
    checkpoint = example.trained(tmp_path / "digits.ckpt", epochs=3)
    certificate = ll.Certificate.load(example.main(checkpoint, tmp_path))
    printed = capsys.readouterr().out
    assert f"proved again from disk: {certificate.upper_bound!r}" in printed
    bounds = [float(bound) for bound in re.findall(r"L <= +([\d.]+)", printed)]
    assert certificate.upper_bound <= bounds[0] < certificate.upper_bound + 0.01
    assert bounds[1] <= bounds[0] / 2 + 0.01
    right, certified, *_ = percentages(printed)[-4:]
    assert 0 < certified < right
    assert right > 80


def test_residual_cnn(load, capsys):
    certificates = load("residual_cnn").main(epochs=1)
    assert {method: c.method for method, c in certificates.items()} == {method: method for method in certificates}
    bound = {method: certificate.upper_bound for method, certificate in certificates.items()}
    slack = 1 + 1e-5  # the relative gap at which LipSDP is left
    assert bound["lipsdp-neuron"] <= slack * bound["composed"] <= slack**2 * bound["norm-product"]
    assert bound["lipsdp-neuron"] <= slack * bound["closed-form"]
    printed = capsys.readouterr().out
    (lower,) = re.findall(r"steepest pair +L >= +([\d.]+)", printed)
    features, head = (float(re.search(rf"net\.{part} +L <= +([\d.]+)", printed)[1]) for part in ("features", "head"))
    assert float(lower) <= bound["lipsdp-neuron"] <= 1.01 * features * head


@pytest.mark.filterwarnings(PARSER)
def test_lightning_cli(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])  # not those of pytest
    short = "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"
    config = EXAMPLES / "lightning_cli" / "config.yaml"
    cli = load("lightning_cli/main").main(["fit", "--config", str(config), *short])
    metrics = cli.trainer.callback_metrics
    assert metrics["val_accuracy"] > 0.7
    (file,) = tmp_path.rglob("best.ckpt")
    (proved,) = prove_checkpoint(file, (0.0, 1.0))  # what `lightning-lipschitz verify best.ckpt` does
    assert (proved.key, metrics["admm/upper_bound"] <= 5.0, proved.certificate.upper_bound <= 5.0) == (
        "admm",
        True,
        True,
    )


def test_clip_regression(load, tmp_path, capsys):
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


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_run_by_a_test(script):
    # verify_with_numpy.py: tests/test_docs.py
    if script.stem not in ("verify_with_numpy", "main"):
        assert f"def test_{script.stem}(" in Path(__file__).read_text()
