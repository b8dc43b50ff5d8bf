"""What is wrong with a solution, and where two solutions of a problem disagree, in words; `oracle` has the numbers."""

import numpy as np
import oracle
from scipy.optimize import lsq_linear, nnls

from jaxnnls import Solution, Status


def attainable(problem, x, dtype):
    """What may count as optimal, (N,): the oracle's, but the default tol of float64 is 1.3e-13."""
    return np.maximum(oracle.attainable(problem, x, dtype), np.finfo(dtype).eps ** 0.823)


def without_junk(problem):
    """The problem as the contract reads it: columns that do not count are zero. Without effect the second time."""
    return problem._replace(A=np.where(oracle.columns_that_count(problem)[1], problem.A, 0))


def violations(problem, solution, dtype):
    """What is wrong with a solution of a problem with finite data, one string for each kind of wrong and column.

    The problem is in float64, rounded to the dtype that it was solved in; the solution holds NumPy arrays.
    """
    wrong = []

    def require(holds, what, *numbers):
        """One line for the first column where this does not hold, and the numbers there."""
        bad = np.flatnonzero(~np.atleast_1d(holds))
        if bad.size:
            k = bad[0]
            at = ", ".join(f"{np.broadcast_to(a, np.shape(holds))[k]:.3g}" for a in numbers)
            wrong.append(f"{what} (column {k}{': ' if at else ''}{at})")

    A, lower, upper = problem.A, problem.lower, problem.upper
    (m, n), N, eps = A.shape, lower.shape[1], np.finfo(dtype).eps
    shapes = Solution((n, N), (n, N), (N,), (N,), (N,), (N,), (n, N))
    if any(np.shape(a) != shape for a, shape in zip(solution, shapes)):
        return ["shapes"]
    if any(a.dtype != dtype for a in solution[:4]):
        return ["dtypes"]
    if not all(np.all(np.isfinite(a)) for a in solution[:4]):
        return ["not finite"]
    x, dual, residual_norm, reported = (a.astype(float) for a in solution[:4])
    success = solution.status == Status.CONVERGED
    honest = (Status.CONVERGED, Status.MAX_STEPS, Status.PRECISION)
    require(np.isin(solution.status, honest), "status of something else", solution.status)
    require(solution.nit >= 0, "negative nit")

    require(np.all((lower <= x) & (x <= upper), axis=0), "infeasible")
    mask = np.where(x == lower, -1, np.where(x == upper, 1, 0))
    require(np.all(solution.active_mask == mask, axis=0), "active_mask is not equality with the bounds")

    # Multipliers and residual: within the rounding of a sum of n (m) products of numbers that are known to rounding.
    g, r = oracle.gradient(problem, x), A @ x - problem.B
    sizes, underflow = np.abs(A) @ np.abs(x) + np.abs(problem.B), 100 * np.finfo(dtype).tiny
    slack = (m + n + 4) * eps * (np.abs(A).T @ sizes + problem.ridge * np.abs(x) + problem.l1) + underflow
    require(
        np.all(np.abs(dual - g) <= slack, axis=0), "dual is not the gradient", np.max(np.abs(dual - g), 0, initial=0)
    )
    slack = (m + n + 4) * eps * np.linalg.norm(sizes, axis=0) + underflow
    require(np.abs(residual_norm - np.linalg.norm(r, axis=0)) <= slack, "residual_norm", residual_norm)

    if not n:
        return wrong

    # Optimality: as reported and as claimed.
    problem = without_junk(problem)
    g = oracle.gradient(problem, x)
    measured, size = oracle.optimality(problem, x)
    enough = attainable(problem, x, dtype)
    truthful = np.abs(reported - measured) <= 8 * eps * (1 + size) + 1e-3 * measured
    require(truthful, "optimality is not what it says: reported, measured", reported, measured)
    require(~success | (measured <= enough), "success, but not optimal: measured, allowed", measured, enough)
    require(~success | (reported <= enough), "success, but optimality says otherwise", reported, enough)

    # A variable with a multiplier is at a bound, not near it: at either, if optimality cannot tell the two apart.
    # Columns that do not count: nearest to 0, or to where l1 pulls.
    s, counts = oracle.columns_that_count(problem)
    beta = column_size(problem)
    scaled = g / np.where(counts, s, 1)[:, None] / beta
    held = (np.abs(scaled) <= 100 * enough) | (x == lower) | (x == upper)
    require(np.all(held[counts] | ~success, axis=0), "a variable with a multiplier is not at its bound")
    nearest = lower if problem.l1 else np.clip(0, lower, upper)
    require(np.all((x == nearest)[~counts] | ~success, axis=0), "a column of zeros takes part")

    # The objective is convex: f(x) - f(y) is at most optimality * (|x - y|_1 + |g|_1), scaled, for every feasible y.
    accuracy = np.where(success, enough, 1.01 * measured)
    for what, bound, distance in (scipy_bound(problem), dual_bound(problem, x)):
        allowed = accuracy * (distance(x) + np.sum(np.abs(scaled[counts]), 0))
        rounding = 1e-14 * (1 + distance(x) + size) ** 2
        excess = (oracle.objective(problem, x) - bound) / beta**2
        require(~(excess > allowed + rounding), what, excess, allowed)

    shortest = np.array([least_norm(problem, x, k, dtype) for k in range(N)])
    norms = np.linalg.norm(x[counts], axis=0)
    require(~success | ~(norms > shortest * (1 + norm_tol(dtype))), "not of least norm: norm, least", norms, shortest)
    return wrong


