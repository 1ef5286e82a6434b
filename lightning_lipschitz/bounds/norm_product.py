"""Product of spectral norms (sums along parallel paths): the bound every other one must beat.

Szegedy et al., "Intriguing properties of neural networks", ICLR 2014, section 4.3.
"""

from __future__ import annotations

from lightning_lipschitz.bounds import cost
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.certificate import SIGNING_MARGIN, Norms, Proposal, Status
from lightning_lipschitz.certificate.spectral import cheap_norm_upper_bound, norm_upper_bound
from lightning_lipschitz.graph.network import Network


def propose(network: Network, clock: Clock | None = None) -> Proposal:
    """A proved upper bound of the spectral norm of every matrix; one symmetric eigenvalue problem each, on its smaller
    side.

    As far as there is time for them and their proofs, the cheapest first: the other norms are bounded by what one look
    at their entries shows, and the status is then TIME_LIMIT.
    """
    clock = Clock(None) if clock is None else clock
    terms = [(k, t, term) for k, affine in enumerate(network.affines) for t, term in enumerate(affine.terms)]
    values = [[0.0] * len(affine.terms) for affine in network.affines]
    promised, status = cost.Work(), Status.SOLVED
    for k, t, term in sorted(terms, key=lambda each: clock.needs(cost.norm(each[2].matrix.shape))):
        if clock.fits(clock.needs(cost.norm(term.matrix.shape) + promised)):
            values[k][t] = norm_upper_bound(term.matrix, term.rounding, SIGNING_MARGIN)
            promised += cost.norm_proof(term.matrix.shape)
        else:
            values[k][t] = cheap_norm_upper_bound(term.matrix, term.rounding)
            status = Status.TIME_LIMIT
    return Proposal(Norms(tuple(map(tuple, values))), "norm-product", "eigenvalues", status)
