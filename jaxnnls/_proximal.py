"""The robust path: proximal point steps, each solved by Newton's method with a factorisation. One column at a time.

With R'R = A'A (or Q), from a feasible x_k with gradient g_k, a proximal step goes to the exact minimiser of

    g_k'(x - x_k) + 1/2 ||R (x - x_k)||^2 + ridge/2 ||x - x_k||^2 + sigma/2 ||x - x_k||^2,    lower <= x <= upper

It converges for every convex problem, singular or not, in few steps as sigma is small (Rockafellar 1976,
doi:10.1137/0314056), and no step raises the objective, so there are no cycles. sigma starts as small as the dtype
allows; after a step that rounding spoilt it is larger. The minimiser is

    x = clip(a + W R'w)    where    R x + sigma w = R x_k

with a = x_k - g_k / (sigma + ridge) and W = sigma / (sigma + ridge): as many equations as R has rows, piecewise linear
and monotone. Newton's direction and an exact search along it maximise a concave piecewise quadratic. With a = 0,
W = unit^2 and sigma = 0 the same equations project 0 onto {x : R x = target}: the least-norm solution, where the
target is b (an exact fit, tried first for wide A) or what a minimiser makes of it. A Newton step solves

    (R_F W_F R_F' + damping I) dw = target - R x - sigma w

Measured and not chosen: block principal pivoting (cycles on Gram systems with condition 1e11), projected Newton
(zigzags there), adding one variable at a time (3 factorisations on an easy dictionary, 60 and more on wide problems
without a unique minimiser; this takes 5 to 20 on all of them); the Newton system by the free block of H and the
Woodbury formula (a third of the arithmetic for n <= m, but it loses sqrt(eps) and stops at an optimality of 1e-8).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import cho_factor, cho_solve

from jaxnnls._linesearch import step_length
from jaxnnls._objective import Problem, attainable, einsum, gradient, natural_residual

NEWTON_STEPS = 50
INACTIVE_WEIGHT = 1e-2
PATIENCE = 4
STALLED = 10
DUALITY_GAP = 1e-6
CAUTION = 1e3  # how much larger sigma becomes after a step that failed, and smaller after one that did not


FIT, MINIMISE, SHORTEN, DONE = range(4)


class Subproblem(NamedTuple):
    """What a proximal step or a projection asks for; shapes (n,) and (rows of R,)."""

    a: Array
    W: Array
    lower: Array
    upper: Array
    target: Array
    sigma: Array
    damping: Array  # sigma, or what a singular system needs
    uncertain: Array  # bool: whether the target may be out of reach


class Column(NamedTuple):
    """A column in progress."""

    x: Array  # (n,), the best x so far
    g: Array  # (n,)
    optimality: Array
    previous: Array  # the optimality that counted as progress
    since: Array  # steps since then
    sigma: Array
    nit: Array
    stage: Array  # FIT, MINIMISE, SHORTEN or DONE
    shortest: Array  # bool: whether x is known to be of least norm among the minimisers


class Point(NamedTuple):
    """Where Newton's method has ended."""

    x: Array
    misfit: Array  # max |target - R x|
    bound: Array  # for a = 0 and sigma = 0, the dual objective: no more than 1/2 sum x^2 / W of any feasible x
    nit: Array  # factorisations


