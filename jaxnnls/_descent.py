"""The fast path: sweeps of coordinate descent find the free set, conjugate gradients finish on it.

All columns of a block advance together, so a step is a handful of matrix products. One outer step is

    x <- sweeps(x)           exact minimisation over one variable at a time
    d = -H_FF^+ g_F          conjugate gradients on the free set F, cut off early while F still changes
    x <- clip(x + t d)       taken back if the objective is higher than before the sweeps

with t = 1, or less after a step that was taken back. Where H is at hand, the first sweeps start on the way to the
minimiser without bounds, clipped, where the objective is least: columns of a dictionary have a common part, along which
sweeps from 0 are slow. Steps a column, from 0, from the clipped minimiser and from the least objective:

    1025 x 64 random    4.5, 2.5, 1.9        256 x 84 chroma          1.6, 1.1, 1.1
    1025 x 32 learnt    1.5, 1.1, 1.0        48 notes in 2 timbres    4.3, 5.4, 5.3
    1025 x 128 learnt   9.3, 8.5, 7.8

The objective never rises, so iterates cannot cycle. It is the idea of More and Toraldo (1991, doi:10.1137/0801008,
"GPCG") with coordinate descent in the place of projected gradients. H has a unit diagonal, the best diagonal
preconditioner there is. Steps are computed as corrections to x from the gradient at x, which comes from A or its
triangular factor: in float32 that, and not G = A'A, decides how accurate x can be. Unfinished columns are gathered for
each step, GROUP at a time: a column costs its own steps.

Measured, float32, 2 cores, and not chosen: four step lengths tried at once in each step (a third of the time for
their products), the exact step along clip(x + d) - x (converges, but 60 of 862 columns of a 1025 x 128 dictionary take
more than 12 steps instead of 20), groups of 256 and 512 columns (1.1 and 1.4 times the time), 4 to 12 first sweeps (up
to 1.2 times the time), conjugate gradients cut off at 1e-1, 1e-3 or 1e-4 (up to 1.1 times) or preconditioned by the
start's inverse (0.5 to 0.8 of the steps, with two products instead of one), the point after the sweeps kept when a step
is taken back (no fewer steps).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._conjugate import conjugate_gradients
from jaxnnls._loops import fori_loop
from jaxnnls._objective import (
    Columns,
    Problem,
    attainable,
    columns_of,
    einsum,
    gradient,
    natural_residual,
    with_columns,
)
from jaxnnls._queue import work_off

FIRST_SWEEPS = 20
SWEEPS = 4
CG_STEPS = 15
CG_REDUCTION = 1e-2
SHORTER = 0.25
GROUP = 128  # columns that take a step together


class Descent(NamedTuple):
    """Columns in progress."""

    x: Array  # (n, k)
    g: Array  # (n, k), the gradient at x
    optimality: Array  # (k,)
    nit: Array  # (k,), outer steps taken
    length: Array  # (k,), of the next step along its direction
    gaining: Array  # (k,), bool: whether the last step halved the optimality


def hessian_product(problem: Problem, gram: Array | None, v: Array) -> Array:
    """H v, by H itself where it is at hand, else by A. (n, k) -> (n, k)."""
    if gram is not None:
        return einsum("ij,jk->ik", gram, v)
    return einsum("ji,jk->ik", problem.A, einsum("ij,jk->ik", problem.A, v)) + problem.ridge * v


def moved_by(problem: Problem, x: Array, e: Array) -> Array:
    """x + e, on a bound wherever it is no further from it than rounding. (n, k)."""
    y = x + e
    near = 2 * jnp.finfo(x.dtype).eps * jnp.abs(y)
    lower, upper = problem.lower, problem.upper
    return jnp.clip(jnp.where(y - lower <= near, lower, jnp.where(upper - y <= near, upper, y)), lower, upper)


def sweep(problem: Problem, gram: Array | None, x: Array, g: Array, e: Array, count: int | Array) -> Array:
    """`count` passes of coordinate descent from x + e, where g is the gradient at x. Returns the new x, (n, k).

    The correction e is what is updated: its products with H are small numbers with small rounding errors. A variable
    costs one product with a row of H and one fused loop; bands of 2 to 16 variables, whose products are shared, took
    1 to 2.5 times as long, two or four variables a turn of the loop 0.9 to 1.2 times, and keeping the gradient instead
    of a product with e 4 to 8 times.
    """
    n = x.shape[0]
    lower, upper = jnp.broadcast_to(problem.lower, x.shape), jnp.broadcast_to(problem.upper, x.shape)
    low, high = lower - x, upper - x

    def row(a: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(a, i, 1)

    def moved(i: Array, e: Array, slope: Array) -> Array:
        return jnp.clip(row(e, i) - slope, row(low, i), row(high, i))

    if gram is not None:

        def update(i: Array, e: Array) -> Array:
            slope = row(g, i) + einsum("ij,jk->ik", row(gram, i), e)
            return lax.dynamic_update_slice_in_dim(e, moved(i, e, slope), i, axis=0)

        e = fori_loop(count, lambda _, e: fori_loop(n, update, e), e)
    else:
        assert problem.A is not None
        columns, one = problem.A.T, jnp.isfinite(jnp.sum(problem.A.ravel()[:1]))  # A is, which XLA does not know
        minus = jnp.where(one, jnp.array([1, -1], x.dtype), jnp.nan)

        def update_residual(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            e, r = state  # r = A e
            a = row(columns, i)
            slope = row(g, i) + einsum("ij,jk->ik", a, r) + row(problem.ridge, i) * row(e, i)
            # A product, and so a value of its own: XLA would compute a difference again for r, from an e that it would
            # have to copy first. It drops an optimization_barrier, and a product with constants.
            delta = einsum("i,ik->k", minus, jnp.concatenate([moved(i, e, slope), row(e, i)]))[None]
            return lax.dynamic_update_slice_in_dim(e, row(e, i) + delta, i, axis=0), r + a.T * delta

        state = (e, einsum("ij,jk->ik", problem.A, e))
        e, _ = fori_loop(count, lambda _, state: fori_loop(n, update_residual, state), state)
    return moved_by(problem, x, e)


def face_step(problem: Problem, gram: Array | None, g: Array, free: Array, steps: int) -> Array:
    """d with H_FF d_F = -g_F and zeros elsewhere, by conjugate gradients; free is (n, k), 0 or 1."""
    r = -g * free
    target = CG_REDUCTION**2 * jnp.sum(r * r, axis=0)
    return conjugate_gradients(lambda v: free * hessian_product(problem, gram, v), r, target, steps)[0]


def interior(problem: Problem, x: Array) -> Array:
    """The free set: which variables lie strictly inside their bounds. (n, k), bool."""
    return (x > problem.lower) & (x < problem.upper)


def descend(
    problem: Problem,
    gram: Array | None,
    inverse: Array | None,
    x: Array,
    active: Array,
    tol: Array,
    steps: Array,
) -> Descent:
    """Improve the active columns until each is optimal, or has spent its outer steps.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled.
    gram : Array, shape (n, n), or None
        H. Without it products with H take two products with A, which is cheaper when n > 2 m.
    inverse : Array, shape (n, n), or None
        About H^-1, where the start is not a guess of the user's, to be improved on.
    x : Array, shape (n, k)
        The start, within bounds.
    active : Array of bool, shape (k,)
        Other columns are returned as they are.
    tol : Array, shape ()
        What counts as optimal; what comes easily beyond it, down to rounding, is taken.
    steps : Array of int, shape (k,)
        How many outer steps each column may take.
    """

    def state_at(problem: Problem, x: Array, nit: Array) -> Descent:
        g = gradient(problem, x)
        optimality = natural_residual(x, g, problem.lower, problem.upper)
        return Descent(x, g, optimality, nit, jnp.ones_like(optimality), jnp.ones_like(optimality, bool))

    def unfinished(state: Descent, steps: Array) -> Array:
        # Beyond tol, down to rounding, as long as that is quick.
        improvable = state.gaining & (state.optimality > attainable(state.x, 0))
        return (improvable | (state.optimality > attainable(state.x, tol))) & (state.nit < steps)

    def step(given: tuple[Columns, Array], old: Descent, own: Array) -> tuple[Descent, Array]:
        part, steps = with_columns(problem, given[0]), given[1]
        again = jnp.any(own & (old.nit > 0))
        count = jnp.where(again, SWEEPS, 0 if together else FIRST_SWEEPS)
        x = sweep(part, gram, old.x, old.g, jnp.zeros_like(old.x), count)
        g = gradient(part, x)
        free = (interior(part, x) & own).astype(x.dtype)
        d = face_step(part, gram, g, free, CG_STEPS)
        new = state_at(part, jnp.clip(x + old.length * d, part.lower, part.upper), old.nit + 1)
        lower_objective = jnp.sum((new.x - old.x) * (new.g + old.g), axis=0) <= 0
        gaining = new.optimality < 0.5 * old.optimality
        new = new._replace(gaining=gaining)
        # Near the solution rounding hides the objective.
        keep = lower_objective | gaining & (new.optimality <= attainable(new.x, tol))
        stay = old._replace(nit=new.nit, length=SHORTER * old.length, gaining=gaining)
        new = Descent(*(jnp.where(keep, a, b) for a, b in zip(new, stay)))
        return new, unfinished(new, steps)

    # With H at hand the whole block takes its first sweeps at once.
    together = gram is not None
    if together:
        g, e = gradient(problem, x), jnp.zeros_like(x)
        if inverse is not None:
            e = jnp.clip(x - einsum("ij,jk->ik", inverse, g), problem.lower, problem.upper) - x
            curvature = jnp.sum(e * einsum("ij,jk->ik", gram, e), axis=0)
            length = jnp.clip(-jnp.sum(g * e, axis=0) / jnp.where(curvature > 0, curvature, 1), 0, 1)
            e *= length
        count = FIRST_SWEEPS if inverse is not None else SWEEPS
        swept = sweep(problem, gram, x, g, e, jnp.where(jnp.any(active), count, 0))
        x = jnp.where(active, swept, x)
    start = state_at(problem, x, jnp.zeros_like(steps))
    given = (columns_of(problem), steps)
    pending = active & unfinished(start, steps)
    return work_off(step, given, start, pending, GROUP)
