"""CLIPMixin where no process holds the whole weights (FSDP2 on the CPU): the weights are those of the same loop."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.mixins.test_ddp import RANKS, ROOT, SEED, by_hand


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    settings = {"OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": str(SEED)}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.mixins.fsdp_run", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


def test_weights_are_those_of_a_hand_written_loop(sharded):
    """Gathered, as every rank saw them."""
    expected, plain = by_hand(), by_hand(weight=0.0)
    for rank in range(RANKS):
        found = torch.load(sharded / f"rank{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0.0, atol=2e-6)
    assert max((plain[name] - value).abs().max() for name, value in expected.items()) > 1e-3


def test_weights_are_sharded_and_ranks_agree(sharded):
    first, second = (json.loads((sharded / f"rank{rank}.json").read_text()) for rank in range(RANKS))
    assert first["kinds"] == second["kinds"] == ["DTensor"]
    clip = [{k: v for k, v in facts["logged"].items() if k.startswith("clip/")} for facts in (first, second)]
    assert clip[0] == clip[1]
    assert clip[0]["clip/lower_bound"] > 0.0
