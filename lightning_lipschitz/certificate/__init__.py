"""The trusted part: what a bound claims, and the proof of it in floating point. NumPy and SciPy only."""

from lightning_lipschitz.certificate.certificate import Certificate
from lightning_lipschitz.certificate.composition import prove_composition
from lightning_lipschitz.certificate.proofs import AnyProof, Composition, Multipliers, Norms, Proof, Split
from lightning_lipschitz.certificate.scalars import Status
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
    "prove",
    "prove_composition",
    "strengthen",
]
