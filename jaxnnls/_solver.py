"""From a problem to its solution: prepare the matrix once, then solve block after block.

Per block, each part takes over the columns that the one before it left unsolved:

    wide A, no ridge, no l1:   `least_norm`, the dual: exact fits, already of least norm
    every problem:             `descend`, sweeps and conjugate gradients
    what is left, and          `solve_column`, proximal Newton with factorisations, a few columns at a time
    whatever is not unique
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._blocks import block_size, broadcasting, map_columns
from jaxnnls._descent import FIRST_SWEEPS, SWEEPS, descend, polish
from jaxnnls._dual import least_norm
from jaxnnls._matrix import Matrix, prepare
from jaxnnls._objective import Problem, attainable, einsum, gradient, natural_residual
from jaxnnls._proximal import solve_column
from jaxnnls._scaling import column_size, scale_columns
from jaxnnls._solution import choose_status

DESCENT_STEPS = 12
DEFAULT_MAX_STEPS = 500
RESCUE_ELEMENTS = 2**16  # of the matrices that are factorised at a time


class Options(NamedTuple):
    """What steers the iteration and has no derivative."""

    x_init: Array | None  # (n, N) or (n, 1)
    tol: Array  # ()
    max_steps: Array  # (), int32


class Result(NamedTuple):
    """The solution of each column and how it was reached."""

    x: Array  # (n, N)
    optimality: Array  # (N,)
    nit: Array  # (N,), int32
    status: Array  # (N,), int32
    singular: Array  # (), bool: whether the matrix is such that minimisers may fail to be unique


class Block(NamedTuple):
    """The columns of one block, in their own units."""

    b: Array | None  # (m, k)
    linear: Array  # (n, k) or (n, 1)
    lower: Array  # (n, k) or (n, 1)
    upper: Array  # (n, k) or (n, 1)
    x_init: Array | None  # (n, k) or (n, 1)


def bytes_per_column(problem: Problem) -> int:
    """What a column needs while its block is solved."""
    n = problem.lower.shape[0]
    m = 0 if problem.A is None else problem.A.shape[0]
    return (24 * n + 12 * m) * problem.lower.dtype.itemsize


@functools.partial(jax.jit, static_argnames="block_bytes")
@broadcasting
def solve(problem: Problem, options: Options, block_bytes: int) -> Result:
    """Solve every column. No derivative: see `_derivative`."""
    problem, options = lax.stop_gradient((problem, options))
    N = (problem.linear if problem.b is None else problem.b).shape[-1]
    matrix = prepare(problem)
    block = Block(problem.b, problem.linear, problem.lower, problem.upper, options.x_init)
    size = block_size(N, bytes_per_column(problem), block_bytes)
    columns = map_columns(lambda part: solve_block(matrix, problem, part, options), block, N, size)
    return Result(*columns, singular=matrix.singular)


def solve_block(matrix: Matrix, original: Problem, block: Block, options: Options) -> tuple[Array, Array, Array, Array]:
    """Solve the columns of one block. Returns x, optimality, nit, status."""
    n, dtype = original.lower.shape[0], original.lower.dtype
    scales = matrix.scales

    # What cannot be solved is replaced by something that can, and marked.
    finite = matrix.finite & ~jnp.any(jnp.isnan(block.lower) | jnp.isnan(block.upper), axis=0)
    finite &= jnp.all(jnp.isfinite(block.linear), axis=0)
    if block.b is not None:
        finite &= jnp.all(jnp.isfinite(block.b), axis=0)
    k = finite.shape[0]
    boxed = (block.lower <= block.upper) & (block.lower < jnp.inf) & (block.upper > -jnp.inf)
    feasible = jnp.all(boxed, axis=0)
    usable = finite & feasible
    lower = jnp.broadcast_to(jnp.where(usable, block.lower, 0), (n, k))
    upper = jnp.broadcast_to(jnp.where(usable, block.upper, 0), (n, k))
    raw = original._replace(
        A=None if original.A is None else jnp.where(matrix.finite, original.A, 0),
        b=None if block.b is None else jnp.where(usable, block.b, 0),
        linear=jnp.broadcast_to(jnp.where(usable, block.linear, 0), (n, k)),
        lower=lower,
        upper=upper,
    )

    # Negligible columns: each variable goes where its linear term wants it.
    goal = jnp.where(raw.linear > 0, lower, jnp.where(raw.linear < 0, upper, jnp.clip(0, lower, upper)))
    bounded = jnp.all(~scales.junk | jnp.isfinite(goal), axis=0)
    goal = jnp.where(jnp.isfinite(goal), goal, jnp.clip(0, lower, upper))
    raw = raw._replace(lower=jnp.where(scales.junk, goal, lower), upper=jnp.where(scales.junk, goal, upper))

    beta = column_size(raw, scales)
    scaled = scale_columns(
        matrix.problem._replace(
            b=raw.b, linear=raw.linear / scales.s, lower=raw.lower * scales.s, upper=raw.upper * scales.s
        ),
        beta,
    )
    x = jnp.zeros((n, k), dtype)
    if block.x_init is not None:
        x = jnp.where(jnp.isfinite(block.x_init), block.x_init * scales.s / beta, 0)
        x = jnp.where(jnp.isfinite(x), x, 0)
    x = jnp.clip(x, scaled.lower, scaled.upper)

    x, shortest, nit, _ = iterate(matrix, scaled, x, usable, options, block.x_init is not None)

    # Finite data give finite answers, even where rounding has spoilt everything.
    x = jnp.where(jnp.all(jnp.isfinite(x), axis=0), x, jnp.clip(0, scaled.lower, scaled.upper))
    g = gradient(scaled, x)
    optimality = natural_residual(x, g, scaled.lower, scaled.upper)
    optimal = optimality <= attainable(x, options.tol)
    converged = optimal & shortest
    if original.Q is not None:
        bounded &= optimal | ~diverges(matrix, scaled, x)
    status = choose_status(converged, nit >= options.max_steps, finite, feasible, bounded)

    at_lower, at_upper = x <= scaled.lower, x >= scaled.upper
    x = jnp.clip(x * beta / scales.s, lower, upper)
    x = jnp.where(at_lower, raw.lower, jnp.where(at_upper, raw.upper, x))
    optimality = jnp.where(finite, jnp.where(feasible, optimality, jnp.inf), jnp.nan)
    return jnp.where(finite, x, jnp.nan), optimality, nit, status


class Progress(NamedTuple):
    """The columns of a block on their way."""

    x: Array  # (n, k)
    shortest: Array  # (k,), bool: whether x is known to be of least norm among the minimisers, if it is one
    nit: Array  # (k,), int32
    pending: Array  # (k,), bool


def iterate(matrix: Matrix, problem: Problem, x: Array, usable: Array, options: Options, warm: bool) -> Progress:
    """Run the algorithms over a scaled block, starting from x (n, k)."""
    nit = jnp.zeros_like(usable, jnp.int32)
    fitted = jnp.zeros_like(usable)
    if matrix.inverse is not None:
        # Without ridge and l1 an exact fit is optimal; x = z unit with z of least norm.
        assert problem.A is not None and problem.b is not None
        C = problem.A * matrix.unit.T
        w = einsum("ij,jk->ik", matrix.inverse, einsum("ij,jk->ik", C, x / matrix.unit) if warm else problem.b)
        eligible = usable & matrix.singular & jnp.all(problem.linear == 0, axis=0)
        low, high = problem.lower / matrix.unit, problem.upper / matrix.unit
        z, nit = least_norm(C, matrix.inverse, problem.b, low, high, w, eligible, options.max_steps)
        at_low, at_high = z <= low, z >= high
        z = jnp.clip(z * matrix.unit, problem.lower, problem.upper)
        z = jnp.where(at_low, problem.lower, jnp.where(at_high, problem.upper, z))
        optimality = natural_residual(z, gradient(problem, z), problem.lower, problem.upper)
        fitted = eligible & (optimality <= attainable(z, options.tol))
        x = jnp.where(fitted, z, x)

    rest = usable & ~fitted
    steps = jnp.minimum(DESCENT_STEPS, options.max_steps - nit)
    end = descend(problem, matrix.gram, x, rest, options.tol, steps, SWEEPS if warm else FIRST_SWEEPS)
    good = rest & (end.optimality <= attainable(end.x, options.tol))
    x = polish(problem, matrix.gram, end.x, good)
    nit += end.nit
    pending = rest & (~good | matrix.singular) & (nit < options.max_steps)
    return rescue(matrix, problem, Progress(x, fitted | ~matrix.singular, nit, pending), options)


def rescue(matrix: Matrix, problem: Problem, start: Progress, options: Options) -> Progress:
    """`solve_column` for the pending columns, a few at a time."""
    k = start.pending.shape[0]
    chunk = max(1, min(k, RESCUE_ELEMENTS // max(matrix.root.shape[0] ** 2, 1)))

    def column(problem: Problem, x: Array, active: Array, budget: Array) -> tuple[Array, Array, Array]:
        problem = problem._replace(
            b=None if problem.b is None else problem.b[:, None],
            linear=problem.linear[:, None],
            lower=problem.lower[:, None],
            upper=problem.upper[:, None],
        )
        return solve_column(problem, matrix.root, matrix.unit[:, 0], x, active, matrix.singular, options.tol, budget)

    axes: Any = (None, None, None if problem.b is None else -1, -1, None, -1, -1)
    columns = jax.vmap(column, in_axes=(Problem(*axes), -1, 0, 0), out_axes=(-1, 0, 0))

    def turn(state: Progress) -> Progress:
        x, shortest, nit, pending = state
        at = lax.top_k(pending.astype(jnp.float32), chunk)[1]
        part = problem._replace(
            b=None if problem.b is None else problem.b[:, at],
            linear=problem.linear[:, at],
            lower=problem.lower[:, at],
            upper=problem.upper[:, at],
        )
        own = pending[at]
        new, short, count = columns(part, x[:, at], own, options.max_steps - nit[at])
        return Progress(
            x.at[:, at].set(jnp.where(own, new, x[:, at])),
            shortest.at[at].set(jnp.where(own, short, shortest[at])),
            nit.at[at].add(count),
            pending.at[at].set(False),
        )

    return lax.while_loop(lambda state: jnp.any(state.pending), turn, start)


def diverges(matrix: Matrix, problem: Problem, x: Array) -> Array:
    """Whether x lies on a ray along which a quadratic program falls without limit, (k,)."""
    assert matrix.gram is not None
    size = jnp.max(jnp.abs(x), axis=0, initial=0)
    ray = jnp.abs(x) > 1e-3 * size
    open_ended = jnp.all(~ray | jnp.where(x > 0, problem.upper == jnp.inf, problem.lower == -jnp.inf), axis=0)
    curvature = jnp.sum(x * einsum("ij,jk->ik", matrix.gram, x), axis=0)
    return (size > 100) & open_ended & (curvature < 0.5 * jnp.abs(jnp.sum(problem.linear * x, axis=0)))
