"""Whether a minimiser is the only one.

Minimisers differ by null vectors of R that live on E: the free variables F, and those on a bound without a multiplier.
Where the columns of R in E are independent there is one minimiser, and nothing to choose by norm.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls import _rank as rank
from jaxnnls._blocks import work_off
from jaxnnls._objective import Problem, attainable

GROUP_ELEMENTS = 2**16  # of the matrices that are factorised at a time


class Faces(NamedTuple):
    """What rounding can tell about the faces of the columns; False also for columns that were not asked about."""

    regular: Array  # (k,), bool: the columns of R in F are independent
    unique: Array  # (k,), bool: and so are those in E


def judge_faces(problem: Problem, root: Array, x: Array, g: Array, optimality: Array, ask: Array) -> Faces:
    """Judge minimisers x.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled, without ridge.
    root : Array, shape (p, n)
        R with R'R = A'A or Q.
    x, g : Array, shape (n, k)
        Minimisers and the gradients there.
    optimality : Array, shape (k,)
    ask : Array of bool, shape (k,)
    """
    p, n = root.shape
    rounding = 2 * math.sqrt(p) * jnp.finfo(x.dtype).eps
    free = (x > problem.lower) & (x < problem.upper)
    held = jnp.abs(g) > jnp.maximum(4 * attainable(x, 0), 2 * optimality)
    member = free | ~(held | (problem.lower == problem.upper))

    def step(given: tuple[Array, Array], state: Faces, own: Array) -> tuple[Faces, Array]:
        free, member = given
        columns = jnp.where(member.T[:, None], root, 0)
        # F first, then the rest of E. What takes no part is zero and stands last, where its pivots do not count.
        order = jnp.argsort(jnp.where(free.T, 0, jnp.where(member.T, 1, 2)), axis=1)
        R = jnp.linalg.qr(jnp.take_along_axis(columns, order[:, None], axis=2)[:, :, :p], mode="r")
        inverse = rank.inverse(R)

        def independent(members: Array) -> Array:
            count = jnp.sum(members, axis=0)
            return own & (count <= p) & (rank.least_distance(inverse, count) > rounding)

        return Faces(independent(free), independent(member)), jnp.zeros_like(own)

    start = Faces(jnp.zeros_like(ask), jnp.zeros_like(ask))
    return work_off(step, (free, member), start, ask, max(1, GROUP_ELEMENTS // (p * n)))
