"""The fast path: sweeps of coordinate descent find the free set, conjugate gradients finish on it.

All columns of a block advance together, so a step is a handful of matrix products. One outer step is

    d = -H_FF^+ g_F          conjugate gradients on the free set F, cut off early while F still changes
    x <- clip(x + t d)       the best of a few step lengths t, if it lowers the objective
    x <- sweeps(x)           exact minimisation over one variable at a time

None of the three raises the objective, so iterates cannot cycle. It is the idea of More and Toraldo (1991,
doi:10.1137/0801008, "GPCG") with coordinate descent in the place of projected gradients. H has a unit diagonal, the
best diagonal preconditioner there is. Steps are computed as corrections to x from the gradient at x, which comes
from A: in float32 that, and not G = A'A, decides how accurate x can be.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._objective import Problem, attainable, einsum, gradient, natural_residual

FIRST_SWEEPS = 20
SWEEPS = 4
CG_STEPS = 15
CG_REDUCTION = 1e-2
POLISH_STEPS = 40
REFINEMENTS = 4
STEP_LENGTHS = (1.0, 0.5, 0.25, 0.0625)


class Descent(NamedTuple):
    """Columns in progress."""

    x: Array  # (n, k)
    g: Array  # (n, k), the gradient at x
    optimality: Array  # (k,)
    nit: Array  # (k,), outer steps taken


def hessian_product(problem: Problem, gram: Array | None, v: Array) -> Array:
    """H v, by H itself where it is at hand, else by A. (n, k) -> (n, k)."""
    if gram is not None:
        return einsum("ij,jk->ik", gram, v)
    return einsum("ji,jk->ik", problem.A, einsum("ij,jk->ik", problem.A, v)) + problem.ridge * v


def sweep(problem: Problem, gram: Array | None, x: Array, g: Array, e: Array, count: int | Array) -> Array:
    """`count` passes of coordinate descent from x + e, where g is the gradient at x. Returns the new x, (n, k).

    The correction e is what is updated: its products with H are small numbers with small rounding errors.
    """
    n = x.shape[0]
    lower, upper = jnp.broadcast_to(problem.lower, x.shape), jnp.broadcast_to(problem.upper, x.shape)

    if gram is not None:

        def update(i: Array, e: Array) -> Array:
            j = i % n
            step = g[j] + einsum("i,ik->k", gram[j], e)
            return e.at[j].set(jnp.clip(x[j] + e[j] - step, lower[j], upper[j]) - x[j])

        e = lax.fori_loop(0, count * n, update, e)
    else:
        assert problem.A is not None
        columns = problem.A.T

        def update_residual(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            e, r = state  # r = A e
            j = i % n
            step = g[j] + einsum("i,ik->k", columns[j], r) + problem.ridge[j] * e[j]
            new = jnp.clip(x[j] + e[j] - step, lower[j], upper[j]) - x[j]
            return e.at[j].set(new), r + columns[j][:, None] * (new - e[j])

        e, _ = lax.fori_loop(0, count * n, update_residual, (e, einsum("ij,jk->ik", problem.A, e)))
    # x + e is off by rounding where e leads to a bound: those variables are put on it.
    y = x + e
    near = 2 * jnp.finfo(x.dtype).eps * jnp.abs(y)
    return jnp.clip(jnp.where(y - lower <= near, lower, jnp.where(upper - y <= near, upper, y)), lower, upper)


def face_step(
    problem: Problem, gram: Array | None, g: Array, free: Array, steps: int, reduction: float | Array
) -> Array:
    """d with H_FF d_F = -g_F and zeros elsewhere, by conjugate gradients; free is (n, k), 0 or 1."""
    r = -g * free
    rho = jnp.sum(r * r, axis=0)
    target = rho * reduction**2

    class State(NamedTuple):
        d: Array
        r: Array
        p: Array
        rho: Array
        step: Array

    def unfinished(state: State) -> Array:
        return (state.step < steps) & jnp.any(state.rho > target)

    def advance(state: State) -> State:
        d, r, p, rho, step = state
        Hp = free * hessian_product(problem, gram, p)
        curvature = jnp.sum(p * Hp, axis=0)
        go = (rho > target) & (curvature > 0)
        alpha = jnp.where(go, rho / jnp.where(go, curvature, 1), 0)
        d, r = d + alpha * p, r - alpha * Hp
        new = jnp.sum(r * r, axis=0)
        p = r + jnp.where(go, new / jnp.where(go, rho, 1), 0) * p
        # A column without curvature left has nothing to win on this face: it counts as finished.
        return State(d, r, p, jnp.where(go, new, 0), step + 1)

    start = State(jnp.zeros_like(r), r, r, rho, jnp.zeros((), jnp.int32))
    return lax.while_loop(unfinished, advance, start).d


def backtrack(problem: Problem, gram: Array | None, x: Array, g: Array, d: Array) -> Array:
    """The move clip(x + t d) - x that lowers the objective most, or none. (n, k)."""
    moves = [jnp.clip(x + t * d, problem.lower, problem.upper) - x for t in STEP_LENGTHS]
    change = jnp.stack([jnp.sum(e * (g + 0.5 * hessian_product(problem, gram, e)), axis=0) for e in moves])
    best = jnp.argmin(change, axis=0)
    move = jnp.take_along_axis(jnp.stack(moves), best[None, None], axis=0)[0]
    return jnp.where(jnp.min(change, axis=0) < 0, move, 0)


def interior(problem: Problem, x: Array) -> Array:
    """The free set: which variables lie strictly inside their bounds. (n, k), bool."""
    return (x > problem.lower) & (x < problem.upper)


def descend(
    problem: Problem,
    gram: Array | None,
    x: Array,
    active: Array,
    tol: Array,
    steps: Array,
    first_sweeps: int,
) -> Descent:
    """Improve the active columns until each is optimal to tol, or has spent its outer steps.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled.
    gram : Array, shape (n, n), or None
        H. Without it products with H take two products with A, which is cheaper when n > 2 m.
    x : Array, shape (n, k)
        The start, within bounds.
    active : Array of bool, shape (k,)
        Other columns are returned as they are.
    tol : Array, shape ()
    steps : Array of int, shape (k,)
        How many outer steps each column may take.
    first_sweeps : int
    """

    def state_at(x: Array, nit: Array) -> Descent:
        g = gradient(problem, x)
        return Descent(x, g, natural_residual(x, g, problem.lower, problem.upper), nit)

    def unfinished(state: Descent) -> Array:
        return active & (state.optimality > attainable(state.x, tol)) & (state.nit < steps)

    def step(state: Descent) -> Descent:
        x, g, _, nit = state
        going = unfinished(state)
        free = (interior(problem, x) & going).astype(x.dtype)
        d = face_step(problem, gram, g, free, CG_STEPS, CG_REDUCTION)
        e = backtrack(problem, gram, x, g, d)
        new = state_at(sweep(problem, gram, x, g, e, SWEEPS), nit + 1)
        return Descent(*(jnp.where(going, a, b) for a, b in zip(new, state)))

    nit = jnp.zeros_like(active, jnp.int32)
    sweeps = jnp.where(jnp.any(active), first_sweeps, 0)
    swept = sweep(problem, gram, x, gradient(problem, x), jnp.zeros_like(x), sweeps)
    start = state_at(jnp.where(active, swept, x), nit)
    return lax.while_loop(lambda state: jnp.any(unfinished(state)), step, start)


def polish(problem: Problem, gram: Array | None, x: Array, active: Array) -> Array:
    """Solve on the free set to rounding level, with refinement from A, wherever that stays within bounds. (n, k)."""

    class State(NamedTuple):
        x: Array
        error: Array  # (k,), max |g| over the free set
        g: Array
        going: Array
        step: Array

    def measure(x: Array) -> tuple[Array, Array]:
        g = gradient(problem, x)
        return jnp.max(jnp.abs(g) * interior(problem, x), axis=0, initial=0), g

    def refine(state: State) -> State:
        x, error, g, going, step = state
        free = (interior(problem, x) & going).astype(x.dtype)
        y = x + face_step(problem, gram, g, free, POLISH_STEPS, CG_REDUCTION)
        new_error, new_g = measure(y)
        inside = jnp.all(interior(problem, y) | (free == 0), axis=0)
        better = going & inside & (new_error < error)
        x, error, g = jnp.where(better, y, x), jnp.where(better, new_error, error), jnp.where(better, new_g, g)
        return State(x, error, g, better & (error > attainable(x, 0)), step + 1)

    error, g = measure(x)
    start = State(x, error, g, active & (error > attainable(x, 0)), jnp.zeros((), jnp.int32))
    return lax.while_loop(lambda state: jnp.any(state.going) & (state.step < REFINEMENTS), refine, start).x
