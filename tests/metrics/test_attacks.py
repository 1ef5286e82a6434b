"""Real digits: projected gradient descent inside the certified radius changes no prediction."""

import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.functional import certified_radius

pytest.importorskip("sklearn")


def test_no_attack_succeeds_inside_the_radius():
    from lightning_lipschitz.demo.data import load_digits

    x, y = (part[:400] for part in load_digits().train)
    x = x.double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    bounds = ll.pairwise_bounds(model, x[:2], refine=False)
    logits = model(x).detach()
    start, radius = logits.argmax(1), certified_radius(logits, torch.tensor(bounds.matrix))
    single = certified_radius(logits, bounds.whole.upper_bound)
    assert (radius >= single * (1 - 1e-12)).all()
    changed = {factor: attack(model, x, start, factor * radius[:, None]) for factor in (1.0, 8.0)}
    assert not changed[1.0].any()
    assert changed[8.0].float().mean() > 0.5  # the attack is one


def attack(model, x, start, radius):
    """l2 projected gradient on the margin to the runner-up (Madry et al. 2018)."""
    change = torch.zeros_like(x)
    for _ in range(30):
        change.requires_grad_()
        logits = model(x + change)
        margin = logits.gather(1, start[:, None]) - logits.scatter(1, start[:, None], -torch.inf).amax(1, keepdim=True)
        (gradient,) = torch.autograd.grad(margin.sum(), change)
        change = change.detach() - 0.3 * radius * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-300)
        change = change * (radius / change.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp(max=1.0) * (1 - 1e-12)
    return model(x + change).argmax(1) != start
