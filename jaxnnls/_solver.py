"""From a problem to its solution: prepare the matrix once, then solve block after block.

A tall A is first replaced by the triangular factor R of A = Q R, and b by Q'b: the same problem with n equations, to
rounding. Then each part takes over the columns that the one before it left unsolved:

    wide A, no ridge, no l1:   `least_norm`, the dual: exact fits, already of least norm
    Q and few columns:         `_quadratic`, pivots of a dual active set, or an interior point
    few variables, or crowded: `active_set`, pivots
    other problems:            `descend`, sweeps and conjugate gradients
    is the minimiser unique?   `judge_faces`, where A does not have full rank
    what is left, and          `rescue`, proximal Newton with factorisations, a few columns at a time
    whatever is not unique

What is said of the result, its optimality and status, is measured with A itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._active_set import active_set
from jaxnnls._blocks import block_size, broadcasting, fill_columns
from jaxnnls._descent import descend
from jaxnnls._dual import least_norm
from jaxnnls._loops import if_any
from jaxnnls._matrix import Matrix, prepare
from jaxnnls._objective import (
    Problem,
    attainable,
    einsum,
    gradient,
    hidden,
    natural_residual,
)
from jaxnnls._proximal import Rescued, rescue
from jaxnnls._quadratic import solve_few
from jaxnnls._scaling import column_size, relative, scale_columns
from jaxnnls._small import FEW, SOME
from jaxnnls._solution import choose_status
from jaxnnls._uniqueness import judge_faces

DESCENT_STEPS = 20
WIDE_DESCENT_STEPS = 10  # 20 take 1.1 times the time for 128 x 1025 mel bands that nothing fits
FEW_COLUMNS = 8
DEFAULT_MAX_STEPS = 500


class Options(NamedTuple):
    """What steers the iteration and has no derivative."""

    x_init: Array | None  # (n, N) or (n, 1)
    tol: Array  # ()
    max_steps: Array  # (), int32
    smoothing: Array | None  # (), kappa: the derivative is that of the relaxed problem
    l1: Array  # (), what of `linear` does not count for the size of a problem


class Result(NamedTuple):
    """The solution of each column and how it was reached."""

    x: Array  # (n, N)
    optimality: Array  # (N,)
    nit: Array  # (N,), int32
    status: Array  # (N,), int32
    plain: Array  # (N,), bool: whether H_FF is regular, or for wide A, whether A x = b and A has independent rows


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
    return (12 * n + 6 * m) * problem.lower.dtype.itemsize


@functools.partial(jax.jit, static_argnames="block_bytes")
@broadcasting
def solve(problem: Problem, options: Options, block_bytes: int) -> Result:
    """Solve every column. No derivative: see `_derivative`."""
    problem, options = lax.stop_gradient((problem, options))
    N = (problem.linear if problem.b is None else problem.b).shape[-1]
    matrix = prepare(problem)
    block = Block(problem.b, problem.linear, problem.lower, problem.upper, options.x_init)
    size = block_size(N, bytes_per_column(problem), block_bytes)
    number, count, flag = (jnp.zeros(N, dtype) for dtype in (problem.lower.dtype, jnp.int32, bool))
    empty = Result(jnp.zeros((len(problem.lower), N), number.dtype), number, count, count, flag)
    return fill_columns(lambda part: solve_block(matrix, problem, part, options), block, empty, size)


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

    # Judged with A itself, which rounds otherwise than R: the iteration aims a little lower.
    aim = options._replace(tol=0.9 * options.tol)
    progress = iterate(matrix, reduced(matrix, scaled), x, usable, aim, block.x_init is not None)
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
    plain = progress.unique if matrix.inverse is None else progress.fitted & matrix.independent
    return Result(jnp.where(finite, x, jnp.nan), optimality, nit, status, plain)


def reduced(matrix: Matrix, problem: Problem) -> Problem:
    """The problem with as many equations as variables: ||A x - b||^2 and ||R x - Q'b||^2 differ by a constant."""
    if matrix.basis is None:
        return problem
    assert problem.b is not None
    return problem._replace(A=matrix.root, b=einsum("ij,ik->jk", matrix.basis, problem.b))


class Progress(NamedTuple):
    """The columns of a block on their way."""

    x: Array  # (n, k)
    shortest: Array  # (k,), bool: whether x is known to be of least norm among the minimisers, if it is one
    unique: Array  # (k,), bool: whether the minimiser is known to be unique
    fitted: Array  # (k,), bool: whether A x = b
    nit: Array  # (k,), int32


