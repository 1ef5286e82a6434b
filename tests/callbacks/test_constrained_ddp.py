"""Training under a bound in two processes: the ranks stay in step, and none waits in vain."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_lipschitz as ll
from lightning_lipschitz.checkpoint_files import from_plain
from lightning_lipschitz.extraction import Extractor
from tests.callbacks.ddp_constrained_run import BOUND
from tests.modules import INPUTS, body

ROOT = Path(__file__).parents[2]
READER = Extractor(body(), torch.zeros(2, INPUTS))


def run(folder, *scenarios):
    command = [sys.executable, "-m", "tests.callbacks.ddp_constrained_run", str(folder), *scenarios]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def ranks(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def network(state_dict):
    return READER.network({name.removeprefix("net."): value for name, value in state_dict.items()})


GOOD = ("admm", "barrier", "scale", "average", "accumulate", "no round")


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """All that go well in one process group after another."""
    folder = tmp_path_factory.mktemp("forked")
    return folder, run(folder, *GOOD)


@pytest.mark.parametrize("scenario", GOOD)
def test_ranks_agree_and_files_meet_the_bound(scenario, forked):
    folder, done = forked[0] / scenario, forked[1]
    assert (folder / "shipped.pt").exists(), done.stderr
    first, second = ranks(folder)
    assert first == second
    assert first["history"]
    files = sorted(folder.glob("*.ckpt"))
    assert len(files) >= 2
    for path in files:
        file = torch.load(path, weights_only=True)
        certificate = from_plain(next(file[key] for key in ("admm", "barrier", "scale") if key in file))
        assert ll.verify(certificate, network(file["state_dict"])) <= BOUND
    shipped = network(torch.load(folder / "shipped.pt", weights_only=True))
    assert ll.certify(shipped, rtol=1e-8).upper_bound <= BOUND * (1 + 1e-6)


def test_the_bounds_in_a_loss_with_margins_stay_alike(tmp_path):
    """Nothing is sent from rank to rank: the multipliers follow the weights, and these are the same."""
    names = ("margin", "margin, product")
    done = run(tmp_path, *names)
    for name in names:
        assert (tmp_path / name / "shipped.pt").exists(), done.stderr
        first, second = ranks(tmp_path / name)
        assert first == second
        assert [entry["margin_bound"] > 0 for entry in first["history"]] == [True, True]
        stored = [torch.load(path, weights_only=True) for path in (tmp_path / name).glob("*.ckpt")]
        assert all("bound" in file["callbacks"]["LipschitzMargin{'module': ''}"] for file in stored)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [("uncertifiable", "cannot be certified"), ("no certificate", "no solver on rank 0")],
)
def test_an_error_ends_the_run_in_its_own_words(scenario, message, tmp_path):
    done = run(tmp_path, scenario)
    assert done.returncode != 0
    assert message in done.stderr
    told = [facts["error"] for facts in ranks(tmp_path / scenario)]
    assert told  # a launcher that hears of one rank's error ends the others
    assert all(message in error for error in told)
