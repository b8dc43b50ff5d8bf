"""What is computed once for all columns that share a matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnnls import _rank as rank
from jaxnnls._loops import after, while_loop
from jaxnnls._objective import Problem, einsum
from jaxnnls._scaling import Scales, matrix_scales, relative, scale_matrix

GAP = 30  # between what rounding leaves of dependent columns and what independent ones have, where rank is clear


class Matrix(NamedTuple):
    """What is computed once for all columns that share a matrix. Scaled: H has a unit diagonal."""

    problem: Problem  # unit columns, right-hand sides still in their own units
    scales: Scales
    unit: Array  # (n, 1), s relative to its maximum
    gram: Array | None  # (n, n), H; None where products with A are cheaper
    root: Array  # (min(m, n), n), R with R'R = A'A, or H where there is a Q
    basis: Array | None  # (m, n), for m > n: orthonormal columns with A = basis R
    inverse: Array | None  # (m, m), about (C C')^-1 with C = A diag(unit), for wide A
    rounding: Array  # (), the distance between columns of R that rounding leaves of dependent ones
    ridged: Array  # (n, 1), bool: variables whose ridge counts; one that is less than rounding is as good as none
    singular: Array  # (), bool: whether minimisers may fail to be unique
    ranked: Array  # (), bool: whether the rank of A is beyond doubt, so that least norm means something on any face
    independent: Array  # (), bool: whether the rows of a wide A are independent, but for zeros
    finite: Array  # (), bool


def prepare(problem: Problem) -> Matrix:
    """Scale the matrix and form what every block needs of it."""
    finite = jnp.all(jnp.isfinite(problem.ridge))
    for matrix in (problem.A, problem.Q):
        if matrix is not None:
            finite &= jnp.all(jnp.isfinite(matrix))
    problem = problem._replace(
        A=None if problem.A is None else jnp.where(finite, problem.A, 0),
        Q=None if problem.Q is None else jnp.where(finite, (problem.Q + problem.Q.T) / 2, 0),
        ridge=jnp.where(finite, problem.ridge, 0),
    )
    scales = matrix_scales(problem)
    scaled = scale_matrix(problem, scales)
    unit = relative(scales)
    n = unit.shape[0]
    gram, basis, inverse = None, None, None
    ridged = scaled.ridge > jnp.finfo(unit.dtype).eps
    loose = ~jnp.all(ridged | scales.junk)
    independent, ranked = jnp.zeros_like(finite), jnp.ones_like(finite)
    rounding = 4 * jnp.sqrt(max(n, 1 if scaled.A is None else len(scaled.A))) * jnp.finfo(unit.dtype).eps
    if scaled.A is None:
        assert scaled.Q is not None
        gram = jnp.where(jnp.eye(n, dtype=bool), 1, scaled.Q)
        root, singular = root_of(scaled.Q + jnp.diag(jnp.where(scales.junk[:, 0], 1, 0)))
        singular &= loose
        gram = after(gram, root)
    else:
        A = scaled.A
        m = A.shape[0]
        if n <= 2 * m:
            gram = einsum("ij,ik->jk", A, A) + jnp.diag(scaled.ridge[:, 0])
        if m < n:
            singular, root = loose, A
            C = A * unit.T
            inverse, independent = regularised_inverse(einsum("ij,kj->ik", C, C))
        else:
            basis, root = jnp.linalg.qr(A)
            distance = rank.least_distance(rank.inverse(root + jnp.diag(jnp.where(scales.junk[:, 0], 1, 0))), n)
            singular = ~(distance > rounding) & loose
            # Decay curves, say, have singular values of every size down to rounding: any of their columns is almost a
            # combination of others, none is one.
            ranked = clear_rank(root, singular, rounding)
    return Matrix(
        scaled, scales, unit, gram, root, basis, inverse, rounding, ridged, singular, ranked, independent, finite
    )


def clear_rank(R: Array, singular: Array, rounding: Array) -> Array:
    """Whether every singular value of a singular R is at rounding level, or well above it."""

    def decompose(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.zeros_like(singular), jnp.diag(jnp.linalg.svd(state[1], compute_uv=False))

    # As in `root_of`.
    values = jnp.diag(while_loop(lambda state: state[0], decompose, (singular, R))[1])
    return jnp.all((values <= rounding) | (values > GAP * rounding))


def regularised_inverse(M: Array) -> tuple[Array, Array]:
    """(M + delta I)^-1 with the smallest delta that rounding allows, and whether M is regular but for zero rows."""
    m = M.shape[0]
    diagonal = jnp.diag(M)
    trace = jnp.sum(diagonal)
    delta = 8 * jnp.finfo(M.dtype).eps * jnp.where(trace > 0, trace, 1)
    identity = jnp.eye(m, dtype=M.dtype)
    factor = jnp.linalg.cholesky(M + delta * identity)
    regular = jnp.all((jnp.diag(factor) ** 2 > 4 * delta) | (diagonal == 0))
    return jax.scipy.linalg.cho_solve((factor, True), identity), regular


def root_of(H: Array) -> tuple[Array, Array]:
    """R with R'R = H, and whether H is singular: the Cholesky factor, or for a singular H by its eigenvalues."""
    n, eps = H.shape[0], jnp.finfo(H.dtype).eps
    factor = jnp.linalg.cholesky(H).T
    singular = ~(rank.least_distance(rank.inverse(factor), n) ** 2 > 16 * n * eps)

    def by_eigenvalues(state: tuple[Array, Array]) -> tuple[Array, Array]:
        values, vectors = jnp.linalg.eigh(state[1])
        kept = values > n * eps * jnp.max(values, initial=0)
        return jnp.zeros_like(singular), jnp.sqrt(jnp.where(kept, values, 0))[:, None] * vectors.T

    # A loop of at most one turn: under vmap a cond would compute both sides. It begins with H as its state, or XLA
    # would take the eigenvalues of H out of the loop and compute them in any case.
    start = (singular, jnp.where(singular, H, factor))
    return while_loop(lambda state: state[0], by_eigenvalues, start)[1], singular
