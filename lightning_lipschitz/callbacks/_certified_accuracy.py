"""Certified accuracy on the validation set, of the weights that were just certified, beside the user's own metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_lipschitz._lightning import LightningModule, Trainer, rank_zero_warn
from lightning_lipschitz.callbacks._saved_weights import as_saved, bounded_names, saved_model
from lightning_lipschitz.callbacks._submodule import Submodule
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.functional.robustness import margins
from lightning_lipschitz.metrics import CertifiedAccuracy
from lightning_lipschitz.pairwise import PairwiseBounds
from lightning_lipschitz.report import PredictionLog, Predictions, predict


class ValidationAccuracy:
    """One validation run after the other, on every rank.

    The certified module is run once more on ``batch[0]``, in evaluation mode, in its own precision and without
    autocast: user code, its random numbers and its flags do not notice.

    Args:
        radii: l2 distances in the units of the module's input.
        keep: whether to keep the predictions of the last run, those of this process, for a report.
    """

    def __init__(self, radii: Sequence[float], keep: bool = False) -> None:
        self._radii, self.keeps = tuple(radii), keep
        self._metrics: dict[float, CertifiedAccuracy] = {}
        self._kept: PredictionLog | None = None
        self.predictions: Predictions | None = None
        self.trouble: str | None = None
        self._active = False
        self._certified: list[float] = []
        self._digest = ""
        self._root: nn.Module | None = None
        self._certified_part: nn.Module | None = None

    def start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        certificate: Certificate | None,
        pairs: PairwiseBounds | None = None,
    ) -> None:
        """Begin a validation, with the certificate of the weights as they are, or None where there is none of them.

        Args:
            trainer: that validates.
            pl_module: its module.
            certificate: of the map to all outputs.
            pairs: of the differences of two outputs, where they were bounded.
        """
        self._stop()
        if certificate is not None and (self._radii or self.keeps) and self.trouble is None:
            self._certified = _fingerprint(saved_model(trainer, pl_module), bounded_names(trainer))
            same = pairs is not None and pairs.network_digest == certificate.network_digest
            bounds = pairs if same else certificate
            self._metrics = {radius: CertifiedAccuracy(radius, bounds) for radius in self._radii}
            self._kept, self._digest = PredictionLog() if self.keeps else None, certificate.network_digest
            self._active = True

    def _stop(self) -> None:
        self._metrics, self._root, self._kept, self._active = {}, None, None, False
        self._certified_part = None

    def see(self, trainer: Trainer, pl_module: LightningModule, batch: Any, submodule: Submodule) -> None:
        """Count a batch ``(x, y)``. What cannot be read that way is warned of, once, and counted as nothing.

        Args:
            submodule: finds the certified part in a model.
        """
        if not self._active:
            return
        try:
            x, y = _pair(batch)
            if self._root is None or self._certified_part is None:
                self._root = self._find_root(trainer, pl_module)
                self._certified_part = submodule.part(self._root)[0]
            with as_saved(trainer, self._root):
                logits = predict(self._certified_part, x)
            for metric in self._metrics.values():
                metric.update(logits, y)
            if self._kept is not None:
                margins(logits, y)  # raises where this is no classification, now and not when the fit is over
                self._kept.add(logits, y)
        except Exception as error:  # a training run is worth more than a metric
            self._stop()
            self.trouble = f"{type(error).__name__}: {error}"
            if self._radii:
                self._warn()

    def _warn(self) -> None:
        rank_zero_warn(
            "`LipschitzCallback(certified_radii=...)` logs no certified accuracy in this fit. It takes validation"
            " batches `(x, y)`, where the certified module maps x to logits, shape (batch, classes), and y holds"
            f" class numbers, shape (batch,). {self.trouble}"
        )

    def _find_root(self, trainer: Trainer, pl_module: LightningModule) -> nn.Module:
        """The model that holds the certified weights: averages are swapped into the live model while it validates."""
        names = bounded_names(trainer)
        for root in (pl_module, saved_model(trainer, pl_module)):
            if _fingerprint(root, names) == self._certified:
                return root
        raise RuntimeError("the weights have changed since they were certified.")

    def log(self, pl_module: LightningModule, prefix: str) -> None:
        """Log ``<prefix>/certified_accuracy_<radius>`` after the batches, all ranks weighted by their inputs."""
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
        if self._kept is not None:
            self.predictions = self._kept.predictions("validation inputs", self._digest)
        self._stop()


def _fingerprint(root: nn.Module, without: frozenset[str]) -> list[float]:
    """Tells apart live weights and their average; two numbers a tensor. What is held to a bound is the same in both."""
    named = (*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False))
    tensors = [value.detach() for name, value in named if name not in without and value.is_floating_point()]
    return [float(part) for value in tensors for part in (value.sum(), value.abs().sum())]


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    raise TypeError(f"a batch is a {type(batch).__name__}.")
