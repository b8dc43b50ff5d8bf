"""Problems with known answers: x and the multipliers come first, the data are built around them.

Every generator returns a `Problem` in float64 with bounds of the shape of X, so that problems of one shape share a
compilation. X is the least-norm minimiser, or None where only `oracle` can judge.
"""

from typing import NamedTuple

import numpy as np

TALL, SQUARE, WIDE = (12, 7), (7, 7), (6, 15)
MANY = (40, 24)  # more variables than the active-set method takes
N = 10


class Problem(NamedTuple):
    """One A, a problem a column; X is what to find."""

    A: np.ndarray
    B: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    ridge: float = 0.0
    l1: float = 0.0
    X: np.ndarray | None = None

    def astype(self, dtype):
        """The arguments of `lsq_linear` in a dtype."""
        A, B, lower, upper, ridge, l1 = (np.asarray(a, dtype) for a in self[:6])
        return (A, B, (lower, upper)), {"ridge": ridge, "l1": l1}

    def rounded(self, dtype):
        """The problem that a solver sees in this dtype, in float64."""
        return Problem(*(np.asarray(np.asarray(a, dtype), float) for a in self[:6]), X=self.X)


def matrix(rng, m, n, condition=10.0):
    """A random matrix of full rank and given condition."""
    u, _, v = np.linalg.svd(rng.normal(size=(m, n)), full_matrices=False)
    return (u * np.geomspace(1, 1 / condition, min(m, n))) @ v


def box(rng, n, N, bounded):
    """x, bounds and a sign per entry: 0 free, 1 at the lower and -1 at the upper bound; margins of at least 0.2."""
    if not bounded:
        sign = rng.integers(0, 2, (n, N))
        x = np.where(sign == 0, rng.uniform(0.2, 2, (n, N)), 0)
        return x, np.zeros((n, N)), np.full((n, N), np.inf), sign
    sign = rng.integers(-1, 2, (n, N))
    x = rng.normal(size=(n, N))
    lower = np.where(sign == 1, x, x - rng.uniform(0.2, 2, (n, N)))
    upper = np.where(sign == -1, x, x + rng.uniform(0.2, 2, (n, N)))
    open_end = rng.uniform(size=(n, N)) < 0.3
    lower = np.where(open_end & (sign != 1), -np.inf, lower)
    upper = np.where(~open_end & (sign == 0) & (rng.uniform(size=(n, N)) < 0.3), np.inf, upper)
    return x, lower, upper, sign


def full_rank(rng, m, n, N=N, bounded=False, ridge=0.0, l1=0.0, degenerate=0.0, fixed=0.0, A=None):
    """m >= n: b = A x + r with gradient = multipliers. Some multipliers may be 0, some variables fixed."""
    A = matrix(rng, m, n) if A is None else A
    x, lower, upper, sign = box(rng, n, N, bounded)
    dual = sign * rng.uniform(0.1, 1, (n, N)) * np.linalg.norm(A, axis=0)[:, None]
    dual = np.where(rng.uniform(size=(n, N)) < degenerate, 0, dual)
    pin = rng.uniform(size=(n, N)) < fixed
    lower, upper = np.where(pin, x, lower), np.where(pin, x, upper)
    # A'(A x - b) + ridge x + l1 = dual, and b may have any part that A does not reach.
    r = np.linalg.pinv(A.T) @ (dual - ridge * x - l1)
    noise = rng.normal(size=(m, N))
    noise -= A @ np.linalg.lstsq(A, noise, rcond=None)[0]
    return Problem(A, A @ x - r + 0.3 * noise, lower, upper, ridge, l1, x)


def fit(rng, m, n, N=N, bounded=False, A=None, margin=0.0, ridge=0.0, l1=0.0):
    """x = clip(A'w), b = A x plus what A does not reach: x is of least norm by construction, for any rank of A.

    With a ridge, x = clip(A'w - l1 / ridge) and b = A x + ridge w.
    """
    A = matrix(rng, m, n) if A is None else A
    shift = l1 / ridge if ridge else 0
    w = 2 * rng.normal(size=(m, N))
    if margin:
        # Away from kinks, and with more free variables than equations.
        many = rng.normal(size=(m, 4000))
        u = A.T @ many - shift
        good = (np.min(np.abs(u), 0) > margin * np.max(np.abs(u), 0)) & (np.sum(u > 0, 0) > m)
        assert np.sum(good) >= N
        w = many[:, good][:, :N]
    u = A.T @ w - shift
    lower, upper = np.zeros((n, N)), np.full((n, N), np.inf)
    if bounded:
        lower = np.where(rng.uniform(size=(n, N)) < 0.3, -np.inf, -rng.uniform(0.1, 1, (n, N)))
        upper = rng.uniform(0.1, 1, (n, N))
    x = np.clip(u, lower, upper)
    noise = rng.normal(size=(m, N))
    noise -= A @ np.linalg.lstsq(A, noise, rcond=1e-12)[0]
    return Problem(A, A @ x + ridge * w + 0.3 * noise, lower, upper, ridge, l1, x)


def vertex(rng, m, n, N=N, condition=10.0):
    """Wide, no exact fit, fewer free variables than equations, strict multipliers: a unique minimiser in its box."""
    A = matrix(rng, m, n, condition)
    x, lower, upper = rng.normal(size=(n, N)), np.zeros((n, N)), np.zeros((n, N))
    B = np.zeros((m, N))
    for k in range(N):
        free = rng.permutation(n)[: m // 2]
        for _ in range(1000):
            r = rng.normal(size=m)
            r -= A[:, free] @ np.linalg.lstsq(A[:, free], r, rcond=None)[0]
            dual = A.T @ r
            dual[free] = 0
            if np.min(np.abs(np.delete(dual, free))) > 0.02 * np.abs(dual).max():
                break
        B[:, k] = A @ x[:, k] - r
        lower[:, k] = np.where(dual > 0, x[:, k], x[:, k] - 0.5)
        upper[:, k] = np.where(dual < 0, x[:, k], x[:, k] + 0.5)
    return Problem(A, B, lower, upper, X=x)


def wide_misfit(rng, m, n, N=N):
    """Wide and non-negative, targets outside the cone: only the oracle knows the answer."""
    A = rng.uniform(0, 1, (m, n))
    return Problem(A, rng.normal(size=(m, N)), np.zeros((n, N)), np.full((n, N), np.inf))


def deficient(rng, m, n, kind):
    """A matrix with dependent columns."""
    A = matrix(rng, m, n)
    if kind == "duplicate":
        A[:, 4], A[:, 2] = A[:, 1], 2 * A[:, 3]
    if kind == "zero":
        A[:, [0, 5]] = 0
    if kind == "junk":
        A[:, [0, 5]] *= 1e-17
    return A
