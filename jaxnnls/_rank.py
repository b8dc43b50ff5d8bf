"""Whether columns are linearly independent, as far as rounding can tell.

Let R be the triangular factor of a matrix with independent columns, and d_j the distance of column j from the span of
the others: row j of R^-1 has the length 1 / d_j. A factorisation is exact for a matrix that differs by rounding, so
dependent columns have computed distances at rounding level, in any order. Their pivots do not: the pivot of a column
that depends on those before it is rounding divided by the smallest pivot before it.
"""

import jax.numpy as jnp
from jax import Array

from jaxnnls._factor import triangular_inverse
from jaxnnls._loops import while_loop
from jaxnnls._small import first, materialised, weighted_sum


def inverse(R: Array) -> Array:
    """R^-1 of an upper triangular R, huge where a pivot is zero; (p, p)."""
    tiny = jnp.finfo(R.dtype).eps ** 2
    return triangular_inverse(R + jnp.where(jnp.abs(R) <= tiny, tiny, 0) * jnp.eye(len(R), dtype=R.dtype))


def least_distance(inverse: Array, count: Array | int) -> Array:
    """min d_j of the first `count` columns of R, given R^-1; infinite for none. (..., p, p) and (...) -> (...)."""
    first = jnp.arange(inverse.shape[-1]) < jnp.asarray(count)[..., None]
    # Where the inverse has overflown, this is 0: a maximum may lose NaN.
    squares = jnp.sum(jnp.where(first[..., None, :], inverse, 0) ** 2, axis=-1)
    squares = jnp.where(squares < jnp.inf, squares, jnp.inf)
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


def independent(R: Array, chosen: Array, others: Array, rounding: Array) -> Array:
    """Whether the chosen columns of a small R are independent, and each of the others is of these.

    By the modified Gram-Schmidt process, whose triangular factor is as exact as Householder's (Bjorck 1967,
    doi:10.1007/BF01934122), for all subsets at once. Each column of R stands on top of one of the identity, which
    becomes its coefficients: R^-1, but for the lengths.

    Parameters
    ----------
    R : Array, shape (p, n)
        Unit columns.
    chosen, others : Array of bool, shape (n, k)
    rounding : Array, shape ()
        The distance that counts as none.

    Returns
    -------
    independent : Array of bool, shape (k,)
    """
    p, n = R.shape
    k, dtype = chosen.shape[1], R.dtype
    start = jnp.concatenate([R.T, jnp.eye(n, dtype=dtype)], axis=1)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        U, todo, squares = state
        pivot = first(todo)
        u = materialised(weighted_sum(U, pivot))
        square = jnp.sum(u[:p] ** 2, axis=0)
        # A column in the span of those before it is no pivot: its distance is nothing.
        per_square = jnp.where(square > rounding**2, 1 / jnp.where(square > rounding**2, square, 1), 0)
        left = (squares == 0) & (pivot == 0)
        along = weighted_sum(U, u[:p], axis=1)
        factor = materialised(jnp.where(left, along * per_square, 0))
        return U - factor[:, None] * u, todo - pivot, jnp.where(pivot > 0, square, squares)

    wide = jnp.broadcast_to(start[:, :, None], (n, p + n, k))
    state = (wide, chosen.astype(dtype), jnp.zeros((n, k), dtype))
    U, _, squares = while_loop(lambda state: jnp.any(state[1] > 0), step, state)
    coefficients = U[:, p:]  # (columns, rows of R^-1, k)
    weight = jnp.where(squares > rounding**2, 1 / jnp.where(squares > 0, squares, 1), 0)
    inverse_squares = weighted_sum(coefficients**2, weight)
    far = (squares > rounding**2) & (rounding**2 * inverse_squares < 1)
    # With y the coefficients of its projection, rounding of all columns may be 1 + |y| times as much in the distance.
    distance = jnp.sqrt(jnp.sum(U[:, :p] ** 2, axis=1))
    y = jnp.sqrt(jnp.maximum(jnp.sum(coefficients**2, axis=1) - 1, 0))
    dependent = (chosen & ~far) | (others & ~(distance > rounding * (1 + y)))
    return jnp.sum(materialised(dependent.astype(dtype)), axis=0) == 0
