"""The trusted part: what a bound claims, and the proof of it in floating point. NumPy and SciPy only."""

from lightning_lipschitz.certificate.certificate import Certificate, Status
from lightning_lipschitz.certificate.proofs import Multipliers, Norms, Proof, Split
from lightning_lipschitz.certificate.verify import prove, strengthen

__all__ = ["Certificate", "Multipliers", "Norms", "Proof", "Split", "Status", "prove", "strengthen"]
