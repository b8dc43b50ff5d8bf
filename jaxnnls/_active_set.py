"""Few variables, or crowded ones: the active-set method of Lawson and Hanson, a pivot a step, all columns at once.

From the free set F a step goes towards the minimiser on it, x_F <- x_F + t d, d = -H_FF^-1 g_F, as far as the bounds
allow. Where that is all the way, a variable with a wrong multiplier is freed; where not, the variable that stands in
the way leaves F. The objective falls with every step, and no free set comes twice (Lawson and Hanson 1974, chapter 23,
for x >= 0; Stark and Parker 1995 for bounds). Freed is the variable j by which the objective would fall most without
bounds, with the largest g_j^2 / T_jj for T below: that looks past what the columns of A have in common, and takes two
thirds of the steps that the largest |g_j| takes on decay curves (5.1 and 7.8).

H_FF^-1 is kept in a tableau T (n, n) per column, which starts as H and takes one pivot a step (the sweep operator,
Goodnight 1979, doi:10.1080/00031305.1979.10482685): T_FF = H_FF^-1, and outside of F the Schur complement. It only
serves for directions, while the gradient is computed anew from A: rounding errors of the pivots do not reach x.

A variable whose column depends on those of F, as far as the dtype can tell, cannot be freed by a pivot. There the
objective falls along d_j = 1, d_F = -H_FF^-1 H_Fj without any curvature, until a variable meets its bound and leaves F
(of 20,000 decay curves in float32, 2 to 7 % were left unsolved for want of this step, now less than 0.1 %).

This is for few variables, and for columns that are almost combinations of others, as decay curves and overlapping
peaks are: it starts from an empty F, and with x >= 0 the free sets of solutions are small and well conditioned,
whatever A is. (Without bounds, or with 0 between them, they are not: 200 x 100 decay curves then end on a ray, far from
the solution.) Its arithmetic is 5 n^2 a step and column, and no call of a factorisation. Microseconds a column, here
and by descent and rescue, and how many of the columns were left at PRECISION (float32, 2 cores):

    48 x 20 decay curves      33, 537      0.3, 56 %    200 x 64 Gaussian peaks    630, 7700    0, 34 %
    48 x 40 decay curves      144, 3300    2, 53 %      1025 x 32 learnt           126, 11      0, 0
    200 x 100 decay curves    1360, 5200   31, 87 %     256 x 84 chroma            870, 22      0, 0
    200 x 50 Gaussian peaks   96, 720      0, 2 %       1025 x 128 learnt          23000, 300   0, 0

Beyond 128 variables, 40 columns, milliseconds a column here and by descent and rescue in float32, then in float64, and
how many columns were left (SciPy: decay curves 0.2, 0.9, 2 and 6, peaks 0.7, 1.5, 5 and 20 ms):

    300 x 200 decay, random       0.44, 2.8    0, 3      0.62, 5.1   0, 0
    300 x 200 decay, with noise   6.6, 13      18, 40    4, 19       0, 11
    225 x 150 peaks               1.5, 8.8     0, 2      1.6, 15     0, 0
    450 x 300 peaks               5.9, 73      0, 2      12, 156     0, 0
    750 x 500 peaks               22, 390      0, 4      50, 610     0, 0
    750 x 500 of rank 166         95, 143      2, 36     37, not waited for
    450 x 300, half duplicates    9.3, 5.9     1, 0      13, 6.8     0, 0

Half duplicates are slower so. For 300 x 200 uniform columns plus 3, which are not crowded, descent takes its 20 steps
and then pivots: 0.66 ms a column instead of 2.2, in float64 1.1 instead of 5.4. Groups of 1 to 16 columns are alike.

The direction is part of the state: XLA computes what several loops use once for each of them, but what one step leaves
for the next only once (119 against 69 ms for the 20,000 curves). So are the weights of its sum, and the pivot, values
of their own (0.77 of the time of all steps).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._device import group_size
from jaxnnls._loops import while_loop
from jaxnnls._objective import (
    Columns,
    Problem,
    attainable,
    columns_of,
    gradient,
    with_columns,
)
from jaxnnls._queue import work_off
from jaxnnls._small import SOME, first, materialised, weighted_sum

VISITS = 4
GROUP = 256  # columns that take steps together, at most
GROUP_ELEMENTS = 2**17  # of their tableaus, at most, but for 8 or 4 columns: they have to stay in the cache
# Of so many columns of a group one may be left for the next round, with those of other groups: it begins anew, but need
# not be waited for. Where there is no other group it would be (256 lanes of 8 columns: half the time if none is left).
LEFT = 8
CLEAR = 100  # d^2 of this many eps / (smallest pivot) can be told from none, whatever rounding has done to T
SMALL_PIVOT = 1e-3  # a T_jj below this counts as this in the choice of a variable


class State(NamedTuple):
    """Columns in progress."""

    x: Array  # (n, k)
    T: Array  # (n, n, k)
    diagonal: Array  # (n, k), of T
    free: Array  # (n, k), 0 or 1
    d: Array  # (n, k), the direction of the next step
    ray: Array  # (k,), bool: whether there is no curvature along d
    stale: Array  # (k,), max |g| over F
    least: Array  # (k,), the smallest pivot that T has taken
    done: Array  # (k,), bool
    nit: Array  # (k,)
    step: Array


def exchange(T: Array, diagonal: Array, free: Array, pivot: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Move the pivot of each column into F or out of it; returns T, its diagonal, F, and the pivot's row and size.

    A pivot is 1 for one variable or 0 for all. A variable whose column depends on those of F stays outside: size 0.
    """
    row = weighted_sum(T, pivot)
    size = jnp.sum(pivot * row, axis=0)
    possible = size > jnp.finfo(T.dtype).eps
    pivot = jnp.where(possible, pivot, 0)
    column = jnp.where(free == jnp.sum(pivot * free, axis=0), row, -row)
    factor = (column - pivot) * jnp.where(possible, 1 / jnp.where(possible, size, 1), 0)
    down, across = materialised(factor), materialised(row + pivot)
    T, diagonal = T - down[:, None] * across[None], diagonal - down * across
    return T, diagonal, jnp.abs(free - pivot), row, jnp.where(possible, size, 0)


