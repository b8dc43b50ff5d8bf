"""The robust path: proximal point steps, each solved by Newton's method with a factorisation for each column.

With R'R = A'A (or Q), from a feasible x_k with gradient g_k, a proximal step goes to the exact minimiser of

    g_k'(x - x_k) + 1/2 ||R (x - x_k)||^2 + ridge/2 ||x - x_k||^2 + sigma/2 ||x - x_k||^2,    lower <= x <= upper

It converges for every convex problem, singular or not, in few steps as sigma is small (Rockafellar 1976,
doi:10.1137/0314056), and no step raises the objective, so there are no cycles. sigma starts as small as the dtype
allows; after a step that rounding spoilt it is larger. The minimiser is

    x = clip(a + W R'w)    where    R x + sigma w = R x_k

with a = x_k - g_k / (sigma + ridge) and W = sigma / (sigma + ridge): as many equations as R has rows, piecewise linear
and monotone. Newton's direction and an exact search along it maximise a concave piecewise quadratic. With a = 0,
W = unit^2 and sigma = 0 the same equations project 0 onto {x : R x = R x_k}, the minimisers, once x_k is one of them:
the least-norm solution. A Newton step solves

    (R_F W_F R_F' + damping I) dw = target - R x - sigma w

Measured and not chosen: block principal pivoting (cycles on Gram systems with condition 1e11), projected Newton
(zigzags there), adding one variable at a time (3 factorisations on an easy dictionary, 60 and more on wide problems
without a unique minimiser; this takes 5 to 20 on all of them); the Newton system by the free block of H and the
Woodbury formula (a third of the arithmetic for n <= m, but it loses sqrt(eps) and stops at an optimality of 1e-8).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve

from jaxnnls._linesearch import step_length
from jaxnnls._loops import while_loop
from jaxnnls._matrix import Matrix
from jaxnnls._objective import (
    Columns,
    Problem,
    attainable,
    columns_of,
    einsum,
    gradient,
    is_least,
    natural_residual,
    with_columns,
)
from jaxnnls._queue import work_off

NEWTON_STEPS = 50
INACTIVE_WEIGHT = 1e-2
PATIENCE = 4
STALLED = 10
CAUTION = 1e3  # how much larger sigma becomes after a step that failed, and smaller after one that did not
GROUP = 16  # columns that take a step together, at most: those that need this are few, and each has its own number
GROUP_ELEMENTS = 2**16  # of the matrices that are factorised at a time, at most

MINIMISE, SHORTEN, DONE = range(3)


class Subproblem(NamedTuple):
    """What a proximal step or a projection asks for, column by column."""

    a: Array  # (n, k)
    W: Array  # (n, k)
    lower: Array  # (n, k)
    upper: Array  # (n, k)
    target: Array  # (rows of R, k)
    sigma: Array  # (k,)
    damping: Array  # (k,), sigma, or what a singular system needs


class Point(NamedTuple):
    """Where Newton's method has ended."""

    x: Array  # (n, k)
    misfit: Array  # (k,), max |target - R x|
    bound: Array  # (k,), for a = 0 and sigma = 0, the dual objective: at most 1/2 sum x^2 / W of any feasible x
    nit: Array  # (k,), factorisations


def largest(v: Array) -> Array:
    """max |v| of each column, (p, k) -> (k,)."""
    return jnp.max(jnp.abs(v), axis=0, initial=0)


