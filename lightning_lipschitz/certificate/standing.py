"""What a certificate is worth: a claim that was read from somewhere, or a bound that was proved here."""

from __future__ import annotations

from lightning_lipschitz.certificate.certificate import Certificate
from lightning_lipschitz.certificate.composition import prove_composition
from lightning_lipschitz.certificate.proofs import AnyProof, Composition
from lightning_lipschitz.certificate.verify import prove
from lightning_lipschitz.errors import CertificateError
from lightning_lipschitz.network import Network
from lightning_lipschitz.structured import Graph


def prove_any(network: Network | Graph, proof: AnyProof) -> float | None:
    """The bound that the proof proves of the network or the graph; None where it is none of it."""
    if isinstance(network, Graph):
        return prove_composition(network, proof) if isinstance(proof, Composition) else None
    return None if isinstance(proof, Composition) else prove(network, proof)


def mark_proved(certificate: Certificate) -> None:
    """Whoever calls this has just proved the bound; it is no claim any more."""
    object.__setattr__(certificate, "unverified", False)


def require_proved(certificate: Certificate, purpose: str) -> None:
    """Refuse what proves nothing, and what nobody has proved since it was read.

    Args:
        certificate: that is to be relied on.
        purpose: what would be said of it, as in "no certified radius comes from it".

    Raises:
        CertificateError: it is not certified, or ``unverified``.
    """
    if not certificate.certified:
        raise CertificateError(f"this result proves nothing and {purpose}: {certificate.status.value}")
    if certificate.unverified:
        raise CertificateError(
            f"this certificate was read from a file and nobody has proved it yet, so {purpose}:"
            " call `lightning_lipschitz.verify(certificate, model)` first."
        )