def newton(R: Array, sub: Subproblem, active: Array, budget: Array) -> Point:
    """Solve R x + sigma w = target, x = clip(a + W R'w), from w = 0."""
    a, W, lower, upper, target, sigma, damping, uncertain = sub
    eps = jnp.finfo(R.dtype).eps
    size = jnp.max(jnp.abs(target), initial=0)

    class State(NamedTuple):
        w: Array
        u: Array
        misfit: Array  # (rows of R,), target - R x
        best: Array  # the largest misfit that counted as progress
        since: Array  # steps since then
        going: Array
        nit: Array

    def misfit_of(u: Array) -> Array:
        return target - einsum("ij,j->i", R, jnp.clip(u, lower, upper))

    def step(state: State) -> State:
        w, u, misfit, best, since, going, nit = state
        free = (u > lower) & (u < upper)
        r = misfit - sigma * w
        # Without sigma the damping fades with the residual, as in Levenberg and Marquardt's method.
        fade = jnp.where(sigma > 0, 1, jnp.minimum(jnp.max(jnp.abs(r), initial=0) / jnp.where(size > 0, size, 1), 1))
        diagonal = jnp.maximum(damping * fade, 4 * eps * damping / jnp.sqrt(eps))
        # Without sigma, what is at a bound but may leave it keeps a little weight, so that no row is without any.
        weight = jnp.where(free, 1, jnp.where((sigma > 0) | (lower == upper), 0, INACTIVE_WEIGHT * fade)) * W
        matrix = einsum("ij,kj->ik", R * weight, R) + diagonal * jnp.eye(R.shape[0], dtype=R.dtype)
        d = cho_solve(cho_factor(matrix), r)
        image = einsum("ij,i->j", R, d)
        straight, bend = jnp.sum((target - sigma * w) * d), sigma * jnp.sum(d * d)

        def slope(t: Array) -> Array:
            return straight - t * bend - jnp.sum(jnp.clip(u + t * W * image, lower, upper) * image)

        at_zero = jnp.sum(r * d)
        usable = going & jnp.isfinite(at_zero) & (at_zero > 0)
        t = jnp.where(usable, step_length(slope, at_zero, usable), 0)
        new = jnp.where(usable, u + t * W * image, u)
        x, y = jnp.clip(u, lower, upper), jnp.clip(new, lower, upper)
        # A full step that keeps the free set is exact, unless damped; one that moves nothing cannot be improved on.
        exact = (t == 1) & jnp.all(free == ((new > lower) & (new < upper))) & (sigma > 0)
        still = jnp.max(jnp.abs(y - x), initial=0) <= 4 * eps * jnp.max(jnp.abs(y), initial=0)
        misfit = misfit_of(new)
        error = jnp.max(jnp.abs(misfit), initial=0)
        closer = error < 0.5 * best
        since = jnp.where(closer, 0, since + 1)
        # A target out of reach shows in a misfit that stays.
        going = usable & ~exact & ~still & (~uncertain | (since < STALLED)) & ((sigma > 0) | (error > 16 * eps * size))
        return State(
            jnp.where(usable, w + t * d, w), new, misfit, jnp.where(closer, error, best), since, going, nit + 1
        )

    w = R[:, 0] * 0
    misfit, zero = misfit_of(a), jnp.zeros_like(active, jnp.int32)
    start = State(w, a, misfit, jnp.max(jnp.abs(misfit), initial=0), zero, active, zero)
    end = lax.while_loop(lambda state: state.going & (state.nit < jnp.minimum(NEWTON_STEPS, budget)), step, start)
    x = jnp.clip(end.u, lower, upper)
    bound = jnp.sum(target * end.w) - jnp.sum((end.u - x / 2) * x / W)
    return Point(x, jnp.max(jnp.abs(end.misfit), initial=0), bound, end.nit)


def rounding(x: Array) -> Array:
    """What the gradient at x may be wrong by. (n,) -> ()."""
    return jnp.finfo(x.dtype).eps * (1 + jnp.sum(jnp.abs(x)))


class Start(NamedTuple):
    """Where a column starts from."""

    x: Array  # (n,), within bounds
    active: Array  # bool
    singular: Array  # bool: whether the minimiser may fail to be unique
    regular: Array  # bool: whether x is a minimiser already, on a regular face, and only its norm may be in question


