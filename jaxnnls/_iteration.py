"""Which algorithm takes which columns of a block.

Each takes over the columns that the one before it left unsolved:

    wide A, no ridge, no l1:   `least_norm`, the dual: exact fits, already of least norm
    Q, few columns or crowded: `_quadratic`, pivots of a dual active set, or an interior point
    few variables, or crowded: `active_set`, pivots
    other problems:            `descend`, sweeps and conjugate gradients; what it leaves of a tall A, by pivots
    is the minimiser unique?   `judge_faces`, where A does not have full rank
    what is left, and          `rescue`, proximal Newton with factorisations, a few columns at a time
    whatever is not unique
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._active_set import active_set
from jaxnnls._descent import descend
from jaxnnls._dual import least_norm
from jaxnnls._loops import if_any
from jaxnnls._matrix import Matrix
from jaxnnls._objective import Problem, attainable, einsum, gradient, natural_residual
from jaxnnls._proximal import Rescued, rescue
from jaxnnls._quadratic import solve_quadratic
from jaxnnls._scaling import relative
from jaxnnls._small import FEW, pivots_pay
from jaxnnls._uniqueness import face_at, judge_faces

DESCENT_STEPS = 20
WIDE_DESCENT_STEPS = 10  # 20 take 1.1 times the time for 128 x 1025 mel bands that nothing fits
# Steps of descent where columns are almost combinations of others: boxes of which most variables are at a bound are
# solved by the first sweeps (a Q of 300 variables, 48 columns: 0.01 to 0.1 s, by pivots 0.4 to 0.7).
TRIES = 2
FEW_COLUMNS = 8


class Options(NamedTuple):
    """What steers the iteration and has no derivative."""

    x_init: Array | None  # (n, N) or (n, 1)
    tol: Array  # ()
    max_steps: Array  # (), int32
    smoothing: Array | None  # (), kappa: the derivative is that of the relaxed problem
    l1: Array  # (), what of `linear` does not count for the size of a problem


class Progress(NamedTuple):
    """What the columns of a block have reached."""

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
        z, shortest, nit = least_norm(
            C, matrix.inverse, problem.b, low, high, w, eligible, options.max_steps, matrix.independent
        )
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
    face = face_at(problem, matrix, x, g, optimality)
    unique = ~matrix.singular | judge_faces(matrix, face, apart, good & matrix.singular)
    pending, left = rest & ~(good & unique) & (nit < options.max_steps), options.max_steps - nit

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
    """Solve the active columns from x by the algorithm that suits the matrix, in at most `left` (k,) steps."""
    (n, k), gram, tol = x.shape, matrix.gram, options.tol
    apart = jnp.zeros_like(active)
    start = None if warm else matrix.start
    if problem.Q is not None and n > FEW and k <= FEW_COLUMNS:
        x, nit = solve_quadratic(problem, matrix, x, active, tol, options.max_steps)
    elif gram is not None and n <= FEW:
        x, apart, nit = active_set(problem, gram, x, active, tol, left)
    elif gram is not None and pivots_pay(n, problem.Q is not None) and matrix.inverse is None:
        # Where 0 is inside the bounds, free sets are as large and ill-conditioned as the matrix.
        lower, upper = problem.lower, problem.upper
        signed = active & jnp.all((lower >= 0) | (upper <= 0), axis=0)
        crowded = signed & matrix.crowded
        boxed = jnp.any((lower > -jnp.inf) & (upper < jnp.inf) & (lower < upper), axis=0)
        tried = active & (boxed | ~crowded)
        steps = jnp.minimum(jnp.where(crowded, TRIES, DESCENT_STEPS), left)
        y, _, optimality, nit = descend(problem, gram, start, x, tried, tol, steps)[:4]
        unsolved = ~(optimality <= attainable(y, tol)) & (crowded | few_inside(problem, y))
        pivoted = signed & (unsolved | ~tried)
        x = jnp.where(pivoted & ~many_at_far_bounds(problem, y), x, y)
        # Half of the steps are for what comes after.
        x, apart, pivots = active_set(problem, gram, x, pivoted, tol, jnp.minimum(left // 2, left - nit))
        nit += pivots
    elif problem.Q is not None:
        most = jnp.where(matrix.crowded, TRIES, DESCENT_STEPS)
        x, _, optimality, nit = descend(problem, gram, start, x, active, tol, jnp.minimum(most, left))[:4]
        unsolved = active & ~(optimality <= attainable(x, tol))
        rest = options.max_steps - jnp.minimum(most, options.max_steps)
        x, pivots = solve_quadratic(problem, matrix, x, unsolved, tol, rest)
        nit += pivots
    else:
        steps = jnp.minimum(DESCENT_STEPS if matrix.inverse is None else WIDE_DESCENT_STEPS, left)
        x, g, optimality, nit = descend(problem, gram, start, x, active, tol, steps)[:4]
        return Minimised(x, g, optimality, apart, nit)
    g = gradient(problem, x)
    return Minimised(x, g, natural_residual(x, g, problem.lower, problem.upper), apart, nit)


def many_at_far_bounds(problem: Problem, x: Array) -> Array:
    """Whether pivots better start from x than from 0, for bounds of one sign, (k,).

    From 0 a variable takes a pivot to become free and one to reach its far bound; from x, one if it is inside.
    """
    lower, upper = problem.lower, problem.upper
    at_far = jnp.where(lower >= 0, x >= upper, x <= lower) & (lower < upper)
    return 2 * jnp.sum(at_far, axis=0) >= inside_bounds(problem, x)


def few_inside(problem: Problem, x: Array) -> Array:
    """Whether so few variables are inside their bounds that pivots, one for each, cost less than `rescue`, (k,).

    A quarter of them in float32, three quarters in float64, where a step of rescue costs more. Of the time without
    pivots for what descent leaves: uniform columns plus 3 or 10, 0.3 to 0.7; in float64 also spectra of noise 0.3,
    boxes of uniform columns plus 2 0.1 to 0.2, 128 learnt spectra 0.7. With three quarters in float32 as well: spectra
    of noise 0.5 to 0.6, 128 learnt spectra 1.17, random walks 1.4. Where all are free, pivots take up to 10 times.
    """
    quarters = 3 if jnp.finfo(x.dtype).bits > 32 else 1
    return 4 * inside_bounds(problem, x) <= quarters * len(x)


def inside_bounds(problem: Problem, x: Array) -> Array:
    """How many variables are inside their bounds, (k,)."""
    return jnp.sum((x > problem.lower) & (x < problem.upper), axis=0)


def on_bounds(problem: Problem, x: Array, g: Array, optimality: Array, tol: Array) -> Array:
    """x with every variable on its bound that has a multiplier, and is so near that tol cannot tell, (n, k)."""

    def judged(y: Array) -> Array:
        return natural_residual(y, gradient(problem, y), problem.lower, problem.upper)

    room = attainable(x, tol)
    y = jnp.where((g > 4 * room) & (x - problem.lower <= room), problem.lower, x)
    y = jnp.where((g < -4 * room) & (problem.upper - x <= room), problem.upper, y)
    after = lax.cond(jnp.any(y != x), judged, lambda y: optimality, y)
    return jnp.where(after <= jnp.maximum(optimality, room / 10), y, x)
