"""Two processes on the CPU: one solves, both know, and neither waits for the other in vain."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from lightning_lipschitz import api
from lightning_lipschitz.checkpoint_files import from_plain
from lightning_lipschitz.extraction import Extractor
from tests.callbacks.ddp_run import Deep
from tests.modules import INPUTS, Bypassed, Classifier, Noisy

ROOT = Path(__file__).parents[2]


def run(strategy, folder, *scenarios):
    command = [sys.executable, "-m", "tests.callbacks.ddp_run", strategy, str(folder), *scenarios]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def ranks(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """All scenarios in one go, the last of which has to fail."""
    folder = tmp_path_factory.mktemp("forked")
    names = ("plain", "statistics", "bypassed", "raising", "slow", "shared", "uncertifiable")
    return folder, run("ddp_fork", folder, *names)


def check_files(folder, make):
    first, second = ranks(folder)
    assert first == second
    assert first["logged"] == first["history"][-1]["upper_bound"] == json.loads((folder / "main.json").read_text())
    reader = Extractor(make(), torch.zeros(2, INPUTS))
    files = sorted(folder.glob("*.ckpt"))
    assert 2 <= len(files) <= len(first["history"])
    for path in files:
        checkpoint = torch.load(path, weights_only=True)
        stamp = from_plain(checkpoint["lipschitz"])
        assert stamp.global_step == checkpoint["global_step"]
        assert api.verify(stamp, reader.network(checkpoint["state_dict"])) == stamp.upper_bound


@pytest.mark.parametrize(
    ("scenario", "make"),
    [("plain", Classifier), ("statistics", Noisy), ("bypassed", Bypassed), ("raising", Classifier)],
)
def test_ranks_agree_and_files_are_right(scenario, make, forked):
    folder, done = forked
    assert (folder / scenario / "main.json").exists(), done.stderr
    check_files(folder / scenario, make)
    ok = [record["solver_ok"] for record in ranks(folder / scenario)[0]["history"]]
    assert set(ok) == {scenario != "raising"}


def test_rank_0_writes_the_report(forked):
    folder, done = forked
    page = (folder / "plain" / "report.html").read_text()
    assert "8 validation inputs of one of 2 processes" in page, done.stderr


def test_solve_that_takes_longer_than_the_process_group_waits(forked):
    folder, done = forked
    assert (folder / "slow" / "main.json").exists(), done.stderr
    first, second = ranks(folder / "slow")
    assert first == second
    assert first["history"][0]["seconds"] > 3.0
    assert math.isfinite(first["logged"])


def test_ranks_share_the_sub_networks(forked):
    folder, done = forked
    assert (folder / "shared" / "main.json").exists(), done.stderr
    check_files(folder / "shared", Deep)
    solves = Counter((folder / "shared" / "solves.txt").read_text().split())
    measurements = len(ranks(folder / "shared")[0]["history"])
    assert list(solves.values()) == [measurements, measurements]


def check_refusal(done, folder):
    assert done.returncode != 0
    assert "cannot be certified" in done.stderr
    assert 1 <= len(ranks(folder)) <= 2
    assert all("cannot be certified" in rank["error"] for rank in ranks(folder))


def test_model_that_cannot_be_certified_ends_both_ranks(forked):
    folder, done = forked
    check_refusal(done, folder / "uncertifiable")


def test_subprocess_launcher(tmp_path):
    done = run("ddp", tmp_path, "plain")
    assert done.returncode == 0, done.stderr
    check_files(tmp_path / "plain", Classifier)


@pytest.mark.slow
def test_subprocess_launcher_refusal(tmp_path):
    check_refusal(run("ddp", tmp_path, "uncertifiable"), tmp_path / "uncertifiable")


@pytest.mark.slow
def test_spawn_launcher(tmp_path):
    done = run("ddp_spawn", tmp_path, "plain")
    assert done.returncode == 0, done.stderr
    check_files(tmp_path / "plain", Classifier)
