"""The robust path: proximal point steps, each solved by Newton's method with a factorisation. One column at a time.

From a feasible x_k with gradient g_k, the next iterate is the exact minimiser over lower <= x <= upper of

    g_k'(x - x_k) + 1/2 (x - x_k)' H (x - x_k) + sigma/2 ||x - x_k||^2

which converges for every convex problem, singular or not, in few steps as sigma is small (Rockafellar 1976,
doi:10.1137/0314056). x = clip(a + W image(p)) for a dual variable p that solves a piecewise linear monotone equation:

    n <= m, or Q given:  image(p) = H p,   c - x - sigma p = 0           matrix of a Newton step: H_FF + sigma W_F^-1
    n > m:               image(p) = A'p,   A (c - x) - sigma p = 0       A_F W_F A_F' + sigma I

with c = x_k, a = x_k - g_k/sigma, W = I (ridge enters a and W where H = A'A + ridge). Newton's direction with an exact
search along it maximises a concave piecewise quadratic: it is finite, and it has no tolerances to tune. The second
system with a = 0 and W the squared units of x projects 0 onto {x : A x = A c}: the least-norm solution, by the method
of multipliers. There A is any root of H.

Measured and not chosen: block principal pivoting (cycles on Gram systems with condition 1e11), projected Newton
(zigzags there), adding one variable at a time (3 factorisations on an easy dictionary, hundreds on wide problems;
this takes 5 to 15 on all of them).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import cho_factor, cho_solve

from jaxnnls._linesearch import step_length
from jaxnnls._objective import Problem, attainable, einsum, gradient, natural_residual

NEWTON_STEPS = 50
MULTIPLIER_STEPS = 6
PATIENCE = 3


class System(NamedTuple):
    """The linear algebra of one shape of problem; vectors have no column axis here."""

    image: Callable[[Array], Array]
    remainder: Callable[[Array, Array], Array]  # (c - x, p) -> residual of the dual equation
    direction: Callable[[Array, Array, Array], Array]  # (free, W, remainder) -> dp
    bend: Callable[[Array, Array, Array], Array]  # (p, dp, image(dp)) -> p'K dp, K the metric of the dual


class Proximal(NamedTuple):
    """A column in progress."""

    x: Array  # (n,)
    g: Array  # (n,)
    optimality: Array
    previous: Array  # the optimality that counted as progress
    since: Array  # steps since then
    nit: Array


def gram_system(H: Array, sigma: Array) -> System:
    """n unknowns: the free block of H, identity elsewhere."""

    def direction(free: Array, W: Array, r: Array) -> Array:
        fixed = jnp.where(free, 0, r / sigma)
        rhs = jnp.where(free, r / W - einsum("ij,j->i", H, fixed), 0)
        matrix = jnp.where(free[:, None] & free, H, 0) + jnp.diag(jnp.where(free, sigma / W, 1))
        return fixed + cho_solve(cho_factor(matrix), rhs)

    return System(
        image=lambda p: einsum("ij,j->i", H, p),
        remainder=lambda e, p: e - sigma * p,
        direction=direction,
        bend=lambda p, d, image: sigma * jnp.sum(p * image),
    )


def dual_system(A: Array, sigma: Array) -> System:
    """m unknowns: the rows of A, weighted by the free set."""

    def direction(free: Array, W: Array, r: Array) -> Array:
        matrix = einsum("ij,kj->ik", A * jnp.where(free, W, 0), A) + sigma * jnp.eye(A.shape[0], dtype=A.dtype)
        return cho_solve(cho_factor(matrix), r)

    return System(
        image=lambda p: einsum("ij,i->j", A, p),
        remainder=lambda e, p: einsum("ij,j->i", A, e) - sigma * p,
        direction=direction,
        bend=lambda p, d, image: sigma * jnp.sum(p * d),
    )


def newton(
    system: System,
    a: Array,
    W: Array,
    c: Array,
    lower: Array,
    upper: Array,
    p: Array,
    center: Array,
    active: Array,
) -> tuple[Array, Array, Array]:
    """Solve remainder(c - x, p - center) = 0 with x = clip(a + W image(p)), starting from p.

    Returns p, x and the number of factorisations.
    """
    eps = jnp.finfo(a.dtype).eps

    class State(NamedTuple):
        p: Array
        u: Array
        going: Array
        count: Array

    def point(u: Array) -> Array:
        return jnp.clip(u, lower, upper)

    def step(state: State) -> State:
        p, u, going, count = state
        free = (u > lower) & (u < upper)
        d = system.direction(free, W, system.remainder(c - point(u), p - center))
        image = system.image(d)

        def slope(t: Array) -> Array:
            return jnp.sum((c - point(u + t * W * image)) * image) - system.bend(p - center + t * d, d, image)

        at_zero = slope(jnp.zeros_like(u, shape=()))
        usable = going & jnp.isfinite(at_zero) & (at_zero > 0)
        t = jnp.where(usable, step_length(slope, at_zero, usable), 0)
        d, image = jnp.where(usable, d, 0), jnp.where(usable, image, 0)
        new_p, new_u = p + t * d, u + t * W * image
        same = jnp.all(free == ((new_u > lower) & (new_u < upper)))
        moved = jnp.max(jnp.abs(point(new_u) - point(u)), initial=0)
        # A full step that keeps the free set is exact; one that moves nothing cannot be improved on.
        exact = (same & (t == 1)) | (moved <= 4 * eps * jnp.max(jnp.abs(new_u * (point(new_u) == new_u)), initial=0))
        return State(new_p, new_u, usable & ~exact, count + going)

    start = State(p, a + W * system.image(p), active, jnp.zeros_like(active, jnp.int32))
    end = lax.while_loop(lambda s: s.going & (s.count < NEWTON_STEPS), step, start)
    # The image is formed afresh: the accumulated one carries the rounding of every step.
    return end.p, point(a + W * system.image(end.p)), end.count


def solve_column(
    problem: Problem,
    gram: Array | None,
    root: Array,
    unit: Array,
    x: Array,
    active: Array,
    singular: Array,
    tol: Array,
    max_steps: Array,
) -> tuple[Array, Array]:
    """One column to optimality and, where the minimiser may not be unique, to the least norm.

    Parameters
    ----------
    problem : Problem
        A single scaled column; its column arrays have shapes (m, 1) and (n, 1).
    gram : Array, shape (n, n), or None
        H; None for n > m, where A itself serves.
    root : Array, shape (min(m, n), n)
        R with R'R = H, used only where `singular`; A for n > m.
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
    nit : Array of int, shape ()
        Factorisations.
    """
    if gram is not None:
        sigma, ridge = jnp.sqrt(jnp.finfo(x.dtype).eps), jnp.zeros_like(x)
        system, p_zero = gram_system(gram, sigma), jnp.zeros_like(x)
    else:
        assert problem.A is not None and problem.b is not None
        sigma, ridge = dual_sigma(problem.A), problem.ridge[:, 0]
        system, p_zero = dual_system(problem.A, sigma), jnp.zeros_like(problem.b[:, 0])
    start = measure(problem, x, jnp.zeros_like(active, jnp.int32))
    found = minimise(problem, system, sigma, ridge, p_zero, start, active, singular, tol, max_steps)
    flat = active & singular & (found.optimality <= attainable(found.x, tol))
    found = shorten(problem, root, unit, found, flat, attainable(found.x, tol))
    return found.x, found.nit


def dual_sigma(A: Array) -> Array:
    """sigma relative to the mean eigenvalue of A A'."""
    size = jnp.sum(A * A) / max(A.shape[0], 1)
    return jnp.sqrt(jnp.finfo(A.dtype).eps) * jnp.where(size > 0, size, 1)


