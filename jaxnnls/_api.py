"""The public functions: a docstring, a check, one call down, the result in the caller's shape and dtype."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnnls._evaluate import dual_and_residual_norm
from jaxnnls._objective import Problem
from jaxnnls._problem import DEFAULT_BLOCK_BYTES, Arguments, check, columns_back, pair, result_dtype
from jaxnnls._programs import solve
from jaxnnls._solution import Solution, Status
from jaxnnls._solver import Result
from jaxnnls._stages import Output


def nnls(
    A: ArrayLike,
    B: ArrayLike,
    *,
    x_init: ArrayLike | None = None,
    ridge: ArrayLike = 0.0,
    l1: ArrayLike = 0.0,
    tol: ArrayLike | None = None,
    max_steps: ArrayLike | None = None,
    smoothing: ArrayLike | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Array:
    r"""Non-negative least squares, for every column of B.

    .. math:: \min_{x \ge 0} \; \tfrac12 \|A x - b\|^2 + \tfrac{\text{ridge}}2 \|x\|^2 + \text{l1} \sum_j x_j

    Where several x are optimal, this is the one of least Euclidean norm.

    Parameters
    ----------
    A : array_like, shape (m, n)
        One matrix for all columns. For several, use `jax.vmap`.
    B : array_like, shape (m,) or (..., m, N)
        Right-hand sides.
    x_init : array_like, shape of the result, optional
        A warm start. It changes the time a solve takes, not the answer.
    ridge, l1 : float
        Non-negative and finite, differentiable; changing them does not recompile.
    tol : float, optional
        On the optimality (see `lsq_linear`); by default 1e-13 in float64 and 2e-6 in float32. Solutions are refined to
        rounding level in any case.
    max_steps : int, optional
        Limit on the steps of the slowest column. The default is enough for everything reasonable.
    smoothing : float, optional
        kappa > 0: the value stays as it is, its derivative becomes that of the problem with the log barrier
        :math:`-\kappa \sum_j (\log(x_j - \ell_j) + \log(u_j - x_j))`, to which variables on a bound contribute as well.
        By default the derivative is that of the solution, in which they stay where they are. Takes memory for some
        matrices (n, n) per column of a block.
    block_bytes : int
        Budget for the arrays of the columns that are solved at a time. Static.

    Returns
    -------
    X : Array, shape (n,) or (..., n, N)
        In the promoted floating dtype of A and B; half precision is computed in float32. Differentiable in A, B,
        ridge and l1, in forward and reverse mode and to any order. In the body of a `jax.lax.scan` or `jax.lax.map`,
        second derivatives in reverse mode need `jax.checkpoint` around the body, and are not finite without. Columns
        with NaN or inf in their data are NaN; use `lsq_linear` for the status of each column.

    Raises
    ------
    ValueError
        For shapes that do not fit, and for a negative ridge or l1.
    TypeError
        For complex data.

    See Also
    --------
    lsq_linear : the same with bounds, and with multipliers and a status for each column.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxnnls
    >>> A = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> print(jaxnnls.nnls(A, jnp.array([5.0, 6.0])).round(3))
    [0.  1.7]

    The derivative goes through the optimality conditions, here of the squared norm of the solution:

    >>> print(jax.grad(lambda b: jnp.sum(jaxnnls.nnls(A, b) ** 2))(jnp.array([5.0, 6.0])).round(2))
    [0.34 0.68]
    """
    arguments = Arguments(A, B, 0.0, jnp.inf, x_init, ridge, l1, tol, max_steps, smoothing)
    return solve(*check(arguments, False, block_bytes), False, X)


def lsq_linear(
    A: ArrayLike,
    B: ArrayLike,
    bounds: tuple[ArrayLike, ArrayLike] = (-jnp.inf, jnp.inf),
    *,
    x_init: ArrayLike | None = None,
    ridge: ArrayLike = 0.0,
    l1: ArrayLike = 0.0,
    tol: ArrayLike | None = None,
    max_steps: ArrayLike | None = None,
    smoothing: ArrayLike | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Solution:
    r"""Least squares within bounds, for every column of B.

    .. math:: \min_{\ell \le x \le u} \; \tfrac12 \|A x - b\|^2 + \tfrac{\text{ridge}}2 \|x\|^2 + \text{l1} \sum_j x_j

    Where several x are optimal, this is the one of least Euclidean norm.

    Parameters
    ----------
    A : array_like, shape (m, n)
        One matrix for all columns. For several, use `jax.vmap`.
    B : array_like, shape (m,) or (..., m, N)
        Right-hand sides.
    bounds : 2-tuple of array_like
        Lower and upper ones: scalars; one-dimensional: one entry per variable, length n; anything else broadcasts to x,
        so that each column may have its own. Infinite bounds are none; lower = upper fixes a variable.
    x_init : array_like, shape of x, optional
        A warm start. It changes the time a solve takes, not the answer.
    ridge, l1 : float
        Non-negative and finite, differentiable; changing them does not recompile. l1 > 0 needs lower >= 0.
    tol : float, optional
        On the optimality; by default 1e-13 in float64 and 2e-6 in float32. Solutions are refined to rounding level in
        any case.
    max_steps : int, optional
        Limit on the steps of the slowest column. The default is enough for everything reasonable.
    smoothing : float, optional
        kappa > 0: the value stays as it is, its derivative becomes that of the problem with the log barrier
        :math:`-\kappa \sum_j (\log(x_j - \ell_j) + \log(u_j - x_j))`, to which variables on a bound contribute as well.
        By default the derivative is that of the solution, in which they stay where they are. Takes memory for some
        matrices (n, n) per column of a block.
    block_bytes : int
        Budget for the arrays of the columns that are solved at a time. Static.

    Returns
    -------
    solution : Solution
        x, dual and residual_norm carry derivatives with respect to A, B, ridge, l1 and finite bounds. Nothing raises
        for a column that fails: look at its status, or call `raise_if_failed`.

    Raises
    ------
    ValueError
        For shapes that do not fit, and, where the values are known at trace time, for lower > upper, a negative ridge
        or l1, and l1 with a negative lower bound.
    TypeError
        For complex data.

    Notes
    -----
    optimality is the natural residual :math:`\max_j \, |x_j - \operatorname{clip}(x_j - g_j, \ell_j, u_j)|` of the
    problem with unit columns and a right-hand side of unit size, g being the gradient. A column has converged where
    that is at most tol, or a small multiple of the rounding error of g.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnnls
    >>> A = jnp.array([[1.0, 0.5], [0.0, 1.0], [1.0, 1.0]])
    >>> sol = jaxnnls.lsq_linear(A, jnp.array([2.0, -1.0, 1.0]), bounds=(0, 1))
    >>> sol.x, sol.active_mask, int(sol.status)
    (Array([1., 0.], dtype=float32), Array([ 1, -1], dtype=int32), 0)
    """
    lower, upper = pair(bounds)
    arguments = Arguments(A, B, lower, upper, x_init, ridge, l1, tol, max_steps, smoothing)
    return solve(*check(arguments, False, block_bytes), False, SOLUTION)


def box_qp(
    Q: ArrayLike,
    q: ArrayLike,
    bounds: tuple[ArrayLike, ArrayLike] = (0.0, jnp.inf),
    *,
    x_init: ArrayLike | None = None,
    ridge: ArrayLike = 0.0,
    l1: ArrayLike = 0.0,
    tol: ArrayLike | None = None,
    max_steps: ArrayLike | None = None,
    smoothing: ArrayLike | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Solution:
    r"""Convex quadratic programs within bounds, for every column of q.

    .. math::
        \min_{\ell \le x \le u} \; \tfrac12 x^\top Q x - q^\top x + \tfrac{\text{ridge}}2 \|x\|^2 + \text{l1} \sum_j x_j

    With Q = A'A and q = A'b this is `lsq_linear`, for those who have only the Gram matrix; with A at hand,
    `lsq_linear` is more accurate.

    Parameters
    ----------
    Q : array_like, shape (n, n)
        Positive semidefinite; its symmetric part counts, and its cotangent is symmetric.
    q : array_like, shape (n,) or (..., n, N)
        Linear terms.
    bounds, x_init, ridge, l1, tol, max_steps, smoothing, block_bytes
        As for `lsq_linear`; x >= 0 by default.

    Returns
    -------
    solution : Solution
        As for `lsq_linear`, with residual_norm NaN. The status is UNBOUNDED where the objective has no minimum.

    Raises
    ------
    ValueError, TypeError
        As for `lsq_linear`.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnnls
    >>> sol = jaxnnls.box_qp(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([1.0, -1.0]))
    >>> sol.x, sol.dual
    (Array([0.5, 0. ], dtype=float32), Array([0., 1.], dtype=float32))
    """
    lower, upper = pair(bounds)
    arguments = Arguments(Q, q, lower, upper, x_init, ridge, l1, tol, max_steps, smoothing)
    return solve(*check(arguments, True, block_bytes), True, SOLUTION)


def _x_of(arguments: Arguments, problem: Problem, result: Result, block_bytes: int) -> Array:
    return columns_back(result.x, arguments).astype(result_dtype(arguments))


def _solution_of(arguments: Arguments, problem: Problem, result: Result, block_bytes: int) -> Solution:
    dual, residual_norm = dual_and_residual_norm(problem, result.x, block_bytes)
    mask = jnp.where(result.x <= problem.lower, -1, jnp.where(result.x >= problem.upper, 1, 0)).astype(jnp.int32)

    def back(a: Array, dtype: Any = None) -> Array:
        a = columns_back(a, arguments)
        return a if dtype is None else a.astype(dtype)

    dtype = result_dtype(arguments)
    status = result.status
    if jnp.finfo(dtype).max < jnp.finfo(result.x.dtype).max:  # float16 cannot hold every answer
        answer = jnp.concatenate([result.x, dual])
        beyond = jnp.any(jnp.isfinite(answer) & jnp.isinf(answer.astype(dtype)), axis=0)
        status = jnp.where(beyond & (status == Status.CONVERGED), Status.PRECISION, status)
    return Solution(
        x=back(result.x, dtype),
        dual=back(dual, dtype),
        residual_norm=back(residual_norm, dtype),
        optimality=back(result.optimality, dtype),
        nit=back(result.nit),
        status=back(status),
        active_mask=back(mask),
    )


X = Output(_x_of, True, False)
SOLUTION = Output(_solution_of, Solution(True, True, False, False, False, False, True), True)  # type: ignore[arg-type]
