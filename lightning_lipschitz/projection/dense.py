r"""The log-determinant of the matrix inequality of any feed-forward graph, with its derivatives.

With rows A of the pre-activations and C of the output over the sources (x, z) (see
:mod:`lightning_lipschitz.extraction.linearised`), the matrix of :mod:`lightning_lipschitz.certificate.lmi`, scaled by
``D = diag(1 / sqrt(rho), 1 / sqrt(2 lambda))`` on both sides, is

.. math::

    \hat M = I - \hat C'\hat C - \tfrac12 [\hat A'\,\mathrm{diag}(\alpha + \beta) E + E'\,\mathrm{diag}(\alpha + \beta)
    \hat A] + \hat A'\,\mathrm{diag}(\alpha\beta) \hat A, \qquad \hat A = \sqrt{2\lambda}\, A D,\quad \hat C = C D,

E the unit vectors of z. ``b = log det M_hat`` is zero at zero weights and negative elsewhere where every interval
contains zero with alpha + beta balanced; it differs from ``log det M`` by logarithms of rho and lambda. With X the
inverse of M_hat its derivatives are

    dC_hat: -2 C_hat X,      dA_hat: -diag(alpha + beta) E X + 2 diag(alpha beta) A_hat X,

and those in log lambda and log rho follow from the scaling alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_lipschitz.graph.network import Network


@dataclass(frozen=True, eq=False)
class Form:
    """What of the inequality depends neither on the weights nor on the multipliers.

    Attributes:
        inputs: the length of x.
        alpha, beta: shape (units,), all layers one after the other.
        group: shape (units,): which multiplier is whose; units of a group share theirs.
        widths: units a layer.
    """

    inputs: int
    alpha: Tensor
    beta: Tensor
    group: Tensor
    widths: tuple[int, ...]

    @classmethod
    def of(cls, network: Network, device: torch.device | str = "cpu") -> Form:
        """That of a network; its matrices are not used."""
        groups, count = [], 0
        for layer in network.layers:
            numbers = np.unique(np.asarray(layer.group), return_inverse=True)[1]
            groups.append(numbers + count)
            count += int(numbers.max()) + 1
        group = torch.as_tensor(np.concatenate([np.zeros(0, dtype=np.int64), *groups]), device=device)
        alpha, beta = (
            torch.as_tensor(np.concatenate([np.zeros(0), *(getattr(layer, side) for layer in network.layers)])).to(
                device
            )
            for side in ("alpha", "beta")
        )
        return cls(network.input_size, alpha, beta, group, network.sizes[1:])

    def shared(self, values: Sequence[np.ndarray]) -> Tensor:
        """One number a group, of multipliers that are one number a unit: the mean of the logarithms' exponents."""
        flat = torch.as_tensor(np.concatenate([np.zeros(0), *values]), device=self.alpha.device)
        count = int(self.group.max()) + 1 if len(self.group) else 0
        return flat.new_zeros(count).scatter_(0, self.group, flat)

    def unshared(self, multipliers: Tensor) -> tuple[Tensor, ...]:
        """One number a unit, layer by layer."""
        return torch.split(multipliers[self.group], list(self.widths)) if self.widths else ()


