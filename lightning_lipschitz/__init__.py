"""Lipschitz constants of PyTorch Lightning models: proved, watched and controlled while they train."""

from typing import TYPE_CHECKING, Any

from lightning_lipschitz.api import certify, lower_bound, verify
from lightning_lipschitz.bounds.lower import LowerBound
from lightning_lipschitz.certificate import Certificate, Status
from lightning_lipschitz.differentiable import DifferentiableBound
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.pairwise import PairwiseBounds, pairwise_bounds
from lightning_lipschitz.training import project

if TYPE_CHECKING:
    from lightning_lipschitz.callbacks import (
        LipschitzADMM,
        LipschitzBarrier,
        LipschitzCallback,
        LipschitzMargin,
        LipschitzScale,
    )
    from lightning_lipschitz.metrics import CertifiedAccuracy, CertifiedRadius, LipschitzLowerBound
    from lightning_lipschitz.mixins import ClipConfig, CLIPMixin

__version__ = "0.1.0"

__all__ = [
    "CLIPMixin",
    "Certificate",
    "CertifiedAccuracy",
    "CertifiedRadius",
    "ClipConfig",
    "DifferentiableBound",
    "LipschitzADMM",
    "LipschitzBarrier",
    "LipschitzCallback",
    "LipschitzError",
    "LipschitzLowerBound",
    "LipschitzMargin",
    "LipschitzScale",
    "LowerBound",
    "PairwiseBounds",
    "Status",
    "certify",
    "lower_bound",
    "pairwise_bounds",
    "project",
    "verify",
]


def __dir__() -> list[str]:
    """Also the names that are imported when they are first used, for completion."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Names of callbacks, metrics and mixins are imported when first used: certifying weights needs no Lightning."""
    if name in __all__:
        from lightning_lipschitz import callbacks, metrics, mixins

        room = next(room for room in (callbacks, metrics, mixins) if name in room.__all__)
        return getattr(room, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
