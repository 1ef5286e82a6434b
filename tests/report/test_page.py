"""The page and the images of a real fit on digits; the page of its checkpoint, read from the disk."""

import builtins
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import stamped_certificates
from lightning_lipschitz.checkpoint_report import report_checkpoint
from lightning_lipschitz.cli import main
from lightning_lipschitz.demo.data import load_digits
from lightning_lipschitz.demo.model import Classifier
from lightning_lipschitz.errors import ArgumentError, CertificateError, MissingExtraError, WeightFileError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.report import Subject, gather, numbers, write_page
from tests.modules import Classifier as Tiny
from tests.modules import Pair, loader
from tests.report.page import Page, check

ROOT = Path(__file__).parents[2]
FIGURES = ("training", "layers", "curve", "pairs")


def validation():
    return load_digits().loaders(100)[1]


def test_the_page_of_a_fit(digits):
    page, certificate = Page(digits.page), digits.callback.certificate
    check(page)
    assert f"L = {numbers.upper(certificate.upper_bound)}" in page.text["headline"]
    assert certificate.network_digest in page.text["headline"]
    assert certificate.status.value in page.text["headline"]
    assert repr(certificate.upper_bound) in page.text["certificate"]
    for record in digits.callback.history:
        assert numbers.upper(record["upper_bound"]) in page.text["training"]
    accuracy = digits.trainer.callback_metrics["val_accuracy"].item()
    assert "360 validation inputs" in page.text["curve"]
    assert numbers.percent(round(360 * accuracy) / 360) in page.text["curve"]


def test_nothing_is_left_beside_it(digits):
    assert [file.name for file in digits.page.parent.iterdir()] == ["report.html"]


def test_the_figures_go_to_tensorboard(digits):
    events = EventAccumulator(digits.trainer.log_dir)
    events.Reload()
    assert set(events.Tags()["images"]) == {f"lipschitz/report/{name}" for name in FIGURES}
    for name in FIGURES:
        (event,) = events.Images(f"lipschitz/report/{name}")
        assert event.step == digits.trainer.global_step
        pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("L"))
        assert pixels[0, 0] == 255  # on paper: transparent would be black
        assert pixels.min() < 100


def test_the_certificate_on_the_page_proves_the_bound(digits, tmp_path):
    file = tmp_path / "certificate.npz"
    file.write_bytes(Page(digits.page).downloads["certificate.npz"])
    assert ll.verify(ll.Certificate.load(file), digits.model) == digits.callback.certificate.upper_bound