def solve_column(
    problem: Problem, R: Array, unit: Array, start: Start, tol: Array, max_steps: Array
) -> tuple[Array, Array, Array]:
    """One column to optimality and, where the minimiser may not be unique, to the least norm.

    Parameters
    ----------
    problem : Problem
        A single scaled column; its column arrays have shapes (m, 1) and (n, 1).
    R : Array, shape (min(m, n), n)
        A, or a square root of A'A or Q.
    unit : Array, shape (n,)
        x_scaled / x, up to a factor: least norm refers to x_scaled / unit.
    start : Start
    tol : Array, shape ()
    max_steps : Array of int, shape ()

    Returns
    -------
    x : Array, shape (n,)
    shortest : Array of bool, shape ()
        Whether x is known to be the minimiser of least norm.
    nit : Array of int, shape ()
        Factorisations.
    """
    x, active, singular, regular = start
    lower, upper = problem.lower[:, 0], problem.upper[:, 0]
    ridge = problem.ridge[:, 0]
    fit = problem.b[:, 0] if problem.b is not None and R.shape[0] < R.shape[1] else None
    root_eps = jnp.sqrt(jnp.finfo(x.dtype).eps)

    def mean_eigenvalue(R: Array) -> Array:
        size = jnp.sum(R * R) / max(R.shape[0], 1)
        return jnp.where(size > 0, size, 1)

    sigma_step, damping = (root_eps * mean_eigenvalue(root) for root in (R, R * unit))

    def measure(x: Array) -> tuple[Array, Array]:
        g = gradient(problem, x[:, None])
        return g[:, 0], natural_residual(x[:, None], g, problem.lower, problem.upper)[0]

    def subproblem(state: Column) -> Subproblem:
        x, g = state.x, state.g
        step = Subproblem(
            a=x - g / (state.sigma + ridge),
            W=state.sigma / (state.sigma + ridge) * jnp.ones_like(x),
            lower=lower,
            upper=upper,
            target=einsum("ij,j->i", R, x),
            sigma=state.sigma,
            damping=state.sigma,
            uncertain=jnp.zeros_like(state.shortest),
        )
        # All minimisers share R x, and a variable with a multiplier stays where it is.
        held = (jnp.abs(g) > jnp.maximum(32 * rounding(x), 4 * state.optimality)) & (state.stage == SHORTEN)
        projection = Subproblem(
            a=jnp.zeros_like(x),
            W=unit**2,
            lower=jnp.where(held, x, lower),
            upper=jnp.where(held, x, upper),
            target=step.target if fit is None else jnp.where(state.stage == FIT, fit, step.target),
            sigma=jnp.zeros_like(state.sigma),
            damping=damping,
            uncertain=(state.stage == FIT) | regular,
        )
        return jax.tree.map(lambda a, b: jnp.where(state.stage == MINIMISE, a, b), step, projection)

    def step(state: Column) -> Column:
        x, g = state.x, state.g
        y, misfit, bound, count = newton(R, subproblem(state), state.stage < DONE, max_steps - state.nit)
        g_new, optimality = measure(y)
        # A proximal step must lower the objective, or what is left to optimality. A fit is the answer if it is
        # optimal. A projection that is close is made optimal again by a proximal step, which moves it no further.
        lower_objective = jnp.sum((y - x) * (g + g_new)) < 0
        better = (state.stage == MINIMISE) & (lower_objective | (optimality < state.optimality))
        fitted = (state.stage == FIT) & (optimality <= attainable(y, tol))
        short = fitted | ((state.stage == SHORTEN) & (misfit <= jnp.minimum(1e4 * tol, root_eps)))
        # Where rounding keeps the projection away, x itself may be shown to be of least norm.
        norm = jnp.sum((x / unit) ** 2) / 2
        certified = (state.stage == SHORTEN) & (norm - bound <= DUALITY_GAP * norm)
        progress = better & (optimality < 0.5 * state.previous)
        take = better | short
        new = Column(
            x=jnp.where(take, y, x),
            g=jnp.where(take, g_new, g),
            optimality=jnp.where(take, optimality, state.optimality),
            previous=jnp.where(progress, optimality, state.previous),
            since=jnp.where(progress, 0, state.since + 1),
            sigma=jnp.where(better, jnp.maximum(state.sigma / CAUTION, sigma_step), state.sigma * CAUTION),
            nit=state.nit + count,
            stage=state.stage,
            shortest=state.shortest | short | certified,
        )
        restart = new._replace(previous=new.optimality, since=jnp.zeros_like(new.since), sigma=sigma_step)
        new = jax.tree.map(lambda a, b: jnp.where(state.stage == MINIMISE, a, b), new, restart)

        # What is to be projected afterwards is first solved as well as rounding allows.
        optimal = new.optimality <= attainable(new.x, tol)
        unique = new.shortest
        enough = jnp.where(unique, optimal, new.optimality <= rounding(new.x)) | (new.since >= PATIENCE)
        stage = jnp.where(enough, jnp.where(optimal & ~unique, SHORTEN, DONE), MINIMISE)
        gave_up = (state.stage == SHORTEN) & ~short
        return new._replace(stage=jnp.where(gave_up | (new.nit >= max_steps), DONE, stage))

    g, optimality = measure(x)
    zero = jnp.zeros_like(active, jnp.int32)
    first = jnp.where(singular & (regular | (optimality <= rounding(x))), SHORTEN, MINIMISE)
    if fit is not None:
        first = jnp.where(singular & ~regular & jnp.all(problem.linear == 0), FIT, first)
    column = Column(
        x=x,
        g=g,
        optimality=optimality,
        previous=optimality,
        since=zero,
        sigma=sigma_step,
        nit=zero,
        stage=jnp.where(active & (singular | (optimality > attainable(x, tol))), first, DONE),
        shortest=~singular | regular,
    )
    end = lax.while_loop(lambda state: state.stage < DONE, step, column)
    return end.x, end.shortest, end.nit