@dataclass(frozen=True, eq=False)
class Point:
    """M_hat at one place, factorised.

    Attributes:
        value: b.
    """

    form: Form
    A: Tensor
    C: Tensor
    left: Tensor
    right: Tensor
    basis: Tensor | None
    factor: Tensor
    value: float

    def gradients(self) -> Gradients:
        """The derivatives of b."""
        form, inputs = self.form, self.A.shape[1] - len(self.A)
        X = torch.cholesky_inverse(self.factor)
        total, product = form.alpha + form.beta, form.alpha * form.beta
        of_A = X[inputs:] * -total[:, None]
        if product.any():
            of_A += (2.0 * product)[:, None] * (self.A @ X)
        of_C = -2.0 * (self.C @ X)
        share_A, share_C = of_A * self.A, of_C * self.C
        columns = share_A.sum(0) + share_C.sum(0)
        units = 0.5 * (share_A.sum(1) - columns[inputs:])
        logs = units.new_zeros(int(form.group.max()) + 1 if len(form.group) else 0).scatter_add_(0, form.group, units)
        rows, output = of_A * self.left[:, None] * self.right, of_C * self.right
        if self.basis is not None:
            rows, output = (_expanded(each, self.basis) for each in (rows, output))
        return Gradients(rows, output, logs, -0.5 * float(columns[:inputs].sum()))


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of b: in A, in C, in the logarithms of the multipliers (one a group) and of rho."""

    rows: Tensor
    output: Tensor
    logs: Tensor
    log_rho: float


@torch.no_grad()
def evaluate(form: Form, A: Tensor, C: Tensor, logs: Tensor, rho: float) -> Point | None:
    """M_hat factorised, or None where it is not positive definite.

    Args:
        form: slopes and groups.
        A: shape (units, inputs + units), float64.
        C: shape (outputs, inputs + units), float64.
        logs: logarithms of the multipliers, one a group.
        rho: the squared bound.
    """
    lam = logs.exp()[form.group]
    A, C, basis = _compressed(form.inputs, A, C)
    inputs = A.shape[1] - len(A)
    left = (2.0 * lam).sqrt()
    right = torch.cat([lam.new_full((inputs,), rho**-0.5), 1.0 / left])
    A, C = A * left[:, None] * right, C * right
    M = -(C.mT @ C)
    product = form.alpha * form.beta
    if product.any():
        M += A.mT @ (product[:, None] * A)
    coupling = (0.5 * (form.alpha + form.beta))[:, None] * A
    M[inputs:] -= coupling
    M[:, inputs:] -= coupling.mT
    M.diagonal().add_(1.0)
    factor, info = torch.linalg.cholesky_ex(M)
    if int(info) or not bool(factor.diagonal().isfinite().all()):
        return None
    return Point(form, A, C, left, right, basis, factor, 2.0 * float(factor.diagonal().log().sum()))


@torch.no_grad()
def centred(form: Form, A: Tensor, C: Tensor, logs: Tensor, rho: float, point: Point | None = None) -> Tensor | None:
    """The logarithms after one damped Newton step up b; None where the start is not inside.

    M is affine in lambda, so that minus the Hessian of log det M bounds that of b (see
    :mod:`lightning_lipschitz.projection.interior`). Here in relative steps, for M_hat.
    """
    point = point or evaluate(form, A, C, logs, rho)
    if point is None:
        return None
    inputs = point.A.shape[1] - len(point.A)
    X = torch.cholesky_inverse(point.factor)
    AX, XA = point.A @ X, X[inputs:] @ point.A.mT
    AXA, XZ = AX @ point.A.mT, X[inputs:, inputs:]
    alpha, beta = form.alpha[:, None], form.beta[:, None]
    SXS = XZ - alpha * XA.mT - XA * form.alpha + alpha * AXA * form.alpha
    TXT = XZ - beta * XA.mT - XA * form.beta + beta * AXA * form.beta
    P = XZ - alpha * XA.mT - XA * form.beta + alpha * AXA * form.beta
    gradient, hessian = _grouped(form, P.diagonal() - 1.0, 0.5 * (SXS * TXT + P * P.mT))
    direction, info = torch.linalg.solve_ex(hessian, gradient)
    decrement = gradient @ direction
    moved = direction / (1.0 + decrement.clamp(min=0).sqrt())
    usable = not int(info) and bool(moved.isfinite().all()) and bool((moved > -1).all())
    return logs + moved.log1p() if usable else None


def _grouped(form: Form, gradient: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    count = int(form.group.max()) + 1
    if count == len(form.group):
        return gradient, hessian
    sums = gradient.new_zeros(count, len(gradient))
    sums[form.group, torch.arange(len(gradient), device=gradient.device)] = 1.0
    return sums @ gradient, sums @ hessian @ sums.mT


def _compressed(inputs: int, A: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """x replaced by Q'x, where fewer directions of it are read than it has: M_hat is I on all others."""
    stack = torch.cat([A[:, :inputs], C[:, :inputs]])
    stack = stack[(stack != 0).any(dim=1)]
    if not 0 < len(stack) < inputs:
        return A, C, None
    basis = torch.linalg.qr(stack.mT, mode="reduced")[0]
    A, C = (torch.cat([each[:, :inputs] @ basis, each[:, inputs:]], dim=1) for each in (A, C))
    return A, C, basis


def _expanded(rows: Tensor, basis: Tensor) -> Tensor:
    return torch.cat([rows[:, : basis.shape[1]] @ basis.mT, rows[:, basis.shape[1] :]], dim=1)
