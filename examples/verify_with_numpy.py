"""Check a certificate with NumPy alone:  python verify_with_numpy.py CERTIFICATE WEIGHTS.npz [ALPHA BETA]

WEIGHTS.npz: W_1 ... W_K of a chain W_K phi(... phi(W_1 x)), units with slopes in [ALPHA, BETA], by default [0, 1].
Proved is M = rho I_x - W_K'W_K + sum_i lambda_i (s_i t_i' + t_i s_i') >= 0 (LipSDP) by Rump's test (BIT 2006).
"""

import hashlib
import json
import sys
from fractions import Fraction

import numpy as np


def digest(weights, alpha, beta):
    sha = hashlib.sha256(b"lightning-lipschitz network 1")
    slopes = [v for w in weights[:-1] for v in (np.full(len(w), alpha), np.full(len(w), beta), np.arange(len(w)))]
    for k, values in enumerate([*weights, *slopes]):
        sha.update(f"term {k} {(0.0).hex()}".encode() if k < len(weights) else b"")
        sha.update(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes())
    sha.update(repr((weights[0].shape[1], *map(len, weights[:-1]))).encode())
    return sha.hexdigest()


def shifted(weights, rho, multipliers, alpha, beta):
    """M, scaled by powers of two, less what rounding can amount to in forming and in factoring it, doubled."""
    sizes = [weights[0].shape[1], *map(len, multipliers)]
    edges, n = np.cumsum([0, *sizes]), sum(sizes)
    M, mass = np.diag(np.concatenate([np.full(sizes[0], rho), *(2 * lam for lam in multipliers)])), np.zeros((n, n))
    for k, w in enumerate(weights):
        x, last = slice(edges[k], edges[k + 1]), k == len(multipliers)
        square = -np.ones(len(w)) if last else 2 * alpha * beta * multipliers[k]
        M[x, x] += (w.T * square) @ w
        mass[x, x] += (abs(w).T * abs(square)) @ abs(w)
        if not last:
            z = slice(edges[k + 1], edges[k + 2])
            M[z, x] -= ((alpha + beta) * multipliers[k])[:, None] * w
            M[x, z] = M[z, x].T
    scale = 2.0 ** -np.round(0.5 * np.log2(M.diagonal()))
    M, mass = M * scale[:, None] * scale, (mass + abs(M)) * scale[:, None] * scale
    return M - (n + max(map(len, weights)) + 12) * 2.0**-52 * (np.linalg.norm(mass) + mass.trace()) * np.eye(n)


def main(certificate, weights, alpha=0.0, beta=1.0):
    arrays = dict(np.load(certificate, allow_pickle=False))
    header = json.loads(arrays.pop("header").tobytes())
    weights, alpha, beta = [w.astype(np.float64) for w in np.load(weights).values()], float(alpha), float(beta)
    if header["proof"]["kind"] != "multipliers" or header["network_digest"] != digest(weights, alpha, beta):
        raise SystemExit("the certificate is of another kind, or of another network")
    multipliers, rho = [arrays[f"values_{k}"] for k in range(len(arrays))], header["proof"]["rho"]
    if Fraction(rho) > Fraction(header["upper_bound"]) ** 2 or not all((lam > 0).all() for lam in multipliers):
        raise SystemExit("the multipliers do not prove the bound")
    np.linalg.cholesky(shifted(weights, rho, multipliers, alpha, beta))  # LinAlgError where M is not proved definite
    print(f"proved: |f(x) - f(y)| <= {header['upper_bound']!r} |x - y|")


if __name__ == "__main__":
    main(*sys.argv[1:])