def measure(problem: Problem, x: Array, nit: Array) -> Proximal:
    """The gradient and optimality at x."""
    g = gradient(problem, x[:, None])
    optimality = natural_residual(x[:, None], g, problem.lower, problem.upper)[0]
    return Proximal(x, g[:, 0], optimality, optimality, jnp.zeros_like(nit), nit)


def rounding(x: Array) -> Array:
    """What the gradient at x may be wrong by."""
    return jnp.finfo(x.dtype).eps * (1 + jnp.sum(jnp.abs(x)))


def minimise(
    problem: Problem,
    system: System,
    sigma: Array,
    ridge: Array,
    p_zero: Array,
    start: Proximal,
    active: Array,
    singular: Array,
    tol: Array,
    max_steps: Array,
) -> Proximal:
    """Proximal point steps until the optimality is tol, or stops falling."""
    lower, upper = problem.lower[:, 0], problem.upper[:, 0]

    def unfinished(state: Proximal) -> Array:
        # What is to be projected afterwards is first solved as well as rounding allows.
        enough = jnp.where(singular, rounding(state.x), attainable(state.x, tol))
        return active & (state.optimality > enough) & (state.since < PATIENCE) & (state.nit < max_steps)

    def step(state: Proximal) -> Proximal:
        x, g = state.x, state.g
        a, W = x - g / (sigma + ridge), sigma / (sigma + ridge)
        _, y, count = newton(system, a, W, x, lower, upper, p_zero, p_zero, unfinished(state))
        new = measure(problem, y, state.nit + count)
        progress = new.optimality < 0.5 * state.previous
        new = new._replace(
            previous=jnp.where(progress, new.optimality, state.previous), since=jnp.where(progress, 0, state.since + 1)
        )
        kept = state._replace(since=new.since, nit=new.nit, previous=new.previous)
        lower_objective = jnp.sum((y - x) * (g + new.g)) < 0
        better = lower_objective | (new.optimality < state.optimality)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, kept)

    return lax.while_loop(unfinished, step, start)


