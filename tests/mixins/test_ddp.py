"""CLIPMixin in two processes: the weights are those of a hand-written loop over both, and the ranks stay in step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lipschitz.functional import ascend, initial_pairs
from tests.mixins.ddp_run import BATCH, EPOCHS, SCENARIOS, WEIGHT, Classifier, PenaltyOnly
from tests.modules import loader

ROOT = Path(__file__).parents[2]
RANKS, SEED = 2, 3


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """All in one process group after another."""
    folder = tmp_path_factory.mktemp("forked")
    command = [sys.executable, "-m", "tests.mixins.ddp_run", str(folder), *SCENARIOS, "resume"]
    settings = {"OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": str(SEED)}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return folder, done


def ranks(forked, scenario):
    paths = sorted((forked[0] / scenario).glob("rank*.json"))
    assert len(paths) == RANKS, forked[1].stderr
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("scenario", [*SCENARIOS, "resume"])
def test_ranks_stay_in_step_and_have_pairs_of_their_own(scenario, forked):
    first, second = ranks(forked, scenario)
    assert first["steps"] == second["steps"]
    assert len(set(first["steps"])) > 2
    assert first["weight"] == second["weight"]
    assert first["pairs"] != second["pairs"]
    assert first["logged"] == second["logged"]
    assert {"clip/lower_bound", "clip/weight", "clip/penalty"} <= first["logged"].keys()


def test_the_lower_bound_is_the_largest_of_the_ranks(forked):
    first, second = ranks(forked, "plain")
    assert first["lower_bound"] != second["lower_bound"]
    assert first["logged"]["clip/lower_bound"] == max(first["lower_bound"], second["lower_bound"])


def shard(rank, epoch):
    """The batches that Lightning's sampler gives to one process."""
    data = loader(16).dataset
    sampler = DistributedSampler(data, RANKS, rank, seed=SEED)
    sampler.set_epoch(epoch)
    return list(DataLoader(data, BATCH, sampler=sampler))


def by_hand(accumulate=1, weight=WEIGHT):
    """Every rank has its own samples, its own pairs, and half of the gradient."""
    torch.manual_seed(1)
    module = Classifier()
    optimizer = module.configure_optimizers()
    generators = [torch.Generator().manual_seed(hash((0, 0, rank)) % 2**63) for rank in range(RANKS)]
    pairs = [initial_pairs(shard(rank, 0)[0][0], 64, generator=g) for rank, g in enumerate(generators)]
    for epoch in range(EPOCHS):
        for k, batches in enumerate(zip(*(shard(rank, epoch) for rank in range(RANKS)), strict=True)):
            for rank, batch in enumerate(batches):
                pairs[rank], _ = ascend(module.net, pairs[rank])
                u, v = pairs[rank].u, pairs[rank].v
                slope = ((module.net(u) - module.net(v)).norm(dim=1) / (u - v).norm(dim=1)).max()
                ((module._loss(batch) + weight * slope) / (RANKS * accumulate)).backward()
            if (k + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return module.state_dict()


@pytest.mark.parametrize("scenario", ["plain", "accumulate", "find unused", "static graph", "manual"])
def test_weights_are_those_of_a_hand_written_loop(scenario, forked):
    ranks(forked, scenario)
    shipped = torch.load(forked[0] / scenario / "shipped.pt", weights_only=True)
    expected = by_hand(2 if scenario == "accumulate" else 1)
    for name, value in expected.items():
        torch.testing.assert_close(shipped[name], value, rtol=0.0, atol=2e-6)


def test_parameters_that_only_the_penalty_reaches_are_trained(forked):
    ranks(forked, "penalty only")
    torch.manual_seed(1)
    start = PenaltyOnly().spare.state_dict()
    shipped = torch.load(forked[0] / "penalty only" / "shipped.pt", weights_only=True)
    assert any((shipped[f"spare.{name}"] - value).abs().max() > 1e-3 for name, value in start.items())


def test_the_schedule_goes_by_the_mean_of_the_ranks(forked):
    """0.9 and 0.3 are above 0.5 in the mean: it rises everywhere, at the end of both epochs."""
    assert [facts["weight"] for facts in ranks(forked, "scheduled")] == [WEIGHT * 2**EPOCHS] * RANKS
