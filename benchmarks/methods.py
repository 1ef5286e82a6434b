"""The methods under comparison, each as weights -> bound (None where it cannot run)."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lightning_lipschitz import certify
from lightning_lipschitz.errors import SolverError

Method = Callable[[Sequence[np.ndarray]], float | None]


def ours(**options: object) -> Method:
    def bound(weights: Sequence[np.ndarray]) -> float | None:
        try:
            return certify(list(weights), **options).upper_bound
        except SolverError:
            return None

    return bound


def eclipse(name: str) -> Method:
    """The package eclipse-nn (ECLipsE of NeurIPS 2024); its number as it gives it, not verified."""

    def bound(weights: Sequence[np.ndarray]) -> float | None:
        from eclipse_nn.LipConstEstimator import LipConstEstimator

        tensors = [torch.tensor(w, dtype=torch.float64) for w in weights]
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            value = LipConstEstimator(weights=tensors).estimate(name)
        return None if value is None else float(value)

    return bound


METHODS: dict[str, Method] = {
    "native": ours(method="lipsdp-neuron", solver="native"),
    "native, layer": ours(method="lipsdp-layer", solver="native"),
    "Clarabel": ours(method="lipsdp-neuron", solver="clarabel"),
    "SCS": ours(method="lipsdp-neuron", solver="scs"),
    "eclipse-nn": eclipse("ECLipsE"),
    "eclipse-nn fast": eclipse("ECLipsE_Fast"),
    "closed form": ours(method="closed-form"),
    "norm product": ours(method="norm-product"),
}
