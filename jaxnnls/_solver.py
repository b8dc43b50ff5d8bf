"""From a problem to its solution: prepare the matrix once, then solve block after block.

A tall A is first replaced by the triangular factor R of A = Q R, and b by Q'b: the same problem with n equations, to
rounding. A wide A whose rows are dependent is turned, so that some of them are zero, or b is projected on its range. A
block of scaled columns then goes to `_iteration`. What is said of the result, its optimality and status, is measured
with A itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnnls._blocks import block_size, broadcasting, fill_columns
from jaxnnls._dual import ENOUGH
from jaxnnls._iteration import Options, iterate
from jaxnnls._lanes import by_lanes
from jaxnnls._matrix import Matrix, prepare
from jaxnnls._objective import Problem, attainable, einsum, gradient, hidden, natural_residual
from jaxnnls._scaling import column_size, scale_columns
from jaxnnls._solution import choose_status

DEFAULT_MAX_STEPS = 500
LARGEST_START = 16  # of scaled variables that are not the same in all minimisers


class Result(NamedTuple):
    """The solution of each column and how it was reached."""

    x: Array  # (n, N)
    optimality: Array  # (N,)
    nit: Array  # (N,), int32
    status: Array  # (N,), int32
    regular: Array  # (N,), bool: whether H_FF is known to be, of what is not fitted
    fitted: Array  # (N,), bool: whether A x = b, for wide A with independent rows


class Shared(NamedTuple):
    """What all columns share."""

    A: Array | None  # (m, n)
    Q: Array | None  # (n, n)
    ridge: Array  # ()
    tol: Array  # ()
    max_steps: Array  # ()
    l1: Array  # ()


class Block(NamedTuple):
    """The columns of one block, in their own units."""

    b: Array | None  # (m, k)
    linear: Array  # (n, k) or (n, 1)
    lower: Array  # (n, k) or (n, 1)
    upper: Array  # (n, k) or (n, 1)
    x_init: Array | None  # (n, k) or (n, 1)


def bytes_per_column(problem: Problem) -> int:
    """What a column needs while its block is solved, as XLA says of the compiled program."""
    n = problem.lower.shape[0]
    m = 0 if problem.A is None else problem.A.shape[0]
    numbers = 20 * n + 10 * m if 0 < m < n else 14 * n + 6 * m
    return numbers * problem.lower.dtype.itemsize


@functools.partial(jax.jit, static_argnames="block_bytes")
@broadcasting
def solve(problem: Problem, options: Options, block_bytes: int) -> Result:
    """Solve every column. No derivative: see `_derivative`."""
    n, N = len(problem.lower), (problem.linear if problem.b is None else problem.b).shape[-1]
    shared = Shared(problem.A, problem.Q, problem.ridge, options.tol, options.max_steps, options.l1)
    columns = Block(problem.b, problem.linear, problem.lower, problem.upper, options.x_init)
    return by_lanes(functools.partial(solve_columns, block_bytes), n, N)(shared, columns)


def solve_columns(block_bytes: int, shared: Shared, columns: Block) -> Result:
    """Solve every column, block after block."""
    n, N = len(columns.lower), (columns.linear if columns.b is None else columns.b).shape[-1]
    problem = Problem(shared.A, shared.Q, columns.b, columns.linear, shared.ridge, columns.lower, columns.upper)
    options = Options(None, shared.tol, shared.max_steps, None, shared.l1)
    matrix = prepare(problem)
    number, count, flag = (jnp.zeros(N, dtype) for dtype in (problem.lower.dtype, jnp.int32, bool))
    empty = Result(jnp.zeros((n, N), number.dtype), number, count, count, flag, flag)
    size = block_size(N, bytes_per_column(problem), block_bytes)
    return fill_columns(lambda part: solve_block(matrix, problem, part, options), columns, empty, size)


def solve_block(matrix: Matrix, original: Problem, block: Block, options: Options) -> Result:
    """Solve the columns of one block."""
    n, dtype = original.lower.shape[0], original.lower.dtype
    scales = matrix.scales

    # What cannot be solved is replaced by something that can, and marked.
    finite = matrix.finite & ~jnp.any(jnp.isnan(block.lower) | jnp.isnan(block.upper), axis=0)
    finite &= jnp.all(jnp.isfinite(block.linear), axis=0)
    if block.b is not None:
        finite &= jnp.sum(block.b - block.b, axis=0) == 0  # a maximum may lose NaN
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

    beta = column_size(raw, scales, options.l1)
    scaled = scale_columns(
        matrix.problem._replace(
            b=raw.b, linear=raw.linear / scales.s, lower=raw.lower * scales.s, upper=raw.upper * scales.s
        ),
        beta,
    )
    # They stay out of ||x||_1, by which rounding is judged.
    scaled = scaled._replace(
        lower=jnp.where(scales.junk, 0, scaled.lower), upper=jnp.where(scales.junk, 0, scaled.upper)
    )
    x = jnp.zeros((n, k), dtype)
    if block.x_init is not None:
        x = jnp.where(jnp.isfinite(block.x_init), block.x_init * scales.s / beta, 0)
        x = jnp.where(jnp.isfinite(x), x, 0)
    x = jnp.clip(x, scaled.lower, scaled.upper)
    problem = reduced(matrix, scaled)
    if block.x_init is not None:
        x = start_from(matrix, problem, x)

    # Judged with A itself, which rounds otherwise than R: the iteration aims a little lower.
    aim = options._replace(tol=0.9 * options.tol)
    progress = iterate(matrix, problem, x, usable, aim, block.x_init is not None)
    x, nit = progress.x, progress.nit

    # Finite data give finite answers, even where rounding has spoilt everything.
    x = jnp.where(jnp.all(jnp.isfinite(x), axis=0), x, jnp.clip(0, scaled.lower, scaled.upper))
    optimality = natural_residual(x, gradient(scaled, x), scaled.lower, scaled.upper)
    optimal = optimality <= attainable(x, options.tol)
    converged = optimal & progress.shortest
    if original.Q is not None:
        bounded &= (optimal & ~hidden(x)) | ~diverges(matrix, scaled, x)
    status = choose_status(converged, nit >= options.max_steps, finite, feasible, bounded)

    at_lower, at_upper = x <= scaled.lower, x >= scaled.upper
    x = jnp.clip(x * beta / scales.s, lower, upper)
    x = jnp.where(at_lower, raw.lower, jnp.where(at_upper, raw.upper, x))
    optimality = jnp.where(finite, jnp.where(feasible, optimality, jnp.inf), jnp.nan)
    fitted = progress.fitted & matrix.independent
    return Result(jnp.where(finite, x, jnp.nan), optimality, nit, status, progress.unique & ~progress.fitted, fitted)


def reduced(matrix: Matrix, problem: Problem) -> Problem:
    """The problem with no more equations than variables: ||A x - b||^2 and ||R x - Q'b||^2 differ by a constant.

    Zero rows of a wide R stand for what no A x has. Where b has of it no more than rounding, it has nothing. Where
    Q is a projection, and b has no more of it than rounding, b stays as it is, to the digits of its smallest entries.
    """
    if matrix.basis is None:
        return problem
    assert problem.b is not None
    b, eps = einsum("ij,ik->jk", matrix.basis, problem.b), jnp.finfo(problem.b.dtype).eps
    if matrix.inverse is not None:
        fits = jnp.sum((problem.b - b) ** 2, axis=0) <= (ENOUGH * eps) ** 2
        b = jnp.where(matrix.tridiagonal & fits, problem.b, b)
        beyond = jnp.where(jnp.any(matrix.root != 0, axis=1, keepdims=True), 0, b)
        b = jnp.where(jnp.sum(beyond * beyond, axis=0) <= eps, b - beyond, b)
    return problem._replace(A=matrix.root, b=b)


def start_from(matrix: Matrix, problem: Problem, x: Array) -> Array:
    """The user's start x (n, k), or in columns where it would do harm, the point next to 0.

    What a start has in directions in which minimisers differ leaves its rounding in the answer. So where they may, it
    has to be of moderate size, and better than none by far more than rounding, which is all there is to project where
    nothing is better than 0.
    """
    none = jnp.clip(0, problem.lower, problem.upper)
    fall = -jnp.sum((x - none) * (gradient(problem, x) + gradient(problem, none)), axis=0)  # b has a size of 1
    better = fall > jnp.sqrt(jnp.finfo(x.dtype).eps)
    moderate = jnp.max(jnp.abs(x), axis=0, initial=0) <= LARGEST_START
    return jnp.where(~matrix.singular | (moderate & better), x, none)


def diverges(matrix: Matrix, problem: Problem, x: Array) -> Array:
    """Whether x lies on a ray along which a quadratic program falls without limit, (k,).

    It falls by more than the rounding of x'Qx, and twice as far out it still falls; or it falls steeply, and rounding
    is all that Q has along it. Of 25,344 columns of Gram systems in float32, all of which have a minimum, none is taken
    for a ray; 45 with sqrt(eps) for steep, and 254 by curvature and fall alone, whatever their rounding.
    """
    assert matrix.gram is not None
    eps, size = jnp.finfo(x.dtype).eps, jnp.max(jnp.abs(x), axis=0, initial=0)
    ray = jnp.abs(x) > 1e-3 * size
    open_ended = jnp.all(~ray | jnp.where(x > 0, problem.upper == jnp.inf, problem.lower == -jnp.inf), axis=0)
    curvature = jnp.sum(x * einsum("ij,jk->ik", matrix.gram, x), axis=0)
    fall, length = -jnp.sum(problem.linear * x, axis=0), jnp.sum(jnp.abs(x), axis=0)
    noise = eps * length**2
    falling = (curvature < 0.5 * fall) & (fall > 2 * noise)
    flat = (curvature <= noise) & (fall > eps ** (1 / 3) * length)
    return (size > 100) & open_ended & (falling | flat)
