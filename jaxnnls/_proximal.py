"""The robust path: proximal point steps, each solved by Newton's method with a factorisation. One column at a time.

With R'R = A'A (or Q), from a feasible x_k with gradient g_k, a proximal step goes to the exact minimiser of

    g_k'(x - x_k) + 1/2 ||R (x - x_k)||^2 + ridge/2 ||x - x_k||^2 + sigma/2 ||x - x_k||^2,    lower <= x <= upper

It converges for every convex problem, singular or not, in few steps as sigma is small (Rockafellar 1976,
doi:10.1137/0314056), and no step raises the objective, so there are no cycles. sigma starts as small as the dtype
allows; after a step that rounding spoilt it is larger. The minimiser is

    x = clip(a + W R'w)    where    R (c - x) = sigma (w - w_0)

with a = x_k - g_k / (sigma + ridge), W = sigma / (sigma + ridge), c = x_k, w_0 = 0: as many equations as R has rows,
piecewise linear and monotone. Newton's direction and an exact search along it maximise a concave piecewise quadratic,
which is finite. The same equations with a = 0 and W = unit^2 project 0 onto {x : R x = R c}: the least-norm solution,
when w_0 follows w (method of multipliers). A Newton step solves (R_F W_F R_F' + sigma I) dw = r.

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
MULTIPLIER_STEPS = 6
PATIENCE = 6
CAUTION = 1e3  # how much larger sigma becomes after a step that failed, and smaller after one that did not


class Subproblem(NamedTuple):
    """What a proximal step or a projection asks for; shapes (n,) and (rows of R,)."""

    a: Array
    W: Array
    c: Array
    w_0: Array
    lower: Array
    upper: Array
    sigma: Array


class Column(NamedTuple):
    """A column in progress."""

    x: Array  # (n,), the best x so far
    g: Array  # (n,)
    optimality: Array
    previous: Array  # the optimality that counted as progress
    since: Array  # steps since then
    sigma: Array
    nit: Array
    projecting: Array  # bool: x is optimal, now for its norm
    y: Array  # (n,), the projection so far
    w: Array  # (rows of R,), its multiplier
    misfit: Array  # max |R (x - y)|
    rounds: Array  # projections done
    done: Array


def newton(R: Array, sub: Subproblem, active: Array, budget: Array) -> tuple[Array, Array, Array]:
    """Solve R (c - x) = sigma (w - w_0), x = clip(a + W R'w), from w = w_0. Returns x, w and the factorisations."""
    eps = jnp.finfo(R.dtype).eps
    a, W, c, w_0, lower, upper, sigma = sub

    class State(NamedTuple):
        w: Array
        u: Array
        going: Array
        nit: Array

    def direction(free: Array, r: Array) -> Array:
        matrix = einsum("ij,kj->ik", R * jnp.where(free, W, 0), R) + sigma * jnp.eye(R.shape[0], dtype=R.dtype)
        return cho_solve(cho_factor(matrix), r)

    def step(state: State) -> State:
        w, u, going, nit = state
        x = jnp.clip(u, lower, upper)
        free = (u > lower) & (u < upper)
        r = einsum("ij,j->i", R, c - x) - sigma * (w - w_0)
        d = direction(free, r)
        image = einsum("ij,i->j", R, d)
        flat, bend = sigma * jnp.sum((w - w_0) * d), sigma * jnp.sum(d * d)

        def slope(t: Array) -> Array:
            return jnp.sum((c - jnp.clip(u + t * W * image, lower, upper)) * image) - flat - t * bend

        at_zero = jnp.sum(r * d)
        going &= jnp.isfinite(at_zero) & (at_zero > 0)
        t = jnp.where(going, step_length(slope, at_zero, going), 0)
        new = jnp.where(going, u + t * W * image, u)
        y = jnp.clip(new, lower, upper)
        # A full step that keeps the free set is exact; one that moves nothing cannot be improved on.
        exact = (t == 1) & jnp.all(free == ((new > lower) & (new < upper)))
        still = jnp.max(jnp.abs(y - x), initial=0) <= 4 * eps * jnp.max(jnp.abs(y), initial=0)
        return State(jnp.where(going, w + t * d, w), new, going & ~exact & ~still, nit + 1)

    start = State(w_0, a + W * einsum("ij,i->j", R, w_0), active, jnp.zeros_like(active, jnp.int32))
    end = lax.while_loop(lambda state: state.going & (state.nit < jnp.minimum(NEWTON_STEPS, budget)), step, start)
    return jnp.clip(end.u, lower, upper), end.w, end.nit


def rounding(x: Array) -> Array:
    """What the gradient at x may be wrong by. (n,) -> ()."""
    return jnp.finfo(x.dtype).eps * (1 + jnp.sum(jnp.abs(x)))


def solve_column(
    problem: Problem,
    R: Array,
    unit: Array,
    x: Array,
    active: Array,
    singular: Array,
    tol: Array,
    max_steps: Array,
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
    x : Array, shape (n,)
        The start, within bounds.
    active : Array of bool, shape ()
    singular : Array of bool, shape ()
        Whether the minimiser may fail to be unique.
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
    lower, upper = problem.lower[:, 0], problem.upper[:, 0]
    ridge = problem.ridge[:, 0]
    root_eps = jnp.sqrt(jnp.finfo(x.dtype).eps)

    def mean_eigenvalue(R: Array) -> Array:
        size = jnp.sum(R * R) / max(R.shape[0], 1)
        return jnp.where(size > 0, size, 1)

    sigma_step, sigma_projection = (root_eps * mean_eigenvalue(root) for root in (R, R * unit))

    def measure(x: Array) -> tuple[Array, Array]:
        g = gradient(problem, x[:, None])
        return g[:, 0], natural_residual(x[:, None], g, problem.lower, problem.upper)[0]

    def settled(state: Column) -> Array:
        # What is to be projected afterwards is first solved as well as rounding allows.
        enough = jnp.where(singular, rounding(state.x), attainable(state.x, tol))
        return (state.optimality <= enough) | (state.since >= PATIENCE)

    def subproblem(state: Column) -> Subproblem:
        x, g = state.x, state.g
        step = Subproblem(
            a=x - g / (state.sigma + ridge),
            W=state.sigma / (state.sigma + ridge) * jnp.ones_like(x),
            c=x,
            w_0=jnp.zeros_like(state.w),
            lower=lower,
            upper=upper,
            sigma=state.sigma,
        )
        # All minimisers share H x, and a variable with a multiplier stays where it is.
        held = jnp.abs(g) > jnp.maximum(32 * rounding(x), 4 * state.optimality)
        projection = Subproblem(
            a=jnp.zeros_like(x),
            W=unit**2,
            c=x,
            w_0=state.w,
            lower=jnp.where(held, x, lower),
            upper=jnp.where(held, x, upper),
            sigma=sigma_projection,
        )
        return jax.tree.map(lambda a, b: jnp.where(state.projecting, a, b), projection, step)

    def step(state: Column) -> Column:
        x, g = state.x, state.g
        y, w, count = newton(R, subproblem(state), ~state.done, max_steps - state.nit)
        g_new, optimality = measure(y)
        # As a proximal step.
        better = (jnp.sum((y - x) * (g + g_new)) < 0) | (optimality < state.optimality)
        better &= ~state.projecting
        progress = better & (optimality < 0.5 * state.previous)
        sigma = jnp.where(better, jnp.maximum(state.sigma / CAUTION, sigma_step), state.sigma * CAUTION)
        stepped = state._replace(
            x=jnp.where(better, y, x),
            g=jnp.where(better, g_new, g),
            optimality=jnp.where(better, optimality, state.optimality),
            previous=jnp.where(progress, optimality, state.previous),
            since=jnp.where(progress, 0, state.since + 1),
            sigma=sigma,
        )
        optimal = stepped.optimality <= attainable(stepped.x, tol)
        stepped = stepped._replace(
            projecting=settled(stepped) & singular & optimal, done=settled(stepped) & ~(singular & optimal)
        )
        # As a projection.
        misfit = jnp.max(jnp.abs(einsum("ij,j->i", R, x - y)), initial=0)
        closer = misfit < 0.5 * state.misfit
        projected = state._replace(
            y=jnp.where(closer, y, state.y),
            w=w,
            misfit=jnp.where(closer, misfit, state.misfit),
            rounds=state.rounds + 1,
            done=~closer | (misfit <= rounding(x)) | (state.rounds + 1 >= MULTIPLIER_STEPS),
        )
        new = jax.tree.map(lambda a, b: jnp.where(state.projecting, a, b), projected, stepped)
        nit = state.nit + count
        return new._replace(nit=nit, done=new.done | (nit >= max_steps))

    g, optimality = measure(x)
    zero = jnp.zeros_like(active, jnp.int32)
    start = Column(
        x=x,
        g=g,
        optimality=optimality,
        previous=optimality,
        since=zero,
        sigma=sigma_step,
        nit=zero,
        projecting=active & singular & (optimality <= rounding(x)),
        y=x,
        w=R[:, 0] * 0,
        misfit=jnp.full_like(optimality, jnp.inf),
        rounds=zero,
        done=~active | (~singular & (optimality <= attainable(x, tol))),
    )
    end = lax.while_loop(lambda state: ~state.done, step, start)
    # The projection is taken if it is as good a minimiser.
    optimal = measure(end.y)[1] <= jnp.maximum(attainable(end.y, tol), end.optimality)
    projected = optimal & (end.misfit <= attainable(end.y, tol))
    return jnp.where(projected, end.y, end.x), projected | ~singular, end.nit
