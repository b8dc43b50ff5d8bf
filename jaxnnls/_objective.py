"""The objective, written once; its gradient, and all that is built on it.

    f(x) = 1/2 ||A x - b||^2 + 1/2 x'Q x + ridge/2 ||x||^2 + linear'x

A problem has ``A`` and ``b`` (least squares) or ``Q`` (quadratic programs), never both. The solver's refinement,
the optimality measure, the multipliers and the derivative of the solution all use `gradient`, which is `jax.grad`
of `objective`: a new term added here needs no derivation by hand anywhere else.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from optax.projections import projection_box

# TF32 and bfloat16 products make A'A indefinite and residuals wrong in the third digit.
einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Problem(NamedTuple):
    """Bounded least-squares problems that share one matrix, one problem a column.

    What is the same for every column has a last axis of length 1, or none. What belongs to a column has a last axis
    of length N, the number of columns.
    """

    A: Array | None  # (m, n)
    Q: Array | None  # (n, n); only its symmetric part counts
    b: Array | None  # (m, N)
    linear: Array  # (n, N) or (n, 1): l1, less q where there is a Q
    ridge: Array  # () or (n, 1)
    lower: Array  # (n, N) or (n, 1)
    upper: Array  # (n, N) or (n, 1)


class Columns(NamedTuple):
    """What belongs to the columns of a problem, for taking some of them."""

    b: Array | None  # (m, N)
    linear: Array  # (n, N)
    lower: Array  # (n, N)
    upper: Array  # (n, N)


def columns_of(problem: Problem) -> Columns:
    """The part of a problem that belongs to its columns."""
    return Columns(problem.b, problem.linear, problem.lower, problem.upper)


def with_columns(problem: Problem, columns: Columns) -> Problem:
    """The problem with other columns."""
    return problem._replace(**columns._asdict())


def residual(problem: Problem, x: Array) -> Array:
    """A x - b, shape (m, N)."""
    assert problem.A is not None and problem.b is not None
    return einsum("ij,jk->ik", problem.A, x) - problem.b


def objective(problem: Problem, x: Array) -> Array:
    """The sum over columns of f; columns do not interact, so its gradient is each column's own. x (n, N) -> ()."""
    value = jnp.sum(0.5 * problem.ridge * x * x) + jnp.sum(problem.linear * x)
    if problem.A is not None:
        r = residual(problem, x)
        value += 0.5 * einsum("ik,ik->", r, r)
    if problem.Q is not None:
        value += 0.5 * einsum("ik,ij,jk->", x, problem.Q, x)
    return value


@jax.jit  # traced once for all places that need it
def gradient(problem: Problem, x: Array) -> Array:
    """The gradient of the objective with respect to x, (n, N). At a solution it is the dual variable."""
    return jax.grad(objective, argnums=1)(problem, x)


def natural_residual(x: Array, g: Array, lower: Array, upper: Array) -> Array:
    """max_j |x_j - P(x_j - g_j)| for each column, P the projection onto the bounds: 0 at a KKT point only. (N,)."""
    return jnp.max(jnp.abs(x - projection_box(x - g, lower, upper)), axis=0, initial=0)


def attainable(x: Array, tol: Array | float) -> Array:
    """The natural residual that counts as optimal: tol, or what rounding leaves of it. x (n, N) scaled -> (N,)."""
    eps = jnp.finfo(x.dtype).eps
    return jnp.maximum(tol, jnp.minimum(_rounding(x), jnp.sqrt(eps)))


def hidden(x: Array) -> Array:
    """Whether x is so large that its rounding hides any gradient: x may be on its way to infinity. (n, N) -> (N,)."""
    return _rounding(x) > jnp.sqrt(jnp.finfo(x.dtype).eps)


def _rounding(x: Array) -> Array:
    return 2 * jnp.finfo(x.dtype).eps * (1 + jnp.sum(jnp.abs(x), axis=0))


def is_least(value: Array, bound: Array) -> Array:
    """Whether a squared norm is the least one, to 6e-7 of it in float64 and 2e-3 in float32, by a lower bound. (k,)."""
    return jnp.abs(value - bound) <= jnp.finfo(value.dtype).eps ** 0.4 * value
