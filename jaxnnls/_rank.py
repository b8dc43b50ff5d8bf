"""Whether columns are linearly independent, as far as rounding can tell.

Let R be the triangular factor of a matrix with independent columns, and d_j the distance of column j from the span of
the others: row j of R^-1 has the length 1 / d_j. A factorisation is exact for a matrix that differs by rounding, so
dependent columns have computed distances at rounding level, in any order. Their pivots do not: the pivot of a column
that depends on those before it is rounding divided by the smallest pivot before it.
"""

import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular


def inverse(R: Array) -> Array:
    """R^-1 of upper triangular matrices, huge where a pivot is zero; (..., p, p) -> (..., p, p)."""
    identity = jnp.eye(R.shape[-1], dtype=R.dtype)
    tiny = jnp.finfo(R.dtype).eps ** 2
    filled = R + jnp.where(jnp.abs(R) <= tiny, tiny, 0) * identity
    return solve_triangular(filled, jnp.broadcast_to(identity, R.shape))


def least_distance(inverse: Array, count: Array | int) -> Array:
    """min d_j of the first `count` columns of R, given R^-1; infinite for none. (..., p, p) and (...) -> (...)."""
    first = jnp.arange(inverse.shape[-1]) < jnp.asarray(count)[..., None]
    # Where the inverse has overflown, this is NaN or 0.
    squares = jnp.sum(jnp.where(first[..., None, :], inverse, 0) ** 2, axis=-1)
    return jnp.sqrt(1 / jnp.max(jnp.where(first, squares, 0), axis=-1, initial=0))


def distance_from_first(R: Array, inverse: Array, count: Array) -> Array:
    """The distance of each column of R from the span of the first `count`, infinite for these; (..., p, p) -> (..., p).

    With y the coefficients of its projection, rounding of all columns may be 1 + |y| times as much in the distance,
    which is divided by that.
    """
    first = jnp.arange(R.shape[-1]) < count[..., None]
    projection = jnp.where(first[..., None], R, 0)
    y = jnp.einsum("...ij,...jk->...ik", jnp.where(first[..., None], inverse, 0), projection, precision="highest")
    distance = jnp.linalg.norm(R - projection, axis=-2) / (1 + jnp.linalg.norm(y, axis=-2))
    return jnp.where(first, jnp.inf, distance)
