"""What the benchmarks share: networks, timing, tables, the machine's name."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import scipy.io
import torch
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn

from lightning_lipschitz.demo.data import Digits, load_digits
from lightning_lipschitz.graph.network import Network

RESULTS = Path(__file__).parent / "results"


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument(
        "--data-dir", default=os.environ.get("LIGHTNING_LIPSCHITZ_DATA"), help="folder with mnist/ and lipsdp/"
    )
    made.add_argument("--write", action="store_true", help="write the table to results/")
    made.add_argument("--quick", action="store_true", help="small cases only")
    return made


def machine() -> str:
    """Processor, cores, memory, GPU and versions, without a host name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy"))
    hardware = f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"
    return f"{hardware}; Python {platform.python_version()}, {versions}"


def command() -> str:
    """How the script was called, the data folder left open."""
    arguments = sys.argv[1:]
    for k, argument in enumerate(arguments[:-1]):
        if argument == "--data-dir":
            arguments[k + 1] = "DATA"
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def markdown(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> str:
    lines = [f"# {title}", "", f"Machine: {machine()}.", f"Command: `{command()}`.", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([*lines, "", note, ""] if note else [*lines, ""])


def publish(name: str, text: str, write: bool) -> None:
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text)


def timed(function: Callable[[], object], repeats: int = 3) -> tuple[object, float]:
    """The last result and the median seconds of a call."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def quiet_trainer(epochs: int, *callbacks: pl.Callback, logger: Logger | bool = False) -> pl.Trainer:
    """On the CPU, without files and bars; by default without a logger."""
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent."""
    return 100.0 * float((model.eval()(x).argmax(1) == y).float().mean())


def random_weights(sizes: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Entries N(0, 1 / fan-in)."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(after, before)) / np.sqrt(before) for before, after in pairwise(sizes)]


def lipsdp_weights(data_dir: str | None, name: str) -> list[np.ndarray] | None:
    path = Path(data_dir or "none") / "lipsdp" / f"{name}_weights.mat"
    return [np.asarray(w, dtype=float) for w in scipy.io.loadmat(path)["weights"].ravel()] if path.exists() else None


def trained(
    data: Digits, hidden: Sequence[int], activation: type[nn.Module], epochs: int, seed: int = 0
) -> list[np.ndarray]:
    """Weights of a classifier after plain training with Adam."""
    torch.manual_seed(seed)
    sizes = [data.train[0].shape[1], *hidden, 10]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader, _ = data.loaders(100)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return [layer.weight.detach().double().numpy() for layer in model if isinstance(layer, nn.Linear)]


def digits(data_dir: str | None) -> Digits:
    return load_digits(data_dir if data_dir and (Path(data_dir) / "mnist").exists() else None)


def network(weights: Sequence[np.ndarray], slopes: tuple[float, float] = (0.0, 1.0)) -> Network:
    return Network.from_weights(weights, slopes=slopes)
