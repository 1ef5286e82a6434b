"""Checkpoints that were damaged, or made to deceive: one clean error, or a page without what cannot be read."""

import copy
import os
import shlex
import stat
import subprocess

import pytest
import torch
from pytorch_lightning import Trainer

import lightning_lipschitz as ll
from lightning_lipschitz.checkpoint_report import report_checkpoint
from lightning_lipschitz.cli import main
from lightning_lipschitz.errors import ArgumentError, LipschitzError
from tests.modules import UNAVOIDABLE, Classifier, loader
from tests.report.page import Page

pytestmark = [pytest.mark.filterwarnings(message) for message in UNAVOIDABLE]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "last.ckpt"
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[ll.LipschitzCallback()], enable_checkpointing=False, **quiet
    )
    trainer.fit(Classifier(), loader())
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)


def history(checkpoint):
    return next(state["history"] for state in checkpoint["callbacks"].values() if "history" in state)


def every(**values):
    return lambda checkpoint: [record.update(values) for record in history(checkpoint)]


def stamp(**values):
    return lambda checkpoint: checkpoint["lipschitz"].update(values)


def missing(name):
    return lambda checkpoint: checkpoint["lipschitz"].pop(name)


def renamed(name):
    return lambda checkpoint: checkpoint.update(callbacks={name: next(iter(checkpoint["callbacks"].values()))})


def state(**values):
    return lambda checkpoint: checkpoint["state_dict"].update(values)


# How many measurements are left out; the history has three of them.
PAGES = {
    "nothing": (lambda checkpoint: None, 0),
    "bounds of text": (every(upper_bound="<script>"), 3),
    "bounds that are too large": (every(upper_bound=10**400), 3),
    "bounds below zero": (every(upper_bound=-1.0), 3),
    "bounds that are not there": (every(upper_bound=float("nan")), 3),
    "infinite bounds": (every(upper_bound=float("inf"), lower_bound=None), 0),
    "tiny bounds": (every(upper_bound=5e-324, lower_bound=0.0), 0),
    "huge bounds": (every(upper_bound=1.7e308, lower_bound=1e-300), 0),
    "slopes above the bound": (every(lower_bound=1e9), 3),
    "slopes of text": (every(lower_bound="1"), 3),
    "epochs of text": (every(epoch="first"), 3),
    "epochs that are too large": (every(epoch=10**30), 3),
    "steps below zero": (every(global_step=-1), 3),
    "seconds in a list": (every(seconds=[1]), 3),
    "gaps without end": (every(relative_gap=float("inf")), 0),
    "empty records": (lambda checkpoint: [record.clear() for record in history(checkpoint)], 3),
    "one record that is none": (lambda checkpoint: history(checkpoint).append(None), 1),
    "tensors in records": (lambda checkpoint: history(checkpoint).append({"epoch": torch.ones(2)}), 1),
    "callbacks in a list": (lambda checkpoint: checkpoint.update(callbacks=[1]), None),
    "callbacks with numbers for names": (renamed(5), None),
    "a callback of nested names": (renamed("LipschitzCallback" + "{" * 500), 0),
    "a callback of another kind of name": (renamed("LipschitzCallback{1}"), 0),
    "a state that is text": (lambda checkpoint: checkpoint.update(callbacks={"LipschitzCallback": "x"}), None),
    "text beside the weights": (state(note="hello"), 0),
    "numbers for names": (lambda checkpoint: checkpoint["state_dict"].update({5: torch.ones(2, 2)}), 0),
    "sparse tensors beside": (state(mask=torch.ones(2, 2).to_sparse()), 0),
    "complex tensors beside": (state(phase=torch.ones(2, 2, dtype=torch.complex64)), 0),
    "whole numbers in place of steps": (stamp(seconds=1), 0),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_leaves_out_what_cannot_be_read(name, checkpoint, tmp_path, capsys):
    edit, unreadable = PAGES[name]
    changed = copy.deepcopy(checkpoint)
    edit(changed)
    torch.save(changed, tmp_path / "y.ckpt")
    page = Page(report_checkpoint(tmp_path / "y.ckpt", tmp_path / "r.html"))
    told = page.text["training"]
    if unreadable is None:
        assert "no measurements" in told
    else:
        assert ("read" in told) == (unreadable > 0)
        assert not unreadable or f"left out: {unreadable}." in told
    assert "chain 4-8-3 of the matrices in" in page.text["headline"]
    assert main(["verify", str(tmp_path / "y.ckpt")]) == 0
    assert "chain 4-8-3" in capsys.readouterr().out


ERRORS = {
    "seconds of text": stamp(seconds="x"),
    "no seconds": missing("seconds"),
    "no status": missing("status"),
    "a status without a bound": stamp(status="NOT_A_BOUND"),
    "not certified": stamp(certified=False),
    "certified by word": stamp(certified="yes"),
    "a bound of text": stamp(upper_bound="1"),
    "an infinite bound": stamp(upper_bound=float("inf")),
    "a bound in a tensor": stamp(upper_bound=torch.tensor(1.0)),
    "a digest of nothing": stamp(network_digest=None),
    "a method of many lines": stamp(method="a\nb"),
    "arrays of text": stamp(arrays="abc"),
    "arrays that are lists": stamp(arrays=[[1.0], [2.0]]),
    "no arrays": missing("arrays"),
    "whole arrays": stamp(arrays=[torch.ones(8, dtype=torch.int64)]),
    "complex arrays": stamp(arrays=[torch.ones(8, dtype=torch.complex128)]),
    "sparse arrays": stamp(arrays=[torch.ones(8, dtype=torch.float64).to_sparse()]),
    "arrays of two dimensions": stamp(arrays=[torch.ones(8, 1, dtype=torch.float64)]),
    "more arrays": lambda checkpoint: checkpoint["lipschitz"]["arrays"].append(torch.ones(1, dtype=torch.float64)),
    "a proof of nothing": stamp(proof=None),
    "a proof of text": stamp(proof="norms"),
    "a proof of an unknown kind": stamp(proof={"kind": "faith"}),
    "weights without end": lambda checkpoint: checkpoint["state_dict"].update(z=torch.ones(1, 1).expand(10**6, 10**6)),
    "weights of text": lambda checkpoint: checkpoint.update(state_dict="x"),
    "no weights": lambda checkpoint: checkpoint["state_dict"].clear(),
}


@pytest.mark.parametrize("name", ERRORS)
def test_one_clean_error(name, checkpoint, tmp_path, capsys):
    changed = copy.deepcopy(checkpoint)
    ERRORS[name](changed)
    torch.save(changed, tmp_path / "y.ckpt")
    with pytest.raises(LipschitzError):
        report_checkpoint(tmp_path / "y.ckpt", tmp_path / "r.html")
    for command in (["report"], ["verify"]):
        assert main([*command, str(tmp_path / "y.ckpt")]) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert not (tmp_path / "r.html").exists()


def test_files_that_are_no_checkpoints(tmp_path, capsys):
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "pipe", ".", "missing", "empty/x"):
        for command in ("report", "verify"):
            assert main([command, f"{tmp_path}/{name}"]) == 2
            assert capsys.readouterr().err.count("\n") == 1


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(checkpoint, tmp_path, capsys):
    torch.save({**checkpoint, "note": Evil()}, tmp_path / "y.ckpt")
    for options in ([], ["--model", "tests.modules:Classifier"]):
        assert main(["report", str(tmp_path / "y.ckpt"), *options]) == 2
        printed = capsys.readouterr()
        assert "unpickled" not in printed.out
        assert "cannot be read" in printed.err


