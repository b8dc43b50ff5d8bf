"""A minimiser of each column of a block, whether or not it is the one of least norm.

Each takes over the columns that the one before it left unsolved:

    `descend`           sweeps and conjugate gradients
    `active_set`        pivots from a vertex, for bounds of one sign; for any where A or Q has few variables
    `dual_active_set`   pivots from the minimiser without bounds, for a Q of few columns or more variables
    `interior_point`    for such a Q, and for any Q and tall A in float64

The first is left out for few variables, few columns of a Q, and, without boxes, for a crowded A, and a wide one whose
systems are tridiagonal: there the steps of `rescue` cost less (128 x 1025 mel bands with a ridge, float32, 5.0 s with
descent, 1.3 without; in boxes, float64, 19 of 384 columns are then left that descent solves). What is left is for
`rescue`.

The interior point, measured on tall A in float64, ms a column instead of by `rescue` with a small first sigma, and how
many of 20 columns were left (columns almost combinations of others; bounds +-0.5, +-2 and from -0.1 to 1); with the
sigma of now `rescue` takes 1 to 4 times as long for 60 variables, 2 to 9 times for 200, and leaves none:

    90 x 60     peaks 0.7 to 0.9, 3 to 7       0, 0      uniform plus 3   0.6, 2.3 to 3    0, 0
                random walks 0.5, 3 to 4       0, 0      nearly twice     0.5, 5.5         0, up to 1
    300 x 200   peaks 4 to 6, 33 to 97         0, 7      uniform plus 3   3 to 5, 21 to 40 0, 0
                random walks 4 to 5, 76 to 82  0, 7      nearly twice     4 to 6, 54 to 66 0, 20
    750 x 500   rank 166, +-0.5: 39, 187       0, 3

It takes 10 to 20 factorisations where proximal steps take 100 to 400, and a second of compilation. In float32 it takes
0.5 to 4 times the time (random walks 0.5, decay curves 2 to 3, nearly twice 3 to 4) and solves no more. Few columns or
a larger Q, float64, of the time of descent and rescue: 9 to 64 columns of condition 1e11, n = 460, 0.003 (5 s without),
peaks and their boxes of 150 and 300 variables 0.1 to 0.6, random walks 0.8 to 1.2. One such column takes 15 ms, and
with n = 1504 0.27 s; by the interior point alone 50 ms and 0.9 s. Where bounds are active on more than about a third of
the variables, the limit on dual pivots is reached for nothing: up to twice the time of the interior point.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._active_set import active_set
from jaxnnls._descent import descend
from jaxnnls._dual_active_set import dual_active_set
from jaxnnls._interior import interior_point
from jaxnnls._loops import if_any
from jaxnnls._matrix import Matrix
from jaxnnls._objective import Problem, attainable, gradient, natural_residual
from jaxnnls._small import FEW, pivots_pay

DESCENT_STEPS = 20
# 20 take 1.1 times the time for 128 x 1025 mel bands that nothing fits; 5 and 2 take 1.1 and 1.3 times for 256 x 513
# bands, 0.93 to 0.97 where columns are almost combinations of others, and up to 2.6 times where descent is quick.
WIDE_DESCENT_STEPS = 10
# Steps of descent where columns are almost combinations of others: boxes of which most variables are at a bound are
# solved by the first sweeps (a Q of 300 variables, 48 columns: 0.01 to 0.1 s, by pivots 0.4 to 0.7).
TRIES = 2
# Where they are that exactly, and otherwise far apart: duplicates slow pivots, not descent (150 variables, all of them
# twice, in [0, 0.5]: 0.06 s instead of 0.69). With 20, uniform columns of a third of full rank take 1.2 times as long.
MORE_TRIES = 10
FEW_COLUMNS = 8


class Minimised(NamedTuple):
    """What has been reached."""

    x: Array  # (n, k)
    g: Array  # (n, k), the gradient at x
    optimality: Array  # (k,)
    apart: Array  # (k,), bool: whether columns of A whose variables are free are known to be independent
    nit: Array  # (k,), int32


def minimise(
    matrix: Matrix, problem: Problem, x: Array, active: Array, tol: Array, left: Array, warm: bool
) -> Minimised:
    """Solve the active columns from x (n, k), in at most `left` (k,) steps."""
    (n, k), gram, lower, upper = x.shape, matrix.gram, problem.lower, problem.upper
    quadratic = problem.Q is not None
    tall = gram is not None and matrix.inverse is None  # or a Q
    few = gram is not None and n <= FEW
    alone = quadratic and not few and k <= FEW_COLUMNS
    primal = tall and pivots_pay(n, quadratic) and not few and not alone
    dual = quadratic and not few and not primal
    # In float32 A'A has too little of A, and for a Q with primal pivots 0.9 s of compilation are more than is gained.
    inner = tall and not few and (dual or jnp.finfo(x.dtype).bits > 32)

    def judged(x: Array, apart: Array, nit: Array) -> Minimised:
        g = gradient(problem, x)
        return Minimised(x, g, natural_residual(x, g, lower, upper), apart, nit)

    def unsolved(state: Minimised) -> Array:
        return active & ~(state.optimality <= attainable(state.x, tol))

    none, nothing = jnp.zeros_like(active), jnp.zeros_like(left)
    if few:
        assert gram is not None
        return judged(*active_set(problem, gram, x, active, tol, left))

    # Where 0 is inside the bounds, free sets are as large and ill-conditioned as the matrix.
    signed = jnp.all((lower >= 0) | (upper <= 0), axis=0)
    boxed = jnp.any((lower > -jnp.inf) & (upper < jnp.inf) & (lower < upper), axis=0)
    crowded = matrix.crowded & signed if primal and not inner else matrix.crowded
    better_left = crowded & signed & ~matrix.redundant if primal else matrix.tridiagonal
    tried = active & ~(better_left & ~boxed)
    if alone:
        state = judged(x, none, nothing)
    else:
        steps = DESCENT_STEPS if matrix.inverse is None else jnp.where(matrix.singular, WIDE_DESCENT_STEPS, TRIES)
        most = jnp.where(crowded, jnp.where(matrix.redundant, MORE_TRIES, TRIES), steps)
        start = None if warm else matrix.start
        y, g, optimality, nit = descend(problem, gram, start, x, tried, tol, jnp.minimum(most, left))[:4]
        state = Minimised(y, g, optimality, none, nit)
    # Half of the steps are for what comes after.
    if primal:
        assert gram is not None
        y = state.x
        pivoted = signed & ((active & ~tried) | (unsolved(state) & (crowded | few_inside(problem, y))))
        x = jnp.where(pivoted & ~many_at_far_bounds(problem, y), x, y)
        x, apart, pivots = active_set(problem, gram, x, pivoted, tol, jnp.minimum(left // 2, left - state.nit))
        state = judged(x, apart, state.nit + pivots)
    if dual:
        assert matrix.gram_inverse is not None
        pivoted = unsolved(state) & ~matrix.singular
        most = jnp.minimum(left - state.nit, n) // 2
        x, pivots = dual_active_set(problem, matrix.gram_inverse, state.x, pivoted, most)
        state = judged(x, none, state.nit + pivots)
    if inner:
        pending = unsolved(state)

        def by_interior_point(old: Minimised) -> Minimised:
            assert gram is not None
            x, steps = interior_point(problem, gram, old.x, pending, tol, left - old.nit)
            return judged(x, old.apart & ~pending, old.nit + steps)

        state = if_any(pending, by_interior_point, state)
    return state


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
    boxes of uniform columns plus 2 0.1 to 0.2, 128 learnt spectra 0.7 (0.9 to 0.97 with an interior point to follow).
    With three quarters in float32 as well: spectra of noise 0.5 to 0.6, 128 learnt spectra 1.17, random walks 1.4.
    Where all are free, pivots take up to 10 times.
    """
    quarters = 3 if jnp.finfo(x.dtype).bits > 32 else 1
    return 4 * inside_bounds(problem, x) <= quarters * len(x)


def inside_bounds(problem: Problem, x: Array) -> Array:
    """How many variables are inside their bounds, (k,)."""
    return jnp.sum((x > problem.lower) & (x < problem.upper), axis=0)
