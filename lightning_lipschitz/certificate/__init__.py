"""The trusted part: what a bound claims, and the proof of it in floating point. NumPy and SciPy only."""

from lightning_lipschitz.certificate.certificate import Certificate
from lightning_lipschitz.certificate.composition import prove_composition
from lightning_lipschitz.certificate.proofs import AnyProof, Composition, Multipliers, Norms, Proof, Split
from lightning_lipschitz.certificate.scalars import Status
from lightning_lipschitz.certificate.standing import mark_proved, prove_any, require_proved
from lightning_lipschitz.certificate.verify import prove, strengthen

__all__ = [
    "AnyProof",
    "Certificate",
    "Composition",
    "Multipliers",
    "Norms",
    "Proof",
    "Split",
    "Status",
    "mark_proved",
    "prove",
    "prove_any",
    "prove_composition",
    "require_proved",
    "strengthen",
]