NAMES = ["$(touch PWNED).ckpt", "a b;touch PWNED.ckpt", "`touch PWNED`'\".ckpt", "-o.ckpt", "<b>&.ckpt", "ä\n.ckpt"]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"\xff.ckpt")])
def test_names_of_files_are_names(name, checkpoint, tmp_path):
    """On the page, in a shell and in Python."""
    torch.save(checkpoint, tmp_path / name)
    page = Page(report_checkpoint(tmp_path / name, tmp_path / "r.html"))
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    assert f"Read from {shown} and proved again" in page.text["headline"]
    *_, file = shlex.split(page.code["command"])
    assert file in (shown, f"./{shown}")
    stub = 'lightning-lipschitz() { printf "%s" "$3"; }; python() { printf "%s" "$2"; }; '
    for script in (page.code["command"], page.code["numpy"].rpartition("\npython")[0]):
        done = subprocess.run(["bash", "-c", stub + script], cwd=tmp_path, capture_output=True, text=True, check=True)
        if done.stdout.startswith("import"):
            compile(done.stdout, "page", "exec")
        else:
            assert done.stdout == file
    assert not (tmp_path / "PWNED").exists()


def test_keys_and_names_move_no_cursor(checkpoint, tmp_path, capsys):
    key, prefix = "\x1b[2J\nlipschitz: proved", "\x1b[1mnet\n"
    changed = {name: value for name, value in checkpoint.items() if name != "lipschitz"}
    changed[key] = checkpoint["lipschitz"]
    weights = checkpoint["state_dict"]
    changed["state_dict"] = {name.replace("net", prefix): value for name, value in weights.items()}
    changed["state_dict"]["other"] = torch.ones(2, 2)
    torch.save(changed, tmp_path / "y.ckpt")
    assert main(["verify", str(tmp_path / "y.ckpt")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "\x1b" not in printed


def test_a_module_that_is_not_there(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "y.ckpt")
    with pytest.raises(ArgumentError, match="`module` must be"):
        report_checkpoint(tmp_path / "y.ckpt", tmp_path / "r.html", model=Classifier, module="body")


def test_the_page_of_a_pipe_stays_one(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_lipschitz.written._PATIENCE", 0.0)
    torch.save(checkpoint, tmp_path / "y.ckpt")
    os.mkfifo(tmp_path / "r.html")
    with pytest.warns(UserWarning, match="nobody reads"):
        report_checkpoint(tmp_path / "y.ckpt", tmp_path / "r.html")
    assert stat.S_ISFIFO(os.stat(tmp_path / "r.html").st_mode)
