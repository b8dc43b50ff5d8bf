"""What is computed once for all columns that share a matrix."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._objective import Problem, einsum
from jaxnnls._scaling import Scales, matrix_scales, scale_matrix


class Matrix(NamedTuple):
    """What is computed once for all columns that share a matrix. Scaled: H has a unit diagonal."""

    problem: Problem  # unit columns, right-hand sides still in their own units
    scales: Scales
    unit: Array  # (n, 1), s relative to its maximum
    gram: Array | None  # (n, n), H; None where products with A are cheaper
    root: Array  # (min(m, n), n), R with R'R = A'A, or H where there is a Q
    inverse: Array | None  # (m, m), about (C C')^-1 with C = A diag(unit), for wide A
    singular: Array  # (), bool: whether minimisers may fail to be unique
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
    unit = scales.s / jnp.max(scales.s, initial=0)
    n = unit.shape[0]
    gram, inverse = None, None
    if scaled.A is None:
        assert scaled.Q is not None
        gram = jnp.where(jnp.eye(n, dtype=bool), 1, scaled.Q)
        root, singular = root_of(scaled.Q + jnp.diag(jnp.where(scales.junk[:, 0], 1, 0)))
        singular &= ~jnp.any(problem.ridge > 0)
    else:
        A = scaled.A
        m = A.shape[0]
        if n <= 2 * m:
            gram = einsum("ij,ik->jk", A, A) + jnp.diag(scaled.ridge[:, 0])
        if m < n:
            singular, root = ~jnp.any(problem.ridge > 0), A
            C = A * unit.T
            inverse = regularised_inverse(einsum("ij,kj->ik", C, C))
        else:
            root = jnp.linalg.qr(A, mode="r")
            pivots = jnp.where(scales.junk[:, 0], 1, jnp.abs(jnp.diag(root)))
            threshold = 2 * math.sqrt(m) * jnp.finfo(A.dtype).eps  # what rounding A leaves of dependent columns
            singular = (jnp.min(pivots, initial=1) <= threshold) & ~jnp.any(problem.ridge > 0)
    return Matrix(scaled, scales, unit, gram, root, inverse, singular, finite)


def regularised_inverse(M: Array) -> Array:
    """(M + delta I)^-1 with the smallest delta that rounding allows."""
    m = M.shape[0]
    trace = jnp.trace(M)
    delta = 8 * jnp.finfo(M.dtype).eps * jnp.where(trace > 0, trace, 1)
    factor = jax.scipy.linalg.cho_factor(M + delta * jnp.eye(m, dtype=M.dtype))
    return jax.scipy.linalg.cho_solve(factor, jnp.eye(m, dtype=M.dtype))


def root_of(H: Array) -> tuple[Array, Array]:
    """R with R'R = H, and whether H is singular: the Cholesky factor, or where that breaks down by eigenvalues."""
    n, eps = H.shape[0], jnp.finfo(H.dtype).eps
    factor = jnp.linalg.cholesky(H).T
    singular = ~(jnp.min(jnp.diag(factor) ** 2, initial=1) > 16 * n * eps)

    def by_eigenvalues(state: tuple[Array, Array]) -> tuple[Array, Array]:
        values, vectors = jnp.linalg.eigh(H)
        kept = values > n * eps * jnp.max(values, initial=0)
        return jnp.zeros_like(singular), jnp.sqrt(jnp.where(kept, values, 0))[:, None] * vectors.T

    # A loop of at most one turn: under vmap a cond would compute both sides.
    return lax.while_loop(lambda state: state[0], by_eigenvalues, (singular, factor))[1], singular
