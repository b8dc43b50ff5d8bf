"""Whether a minimiser is the only one.

Minimisers differ by null vectors of R that live on E: the free variables F, and those on a bound without a multiplier.
Variables that are zero in all null vectors of R are in neither. Where the columns of R in E are independent there is
one minimiser, and nothing to choose by norm.

The columns of decay curves, say, are neither: their singular values have every size down to rounding. Any of them is
almost a combination of others and none is one, and a multiplier may be zero to rounding. There the columns in F have to
be independent, and none of the others in E a combination of them.
"""

import jax.numpy as jnp
from jax import Array

from jaxnnls import _rank as rank
from jaxnnls._matrix import Matrix
from jaxnnls._objective import Problem, attainable
from jaxnnls._queue import work_off

GROUP_ELEMENTS = 2**15  # of the matrices that are factorised at a time


def judge_faces(
    problem: Problem, matrix: Matrix, x: Array, g: Array, optimality: Array, apart: Array, ask: Array
) -> Array:
    """Judge minimisers x.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled.
    matrix : Matrix
    x, g : Array, shape (n, k)
        Minimisers and the gradients there.
    optimality : Array, shape (k,)
    apart : Array of bool, shape (n, k)
        Which columns of R are already known to be independent of those in F.
    ask : Array of bool, shape (k,)

    Returns
    -------
    unique : Array of bool, shape (k,)
        False also for columns that were not asked about.
    """
    R, rounding = matrix.root, matrix.rounding
    p, n = R.shape
    free = (x > problem.lower) & (x < problem.upper) & ~matrix.determined
    held = matrix.determined | (jnp.abs(g) > jnp.maximum(4 * attainable(x, 0), 2 * optimality))
    member = free | ~(held | (problem.lower == problem.upper))
    # With one column beside those in F, all are independent if it is independent of them.
    enough = ~matrix.ranked | (jnp.sum(member & ~free, axis=0) <= 1)
    known = ask & enough & jnp.all(apart | ~member, axis=0)

    def step(given: tuple[Array, Array], state: Array, own: Array) -> tuple[Array, Array]:
        free, member = given
        columns = jnp.where(member.T[:, None], R, 0)
        # F first, then the rest of E. What takes no part is zero and stands last.
        order = jnp.argsort(jnp.where(free.T, 0, jnp.where(member.T, 1, 2)), axis=1)
        triangle = jnp.linalg.qr(jnp.take_along_axis(columns, order[:, None], axis=2), mode="r")
        inverse = rank.inverse(triangle[:, :, :p])
        in_free, in_face = jnp.sum(free, axis=0), jnp.sum(member, axis=0)
        unique = rank.least_distance(inverse, in_face) > rounding
        if p == n:  # the rank of a wide matrix is not in doubt
            outside = jnp.arange(n) >= in_face[:, None]
            apart = outside | (rank.distance_from_first(triangle, inverse, in_free) > rounding)
            plausible = (rank.least_distance(inverse, in_free) > rounding) & jnp.all(apart, axis=1)
            unique = jnp.where(matrix.ranked, unique, plausible)
        return own & (in_face <= p) & unique, jnp.zeros_like(own)

    size = max(1, GROUP_ELEMENTS // (p * n))
    return known | work_off(step, (free, member), jnp.zeros_like(ask), ask & ~known, size)