class Solved(NamedTuple):
    """What `active_set` has reached."""

    x: Array  # (n, k)
    apart: Array  # (k,), bool: whether columns of A whose variables are inside their bounds are clearly independent
    nit: Array  # (k,)


def active_set(problem: Problem, gram: Array, x: Array, active: Array, tol: Array, max_steps: Array) -> Solved:
    """Solve the active columns from x.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled.
    gram : Array, shape (n, n)
        H.
    x : Array, shape (n, k)
        The start, within bounds.
    active : Array of bool, shape (k,)
    tol : Array, shape ()
    max_steps : Array of int, shape (k,)
    """
    n, eps = x.shape[0], jnp.finfo(x.dtype).eps

    def run(given: tuple[Columns, Array], state: Solved, own: Array) -> tuple[Solved, Array]:
        part, most = with_columns(problem, given[0]), given[1]
        lower, upper = part.lower, part.upper

        def step(state: State) -> State:
            x, T, diagonal, free, d, ray, stale, least, done, nit, count = state
            # As far along d as the bounds allow, at most all the way, unless d is without curvature.
            ratio = jnp.where(d == 0, jnp.inf, (jnp.where(d > 0, upper, lower) - x) / jnp.where(d == 0, 1, d))
            t = jnp.min(ratio, axis=0)
            done |= ray & (t == jnp.inf)
            settled = ~ray & (t >= 1)
            stop = (ratio == t) & ~settled
            y = jnp.clip(x + jnp.where(settled, 1, t) * d, lower, upper)
            x = jnp.where(done, x, jnp.where(stop, jnp.where(d > 0, upper, lower), y))

            g = gradient(part, x)
            room = attainable(x, tol)
            before, stale = stale, jnp.max(jnp.abs(free * g), axis=0)
            # What is inside its bounds has to be free, unless its gradient is no more than what is left of those in F:
            # a duplicate of one of them would go as far as the bounds allow. What is on one may be freed if its
            # multiplier is wrong by more than some rounding: tol is for accepting x, not for stopping short of it.
            enough = attainable(x, jnp.minimum(tol, eps**0.9))
            inside = jnp.where(jnp.abs(g) > jnp.maximum(enough, stale), jnp.inf, 0)
            wrong = jnp.where(x <= lower, -g, jnp.where(x >= upper, g, inside))
            wrong = jnp.where((free > 0) | (lower == upper), 0, wrong)
            fall = jnp.where(wrong > enough, wrong * wrong / jnp.maximum(diagonal, SMALL_PIVOT), 0)
            most_fall = jnp.max(fall, axis=0)
            # Beyond tol, down to rounding, as long as that is quick.
            fine = (stale <= attainable(x, 0)) | ((stale <= room) & (stale > 0.5 * before))
            done |= (settled & (most_fall == 0) & fine) | (nit >= most)
            hit = jnp.where(settled, (fall == most_fall) & (most_fall > 0), stop) & ~done
            pivot = first(hit.astype(x.dtype))
            T, diagonal, free, row, size = exchange(T, diagonal, free, pivot)
            possible = size > 0
            least = jnp.minimum(least, jnp.where(possible, size, 1))
            # A variable that cannot enter moves with those in F along a direction without curvature, up to a bound.
            ray = settled & (most_fall > 0) & ~possible
            along = -jnp.sum(pivot * jnp.sign(g), axis=0) * (free * row + pivot)
            d = jnp.where(done, 0, jnp.where(ray, along, -free * weighted_sum(T, materialised(free * g))))
            return State(x, T, diagonal, free, d, ray & ~done, stale, least, done, nit + ~done, count + 1)

        x, _, nit = state
        nothing = jnp.zeros_like(x)
        start = State(
            x,
            jnp.broadcast_to(gram[:, :, None], (n, n, x.shape[1])),
            jnp.ones_like(x),
            nothing,
            nothing,
            jnp.zeros_like(own),
            jnp.full_like(x[0], jnp.inf),
            jnp.ones_like(x[0]),
            ~own,
            nit,
            jnp.zeros((), jnp.int32),
        )
        enough = jnp.sum(own) // LEFT if len(own) < len(active) else 0
        # At most as many steps as free all variables, go all the way and correct that twice.
        end = while_loop(lambda s: (s.step < n + 3) & (jnp.sum(~s.done) > enough), step, start)
        # Pivots begin anew for those who need many: their tableau is worn, and easy columns need not wait for them.
        # T_jj = 1 / d_j^2 in F, d_j the distance of a column from the span of the others in F.
        close = jnp.where(end.free > 0, end.diagonal * CLEAR * eps > end.least, (end.x > lower) & (end.x < upper))
        return Solved(end.x, ~jnp.any(close, axis=0), end.nit), ~end.done & (end.nit < most)

    start = Solved(x, jnp.zeros_like(active), jnp.zeros_like(active, jnp.int32))
    size = max(8 if n <= SOME else 4, group_size(GROUP, GROUP_ELEMENTS, n**2))
    given = (columns_of(problem), jnp.minimum(VISITS * n, max_steps))
    return work_off(run, given, start, active, size)
