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
    sha, sizes = hashlib.sha256(), (weights[0].shape[1], *map(len, weights[:-1]))
    parts = [f"lightning-lipschitz network 2 {sizes} {len(weights)}"]
    parts += [p for k, w in enumerate(weights) for p in (f"affine {len(w)} 1", f"term {k} {(0.0).hex()}", w)]
    parts += [v for n in sizes[1:] for v in (np.full(n, alpha), np.full(n, beta), np.arange(n))]
    for p in parts:
        data, head = (p.encode(), "text") if isinstance(p, str) else (p.tobytes(), f"array {p.dtype.str} {p.shape}")
        sha.update(f"{head} {len(data)}\n".encode() + data)
    return sha.hexdigest()


def shifted(weights, rho, multipliers, alpha, beta):
    """M, scaled by powers of two, less what rounding can amount to in forming and in factoring it, doubled."""
    n = (edges := np.cumsum([0, weights[0].shape[1], *map(len, multipliers)]))[-1]
    M, mass = np.diag(np.hstack([np.full(edges[1], rho), *(2 * lam for lam in multipliers)])), np.zeros((n, n))
    for k, w in enumerate(weights):
        x, z, last = slice(*edges[k : k + 2]), slice(*edges[k + 1 : k + 3]), k == len(multipliers)
        square = -np.ones(len(w)) if last else 2 * alpha * beta * multipliers[k]
        M[x, x] += (w.T * square) @ w
        mass[x, x] += (abs(w).T * abs(square)) @ abs(w)
        if not last:
            M[z, x] = -((alpha + beta) * multipliers[k])[:, None] * w
            M[x, z] = M[z, x].T
    scale = 2.0 ** -np.round(0.5 * np.log2(M.diagonal()))
    M, mass = M * np.outer(scale, scale), (mass + abs(M)) * np.outer(scale, scale)
    return M - (n + max(map(len, weights)) + 12) * 2.0**-52 * (np.linalg.norm(mass) + mass.trace()) * np.eye(n)


def main(certificate, weights, alpha=0.0, beta=1.0):
    header = json.loads((arrays := dict(np.load(certificate, allow_pickle=False))).pop("header").tobytes())
    weights, alpha, beta = [w.astype(np.float64) for w in np.load(weights).values()], float(alpha), float(beta)
    if header["proof"]["kind"] != "multipliers" or header["network_digest"] != digest(weights, alpha, beta):
        raise SystemExit("the certificate is of another kind, or of another network")
    multipliers, rho = [arrays[f"values_{k}"] for k in range(len(arrays))], header["proof"]["rho"]
    used = np.abs(np.concatenate([*map(np.ravel, [*weights, *multipliers, alpha, beta, rho])]))
    usual = np.all((used == 0) | (used > 1e-50) & (used < 1e50))  # else their products may underflow here
    proved = Fraction(rho) <= Fraction(header["upper_bound"]) ** 2 and all((lam > 0).all() for lam in multipliers)
    if not (usual and proved):
        raise SystemExit("the multipliers do not prove the bound, or numbers are below 1e-50 or above 1e50")
    np.linalg.cholesky(shifted(weights, rho, multipliers, alpha, beta))  # LinAlgError where M is not proved definite
    print(f"proved: |f(x) - f(y)| <= {header['upper_bound']!r} |x - y|")


if __name__ == "__main__":
    main(*sys.argv[1:])