def newton(R: Array, sub: Subproblem, active: Array, budget: Array) -> Point:
    """Solve R x + sigma w = target, x = clip(a + W R'w), from w = 0, in the active columns."""
    a, W, lower, upper, target, sigma, damping = sub
    eps = jnp.finfo(R.dtype).eps
    size = largest(target)
    proximal = sigma > 0

    class State(NamedTuple):
        w: Array  # (rows of R, k)
        u: Array  # (n, k), a + W R'w
        misfit: Array  # (rows of R, k), target - R x
        best: Array  # (k,), the largest misfit that counted as progress
        since: Array  # (k,), steps since then
        going: Array  # (k,), bool
        nit: Array  # (k,)

    def misfit_of(u: Array) -> Array:
        return target - einsum("ij,jk->ik", R, jnp.clip(u, lower, upper))

    def step(state: State) -> State:
        w, u, misfit, best, since, going, nit = state
        free = (u > lower) & (u < upper)
        r = misfit - sigma * w
        # Without sigma the damping fades with the residual, as in Levenberg and Marquardt's method, until what rounding
        # leaves of r where the matrix is singular, divided by the damping, would rule the search along d.
        fade = jnp.where(proximal, 1, jnp.minimum(largest(r) / jnp.where(size > 0, size, 1), 1))
        least = eps + jnp.where(proximal, 0, (4 * eps / jnp.maximum(fade, eps)) ** 2)
        diagonal = jnp.maximum(damping * fade, 4 * damping / jnp.sqrt(eps) * least)
        # Without sigma, what is at a bound but may leave it keeps a little weight, so that no row is without any.
        weight = jnp.where(free, 1, jnp.where(proximal | (lower == upper), 0, INACTIVE_WEIGHT * fade)) * W
        identity = jnp.eye(len(R), dtype=R.dtype)
        matrix = einsum("kij,lj->kil", weight.T[:, None] * R, R) + diagonal[:, None, None] * identity
        d = cho_solve(cho_factor(matrix), r.T[:, :, None])[:, :, 0].T
        image = einsum("ij,ik->jk", R, d)
        # By what x changes: the terms of the slope themselves would leave eps |target| |d| of rounding.
        x = jnp.clip(u, lower, upper)
        start, low, high, bend = u - x, lower - x, upper - x, sigma * jnp.sum(d * d, axis=0)
        at_zero = jnp.sum(r * d, axis=0)

        def slope(t: Array) -> Array:
            return at_zero - t * bend - jnp.sum(jnp.clip(start + t * W * image, low, high) * image, axis=0)

        usable = going & jnp.isfinite(at_zero) & (at_zero > 0)
        t = jnp.where(usable, step_length(slope, at_zero, usable), 0)
        new = jnp.where(usable, u + t * W * image, u)
        w = jnp.where(usable, w + t * d, w)
        y = jnp.clip(new, lower, upper)
        # A full step that keeps the free set is exact, unless damped; one that moves nothing cannot be improved on.
        exact = (t == 1) & jnp.all(free == ((new > lower) & (new < upper)), axis=0) & proximal
        still = largest(y - x) <= 4 * eps * largest(y)
        misfit = misfit_of(new)
        error = largest(misfit)
        closer = error < 0.5 * best
        since = jnp.where(closer, 0, since + 1)
        # A projection out of reach shows in a misfit that stays.
        nit += going
        going = usable & ~exact & ~still & (proximal | ((since < STALLED) & (error > 16 * eps * size)))
        going &= nit < jnp.minimum(NEWTON_STEPS, budget)
        return State(w, new, misfit, jnp.where(closer, error, best), since, going, nit)

    misfit = misfit_of(a)
    zero = jnp.zeros_like(active, jnp.int32)
    start = State(jnp.zeros_like(misfit), a, misfit, largest(misfit), zero, active & (budget > 0), zero)
    end = while_loop(lambda state: jnp.any(state.going), step, start)
    x = jnp.clip(end.u, lower, upper)
    bound = jnp.sum(target * end.w, axis=0) - jnp.sum((end.u - x / 2) * x / W, axis=0)
    return Point(x, largest(end.misfit), bound, end.nit)


def rounding(x: Array) -> Array:
    """What the gradient at x may be wrong by. (n, k) -> (k,)."""
    return jnp.finfo(x.dtype).eps * (1 + jnp.sum(jnp.abs(x), axis=0))


class State(NamedTuple):
    """Columns in progress."""

    x: Array  # (n, k), the best x so far
    g: Array  # (n, k)
    optimality: Array  # (k,)
    previous: Array  # (k,), the optimality that counted as progress
    since: Array  # (k,), steps since then
    sigma: Array  # (k,)
    nit: Array  # (k,)
    stage: Array  # (k,), MINIMISE, SHORTEN or DONE
    least: Array  # (k,), half the squared norm that no minimiser is below; infinite before a projection


class Rescued(NamedTuple):
    """What `rescue` has reached."""

    x: Array  # (n, k)
    g: Array  # (n, k), the gradient at x
    optimality: Array  # (k,)
    shortest: Array  # (k,), bool: whether x is known to be the minimiser of least norm
    nit: Array  # (k,), factorisations


