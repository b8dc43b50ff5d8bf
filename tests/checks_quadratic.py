"""What is wrong with a solution of `box_qp`, in words, for the normal equations of a least-squares problem."""

from typing import NamedTuple

import numpy as np

from jaxnnls import Status


class Program(NamedTuple):
    """The minimum of x'Q x / 2 - q'x + ridge |x|^2 / 2 + l1 sum(x) within bounds, a program a column of q."""

    Q: np.ndarray
    q: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    ridge: float
    l1: float

    def astype(self, dtype):
        """The arguments of `box_qp` in a dtype."""
        Q, q, lower, upper, ridge, l1 = (np.asarray(a, dtype) for a in self)
        return (Q, q, (lower, upper)), {"ridge": ridge, "l1": l1}


def normal_equations(problem, dtype):
    """Q = A'A and q = A'b of a least-squares problem, rounded to a dtype, in float64."""
    Q, q = (np.asarray(problem.A.T @ a, dtype).astype(float) for a in (problem.A, problem.B))
    return Program((Q + Q.T) / 2, q, problem.lower, problem.upper, problem.ridge, problem.l1)


def gradient(program, x):
    return program.Q @ x - program.q + program.ridge * x + program.l1


def columns_that_count(program):
    s = np.sqrt(np.maximum(np.diag(program.Q) + program.ridge, 0))
    return s, s > 2.2e-15 * s.max(initial=0)


def optimality(program, x):
    """The contract's scaled natural residual, and ||x_scaled||_1: (N,), (N,)."""
    s, counts = columns_that_count(program)
    s = s[counts, None]
    beta = np.max(np.abs(program.q[counts]) / s, axis=0, initial=0)
    beta = np.where(beta > 0, beta, 1)
    y, lower, upper = (a[counts] * s / beta for a in (x, program.lower, program.upper))
    # What does not count is zero, in rows and columns.
    held = np.where(counts[:, None], x, 0)
    g = gradient(program, held)[counts] / s / beta
    return np.max(np.abs(y - np.clip(y - g, lower, upper)), axis=0, initial=0), np.sum(np.abs(y), axis=0)


def may_be_unbounded(program, dtype):
    """Whether a column has no minimum, or one that rounding of Q may have taken, (N,).

    Q is positive semidefinite but for rounding. Where it is clearly regular, or all bounds are finite, there is one.
    """
    s, counts = columns_that_count(program)
    endless = np.isinf(program.lower) | np.isinf(program.upper)
    linear = program.l1 - program.q
    falling = ((linear < 0) & np.isinf(program.upper)) | ((linear > 0) & np.isinf(program.lower))
    s = s[counts]
    unit = (program.Q[np.ix_(counts, counts)] + program.ridge * np.eye(len(s))) / s / s[:, None]
    regular = not len(s) or np.linalg.eigvalsh(unit)[0] > 8 * len(s) * np.finfo(dtype).eps
    return np.any(falling & ~counts[:, None], axis=0) | (np.any(endless, axis=0) & (not regular))


def violations(program, solution, dtype):
    """As `checks.violations`. The program is in float64, rounded to the dtype that it was solved in."""
    wrong = []

    def require(holds, what, *numbers):
        """One line for the first column where this does not hold, and the numbers there."""
        bad = np.flatnonzero(~np.atleast_1d(holds))
        if bad.size:
            k = bad[0]
            wrong.append(f"{what} (column {k}: {', '.join(f'{a[k]:.3g}' for a in numbers)})")

    (n, N), eps = program.q.shape, np.finfo(dtype).eps
    shapes = ((n, N), (n, N), (N,), (N,), (N,), (N,), (n, N))
    if any(np.shape(a) != shape for a, shape in zip(solution, shapes)):
        return ["shapes"]
    if any(a.dtype != dtype for a in solution[:4]):
        return ["dtypes"]
    if not all(np.all(np.isfinite(a)) for a in (solution.x, solution.dual, solution.optimality)):
        return ["not finite"]
    x, dual, reported = (a.astype(float) for a in (solution.x, solution.dual, solution.optimality))
    success, unbounded = solution.status == Status.CONVERGED, solution.status == Status.UNBOUNDED
    honest = (Status.CONVERGED, Status.MAX_STEPS, Status.PRECISION, Status.UNBOUNDED)
    require(np.isin(solution.status, honest), "status of something else", solution.status)
    require(np.isnan(solution.residual_norm), "a residual norm without A", solution.residual_norm)
    require(np.all((program.lower <= x) & (x <= program.upper), axis=0), "infeasible")
    mask = np.where(x == program.lower, -1, np.where(x == program.upper, 1, 0))
    require(np.all(solution.active_mask == mask, axis=0), "active_mask is not equality with the bounds")
    sizes = np.abs(program.Q) @ np.abs(x) + np.abs(program.q) + program.ridge * np.abs(x) + program.l1
    error, slack = np.abs(dual - gradient(program, x)), (n + 4) * eps * sizes + 100 * np.finfo(dtype).tiny
    require(np.all(error <= slack, axis=0), "dual is not the gradient", np.max(error, axis=0, initial=0))
    if not n:
        return wrong

    require(~unbounded | may_be_unbounded(program, dtype), "UNBOUNDED, but there is a minimum")
    measured, size = optimality(program, x)
    enough = np.maximum(eps**0.823, 4 * eps * (1 + size))
    truthful = np.abs(reported - measured) <= 16 * eps * (1 + size) + 1e-3 * measured
    require(truthful, "optimality is not what it says: reported, measured", reported, measured)
    require(~success | (measured <= enough), "success, but not optimal: measured, allowed", measured, enough)
    return wrong
