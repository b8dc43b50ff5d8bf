"""How good a solution is, computed in float64 by one function for everybody."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .workloads import Floats, Workload

NEGLIGIBLE = 2.2e-15  # a column of A that is smaller than this, relative to the largest, does not count
SOLVED = {4: 5e-6, 8: 1e-10}  # by bytes of the dtype


class Quality(NamedTuple):
    """Measures of each column, shape (N,) or (units, N).

    Attributes
    ----------
    optimality : ndarray
        The natural residual of the problem with unit columns and a right-hand side of unit size.
    objective : ndarray
    size : ndarray
        The objective at x = 0, for relative measures; NaN for "gram", which lacks that constant.
    residual : ndarray
        ||A x - b|| / ||b||; NaN for "gram".
    """

    optimality: Floats
    objective: Floats
    size: Floats
    residual: Floats


def judge(workload: Workload, X: ArrayLike) -> Quality:
    """Measure a solution of every column of a workload.

    Parameters
    ----------
    workload : Workload
    X : array_like, shape (n, N), or (units, n, N) for "vmap"

    Returns
    -------
    quality : Quality
        A column that is not finite has optimality inf.
    """
    A, B, X = (np.asarray(a, np.float64) for a in (workload.A, workload.B, X))
    if workload.kind == "gram":
        s = np.sqrt(np.diagonal(A))
        counts = s > NEGLIGIBLE * s.max()
        gradient = A @ X - B
        objective = np.sum(X * (gradient - B), axis=0) / 2
        beta = np.max(np.abs(B[counts]) / s[counts, None], axis=0)
        size = residual = np.full_like(objective, np.nan)
    else:
        s = np.linalg.norm(A, axis=-2)
        counts = s > NEGLIGIBLE * s.max(axis=-1, keepdims=True)
        r = A @ X - B
        gradient = A.swapaxes(-1, -2) @ r
        objective = np.sum(r * r, axis=-2) / 2
        beta = np.linalg.norm(B, axis=-2)
        size = beta**2 / 2
        residual = np.sqrt(2 * objective) / _or_one(beta)
    s, beta = np.where(counts, s, 1)[..., None], _or_one(beta)[..., None, :]
    x, g = X * s / beta, gradient / (s * beta)
    violation = np.where(counts[..., None], np.abs(x - np.maximum(x - g, 0)), 0)
    return Quality(np.nan_to_num(violation.max(axis=-2), nan=np.inf), objective, size, residual)


def solved(optimality: Floats, dtype: np.dtype[Any]) -> bool:
    """Whether every column is as good as the dtype should allow."""
    return bool(np.max(optimality) <= SOLVED[dtype.itemsize])


def _or_one(a: Floats) -> Floats:
    return np.where(a > 0, a, 1)
