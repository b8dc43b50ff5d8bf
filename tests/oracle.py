"""What a solution must satisfy, written a second time: NumPy, float64, one column after another."""

import numpy as np
from scipy.optimize import lsq_linear


def gradient(problem, X):
    A, B = problem.A, problem.B
    return A.T @ (A @ X - B) + problem.ridge * X + problem.l1


def objective(problem, X):
    """The objective of each column, (N,)."""
    r = problem.A @ X - problem.B
    return 0.5 * np.sum(r * r, 0) + 0.5 * problem.ridge * np.sum(X * X, 0) + problem.l1 * np.sum(X, 0)


def columns_that_count(problem):
    s = np.sqrt(np.sum(problem.A**2, 0) + problem.ridge)
    return s, s > 2.2e-15 * s.max()


def optimality(problem, X):
    """The contract's scaled natural residual (design, section 2), and ||x_scaled||_1: (N,), (N,)."""
    s, counts = columns_that_count(problem)
    start = np.linalg.norm(problem.A @ np.clip(0, problem.lower, problem.upper), axis=0)
    beta = np.maximum(np.linalg.norm(problem.B, axis=0), start)
    beta = np.where(beta > 0, beta, 1)
    s = s[counts, None]
    x, lower, upper = (a[counts] * s / beta for a in (X, problem.lower, problem.upper))
    g = gradient(problem, X)[counts] / (s * beta)
    return np.max(np.abs(x - np.clip(x - g, lower, upper)), axis=0, initial=0), np.sum(np.abs(x), axis=0)


def attainable(problem, X, dtype):
    """What optimality may be: the default tol, or what rounding of x and of the gradient leaves."""
    eps = np.finfo(dtype).eps
    return np.maximum({4: 2e-6, 8: 1e-13}[np.dtype(dtype).itemsize], 4 * eps * (1 + optimality(problem, X)[1]))


def scipy_solution(problem):
    """Each column by SciPy BVLS, with ridge and l1 in additional equations. Only for unique minimisers."""
    A, B = problem.A, problem.B
    n = A.shape[1]
    if problem.ridge > 0:
        root = np.sqrt(problem.ridge)
        A = np.vstack([A, root * np.eye(n)])
        B = np.vstack([B, np.full((n, B.shape[1]), -problem.l1 / root)])
    elif problem.l1 > 0:
        B = B - A @ np.linalg.solve(A.T @ A, np.full((n, 1), problem.l1))
    columns = []
    for b, lower, upper in zip(B.T, problem.lower.T, problem.upper.T):
        fixed = lower == upper
        b = b - A[:, fixed] @ lower[fixed]
        x = lower.copy()
        bounds = (lower[~fixed], upper[~fixed])
        x[~fixed] = lsq_linear(A[:, ~fixed], b, bounds, method="bvls", tol=1e-15, max_iter=1000).x
        columns.append(x)
    return np.stack(columns, axis=1)


def least_norm(problem, X, weight=1e5):
    """The least-norm point among the minimisers, given one of them: same A x, variables with multipliers held.

    The equations A x = A X weigh much more than x = 0; the error is about 1 / weight^2.
    """
    A = problem.A
    n = A.shape[1]
    dual = gradient(problem, X)
    answer = X.copy()
    for k in range(X.shape[1]):
        loose = np.abs(dual[:, k]) < 1e-7 * max(np.abs(dual[:, k]).max(), np.linalg.norm(problem.B[:, k]))
        loose &= problem.lower[:, k] < problem.upper[:, k]
        stack = np.vstack([weight * A, np.eye(n)])[:, loose]
        right = np.concatenate([weight * A[:, loose] @ X[loose, k], np.zeros(n)])
        if loose.any():
            bounds = (problem.lower[loose, k], problem.upper[loose, k])
            answer[loose, k] = lsq_linear(stack, right, bounds, method="bvls", tol=1e-15, max_iter=1000).x
    return answer


def pullback(problem, X, X_bar):
    """The cotangents of A and B, given those of solutions X: the transposed formulas of `_tangent`, by columns."""
    A, B = problem.A, problem.B
    A_bar, B_bar = np.zeros(A.shape), np.zeros(B.shape)
    for k in range(X.shape[1]):
        free, x = (X[:, k] > problem.lower[:, k]) & (X[:, k] < problem.upper[:, k]), X[:, k]
        A_F = A[:, free]
        H = A_F.T @ A_F + problem.ridge * np.eye(A_F.shape[1])
        inverse = np.linalg.pinv(H, rcond=1e-10)
        u = np.zeros(len(x))
        u[free] = inverse @ X_bar[free, k]
        w = A_F @ inverse @ x[free]
        B_bar[:, k] = A @ u
        A_bar += np.outer(B[:, k] - A @ x, u) - np.outer(A @ u, x)
        A_bar[:, free] += np.outer(w, X_bar[free, k] - inverse @ H @ X_bar[free, k])
    return A_bar, B_bar
