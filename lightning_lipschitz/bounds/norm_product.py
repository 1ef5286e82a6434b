"""Product of spectral norms (sums along parallel paths): the bound every other one must beat.

Szegedy et al., "Intriguing properties of neural networks", ICLR 2014, section 4.3.
"""

from __future__ import annotations

from lightning_lipschitz.certificate.proofs import Norms
from lightning_lipschitz.certificate.spectral import norm_upper_bound
from lightning_lipschitz.certificate.verify import SIGNING_MARGIN
from lightning_lipschitz.network import Network


def propose(network: Network) -> Norms:
    """A proved upper bound of the spectral norm of every matrix; one symmetric eigenvalue problem each, on its smaller
    side.
    """
    return Norms(
        tuple(
            tuple(norm_upper_bound(term.matrix, term.rounding, SIGNING_MARGIN) for term in affine.terms)
            for affine in network.affines
        )
    )
