"""Certified accuracy on the validation set, of the weights that were just certified, beside the user's own metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_lipschitz._lightning import LightningModule, Trainer, isolate_rng, rank_zero_warn
from lightning_lipschitz.callbacks._target import deployed, find_target, uncompiled
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.extraction.undisturbed import undisturbed
from lightning_lipschitz.metrics import CertifiedAccuracy


class ValidationAccuracy:
    """One validation run after the other, on every rank.

    The certified module is run once more on ``batch[0]``, in evaluation mode, in its own precision and without
    autocast: user code, its random numbers and its flags do not notice.

    Args:
        radii: l2 distances in the units of the module's input.
        module: the callback's.
    """

    def __init__(self, radii: Sequence[float], module: str) -> None:
        self._radii, self._module = tuple(radii), module
        self._metrics: dict[float, CertifiedAccuracy] = {}
        self._trouble = False
        self._certified: list[float] = []
        self._target: nn.Module | None = None

    def start(self, trainer: Trainer, pl_module: LightningModule, certificate: Certificate | None) -> None:
        """Before the batches: the constant of the weights as they are, or None where there is none of them."""
        self._metrics, self._target = {}, None
        if certificate is not None and self._radii and not self._trouble:
            self._certified = _fingerprint(deployed(trainer, pl_module))
            self._metrics = {radius: CertifiedAccuracy(radius, certificate) for radius in self._radii}

    def see(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """A batch ``(x, y)``. What cannot be read that way is warned of, once, and counted as nothing."""
        if not self._metrics:
            return
        try:
            x, y = _pair(batch)
            if self._target is None:
                self._target = uncompiled(find_target(self._root(trainer, pl_module), self._module))
            logits = _logits(self._target, x)
            for metric in self._metrics.values():
                metric.update(logits, y)
        except Exception as error:  # a training run is worth more than a metric
            self._metrics, self._trouble = {}, True
            rank_zero_warn(
                "`LipschitzCallback(certified_radii=...)` logs no certified accuracy in this fit. It takes validation"
                " batches `(x, y)`, where the certified module maps x to logits, shape (batch, classes), and y holds"
                f" class numbers, shape (batch,). {type(error).__name__}: {error}"
            )

    def _root(self, trainer: Trainer, pl_module: LightningModule) -> nn.Module:
        """The model that holds the certified weights: averages are swapped into the live model while it validates."""
        for root in (pl_module, deployed(trainer, pl_module)):
            if _fingerprint(root) == self._certified:
                return root
        raise RuntimeError("the weights have changed since they were certified.")

    def log(self, pl_module: LightningModule, prefix: str) -> None:
        """After the batches: ``<prefix>/certified_accuracy_<radius>``, all ranks weighted by their inputs."""
        for radius, metric in self._metrics.items():
            total = int(metric.total)
            if total:
                pl_module.log(
                    f"{prefix}/certified_accuracy_{radius:g}",
                    metric.compute().to(pl_module.device),
                    on_step=False,
                    on_epoch=True,
                    sync_dist=True,
                    add_dataloader_idx=False,
                    batch_size=total,
                )
        self._metrics, self._target = {}, None


def _fingerprint(root: nn.Module) -> list[float]:
    """Tells apart live weights and their average; two numbers a tensor."""
    tensors = [value.detach() for value in (*root.parameters(), *root.buffers()) if value.is_floating_point()]
    return [float(part) for value in tensors for part in (value.sum(), value.abs().sum())]


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    raise TypeError(f"a batch is a {type(batch).__name__}.")


def _logits(module: nn.Module, x: Tensor) -> Tensor:
    with isolate_rng(include_cuda=x.is_cuda), undisturbed(module):
        parameter = next((p for p in module.parameters() if p.is_floating_point()), x)
        logits = module(x.to(parameter.dtype) if x.is_floating_point() else x)
    if not isinstance(logits, Tensor) or logits.ndim > 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"the output is {found}.")
    return logits
