"""LipSDP by a primal-dual interior-point method that knows the structure of the problem.

    minimise rho   subject to   Z(rho, lam) = rho E - F'F + sum_g lam_g B_g  >= 0.

What differs from the textbook (Helmberg, Rendl, Vanderbei, Wolkowicz 1996; Kojima, Shindoh, Hara 1997; Monteiro 1997;
Mehrotra 1992):

1. The constraint matrices B_g have rank two a unit and touch one layer, so the Schur complement is four element-wise
   products and no constraint matrix is ever formed (``schur``, ``problem``). lam >= 0 follows from Z >= 0 and has no
   cone of its own.
2. The start is strictly feasible on both sides. Multipliers come from a closed-form recursion (``start``); Newton steps
   of the dual barrier towards the *closest* point of the central path (mu is free) then produce an X that satisfies the
   primal equalities (``centring``). They cost a fifth of a primal-dual step, and the pair they end with is centred:
   started from an X that ignores Z, primal-dual steps crawl. Heuristic: X is taken for the smallest mu, on a grid, for
   which it is positive.
3. Both sides stay feasible, so X Z has trace rho - tr(C X), tr(C X) is a lower bound on the optimum at any time, and
   any iterate is a valid proposal. The gap is known without forming a product.
4. sigma follows the predictor and the lengths of the steps before alike (``iterate``). Step lengths, to 2 % (10 % for
   the predictor): a bracket of Cholesky factorisations up to 250 rows, above it Lanczos in the norm of the matrix, less
   its error bound (``definite``). The part of the way to the boundary that is taken grows with the predictor's steps,
   as in SDPT3. The second-order term enters the right-hand side through row sums, so a step needs two dense products.
5. The Schur complement is equilibrated, shifted only if its Cholesky fails, and refined (``linear``).

Nothing that leaves here is believed: it is a proposal for :mod:`lightning_lipschitz.certificate`.
"""

from lightning_lipschitz.bounds.interior_point.propose import propose
from lightning_lipschitz.bounds.interior_point.result import Progress, Solution, WarmStart
from lightning_lipschitz.bounds.interior_point.solver import solve

__all__ = ["Progress", "Solution", "WarmStart", "propose", "solve"]
