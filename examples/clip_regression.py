"""A curve through noisy points, with and without CLIP: the regression example of Bungert et al. (SSVM 2021).

    python examples/clip_regression.py [--out clip_regression.png]

The same network is fitted twice. Plain training follows the noise; `CLIPMixin` holds its slopes down. Printed for each:
the mean squared error from the true function, the steepest slope found (a lower bound of the Lipschitz constant), and a
certified upper bound of it.
"""

import argparse
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll

POINTS, NOISE = 40, 0.15
STEPS = 100  # an epoch


def truth(x: Tensor) -> Tensor:
    return 0.5 * torch.sin(2 * x) + 0.2 * x


def noisy_points(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Shape (points, 1) each, on [-2, 2]."""
    generator = torch.Generator().manual_seed(seed)
    x = 4.0 * torch.rand(POINTS, 1, generator=generator) - 2.0
    return x, truth(x) + NOISE * torch.randn(x.shape, generator=generator)


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Clipped(ll.CLIPMixin, Regression, clip_weight=0.01):
    """The same, and nothing else. The weight is in units of the loss, a squared error here."""


@dataclass(frozen=True)
class Fit:
    """What came out of one training."""

    name: str
    curve: Tensor
    error: float
    lower: float
    upper: float


def fitted(kind: type[Regression], name: str, grid: Tensor, epochs: int) -> Fit:
    pl.seed_everything(0, verbose=False)
    model = kind()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    steps = TensorDataset(*(part.repeat(STEPS, 1) for part in noisy_points()))  # all points in every batch
    trainer.fit(model, DataLoader(steps, batch_size=POINTS))
    with torch.no_grad():
        curve = model(grid)
    error = float((curve - truth(grid)).square().mean())
    lower = ll.lower_bound(model.net, grid, steps=20).value
    return Fit(name, curve, error, lower, ll.certify(model.net, grid[:2]).upper_bound)


def figure(fits: list[Fit], grid: Tensor, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(*(np.asarray(part) for part in noisy_points()), "o", color="0.6", markersize=4, label="noisy points")
    axes.plot(grid, truth(grid), "k--", linewidth=1, label="true function")
    for fit in fits:
        axes.plot(grid, fit.curve, label=f"{fit.name}: slope {fit.lower:.2g} found, {fit.upper:.3g} certified")
    axes.set(xlabel="x", ylabel="f(x)", ylim=(-1.4, 1.8))
    axes.legend(loc="upper left", fontsize=8)
    drawn.savefig(path, dpi=120)
    pyplot.close(drawn)


def main(out: Path, epochs: int = 10) -> list[Fit]:
    grid = torch.linspace(-2.0, 2.0, 401)[:, None]
    fits = [fitted(Regression, "plain", grid, epochs), fitted(Clipped, "CLIP", grid, epochs)]
    for fit in fits:
        print(f"{fit.name:6} error {fit.error:.4f}  slope >= {fit.lower:6.2f}  Lipschitz constant <= {fit.upper:6.2f}")
    figure(fits, grid, out)
    print(f"figure: {out}")
    return fits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("clip_regression.png"))
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    main(parser.parse_args().out)
