"""Minimisers with a logarithmic barrier of fixed weight, whose derivative `_smoothing` gives.

With slacks s = x - lower and t = upper - x, and multipliers y and z,

    g(x) - y + z = 0,    s y = kappa,    t z = kappa,    s, t, y, z > 0

say that x minimises the objective less kappa (sum log s + sum log t). The steps are Newton's on these equations, as of
an interior point method that stops on its way (Wright 1997, Primal-Dual Interior-Point Methods, chapter 5).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._device import group_size
from jaxnnls._interior import GROUP, GROUP_ELEMENTS, Point, bounded, complementarity, interior_start, linearised, moved
from jaxnnls._objective import Columns, Problem, columns_of, gradient, with_columns
from jaxnnls._queue import work_off

STEPS = 60
DOWN, PART = 0.1, 0.9  # how much smaller products become in a step, and how much of the way to the boundary one goes


def relax(problem: Problem, H: Array, kappa: Array, active: Array) -> tuple[Point, Array]:
    """The solutions for kappa > 0.

    By steps that change each product s y towards kappa, without correctors: those let s and y of a variable both go to
    zero, from where there is no way back (of 9000 columns, kappa 1e3 to 1e-6, a third and more ended elsewhere).

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled.
    H : Array, shape (n, n)
        With a unit diagonal.
    kappa : Array, shape (k,)
    active : Array of bool, shape (k,)
        Other columns are returned at the start.

    Returns
    -------
    point : Point
        The best there was on the way.
    error : Array, shape (k,)
        The largest relative error of a product of slack and multiplier, or of the gradient, in units of its terms.
    """

    class Relaxing(NamedTuple):
        point: Point
        best: Point
        error: Array  # (k,), of the best
        nit: Array  # (k,)

    def step(given: tuple[Columns, Array], state: Relaxing, own: Array) -> tuple[Relaxing, Array]:
        part, kappa = with_columns(problem, given[0]), given[1]
        below, above, fixed = bounded(part)
        _, s, t, y, z = state.point
        target = jnp.maximum(kappa, DOWN * complementarity(part, state.point, kappa))
        d, primal, dual = linearised(part, H, state.point)(target - s * y, target - t * z)
        length = jnp.minimum(primal, dual)
        length = jnp.where(length < 1, PART * length, 1)
        point = moved(state.point, d, length, length)
        terms = 1 + jnp.sum(jnp.abs(point.x), axis=0) + jnp.max(point.y + point.z, axis=0, initial=0)
        residual = jnp.where(fixed, 0, gradient(part, point.x) - point.y + point.z) / terms
        off = [
            jnp.where(has, jnp.abs(slack * multiplier / kappa - 1), 0)
            for has, slack, multiplier in ((below, point.s, point.y), (above, point.t, point.z))
        ]
        error = jnp.max(jnp.maximum(jnp.abs(residual), jnp.maximum(*off)), axis=0, initial=0)
        better = error < state.error
        best = Point(*(jnp.where(better, new, old) for new, old in zip(point, state.best)))
        least = jnp.where(better, error, state.error)
        # Down to rounding, as long as that goes on.
        eps = jnp.finfo(kappa.dtype).eps
        going = (least > 1e3 * eps) | (better & (least > 8 * eps))
        return Relaxing(point, best, least, state.nit + 1), going & jnp.isfinite(error) & (state.nit < STEPS)

    start = interior_start(problem, H)
    nothing = jnp.zeros_like(active, jnp.int32)
    state = Relaxing(start, start, jnp.full_like(kappa, jnp.inf), nothing)
    size = group_size(GROUP, GROUP_ELEMENTS, len(H) ** 2)
    end = work_off(step, (columns_of(problem), kappa), state, active, size)
    return end.best, end.error