def iterate(matrix: Matrix, problem: Problem, x: Array, usable: Array, options: Options, warm: bool) -> Progress:
    """Run the algorithms over a scaled block, starting from x (n, k)."""
    nit = jnp.zeros_like(usable, jnp.int32)
    fitted = jnp.zeros_like(usable)
    if matrix.inverse is not None:
        # Without ridge and l1 an exact fit is optimal; x = z unit with z of least norm.
        assert problem.A is not None and problem.b is not None
        unit = relative(matrix.scales)
        C = problem.A * unit.T
        w = einsum("ij,jk->ik", matrix.inverse, einsum("ij,jk->ik", C, x / unit) if warm else problem.b)
        eligible = usable & ~jnp.any(matrix.determined & ~matrix.scales.junk) & jnp.all(problem.linear == 0, axis=0)
        low, high = problem.lower / unit, problem.upper / unit
        z, shortest, nit = least_norm(C, matrix.inverse, problem.b, low, high, w, eligible, options.max_steps)
        at_low, at_high = z <= low, z >= high
        z = jnp.clip(z * unit, problem.lower, problem.upper)
        z = jnp.where(at_low, problem.lower, jnp.where(at_high, problem.upper, z))
        optimality = natural_residual(z, gradient(problem, z), problem.lower, problem.upper)
        fitted = eligible & shortest & (optimality <= attainable(z, options.tol))
        x = jnp.where(fitted, z, x)

    rest = usable & ~fitted
    x, g, optimality, apart, steps = minimise(matrix, problem, x, rest, options, options.max_steps - nit, warm)
    nit += steps
    good = rest & (optimality <= attainable(x, options.tol))
    ask = good & matrix.singular
    unique = ~matrix.singular | judge_faces(problem, matrix, x, g, optimality, apart, ask)
    pending = rest & ~(good & unique) & (nit < options.max_steps)
    left = options.max_steps - nit

    def rescued(old: Rescued) -> Rescued:
        return rescue(problem, matrix, old.x, old.g, old.optimality, pending, options.tol, left)

    unsolved = Rescued(x, g, optimality, jnp.zeros_like(pending), jnp.zeros_like(nit))
    x, g, optimality, shortest, steps = if_any(pending, rescued, unsolved)
    x = on_bounds(problem, x, g, optimality, options.tol)
    return Progress(x, fitted | unique | shortest, unique, fitted, nit + steps)


class Minimised(NamedTuple):
    """What the first algorithm has reached."""

    x: Array  # (n, k)
    g: Array  # (n, k), the gradient at x
    optimality: Array  # (k,)
    apart: Array  # (k,), bool: whether columns of A whose variables are free are known to be independent
    nit: Array  # (k,), int32


def minimise(
    matrix: Matrix, problem: Problem, x: Array, active: Array, options: Options, left: Array, warm: bool
) -> Minimised:
    """Solve the active columns from x by the algorithm that suits the matrix; left (k,) limits the steps of descent."""
    (n, k), gram, tol = x.shape, matrix.gram, options.tol
    apart, nit = jnp.zeros_like(active), jnp.zeros_like(left)
    if problem.Q is not None and k <= FEW_COLUMNS and n > FEW:
        x, nit = solve_few(problem, matrix, x, active, tol, options.max_steps)
    elif gram is not None and n <= FEW:
        x, apart, nit = active_set(problem, gram, x, active, tol, options.max_steps)
    else:
        most = DESCENT_STEPS if matrix.inverse is None else WIDE_DESCENT_STEPS
        start, steps = None if warm else matrix.start, jnp.minimum(most, left)
        pivots_pay = gram is not None and n <= SOME and matrix.inverse is None
        # Where 0 is inside the bounds, free sets are as large and ill-conditioned as the matrix. Boxes from 0 on are
        # better in float32, but 128 variables can take hundreds of pivots.
        above = (problem.lower >= 0) & (problem.upper == jnp.inf)
        below = (problem.upper <= 0) & (problem.lower == -jnp.inf)
        small = jnp.all(above | below | (problem.lower == problem.upper), axis=0)
        crowded = active & matrix.crowded & small if pivots_pay else apart
        x, g, optimality, nit = descend(problem, gram, start, x, active & ~crowded, tol, steps)[:4]
        if not pivots_pay:
            return Minimised(x, g, optimality, apart, nit)
        assert gram is not None
        # Half of the steps are for what comes after.
        x, apart, pivots = active_set(problem, gram, x, crowded, tol, options.max_steps // 2)
        nit += pivots
    g = gradient(problem, x)
    return Minimised(x, g, natural_residual(x, g, problem.lower, problem.upper), apart, nit)


def on_bounds(problem: Problem, x: Array, g: Array, optimality: Array, tol: Array) -> Array:
    """x with every variable on its bound that has a multiplier, and is so near that tol cannot tell, (n, k)."""

    def judged(y: Array) -> Array:
        return natural_residual(y, gradient(problem, y), problem.lower, problem.upper)

    room = attainable(x, tol)
    y = jnp.where((g > 4 * room) & (x - problem.lower <= room), problem.lower, x)
    y = jnp.where((g < -4 * room) & (problem.upper - x <= room), problem.upper, y)
    after = lax.cond(jnp.any(y != x), judged, lambda y: optimality, y)
    return jnp.where(after <= jnp.maximum(optimality, room / 10), y, x)


def diverges(matrix: Matrix, problem: Problem, x: Array) -> Array:
    """Whether x lies on a ray along which a quadratic program falls without limit, (k,)."""
    assert matrix.gram is not None
    size = jnp.max(jnp.abs(x), axis=0, initial=0)
    ray = jnp.abs(x) > 1e-3 * size
    open_ended = jnp.all(~ray | jnp.where(x > 0, problem.upper == jnp.inf, problem.lower == -jnp.inf), axis=0)
    curvature = jnp.sum(x * einsum("ij,jk->ik", matrix.gram, x), axis=0)
    return (size > 100) & open_ended & (curvature < -0.5 * jnp.sum(problem.linear * x, axis=0))
