"""The one signer: it proves a bound and makes the certificate of it; and it tells a proved bound from a mere claim."""

from __future__ import annotations

import math

from lightning_lipschitz.certificate.certificate import Certificate
from lightning_lipschitz.certificate.composition import prove_composition
from lightning_lipschitz.certificate.proofs import AnyProof, Composition, Proposal
from lightning_lipschitz.certificate.verify import prove
from lightning_lipschitz.errors import CertificateError
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Network


def sign(subject: Network | Graph, proposal: Proposal, margin: float = 1.0) -> Certificate | None:
    """The certificate of the bound that a proposal's proof proves of ``subject``; None where it proves no finite one.

    No other code makes a certified certificate. Of the proposal, the proof is checked; the rest says how it was found
    and is copied.

    Args:
        subject: as given by the user or the extraction, not reduced or rescaled.
        proposal: of any bound method.
        margin: factor on the allowance for rounding, at least 1.
    """
    bound = _proved(subject, proposal.proof, margin)
    if bound is None or not math.isfinite(bound):
        return None
    return Certificate(
        upper_bound=bound,
        certified=True,
        status=proposal.status,
        method=proposal.method,
        solver=proposal.solver,
        relative_gap=proposal.gap(bound),
        verification_loss=proposal.loss,
        seconds=0.0,
        network_digest=subject.digest,
        proof=proposal.proof,
        state=proposal.state,
    )


def reprove(certificate: Certificate, subject: Network | Graph) -> float:
    """Prove a certificate's bound again, of ``subject``; afterwards it is a claim no more.

    Returns:
        ``certificate.upper_bound``.

    Raises:
        CertificateError: it is not certified, belongs to another network, or its proof does not hold.
    """
    proof = proof_of(certificate)
    if subject.digest != certificate.network_digest:
        raise CertificateError(
            f"the certificate belongs to another network: its digest is {certificate.network_digest[:12]}..., "
            f"that of the model at hand {subject.digest[:12]}.... Certify this model."
        )
    bound = _proved(subject, proof, 1.0)
    if bound is None or not bound <= certificate.upper_bound:
        raise CertificateError(
            f"the proof of the bound {certificate.upper_bound!r} does not hold; the file may be damaged."
        )
    mark_proved(certificate)
    return certificate.upper_bound


def proof_of(certificate: Certificate) -> AnyProof:
    """The proof of a certified bound.

    Raises:
        CertificateError: it is not certified.
    """
    if not certificate.certified or certificate.proof is None:
        raise CertificateError(f"this result proves nothing: {certificate.status.value}")
    return certificate.proof


def _proved(subject: Network | Graph, proof: AnyProof, margin: float) -> float | None:
    """The bound that the proof proves of the network or the graph; None where it is none of it."""
    if isinstance(subject, Graph):
        return prove_composition(subject, proof, margin) if isinstance(proof, Composition) else None
    return None if isinstance(proof, Composition) else prove(subject, proof, margin)


def mark_proved(certificate: Certificate) -> None:
    """Whoever calls this has just proved the bound, here or in a process beside this one; it is no claim any more."""
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
