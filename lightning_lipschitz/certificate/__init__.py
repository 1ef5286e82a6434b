"""The trusted part: what a bound claims, and the proof of it in floating point. NumPy and SciPy only."""

from lightning_lipschitz.certificate.certificate import Certificate
from lightning_lipschitz.certificate.composition import prove_composition
from lightning_lipschitz.certificate.proofs import AnyProof, Composition, Multipliers, Norms, Proof, Proposal, Split
from lightning_lipschitz.certificate.scalars import Status
from lightning_lipschitz.certificate.signer import mark_proved, proof_of, reprove, require_proved, sign
from lightning_lipschitz.certificate.verify import SIGNING_MARGIN, prove, strengthen

__all__ = [
    "SIGNING_MARGIN",
    "AnyProof",
    "Certificate",
    "Composition",
    "Multipliers",
    "Norms",
    "Proof",
    "Proposal",
    "Split",
    "Status",
    "mark_proved",
    "proof_of",
    "prove",
    "prove_composition",
    "reprove",
    "require_proved",
    "sign",
    "strengthen",
]
