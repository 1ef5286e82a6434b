"""Large networks on a GPU, and the same weights certified on CPU and GPU; needs no cvxpy."""

from __future__ import annotations

import time

import torch
from common import markdown, parser, publish, random_weights

from lightning_lipschitz import certify

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


def main() -> None:
    options = parser(__doc__).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: benchmarks/gpu.py was not run.")
    certify(random_weights((16, 50, 50, 4)), device="cuda")  # starts the device
    rows = []
    for name, sizes in list(CASES.items())[: 1 if options.quick else None]:
        weights = random_weights(sizes)
        rows.append((name, *on("cuda", weights)[1]))
        if name == "784-600-400-200-10":
            rows.append((name, *on("cpu", weights)[1]))
    header = ("network", "device", "method", "bound", "relative gap", "seconds", "GPU peak GiB", "status")
    publish("gpu", markdown("GPU", header, rows), options.write)


if __name__ == "__main__":
    main()
