"""Certified radii against attacks: no attack may succeed closer than the radius says.

    python benchmarks/attacks.py --data-dir DATA --write    # MNIST's 10,000 test images and scikit-learn's digits
    python benchmarks/attacks.py                            # digits only

Every input is attacked, whether it is classified right or wrong: the radius is that of the class the model predicts.
DeepFool looks for the nearest change of class, anywhere; projected gradient looks for one within the certified radius.
Attacks run in float64, so that what they find is not rounding.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch
from common import markdown, parser, publish
from torch import Tensor, nn

import lightning_lipschitz as ll
from lightning_lipschitz.demo.data import Digits, load_digits
from lightning_lipschitz.demo.model import Classifier
from lightning_lipschitz.functional import certified_radius

TIME_LIMIT = 30.0
OVERSHOOT, DEEPFOOL_STEPS, PGD_STEPS, BISECTIONS = 0.02, 25, 20, 20


@dataclass(frozen=True)
class Case:
    data: Digits
    sizes: tuple[int, ...]
    epochs: int
    max_lipschitz: float | None
    inputs: Tensor


def logits_and_jacobian(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes (batch, classes) and (batch, classes, inputs)."""
    x = x.detach().requires_grad_()
    logits = model(x)
    rows = [torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for k in range(logits.shape[1])]
    return logits.detach(), torch.stack(rows, dim=1)


def deepfool(model: nn.Module, x: Tensor) -> Tensor:
    """Distance of the nearest change of class that is found, infinity where there is none, shape (batch,).

    Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016: step onto the nearest class boundary of the linearised model until the
    class changes. Unlike there: the way back to x is bisected in the end, which only brings the attack nearer.
    """
    start, moved = model(x).argmax(1), x.clone()
    for _ in range(DEEPFOOL_STEPS):
        logits, jacobian = logits_and_jacobian(model, moved)
        open_ = logits.argmax(1) == start
        if not open_.any():
            break
        own = torch.arange(len(x)), start
        normal = jacobian - jacobian[own][:, None]
        gap = logits[own][:, None] - logits
        distance = (gap / normal.norm(dim=2).clamp_min(1e-300)).scatter(1, start[:, None], torch.inf)
        nearest = torch.arange(len(x)), distance.argmin(1)
        w = normal[nearest]
        step = (gap[nearest] + 1e-9)[:, None] / (w**2).sum(1, keepdim=True).clamp_min(1e-300) * w
        moved = torch.where(open_[:, None], moved + (1.0 + OVERSHOOT) * step, moved)
    changed = model(moved).argmax(1) != start
    low, high = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        other = (model(x + middle * (moved - x)).argmax(1) != start)[:, None]
        low, high = torch.where(other, low, middle), torch.where(other, middle, high)
    distance = (high * (moved - x)).norm(dim=1)
    return torch.where(changed, distance, torch.inf)


def projected_gradient(model: nn.Module, x: Tensor, radius: Tensor) -> Tensor:
    """Whether an input within ``radius`` has another class, shape (batch,). Not kept in [0, 1]: the bound is global.

    Madry et al., ICLR 2018, in l2, on the margin to the runner-up, from a random start.
    """
    start = model(x).argmax(1)
    radius, inside = radius[:, None] * (1.0 - 1e-12), torch.zeros(len(x), dtype=torch.bool)
    change = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    change = radius * change / change.norm(dim=1, keepdim=True)
    for _ in range(PGD_STEPS):
        change.requires_grad_()
        logits = model(x + change)
        own = logits.gather(1, start[:, None])
        others = logits.scatter(1, start[:, None], -torch.inf).amax(1, keepdim=True)
        inside |= (logits.argmax(1) != start) & (radius[:, 0] > 0)
        (gradient,) = torch.autograd.grad((others - own).sum(), change)
        change = change.detach() + 0.25 * radius * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-300)
        change = change * (radius / change.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp(max=1.0)
    return inside | ((model(x + change).argmax(1) != start) & (radius[:, 0] > 0))


def train(case: Case) -> nn.Module:
    pl.seed_everything(0, verbose=False)
    model = Classifier(case.sizes)
    callbacks = [] if case.max_lipschitz is None else [ll.LipschitzADMM(max_lipschitz=case.max_lipschitz)]
    trainer = pl.Trainer(
        max_epochs=case.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(model, case.data.loaders(100)[0])
    return model.net.eval().double()


def row(case: Case) -> list[str]:
    model = train(case)
    start = time.perf_counter()
    bounds = ll.pairwise_bounds(model, case.inputs[:2].double(), time_limit=TIME_LIMIT)
    seconds = time.perf_counter() - start
    x = case.inputs.double()
    with torch.no_grad():
        logits = model(x)
    single = certified_radius(logits, bounds.whole.upper_bound)
    pairs = certified_radius(logits, torch.tensor(bounds.matrix))
    batches = list(zip(x.split(500), pairs.split(500), strict=True))
    distance = torch.cat([deepfool(model, each) for each, _ in batches]).detach()
    inside = torch.cat([projected_gradient(model, each, radius) for each, radius in batches])
    violations = int(((distance < pairs) | inside).sum())
    upper = bounds.matrix[np.triu_indices(len(bounds.matrix), 1)]
    smaller = int((pairs < single * (1.0 - 1e-12)).sum())
    print(f"  {case.data.name} {case.sizes} {case.max_lipschitz}: {violations} violations", flush=True)
    return [
        f"{case.data.name} {'-'.join(map(str, case.sizes))}",
        "none" if case.max_lipschitz is None else f"{case.max_lipschitz:g}",
        str(len(x)),
        f"**{violations}**",
        f"{float((distance / pairs)[pairs > 0].min()):.4f}",
        f"{float(distance.median()):.3f}",
        f"{float(pairs.median()):.3f}",
        f"{float(single.median()):.3f}",
        str(smaller),
        f"{bounds.whole.upper_bound:.2f}",
        f"{float(upper.mean()) / (2**0.5 * bounds.whole.upper_bound):.2f}",
        f"{bounds.refined} of {len(upper)}, {seconds:.1f}",
    ]


HEADER = [
    "model",
    "trained with a bound of",
    "attacked inputs",
    "attacks inside the certified radius",
    "least DeepFool distance / radius",
    "median DeepFool distance",
    "median radius, pairwise",
    "median radius, one constant",
    "pairwise below one constant",
    "certified L",
    "mean L_ij / (sqrt(2) L)",
    "pairs refined, seconds",
]


def cases(chosen: argparse.Namespace) -> list[Case]:
    digits = load_digits()
    every = torch.cat([digits.train[0], digits.test[0]])
    made = [Case(digits, (64, 64, 64, 10), 20, bound, every) for bound in (None, 5.0)]
    if chosen.data_dir and not chosen.quick:
        mnist = load_digits(chosen.data_dir)
        made += [Case(mnist, (784, 128, 64, 10), 3, bound, mnist.test[0]) for bound in (None, 5.0)]
    return made


def main() -> None:
    chosen = parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    note = (
        f"ReLU networks, Adam, batch 100. DeepFool: {DEEPFOOL_STEPS} steps and {BISECTIONS} bisections; projected"
        f" gradient: {PGD_STEPS} steps within the pairwise radius. `pairwise_bounds(time_limit={TIME_LIMIT:g})`."
    )
    publish(
        "attacks",
        markdown("Attacks against certified radii", HEADER, [row(c) for c in cases(chosen)], note),
        chosen.write,
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
