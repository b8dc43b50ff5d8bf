"""Whether a minimiser is the only one.

Minimisers differ by null vectors of R that live on E: the free variables F, and those on a bound without a multiplier.
Variables that are zero in all null vectors of R are in neither. Where the columns of R in E are independent there is
one minimiser, and nothing to choose by norm.

The columns of decay curves, say, are neither: their singular values have every size down to rounding. Any of them is
almost a combination of others and none is one, and a multiplier may be zero to rounding. There the columns in F have to
be independent, and none of the others in E a combination of them.

What the active set does not know is judged. Where A has few variables that is by elimination, for a group of columns at
once (20,000 decay curves of 12 parameters: a seventh of the solve if all are; factorised by LAPACK a third; 2,000 of
40, few of them free: a quarter, and a half), else by a factorisation each.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnnls import _lapack as lapack
from jaxnnls import _rank as rank
from jaxnnls._device import group_size
from jaxnnls._loops import if_any
from jaxnnls._matrix import Matrix
from jaxnnls._objective import Problem, attainable
from jaxnnls._queue import work_off

ELIMINATED = 64  # variables of A, at most, where faces are judged by elimination
GROUP = 256  # columns that are judged at a time, at most; on a GPU more, here and below
GROUP_ELEMENTS = 2**17  # of the matrices in which columns are eliminated at a time
FACTORISED_ELEMENTS = 2**15  # of those that are factorised at a time


class Face(NamedTuple):
    """What may differ between minimisers."""

    free: Array  # (n, k), bool: F, those inside their bounds that are not determined by R alone
    member: Array  # (n, k), bool: E


def face_at(problem: Problem, matrix: Matrix, x: Array, g: Array, optimality: Array) -> Face:
    """The face of minimisers x (n, k) of a scaled problem, with the gradients g (n, k) and optimalities (k,) there."""
    free = (x > problem.lower) & (x < problem.upper) & ~matrix.determined
    held = matrix.determined | (jnp.abs(g) > jnp.maximum(4 * attainable(x, 0), 2 * optimality))
    return Face(free, free | ~(held | (problem.lower == problem.upper)))


def judge_faces(matrix: Matrix, face: Face, apart: Array, ask: Array) -> Array:
    """Whether minimisers are unique.

    Parameters
    ----------
    matrix : Matrix
    face : Face
        Of k columns.
    apart : Array of bool, shape (k,)
        Whether the columns of R in F are known to be independent.
    ask : Array of bool, shape (k,)

    Returns
    -------
    unique : Array of bool, shape (k,)
        False also for columns that were not asked about.
    """
    R, rounding = matrix.root, matrix.rounding
    p, n = R.shape
    known = ask & ~jnp.any(jnp.where(apart, face.member & ~face.free, face.member), axis=0)
    pending = ask & ~known & (jnp.sum(face.member, axis=0) <= p)

    def by_elimination(given: Face, state: Array, own: Array) -> tuple[Array, Array]:
        free, member = given
        chosen = jnp.where(matrix.ranked, member, free)
        return own & rank.independent(R, chosen, member & ~chosen, rounding), jnp.zeros_like(own)

    def by_factorisation(given: Face, state: Array, own: Array) -> tuple[Array, Array]:
        free, member = given
        columns = jnp.where(member.T[:, None], R, 0)
        # F first, then the rest of E. What takes no part is zero and stands last, or, beyond p, is left out.
        order = jnp.argsort(jnp.where(free.T, 0, jnp.where(member.T, 1, 2)), axis=1)[:, :p]
        triangle = jax.vmap(lapack.triangle)(jnp.take_along_axis(columns, order[:, None], axis=2))
        inverse = jax.vmap(rank.inverse)(triangle)
        in_free, in_face = jnp.sum(free, axis=0), jnp.sum(member, axis=0)
        unique = rank.least_distance(inverse, in_face) > rounding
        if p == n:  # the rank of a wide matrix is not in doubt
            outside = jnp.arange(n) >= in_face[:, None]
            apart = outside | (rank.distance_from_first(triangle, inverse, in_free) > rounding)
            plausible = (rank.least_distance(inverse, in_free) > rounding) & jnp.all(apart, axis=1)
            unique = jnp.where(matrix.ranked, unique, plausible)
        return own & unique, jnp.zeros_like(own)

    if n <= ELIMINATED:
        elements = min(GROUP_ELEMENTS, 2 * face.free.size)  # in small blocks, no more than the block has
        judge, size = by_elimination, max(8, group_size(GROUP, elements, n * (p + n)))
    else:
        judge, size = by_factorisation, group_size(GROUP, FACTORISED_ELEMENTS, p**2)
    work = functools.partial(work_off, judge, face, pending=pending, size=size)
    return known | if_any(pending, work, jnp.zeros_like(ask))