def rescue(
    problem: Problem, matrix: Matrix, x: Array, g: Array, optimality: Array, active: Array, tol: Array, max_steps: Array
) -> Rescued:
    """Bring columns to optimality and, where the minimiser may not be unique, to the least norm.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled.
    matrix : Matrix
        R is its root; least norm refers to x_scaled / unit.
    x, g : Array, shape (n, k)
        The start, within bounds, and the gradient there.
    optimality : Array, shape (k,)
        Of the start.
    active : Array of bool, shape (k,)
        Other columns are returned as they are.
    tol : Array, shape ()
    max_steps : Array of int, shape (k,)
    """
    R, determined, singular, ridge = matrix.root, matrix.determined, matrix.singular, problem.ridge
    root_eps = jnp.sqrt(jnp.finfo(x.dtype).eps)
    # x_scaled / x, at most 1 for what may differ between minimisers. The rest has no part in how it does.
    unit = matrix.scales.s / jnp.max(jnp.where(determined, 0, matrix.scales.s), initial=0)
    metric = jnp.where(determined, 1, unit**2)

    def half_norm(x: Array) -> Array:
        return jnp.sum((x / unit) ** 2, axis=0) / 2

    def mean_eigenvalue(R: Array) -> Array:
        size = jnp.sum(R * R) / max(R.shape[0], 1)
        return jnp.where(size > 0, size, 1)

    sigma_step, damping = (root_eps * mean_eigenvalue(root) for root in (R, jnp.where(determined, 0, R.T * unit).T))

    def subproblem(state: State, lower: Array, upper: Array) -> Subproblem:
        x, g, shorten = state.x, state.g, state.stage == SHORTEN
        # After a projection the way back to optimality is short in the units of the norm. In those of the columns, a
        # small one could go far.
        W = jnp.where(shorten | (jnp.isfinite(state.least) & (state.since < PATIENCE / 2)), metric, 1)
        # All minimisers share R x, and a variable with a multiplier stays where it is.
        held = shorten & (determined | (jnp.abs(g) > jnp.maximum(32 * rounding(x), 4 * state.optimality)))
        return Subproblem(
            a=jnp.where(shorten, 0, x - W * g / (state.sigma + ridge)),
            W=jnp.where(shorten, W, W * state.sigma / (state.sigma + ridge)),
            lower=jnp.where(held, x, lower),
            upper=jnp.where(held, x, upper),
            target=einsum("ij,jk->ik", R, x),
            sigma=jnp.where(shorten, 0, state.sigma),
            damping=jnp.where(shorten, damping, state.sigma),
        )

    def step(given: tuple[Columns, Array], state: State, own: Array) -> tuple[State, Array]:
        part, max_steps = with_columns(problem, given[0]), given[1]
        x, g, minimise = state.x, state.g, state.stage == MINIMISE
        y, misfit, bound, count = newton(R, subproblem(state, part.lower, part.upper), own, max_steps - state.nit)
        g_new = gradient(part, y)
        optimality = natural_residual(y, g_new, part.lower, part.upper)
        # A proximal step must lower the objective, or what is left to optimality. A projection that is close is made
        # optimal again by a proximal step, which moves it no further.
        lower_objective = jnp.sum((y - x) * (g + g_new), axis=0) < 0
        better = minimise & (lower_objective | (optimality < state.optimality))
        # x = clip(W R'w) is the shortest of all that share R x with it. Both norms count: below the misfit that
        # rounding leaves there may be room for small columns with large variables.
        norm, new_norm = half_norm(x), half_norm(y)
        bound += jnp.sum(jnp.where(determined, (x / unit) ** 2 - x * x, 0), axis=0) / 2
        short = ~minimise & (misfit <= jnp.minimum(1e4 * tol, root_eps))
        short &= is_least(new_norm, bound)
        take = better | short
        # Where rounding keeps the projection away, x itself may be shown to be of least norm.
        least = jnp.where(minimise, state.least, bound)
        shortest = ~singular | is_least(jnp.where(take, new_norm, norm), least)
        x, g = jnp.where(take, y, x), jnp.where(take, g_new, g)
        progress = better & (optimality < 0.5 * state.previous) | short
        since = jnp.where(progress, 0, state.since + minimise)
        previous = jnp.where(progress, optimality, state.previous)
        optimality = jnp.where(take, optimality, state.optimality)
        sigma = jnp.where(better, state.sigma / CAUTION, state.sigma * jnp.where(minimise, CAUTION, 1))
        sigma = jnp.where(short, damping, jnp.maximum(sigma, sigma_step))
        nit = state.nit + count

        # What is to be projected afterwards is first solved as well as rounding allows.
        optimal = optimality <= attainable(x, tol)
        # A projection may leave a misfit that is barely optimal, and by A itself, which rounds otherwise, is not.
        enough = optimality <= jnp.where(shortest, attainable(x, tol / 2), rounding(x))
        enough |= since >= PATIENCE
        stage = jnp.where(enough, jnp.where(optimal & ~shortest & (least == jnp.inf), SHORTEN, DONE), MINIMISE)
        stage = jnp.where((~minimise & ~short) | (nit >= max_steps), DONE, stage)
        return State(x, g, optimality, previous, since, sigma, nit, stage, least), stage < DONE

    zero = jnp.zeros_like(max_steps)
    optimal = optimality <= jnp.where(singular, rounding(x), attainable(x, tol))
    stage = jnp.where(optimal, jnp.where(singular, SHORTEN, DONE), MINIMISE)
    sigma = jnp.broadcast_to(sigma_step, optimality.shape)
    start = State(x, g, optimality, optimality, zero, sigma, zero, stage, jnp.full_like(optimality, jnp.inf))
    size = max(1, min(GROUP, GROUP_ELEMENTS // max(R.shape[0] ** 2, 1)))
    end = work_off(step, (columns_of(problem), max_steps), start, active & (stage < DONE), size)
    return Rescued(end.x, end.g, end.optimality, ~singular | is_least(half_norm(end.x), end.least), end.nit)
