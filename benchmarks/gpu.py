"""On a GPU: large networks, the same weights certified there and on the CPU, a projection, training under a bound.

Needs neither cvxpy nor data. Without a GPU, `--write` writes down that it was not run.
"""

from __future__ import annotations

import logging
import time
import warnings

import pytorch_lightning as pl
import torch
from common import RESULTS, machine, markdown, parser, publish, random_weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lipschitz import LipschitzADMM, LipschitzBarrier, certify, project

CASES = {
    "784-600-400-200-10": (784, 600, 400, 200, 10),
    "784-(1024 x 4)-10": (784, 1024, 1024, 1024, 1024, 10),
    "64-(100 x 100)-10": (64, *[100] * 100, 10),
}


def on(device: str, weights) -> tuple:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    found = certify(weights, device=device, time_limit=540.0)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    gap = "-" if found.relative_gap is None else f"{found.relative_gap:.1e}"
    return found, (
        device,
        found.method,
        f"{found.upper_bound:.8f}",
        gap,
        f"{seconds:.2f}",
        f"{peak:.2f}",
        found.status.name,
    )


def projected(device: str) -> tuple:
    """784-50-10 to half its bound, in place, where the weights are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10)).to(device)
    inputs = torch.zeros(2, 784, device=device)
    half = certify(model, inputs).upper_bound / 2
    start = time.perf_counter()
    found = project(model, half, inputs)
    seconds = time.perf_counter() - start
    return f"project 784-50-10 to {half:.4f}", model[0].weight.device.type, f"{found.upper_bound:.8f}", f"{seconds:.2f}"


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(196, 50), nn.ReLU(), nn.Linear(50, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def constrained(callback: pl.Callback | None, device: str) -> tuple:
    """Two epochs of 300 steps on random images, 196-50-10."""
    pl.seed_everything(0, verbose=False)
    images = TensorDataset(torch.rand(30_000, 196), torch.randint(10, (30_000,)))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callbacks = [] if callback is None else [callback]
    accelerator = "gpu" if device == "cuda" else "cpu"
    trainer = pl.Trainer(
        max_epochs=2, accelerator=accelerator, devices=1, callbacks=callbacks, enable_model_summary=False, **quiet
    )
    module = Classifier()
    start = time.perf_counter()
    trainer.fit(module, DataLoader(images, 100))
    seconds = time.perf_counter() - start
    bound = certify(module.net, torch.zeros(2, 196, device=module.device)).upper_bound
    name = "plain" if callback is None else type(callback).__name__
    return f"train 196-50-10, {name}", device, f"{bound:.8f}", f"{seconds:.2f}"


def certified(quick: bool) -> str:
    rows = []
    for name, sizes in list(CASES.items())[: 1 if quick else None]:
        weights = random_weights(sizes)
        rows.append((name, *on("cuda", weights)[1]))
        if name == "784-600-400-200-10":
            rows.append((name, *on("cpu", weights)[1]))
    header = ("network", "device", "method", "bound", "relative gap", "seconds", "GPU peak GiB", "status")
    return markdown("GPU", header, rows)


def controlled() -> str:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rows = [projected(device) for device in ("cuda", "cpu")]
    for make in (lambda: None, lambda: LipschitzADMM(2.0), lambda: LipschitzBarrier(2.0)):
        rows += [constrained(make(), device) for device in ("cuda", "cpu")]
    return markdown("GPU: projection, training under L <= 2", ("job", "device", "bound", "seconds"), rows)


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    if not torch.cuda.is_available():
        if options.write:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "gpu.md").write_text(f"# GPU\n\nNot run: no GPU was at hand. Machine: {machine()}.\n")
        raise SystemExit("no CUDA device here: benchmarks/gpu.py was not run.")
    certify(random_weights((16, 50, 50, 4)), device="cuda")  # starts the device
    publish("gpu", "\n".join([certified(options.quick), controlled()]), options.write)


if __name__ == "__main__":
    main()