def norm_tol(dtype):
    """How much longer than the least norm an x may be that counts as the one of least norm."""
    return {4: 2e-3, 8: 1e-6}[np.dtype(dtype).itemsize]


def column_size(problem):
    """The contract's beta: the size of a column, (N,)."""
    start = np.linalg.norm(problem.A @ np.clip(0, problem.lower, problem.upper), axis=0)
    beta = np.maximum(np.linalg.norm(problem.B, axis=0), start)
    return np.where(beta > 0, beta, 1)


def scipy_bound(problem):
    """The objective at SciPy's solution, without columns that do not count, for which it would take x = 1e17."""
    s, counts = oracle.columns_that_count(problem)
    y = np.clip(0, problem.lower, problem.upper)
    n = np.count_nonzero(counts)
    # Columns of length 1. l1 without ridge is not least squares: y remains something feasible.
    unit = problem.A[:, counts] / s[counts]
    rows, B = unit, problem.B
    if problem.ridge:
        root = np.sqrt(problem.ridge)
        rows = np.vstack([unit, np.diag(root / s[counts])])
        B = np.vstack([B, np.full((n, B.shape[1]), -problem.l1 / root)])
    if n and len(rows) and (problem.ridge or not problem.l1):
        low, high = problem.lower[counts] * s[counts, None], problem.upper[counts] * s[counts, None]
        for k in range(B.shape[1]):
            loose = low[:, k] < high[:, k]
            if not loose.any():
                continue
            b = B[:, k] - rows[:, ~loose] @ low[~loose, k]
            # Where it fails, the solution is not worth comparing with.
            try:
                z = lsq_linear(rows[:, loose], b, (low[loose, k], high[loose, k]), method="bvls", tol=1e-14).x
            except (np.linalg.LinAlgError, ValueError):
                continue
            at = np.flatnonzero(counts)[loose]
            y[at, k] = np.clip(z / s[at], problem.lower[at, k], problem.upper[at, k])
    beta = column_size(problem)

    def distance(x):
        return np.sum(np.abs(x - y)[counts] * s[counts, None], 0) / beta

    return "objective above SciPy's: excess, allowed", oracle.objective(problem, y), distance


def dual_bound(problem, x):
    """The Lagrange dual of r = A x - b, a lower bound of the objective, in a box that x is inside of.

    -|r|^2 / 2 - b'r + the sum of min over x_j of (A'r + l1)_j x_j + ridge x_j^2 / 2. Without the box it would be
    -inf for every r but one.
    """
    s, counts = oracle.columns_that_count(problem)
    beta = column_size(problem)
    r = problem.A @ x - problem.B
    linear = problem.A.T @ r + problem.l1
    reach = (1 + np.max(np.abs(x) * s[:, None] / beta, axis=0, initial=0)) * beta / np.where(counts, s, 1)[:, None]
    reach[~counts] = 0
    low, high = np.maximum(problem.lower, x - reach), np.minimum(problem.upper, x + reach)
    z = np.clip(-linear / problem.ridge, low, high) if problem.ridge else np.where(linear > 0, low, high)
    # Summed about x, where the terms are small: (A'r)'x = |r|^2 + b'r.
    value = linear * (z - x) + 0.5 * problem.ridge * (z * z - x * x)
    bound = oracle.objective(problem, x) + np.sum(value, 0)
    steps = np.sum(reach * s[:, None], 0) / beta
    return "duality gap: gap, allowed", bound, lambda x: steps