def shorten(problem: Problem, root: Array, unit: Array, found: Proximal, active: Array, tol: Array) -> Proximal:
    """Of all minimisers the one of least norm: they share H x, and variables with a multiplier stay put."""
    system = dual_system(root, dual_sigma(root * unit))
    p_zero = root[:, 0] * 0
    x, g = found.x, found.g
    lower, upper = problem.lower[:, 0], problem.upper[:, 0]
    held = jnp.abs(g) > jnp.maximum(32 * rounding(x), 4 * found.optimality)
    low, high = jnp.where(held, x, lower), jnp.where(held, x, upper)
    W = unit**2
    zero = jnp.zeros_like(x)

    class State(NamedTuple):
        p: Array
        y: Proximal
        misfit: Array
        going: Array
        count: Array

    def step(state: State) -> State:
        p, y, count = newton(system, zero, W, x, low, high, state.p, center(state), state.going)
        new = measure(problem, y, state.y.nit + count)
        misfit = jnp.max(jnp.abs(system.remainder(x - y, p_zero)), initial=0)
        better = misfit < 0.5 * state.misfit
        new = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, state.y)
        going = state.going & better & (misfit > rounding(x))
        return State(p, new, jnp.where(better, misfit, state.misfit), going, state.count + 1)

    def center(state: State) -> Array:
        return jnp.where(state.count > 0, state.p, p_zero)

    p = system.direction((x > low) & (x < high), W, system.remainder(x, p_zero))
    p = jnp.where(jnp.all(jnp.isfinite(p)), p, p_zero)
    nothing = jnp.zeros_like(found.optimality)
    start = State(p, found, nothing + jnp.inf, active, jnp.zeros_like(active, jnp.int32))
    end = lax.while_loop(lambda s: s.going & (s.count < MULTIPLIER_STEPS), step, start).y
    accepted = active & (end.optimality <= jnp.maximum(tol, found.optimality))
    return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), end, found)