def test_the_commands_on_the_page_run(digits, tmp_path):
    page = Page(digits.page)
    (tmp_path / "certificate.npz").write_bytes(page.downloads["certificate.npz"])
    (tmp_path / "last.ckpt").write_bytes(digits.checkpoint.read_bytes())
    program = (ROOT / "examples" / "verify_with_numpy.py").read_text()
    (tmp_path / "verify_with_numpy.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    for name in ("command", "numpy"):
        script = page.code[name].replace("lightning-lipschitz", f"{sys.executable} -m lightning_lipschitz")
        script = script.replace("python ", f"{sys.executable} ") if name == "numpy" else script
        done = subprocess.run(
            script, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert "proved: " in done.stdout, done.stderr
        assert repr(digits.callback.certificate.upper_bound) in done.stdout


# Of a checkpoint


def test_the_page_of_a_file_alone(digits, tmp_path, capsys):
    output = tmp_path / "report.html"
    assert main(["report", str(digits.checkpoint), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    page, certificate = Page(output), digits.callback.certificate
    check(page, without=("curve", "pairs"))
    assert f"L = {numbers.upper(certificate.upper_bound)}" in page.text["headline"]
    lower = digits.callback.history[-1]["lower_bound"]
    assert numbers.lower(lower) in page.text["headline"]
    assert "Read from last.ckpt and proved again" in page.text["headline"]


def test_with_the_class_and_data_nothing_is_missing(digits, tmp_path):
    output = tmp_path / "report.html"
    options = ["--model", "lightning_lipschitz.demo.model:Classifier", "--data", f"{__name__}:validation"]
    assert main(["report", str(digits.checkpoint), "--output", str(output), *options]) == 0
    check(Page(output))


def test_with_the_class_alone(digits, tmp_path):
    page = Page(report_checkpoint(digits.checkpoint, tmp_path / "r.html", model=Classifier, pairs=True))
    check(page, without=("curve",))
    assert "45 had a search of their own" in page.text["pairs"]


def change(digits, tmp_path, edit):
    checkpoint = torch.load(digits.checkpoint, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, tmp_path / "edited.ckpt")
    return tmp_path / "edited.ckpt"


def test_without_the_state_of_the_callback(digits, tmp_path):
    path = change(digits, tmp_path, lambda checkpoint: checkpoint.pop("callbacks"))
    page = Page(report_checkpoint(path, tmp_path / "r.html"))
    check(page, without=("training", "curve", "pairs"))
    assert "no measurements" in page.text["training"]


KINDS = {
    "admm": lambda: ll.LipschitzADMM(20.0),
    "barrier": lambda: ll.LipschitzBarrier(20.0),
    "scale": lambda: ll.LipschitzScale(20.0),
}


def fitted(folder, model, *callbacks, **saving):
    saver = ModelCheckpoint(dirpath=folder, save_top_k=-1, filename="{step}", **saving)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=3, accelerator="cpu", callbacks=[*callbacks, saver], **quiet).fit(model, loader(), loader(8))
    return sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)


@pytest.mark.parametrize("key", KINDS)
def test_callbacks_that_hold_a_bound(key, tmp_path):
    """Their file is certified anew when it is written, in the middle of an epoch too: no line of the history has it."""
    path = fitted(tmp_path, Tiny(), KINDS[key](), every_n_train_steps=3)[-2]
    bound = stamped_certificates(torch.load(path, weights_only=True))[key].upper_bound
    page = Page(report_checkpoint(path, tmp_path / "r.html"))
    check(page, without=("curve", "pairs"))
    assert repr(bound) in page.text["certificate"]


@pytest.mark.usefixtures("undrawn")
def test_submodules(tmp_path):
    callbacks = [ll.LipschitzCallback(module=name) for name in ("encoder", "net")]
    path = fitted(tmp_path, Pair(), *callbacks)[-1]
    for callback, key in zip(callbacks, ("lipschitz", "lipschitz/net"), strict=True):
        page = Page(report_checkpoint(path, tmp_path / "r.html", key=key, model=Pair, data=loader))
        assert callback.module in page.text["headline"]
        assert callback.certificate.network_digest in page.text["headline"]
        assert numbers.upper(callback.history[0]["upper_bound"]) in page.text["training"]


@pytest.mark.usefixtures("undrawn")
def test_the_submodule_of_a_file_that_does_not_say_it(tmp_path):
    path = fitted(tmp_path, Pair(), ll.LipschitzCallback(module="encoder"), save_weights_only=True)[-1]
    with pytest.raises(CertificateError, match="another network"):
        report_checkpoint(path, tmp_path / "r.html", model=Pair, data=loader)
    output = report_checkpoint(path, tmp_path / "r.html", model=Pair, data=loader, module="encoder")
    assert "encoder" in Page(output).text["headline"]


def smaller_claim(checkpoint):
    checkpoint["lipschitz"]["upper_bound"] *= 0.5


def other_weights(checkpoint):
    checkpoint["state_dict"]["net.0.weight"] *= 2


@pytest.mark.parametrize("edit", [smaller_claim, other_weights])
@pytest.mark.parametrize("model", [None, Classifier])
def test_what_is_not_proved_gets_no_page(digits, tmp_path, edit, model):
    with pytest.raises(CertificateError):
        report_checkpoint(change(digits, tmp_path, edit), tmp_path / "r.html", model=model)
    assert not (tmp_path / "r.html").exists()


NOT_A_MODULE = [
    ({"model": "no_such_package:Class"}, ArgumentError, "`model` must be .*No module named"),
    ({"model": "lightning_lipschitz.demo.model:Missing"}, ArgumentError, "`model` must be .*Missing"),
    ({"model": "lightning_lipschitz.errors:LipschitzError"}, ArgumentError, "class of a LightningModule"),
    ({"data": validation}, ArgumentError, "`data` must be given together with `model`"),
    ({"model": Classifier, "data": [1, 2]}, ArgumentError, "batches .x, y."),
    ({"model": Classifier, "data": []}, ArgumentError, "batches .x, y."),
    ({"model": Classifier, "data": lambda: 3}, ArgumentError, "`data` must be batches"),
    ({"time_limit": -1.0}, ArgumentError, "`time_limit` must be a number of seconds > 0"),
    ({"key": "admm"}, ArgumentError, "`key` must be one of 'lipschitz'"),
]


@pytest.mark.parametrize(("options", "error", "says"), NOT_A_MODULE)
def test_arguments_that_cannot_be_used(digits, tmp_path, options, error, says):
    with pytest.raises(error, match=says):
        report_checkpoint(digits.checkpoint, tmp_path / "r.html", **options)


def test_a_class_that_does_not_fit(digits, tmp_path):
    class Other(Classifier):
        def __init__(self, sizes, learning_rate=0.1):
            super().__init__((3, 2), learning_rate)

    with pytest.raises(WeightFileError, match=r"`Other.load_from_checkpoint` cannot read it.*size mismatch"):
        report_checkpoint(digits.checkpoint, tmp_path / "r.html", model=Other)


@pytest.mark.parametrize(
    ("content", "says"),
    [({"state_dict": {}}, "no certificate"), ({"epoch": 1}, "not a checkpoint"), (None, "no such file")],
)
def test_files_without_a_certificate(content, says, tmp_path, capsys):
    if content is not None:
        torch.save(content, tmp_path / "other.ckpt")
    assert main(["report", str(tmp_path / "other.ckpt")]) == 2
    printed = capsys.readouterr().err
    assert says in printed.lower()
    assert printed.count("\n") == 1


# The writer


def small():
    weights = [np.array([[1.0, 2.0], [1.0, -2.0]]), np.array([[1.0, 1.0], [0.0, 1.0]])]
    return Subject(ll.certify(weights), ll.api.read(weights))


def test_names_are_escaped(tmp_path):
    hostile = '<script src="http://example.org/x.js">&\'"'
    weights = small()
    subject = Subject(weights.certificate, weights.network, model=hostile, module=hostile, source=hostile)
    subject.why_not["curve"] = hostile  # as in an error of the user's code
    page = Page(write_page(gather(subject), tmp_path / "r.html"))
    check(page, without=("training", "curve", "pairs"))
    assert hostile in page.text["headline"]
    assert hostile in page.text["curve"]


def test_an_old_page_stays_when_the_new_one_fails(tmp_path, monkeypatch):
    path, content = tmp_path / "r.html", gather(small())
    path.write_text("old")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_page(content, path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("r.html", "old")]


def test_the_mode_of_the_file_is_the_users(tmp_path):
    path = write_page(gather(small()), tmp_path / "r.html")
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.usefixtures("undrawn")
def test_models_that_are_no_chain_get_the_commands_for_a_module(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.Tanh())
    extraction = Extractor(model, torch.zeros(1, 3)).extract()
    network = extraction.network
    page = Page(write_page(gather(Subject(ll.certify(network), network, module="net")), tmp_path / "r.html"))
    assert set(page.code) == {"python"}
    assert 'model.get_submodule("net")' in page.code["python"]


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_a_library_that_is_missing(name, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each, *rest: None if each == name else find(each, *rest))
    with pytest.raises(MissingExtraError, match=rf"needs {name}: `pip install lightning-lipschitz\[report\]`"):
        ll.LipschitzCallback(report=tmp_path / "r.html")
    assert main(["report", str(tmp_path / "any.ckpt")]) == 2
    ll.LipschitzCallback()


def test_without_matplotlib_at_all(monkeypatch):
    from lightning_lipschitz.report.figures import LIGHT, draw_pairs

    real = builtins.__import__

    def refuse(module, *rest, **options):
        if module.startswith("matplotlib"):
            raise ImportError(module)
        return real(module, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        draw_pairs(np.zeros((2, 2)), LIGHT)