def face(problem, x, k, dtype):
    """The variables of a column whose multiplier is 0, and A of these with unit columns; None if it is unclear which.

    Ridge is in additional equations.
    """
    s, counts = oracle.columns_that_count(problem)
    g = oracle.gradient(problem, x)[:, k] / np.where(counts, s, 1) / column_size(problem)[k]
    enough = attainable(problem, x, dtype)[k]
    rounding = 4 * np.finfo(dtype).eps * (1 + oracle.optimality(problem, x)[1][k])
    low, high = problem.lower[:, k], problem.upper[:, k]
    # How strongly a variable is pulled out of the box, where it is at its end.
    pull = np.where(x[:, k] == low, g, np.where(x[:, k] == high, -g, 0))
    movable = counts & (low < high)
    if np.any(movable & (pull > rounding) & (pull < 1e4 * enough)):
        return None
    loose = movable & (pull <= rounding)
    return loose, np.vstack([problem.A, np.sqrt(problem.ridge) * np.eye(len(s))])[:, loose] / s[loose]


def clear_rank(unit, dtype):
    """The rank of a matrix with unit columns and its right singular vectors; None if rounding could change it."""
    _, values, v = np.linalg.svd(unit)
    zero = 4 * np.finfo(dtype).eps
    if np.any((values > zero) & (values < 30 * np.sqrt(zero))):
        return None
    return np.count_nonzero(values > zero), values, v


def least_norm(problem, x, k, dtype):
    """The least norm of a minimiser in column k, among the variables that count, given a minimiser; NaN if unclear.

    With an orthonormal basis Z of the null space, minimisers are p + Z t: least-distance programming as in Lawson and
    Hanson, chapter 23.
    """
    s, counts = oracle.columns_that_count(problem)
    if (found := face(problem, x, k, dtype)) is None or not found[0].any():
        return np.nan
    loose, unit = found
    if (ranked := clear_rank(unit, dtype)) is None or ranked[0] == loose.sum():
        return np.nan
    rank, values, v = ranked
    # The null space is known to eps / values in the variables of unit columns.
    units = s[loose].max() / s[loose].min()
    if rank and 10 * np.finfo(dtype).eps * units / values[rank - 1] > norm_tol(dtype):
        return np.nan
    Z = np.linalg.qr(v[rank:].T / s[loose, None])[0]
    size = np.linalg.norm(x[loose, k])
    if size == 0:
        return np.linalg.norm(x[counts, k])
    low, high, y = (a[loose, k] / size for a in (problem.lower, problem.upper, x))
    p = y - Z @ (Z.T @ y)
    G = np.vstack([Z, -Z])
    h = np.concatenate([low - p, p - high])
    G, h = G[np.isfinite(h)], h[np.isfinite(h)]
    t = np.zeros(Z.shape[1])
    if len(h):
        try:
            v, _ = nnls(np.vstack([G.T, h]), np.append(t, 1))
        except RuntimeError:
            return np.nan
        r = np.vstack([G.T, h]) @ v - np.append(t, 1)
        t = -r[:-1] / min(r[-1], -1e-30)
        if np.any(G @ t < h - 1e-9):
            return np.nan
    rest = np.linalg.norm(x[counts & ~loose, k])
    return np.hypot(rest, size * np.linalg.norm(p + Z @ t))


def disagreements(problem, solution, x, status, dtype):
    """Where the solution of the same problem in other words, an x and its status, is another one."""
    wrong = []
    if not len(x):
        return wrong
    problem = without_junk(problem)
    s, counts = oracle.columns_that_count(problem)
    beta = column_size(problem)
    first = solution.x.astype(float)
    enough = attainable(problem, first, dtype)
    for k in range(x.shape[1]):
        if status[k] == Status.NONFINITE:
            if not np.all(np.isnan(x[:, k])):
                wrong.append(f"NONFINITE, but x is not NaN (column {k})")
            continue
        if status[k] or solution.status[k]:
            continue
        # It has to be clear at both which multipliers are 0, and what rank the columns of these variables have.
        faces = [face(problem, y, k, dtype) for y in (first, x)]
        if any(found is None or clear_rank(found[1], dtype) is None for found in faces):
            continue
        loose, unit = faces[0]
        rank, values, _ = clear_rank(unit, dtype)
        # H x = something known to `enough`; the least norm is of x in other units.
        smallest = values[rank - 1] if rank else 1
        units = np.ptp(np.log(s[loose])) if rank < loose.sum() else 0
        allowed = 10 * enough[k] * np.exp(units) * (1 + rank) / min(smallest, 1) ** 2
        if rank < loose.sum():
            # Norms that agree to t of points that are otherwise optimal: these are sqrt(2 t) apart.
            near = np.sqrt(2 * norm_tol(dtype)) * np.linalg.norm(first[counts, k])
            allowed += near * s[counts].max() / beta[k]
        error = np.max(np.abs(x - first)[:, k] * np.where(counts, s, 1) / beta[k], initial=0)
        if error > allowed:
            wrong.append(f"another solution in other words: error, allowed (column {k}: {error:.3g}, {allowed:.3g})")
    return wrong
