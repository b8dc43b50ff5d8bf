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
more than 12 steps instead of 20), groups of 128 and 256 columns (1.2 and 1.4 times the time for 128 variables; of 48
and 32, 1.05 and 1.1), 4 to 12 first sweeps (up to 1.2 times the time), conjugate gradients cut off at 1e-1, 1e-3 or
1e-4 (up to 1.1 times) or preconditioned by the start's inverse (0.5 to 0.8 of the steps, with two products instead of
one), the point after the sweeps kept when a step is taken back (no fewer steps).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._conjugate import conjugate_gradients
from jaxnnls._device import group_size
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
from jaxnnls._sweeps import hessian_product, sweep

FIRST_SWEEPS = 20
SWEEPS = 4
CG_STEPS = 15
CG_REDUCTION = 1e-2
SHORTER = 0.25
GROUP = 64  # columns that take a step together: of 128 variables, as many as the first cache holds


class Descent(NamedTuple):
    """Columns in progress."""

    x: Array  # (n, k)
    g: Array  # (n, k), the gradient at x
    optimality: Array  # (k,)
    nit: Array  # (k,), outer steps taken
    length: Array  # (k,), of the next step along its direction
    gaining: Array  # (k,), bool: whether the last step halved the optimality


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
    return work_off(step, given, start, pending, group_size(GROUP))
