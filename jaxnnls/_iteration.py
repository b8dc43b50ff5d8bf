"""Which algorithm takes which columns of a block.

Each takes over the columns that the one before it left unsolved:

    wide A, no ridge, no l1:   `least_norm`, the dual: exact fits, already of least norm
    other problems:            `minimise`, descent, pivots or an interior point
    is the minimiser unique?   `judge_faces`, where A does not have full rank
    what is left, and          `rescue`, proximal Newton with a system for each column, a few at a time
    whatever is not unique
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._dual import least_norm
from jaxnnls._loops import if_any
from jaxnnls._matrix import Matrix
from jaxnnls._minimise import minimise
from jaxnnls._objective import Problem, attainable, einsum, gradient, natural_residual
from jaxnnls._proximal import Rescued, rescue
from jaxnnls._scaling import relative
from jaxnnls._uniqueness import face_at, judge_faces


class Options(NamedTuple):
    """What steers the iteration and has no derivative."""

    x_init: Array | None  # (n, N) or (n, 1)
    tol: Array  # ()
    max_steps: Array  # (), int32
    smoothing: Array | None  # (), kappa: the derivative is that of the relaxed problem
    l1: Array  # (), what of `linear` does not count for the size of a problem


class Progress(NamedTuple):
    """What the columns of a block have reached."""

    x: Array  # (n, k)
    shortest: Array  # (k,), bool: whether x is known to be of least norm among the minimisers, if it is one
    unique: Array  # (k,), bool: whether the minimiser is known to be unique
    fitted: Array  # (k,), bool: whether A x = b
    nit: Array  # (k,), int32


def iterate(matrix: Matrix, problem: Problem, x: Array, usable: Array, options: Options, warm: bool) -> Progress:
    """Run the algorithms over a scaled block, starting from x (n, k)."""
    nit = jnp.zeros_like(usable, jnp.int32)
    fitted = jnp.zeros_like(usable)
    if matrix.inverse is not None:
        # Without ridge and l1 an exact fit is optimal; x = z unit with z of least norm. So it is with a ridge that only
        # small columns feel, to rounding, if they are not in it: that is seen at x.
        assert problem.A is not None and problem.b is not None
        unit = relative(matrix.scales)
        C = problem.A * unit.T
        w = einsum("ij,jk->ik", matrix.inverse, einsum("ij,jk->ik", C, x / unit) if warm else problem.b)
        eligible = usable & (matrix.ridge == 0) & jnp.all(problem.linear == 0, axis=0)
        low, high = problem.lower / unit, problem.upper / unit
        z, shortest, nit = least_norm(
            C,
            matrix.inverse,
            problem.b,
            low,
            high,
            w,
            eligible,
            options.max_steps,
            matrix.independent,
            matrix.tridiagonal,
        )
        at_low, at_high = z <= low, z >= high
        z = jnp.clip(z * unit, problem.lower, problem.upper)
        z = jnp.where(at_low, problem.lower, jnp.where(at_high, problem.upper, z))
        optimality = natural_residual(z, gradient(problem, z), problem.lower, problem.upper)
        fitted = eligible & shortest & (optimality <= attainable(z, options.tol))
        x = jnp.where(fitted, z, x)

    rest = usable & ~fitted
    x, g, optimality, apart, steps = minimise(matrix, problem, x, rest, options.tol, options.max_steps - nit, warm)
    nit += steps
    good = rest & (optimality <= attainable(x, options.tol))
    face = face_at(problem, matrix, x, g, optimality)
    unique = ~matrix.singular | judge_faces(matrix, face, apart, good & matrix.singular)
    solved, ridged = good & unique, jnp.zeros_like(good)
    if matrix.inverse is not None:
        # With a ridge, an x that is optimal may be far from the solution: it is off by optimality / ridge.
        solved, ridged = solved & matrix.singular, ridged | ~matrix.singular
    pending, left = rest & ~solved & (nit < options.max_steps), options.max_steps - nit

    def rescued(old: Rescued) -> Rescued:
        if matrix.inverse is None or warm:
            return rescue(problem, matrix, *old[:3], pending, options.tol, left, warm)
        # Proximal steps from 0 stay near the range of A', as the solution does.
        x = jnp.where(pending & ridged & ~good, jnp.clip(0, problem.lower, problem.upper), old.x)
        g = gradient(problem, x)
        optimality = natural_residual(x, g, problem.lower, problem.upper)
        new = rescue(problem, matrix, x, g, optimality, pending, options.tol, left)
        # Where steps ran out on the way, what there was may be better.
        worse = pending & (new.optimality > jnp.maximum(old.optimality, attainable(new.x, options.tol)))
        x, g, optimality = (jnp.where(worse, a, b) for a, b in zip(old[:3], new[:3]))
        return Rescued(x, g, optimality, new.shortest & ~worse, new.nit)

    unsolved = Rescued(x, g, optimality, jnp.zeros_like(pending), jnp.zeros_like(nit))
    x, g, optimality, shortest, steps = if_any(pending, rescued, unsolved)
    x = on_bounds(problem, x, g, optimality, options.tol)
    return Progress(x, fitted | unique | shortest, unique, fitted, nit + steps)


def on_bounds(problem: Problem, x: Array, g: Array, optimality: Array, tol: Array) -> Array:
    """x with every variable on its bound that has a multiplier, and is so near that tol cannot tell, (n, k)."""

    def judged(y: Array) -> Array:
        return natural_residual(y, gradient(problem, y), problem.lower, problem.upper)

    room = attainable(x, tol)
    y = jnp.where((g > 4 * room) & (x - problem.lower <= room), problem.lower, x)
    y = jnp.where((g < -4 * room) & (problem.upper - x <= room), problem.upper, y)
    after = lax.cond(jnp.any(y != x), judged, lambda y: optimality, y)
    return jnp.where(after <= jnp.maximum(optimality, room / 10), y, x)
