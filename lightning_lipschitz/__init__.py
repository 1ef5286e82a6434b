"""Lipschitz constants of PyTorch Lightning models: proved, watched and controlled while they train."""

from typing import TYPE_CHECKING, Any

from lightning_lipschitz.api import certify, lower_bound, verify
from lightning_lipschitz.bounds.lower import LowerBound
from lightning_lipschitz.certificate import Certificate, Status
from lightning_lipschitz.projection import project

if TYPE_CHECKING:
    from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzBarrier, LipschitzCallback
    from lightning_lipschitz.mixins import ClipConfig, CLIPMixin

__version__ = "0.1.0"

__all__ = [
    "CLIPMixin",
    "Certificate",
    "ClipConfig",
    "LipschitzADMM",
    "LipschitzBarrier",
    "LipschitzCallback",
    "LowerBound",
    "Status",
    "certify",
    "lower_bound",
    "project",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Names that need Lightning are imported when they are first used: certifying weights does not wait for it."""
    if name in __all__:
        from lightning_lipschitz import callbacks, mixins

        return getattr(mixins if name in mixins.__all__ else callbacks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
