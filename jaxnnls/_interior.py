"""Quadratic programs by an interior point method: for few columns with a matrix each.

With slacks s = x - lower and t = upper - x, and multipliers y and z, it solves the KKT conditions

    g(x) - y + z = 0,    s y = 0,    t z = 0,    s, t, y, z >= 0

from the inside. Steps are Mehrotra's predictor and corrector (1992, doi:10.1137/0802028) with one of
Gondzio's centrality corrections (1996, doi:10.1007/BF00249643), all with one factorisation of

    H + y/s + z/t

The multipliers soon tell which variables are free. Whenever that guess has not changed for a step, it is tried: one
factorisation of H_FF and refinement, and the solution is exact or the guess was wrong. Gram matrices of condition 1e11
take 11 to 17 steps so. Measured and not chosen: a start from ones (2 to 8 steps more), no correction of centrality
(up to 8 more), two (no fewer), block pivoting from the guess (cycles), adding one variable at a time (436 steps for
n = 460).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _lapack as lapack
from jaxnnls._device import group_size
from jaxnnls._loops import anywhere, fori_loop
from jaxnnls._objective import (
    Columns,
    Problem,
    attainable,
    columns_of,
    gradient,
    natural_residual,
    with_columns,
)
from jaxnnls._queue import work_off

STEPS = 60
BACK = 0.995  # how much of the way to the boundary a step takes
FAR, MORE = 10, 0.3  # products s y this far from their target are corrected, for a step longer by this
REFINEMENTS = 3
GROUP = 64  # columns that take a step together, at most
# Of their matrices, at most: a cache holds them. In float64, with 2^20 and 2^16 instead, 200 variables take 1.8 to 2.3
# and 1.0 times the time (26 columns and one), 100 variables 1.4 to 1.8 and 1.2 to 1.4 times (104 and 6).
GROUP_ELEMENTS = 2**14


class Point(NamedTuple):
    """An interior point; shapes (n, k). Without a bound, its slack is 1 and its multiplier 0."""

    x: Array
    s: Array
    t: Array
    y: Array
    z: Array


def bounded(problem: Problem) -> tuple[Array, Array, Array]:
    """Which variables have a lower bound, an upper bound, and which are fixed. (n, k), bool."""
    fixed = problem.lower == problem.upper
    return (problem.lower > -jnp.inf) & ~fixed, (problem.upper < jnp.inf) & ~fixed, fixed


def interior_start(problem: Problem, H: Array) -> Point:
    """A point well inside, of about the size of the solution."""
    lower, upper = problem.lower, problem.upper
    below, above, fixed = bounded(problem)
    center = jnp.clip(0, lower, upper)
    size = jnp.sum(jnp.abs(gradient(problem, center)), axis=0) / jnp.sum(jnp.abs(H))
    room = jnp.minimum(jnp.where(size > 0, size, 1), (upper - lower) / 2)
    x = jnp.where(fixed, lower, jnp.clip(center, lower + room, upper - room))
    multiplier = 0.1 * jnp.mean(jnp.abs(gradient(problem, x)), axis=0)
    multiplier = jnp.where(multiplier > 0, multiplier, 1)
    return Point(
        x,
        jnp.where(below, x - lower, 1),
        jnp.where(above, upper - x, 1),
        jnp.where(below, multiplier, 0),
        jnp.where(above, multiplier, 0),
    )


def factor_masked(H: Array, member: Array, diagonal: Array) -> Array:
    """Cholesky factors of H + diagonal among the members, the identity elsewhere. (n, n), (n, k) -> (k, n, n)."""
    n = len(H)
    # LAPACK wants columns contiguous: H' is read in the order it is written in (n = 1504: 1.2 s instead of 1.6).
    M = jnp.where(member.T[:, :, None] & member.T[:, None], H.T, 0)
    M += jnp.eye(n, dtype=H.dtype) * jnp.where(member, diagonal, 1).T[:, None]
    return jax.vmap(lapack.cholesky)(M)


def smallest_pivot(H: Array) -> float:
    """What singular matrices need, or rounding errors are amplified without limit along their null space."""
    return 10 * max(len(H), 100) * float(jnp.finfo(H.dtype).eps)


def solve_factored(factor: Array, r: Array) -> Array:
    """(k, n, n), (n, k) -> (n, k)."""
    return jax.vmap(lapack.solve_cholesky)(factor, r.T).T


def longest(v: Array, d: Array) -> Array:
    """The longest step up to 1 along d that keeps v positive. (n, k) -> (k,)."""
    return jnp.min(jnp.where(d < 0, -v / jnp.where(d < 0, d, -1), 1), axis=0, initial=1)


def complementarity(problem: Problem, point: Point, otherwise: Array) -> Array:
    """The mean of s y and t z, (k,); `otherwise`, (k,), where there are no bounds."""
    below, above, _ = bounded(problem)
    count = jnp.sum(below, axis=0) + jnp.sum(above, axis=0)
    total = jnp.sum(point.s * point.y + point.t * point.z, axis=0)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), otherwise)


class Direction(NamedTuple):
    """Where to go from a point, and how far."""

    d: Point
    primal: Array  # (k,), how far s and t can go along it
    dual: Array  # (k,)


def linearised(problem: Problem, H: Array, point: Point) -> Callable[[Array, Array], Direction]:
    """The direction in which s y changes by rs and t z by rt, to first order, and the gradient comes to y - z."""
    x, s, t, y, z = point
    below, above, fixed = bounded(problem)
    residual = jnp.where(fixed, 0, gradient(problem, x) - y + z)
    factor = factor_masked(H, ~fixed, y / s + z / t + smallest_pivot(H))

    def towards(rs: Array, rt: Array) -> Direction:
        rs, rt = jnp.where(below, rs, 0), jnp.where(above, rt, 0)
        dx = solve_factored(factor, rs / s - rt / t - residual)
        dx = jnp.where(fixed, 0, dx)
        d = Point(dx, jnp.where(below, dx, 0), jnp.where(above, -dx, 0), (rs - y * dx) / s, (rt + z * dx) / t)
        d = d._replace(y=jnp.where(below, d.y, 0), z=jnp.where(above, d.z, 0))
        primal = jnp.minimum(longest(s, d.s), longest(t, d.t))
        return Direction(d, primal, jnp.minimum(longest(y, d.y), longest(z, d.z)))

    return towards


def moved(point: Point, d: Point, primal: Array, dual: Array) -> Point:
    """The point after a step along d, of one length for x and its slacks and one for the multipliers."""
    x, s, t, y, z = point
    return Point(x + primal * d.x, s + primal * d.s, t + primal * d.t, y + dual * d.y, z + dual * d.z)


def advance(problem: Problem, H: Array, point: Point) -> Point:
    """One step towards the solution, a predictor and correctors (Mehrotra 1992, doi:10.1137/0802028)."""
    _, s, t, y, z = point
    towards, nothing = linearised(problem, H, point), jnp.zeros_like(s[0])
    predictor = towards(-s * y, -t * z)
    size = complementarity(problem, point, nothing)
    left = complementarity(problem, moved(point, *predictor), nothing)
    target = size * jnp.clip(left / jnp.where(size == 0, 1, size), 0, 1) ** 3
    rs = target - s * y - predictor.d.s * predictor.d.y
    rt = target - t * z - predictor.d.t * predictor.d.z
    corrector = towards(rs, rt)

    primal, dual = jnp.minimum(corrector.primal + MORE, 1), jnp.minimum(corrector.dual + MORE, 1)
    further = moved(point, corrector.d, primal, dual)

    def centred(product: Array) -> Array:
        low, high = target / FAR, target * FAR
        return jnp.where(product < low, low - product, jnp.where(product > high, jnp.maximum(high - product, -high), 0))

    centred_corrector = towards(rs + centred(further.s * further.y), rt + centred(further.t * further.z))
    better = centred_corrector.primal + centred_corrector.dual > corrector.primal + corrector.dual
    d, primal, dual = (
        Point(*(jnp.where(better, a, b) for a, b in zip(centred_corrector.d, corrector.d))),
        jnp.where(better, centred_corrector.primal, corrector.primal),
        jnp.where(better, centred_corrector.dual, corrector.dual),
    )
    primal, dual = (jnp.where(length < 1, BACK * length, 1) for length in (primal, dual))
    return moved(point, d, primal, dual)


class State(NamedTuple):
    """Columns in progress."""

    point: Point
    x: Array  # (n, k), the best solution for a guess
    optimality: Array  # (k,), of x
    guess: Array  # (n, k): -1 at the lower bound, 1 at the upper, 0 free
    repeats: Array  # (k,), steps since the guess last changed
    nit: Array  # (k,)


def interior_point(
    problem: Problem, H: Array, x: Array, active: Array, tol: Array, max_steps: Array
) -> tuple[Array, Array]:
    """Solve the active columns.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled.
    H : Array, shape (n, n)
        With a unit diagonal.
    x : Array, shape (n, k)
        Returned where nothing better is found.
    active : Array of bool, shape (k,)
    tol : Array, shape ()
    max_steps : Array of int, shape (k,)

    Returns
    -------
    x : Array, shape (n, k)
    nit : Array of int, shape (k,)
        Steps, each with a factorisation.
    """
    n = len(H)
    smallest = jnp.finfo(x.dtype).eps ** 2

    def optimality_of(part: Problem, x: Array) -> Array:
        return natural_residual(x, gradient(part, x), part.lower, part.upper)

    def try_guess(part: Problem, x: Array, free: Array) -> tuple[Array, Array]:
        factor = factor_masked(H, free, jnp.full_like(x, smallest_pivot(H)))

        def refined(_: Array, x: Array) -> Array:
            return x - solve_factored(factor, jnp.where(free, gradient(part, x), 0))

        x = fori_loop(REFINEMENTS, refined, x)
        x = jnp.clip(x, part.lower, part.upper)
        return x, optimality_of(part, x)

    def step(given: tuple[Columns, Array], state: State, own: Array) -> tuple[State, Array]:
        part, most = with_columns(problem, given[0]), given[1]
        below, above, fixed = bounded(part)
        point = advance(part, H, state.point)
        sound = jnp.all(jnp.isfinite(point.x) & jnp.isfinite(point.y) & jnp.isfinite(point.z), axis=0)
        point = Point(*(jnp.where(sound, a, b) for a, b in zip(point, state.point)))
        guess = jnp.where(fixed | (below & (point.y > point.s)), -1, jnp.where(above & (point.z > point.t), 1, 0))
        guess = guess.astype(jnp.int32)
        repeats = jnp.where(jnp.all(guess == state.guess, axis=0), state.repeats + 1, 0)
        nit = state.nit + 1
        small = complementarity(part, point, jnp.zeros_like(state.optimality)) <= smallest
        # The point itself, on its bounds, and what its guess makes of it.
        x = jnp.where(guess < 0, part.lower, jnp.where(guess > 0, part.upper, point.x))
        x = jnp.clip(x, part.lower, part.upper)
        optimality = optimality_of(part, x)
        ended = ~sound | small | (nit >= most) | (optimality <= attainable(x, 0))
        ask = own & ((repeats == 1) | ended)
        y, other = lax.cond(anywhere(jnp.any(ask)), try_guess, lambda *_: (x, optimality), part, x, guess == 0)
        for z, size, count in ((x, optimality, own), (y, other, ask)):
            better = count & (size < state.optimality)
            state = state._replace(
                x=jnp.where(better, z, state.x), optimality=jnp.where(better, size, state.optimality)
            )
        pending = ~ended & (state.optimality > attainable(state.x, 0))
        return state._replace(point=point, guess=guess, repeats=repeats, nit=nit), pending

    zero = jnp.zeros_like(active, jnp.int32)
    start = State(interior_start(problem, H), x, optimality_of(problem, x), jnp.zeros_like(x, jnp.int32), zero, zero)
    given = (columns_of(problem), jnp.minimum(STEPS, max_steps))
    end = work_off(step, given, start, active & (max_steps > 0), group_size(GROUP, GROUP_ELEMENTS, n**2))
    return end.x, end.nit
