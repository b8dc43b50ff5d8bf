"""What is computed once for all columns that share a matrix."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls import _lapack as lapack
from jaxnnls import _rank as rank
from jaxnnls._factor import inverse_and_factor, qr
from jaxnnls._loops import once
from jaxnnls._objective import Problem, einsum
from jaxnnls._scaling import Scales, matrix_scales, relative, scale_matrix
from jaxnnls._small import FEW, pivots_pay
from jaxnnls._tridiagonal import is_tridiagonal

START_RIDGE = 1e-3  # 1e-4 is as good; with 1e-2, 256 x 84 chroma takes 1.2 times the steps
CLOSE = 1e-3  # the distance of a unit column from the span of the others; in 128 learnt spectra 6e-2 and more
SMALL = 1e-3  # of the largest singular value; there 9e-3 and more
CROWD = 1 / 8  # of them are small: in decay curves and overlapping peaks more, with some duplicates fewer
MOST = 1e3  # by how much the noise of R may exceed rounding
GAP = 30  # between what rounding leaves of dependent columns and what independent ones have, where rank is clear


class Matrix(NamedTuple):
    """What is computed once for all columns that share a matrix. Scaled: H has a unit diagonal."""

    problem: Problem  # with unit columns, and nothing of what belongs to the columns of b
    scales: Scales
    gram: Array | None  # (n, n), H; None where products with A are cheaper
    start: Array | None  # (n, n), (H + START_RIDGE I)^-1, where there is H
    root: Array  # (min(m, n), n), R with R'R = A'A, or H where there is a Q
    gram_inverse: Array | None  # (n, n), H^-1, for a Q; nothing of use where H is singular
    basis: Array | None  # (m, min(m, n)): orthonormal columns, or a projection, with A = basis R
    inverse: Array | None  # (m, m), about (C C')^-1 with C = A diag(unit), for wide A
    ridge: Array  # (), the least of a column of A that counts; 0 where that is no more than rounding
    noise: Array  # (), what rounding leaves of R v, for a null vector v
    rounding: Array  # (), the distance between columns of R that it leaves of dependent ones
    crowded: Array  # (), bool: whether many columns are almost combinations of others, where pivots may pay;
    # for a larger Q, whether any is
    redundant: Array  # (), bool: whether many columns of a tall A are combinations of others, and the rest clearly not
    determined: Array  # (n, 1), bool: variables that are known to be the same in all minimisers
    singular: Array  # (), bool: whether minimisers may fail to be unique
    ranked: Array  # (), bool: whether the rank of A is beyond doubt, so that least norm means something on any face
    independent: Array  # (), bool: whether the rows of a wide A are independent, but for zeros
    tridiagonal: Array  # (), bool: whether A diag(v) A' is for any v, with a wide A
    finite: Array  # (), bool


def prepare(problem: Problem) -> Matrix:
    """Scale the matrix and form what every block needs of it."""
    nothing = jnp.zeros_like(problem.lower[:, :1])
    problem = problem._replace(b=None, linear=nothing, lower=nothing, upper=nothing)
    finite = jnp.all(jnp.isfinite(problem.ridge) & (problem.ridge >= 0))
    for matrix in (problem.A, problem.Q):
        if matrix is not None:
            finite &= jnp.sum(matrix - matrix) == 0
    problem = problem._replace(
        A=None if problem.A is None else jnp.where(finite, problem.A, 0),
        Q=None if problem.Q is None else jnp.where(finite, (problem.Q + problem.Q.T) / 2, 0),
        ridge=jnp.where(finite, problem.ridge, 0),
    )
    scales = matrix_scales(problem)
    scaled = scale_matrix(problem, scales)
    n, eps = len(scales.s), jnp.finfo(scales.s.dtype).eps
    gram, gram_inverse, basis, inverse = None, None, None, None
    # Null vectors are zero where a ridge counts; one that is less than rounding is as good as none.
    determined = scaled.ridge > eps
    ridge = jnp.min(jnp.where(scales.junk, jnp.inf, scaled.ridge), initial=jnp.inf)
    ridge = jnp.where((ridge > eps) & (ridge < jnp.inf), ridge, 0)
    ranked = jnp.ones_like(finite)
    independent, close, redundant, tridiagonal = (jnp.zeros_like(finite) for _ in range(4))
    noise = jnp.asarray(eps, scales.s.dtype)
    spread = 4 * jnp.sqrt(max(n, 1 if scaled.A is None else len(scaled.A)))
    rounding = spread * noise
    if scaled.A is None:
        assert scaled.Q is not None
        # The ridge becomes a part of Q, and the diagonal is exactly what it is scaled to.
        gram = jnp.where(jnp.eye(n, dtype=bool), 1, scaled.Q)
        scaled, ridge = scaled._replace(Q=gram, ridge=jnp.zeros_like(scaled.ridge)), jnp.zeros_like(ridge)
        root, singular, gram_inverse, noise = root_of(gram)
        rounding = spread * noise
        # The squared distance of a column of R from the span of the others is 1 / (H^-1)_jj.
        close = ~jnp.all(jnp.diag(gram_inverse) < CLOSE**-2)
    else:
        A = scaled.A
        m = A.shape[0]
        if n <= 2 * m:
            gram = einsum("ij,ik->jk", A, A) + jnp.diag(scaled.ridge[:, 0])
        if m < n:
            singular = jnp.ones_like(finite)
            C = A * relative(scales).T
            inverse, independent = regularised_inverse(einsum("ij,kj->ik", C, C))
            tridiagonal = is_tridiagonal(A)
            root, basis, inverse = independent_rows(A, inverse, ~independent, tridiagonal, rounding)
        else:
            basis, root = qr(A)
            distance = rank.least_distance(rank.inverse(root + jnp.diag(jnp.where(scales.junk[:, 0], 1, 0))), n)
            singular = ~(distance > rounding)
            close = ~(distance > CLOSE)
            ranked, involved, redundant = null_space(root, singular, rounding)
            redundant &= ranked
            determined |= ~involved
    start, crowded = None, jnp.zeros_like(finite)
    if gram is not None:
        ridged = gram + START_RIDGE * jnp.eye(n, dtype=gram.dtype)
        if n > FEW and pivots_pay(n, scaled.Q is not None) and inverse is None:
            # Columns that do not count are zero: no small singular values.
            counted = jnp.where(jnp.eye(n, dtype=bool), jnp.maximum(gram, 1), gram)
            crowded = is_crowded(counted, close)
        elif n > FEW and scaled.Q is not None:
            crowded = close
        start, _ = inverse_and_factor(ridged)
        start = jnp.where(jnp.all(jnp.isfinite(start)), start, 0)  # an indefinite Q
    determined |= scales.junk
    singular &= ~jnp.all(determined)
    return Matrix(
        scaled,
        scales,
        gram,
        start,
        root,
        gram_inverse,
        basis,
        inverse,
        ridge,
        noise,
        rounding,
        crowded,
        redundant,
        determined,
        singular,
        ranked,
        independent,
        tridiagonal,
        finite,
    )


def independent_rows(
    A: Array, inverse: Array, dependent: Array, tridiagonal: Array, rounding: Array
) -> tuple[Array, Array, Array]:
    """A wide A whose rows are dependent, turned so that those which are combinations of others are zero.

    With A = U S V', the same problem is U'A x = U'b. A system A x = b that has a solution but for rounding then has
    one, see `_solver.reduced`. A stays as it is where its rank is in doubt, and where singular values are small, which
    would lose digits: of rows that nearly repeat others, by 1e-10 in float64, half of the columns did not converge.
    So does one with tridiagonal A A', and b is projected on its range instead: where rows repeated others, 6 of 100
    columns were fits of what no A x has but for rounding, by variables of 1e16.

    Measured, 100 x 300 of rank 50 with exact fits, 240 columns: float64 0.011 of the time, the 21 that ended at
    PRECISION solved, and norms to a fifth less; float32 1.4 times the time, for the singular values. Exact fits of
    60 x 200: float64, sums of rows 0.15 of the time, repeated rows of other sizes 0.3; float32 1 to 4 times.

    Returns
    -------
    root : Array, shape (m, n)
    basis : Array, shape (m, m)
        Orthogonal, or a projection, with A = basis root.
    inverse : Array, shape (m, m)
        About that of root root', where the given one is of A A', in whatever metric of the columns.
    """
    identity = jnp.eye(len(A), dtype=A.dtype)

    def turn(given: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        A, inverse = given
        values, vectors = lapack.right_singular(lapack.triangle(A.T))
        none = values <= rounding * values[0]
        clear = jnp.all(none | (values > jnp.sqrt(jnp.finfo(A.dtype).eps) * values[0])) & jnp.any(none)
        kept = jnp.where(none[:, None], 0, vectors)
        basis = jnp.where(clear, jnp.where(tridiagonal, einsum("ij,ik->jk", kept, kept), vectors.T), identity)
        turned = clear & ~tridiagonal
        root = jnp.where(turned, einsum("ij,jk->ik", kept, A), A)
        return root, basis, jnp.where(turned, einsum("ij,jk,lk->il", vectors, inverse, vectors), inverse)

    return once(dependent, turn, (A, inverse), (A, identity, inverse))


def null_space(R: Array, singular: Array, rounding: Array) -> tuple[Array, Array, Array]:
    """What is known of the null vectors of a singular R, (n, n).

    Decay curves, say, have singular values of every size down to rounding: any of their columns is almost a combination
    of others, none is one. Duplicates, on the other hand, concern nobody else.

    Returns
    -------
    ranked : Array of bool, shape ()
        Whether every singular value is at rounding level, or well above it.
    involved : Array of bool, shape (n, 1)
        Which variables are not zero in all null vectors, as far as rounding can tell.
    redundant : Array of bool, shape ()
        Whether a good part of the singular values are at rounding level.
    """

    def decompose(R: Array) -> tuple[Array, Array, Array]:
        values, vectors = lapack.right_singular(R)
        null = values <= GAP * rounding
        size = jnp.sqrt(jnp.sum(jnp.where(null[:, None], vectors**2, 0), axis=0))[:, None]
        # Rounding turns a null vector by about so much. (A safe bound, `rounding` for 4 eps, hides what is real and
        # matters where a column is small.)
        angle = 4 * jnp.finfo(R.dtype).eps / jnp.min(jnp.where(null, jnp.inf, values), initial=jnp.inf)
        none = values <= rounding
        return jnp.all(~null | none), size > angle, jnp.mean(none.astype(R.dtype)) > CROWD

    regular = jnp.ones_like(singular), jnp.ones((len(R), 1), bool), jnp.zeros_like(singular)
    return once(singular, decompose, R, regular)


def is_crowded(H: Array, close: Array) -> Array:
    """Whether a good part of the singular values of R, R'R = H, are next to nothing; asked where columns are close."""

    def crowded(H: Array) -> Array:
        values = lapack.eigenvalues(H)
        small = ~(values > SMALL**2 * jnp.max(values))
        return jnp.mean(small.astype(H.dtype)) > CROWD

    return once(close, crowded, H, jnp.zeros_like(close))


def regularised_inverse(M: Array) -> tuple[Array, Array]:
    """(M + delta I)^-1 with the smallest delta that rounding allows, and whether M is regular but for zero rows."""
    diagonal = jnp.diag(M)
    trace = jnp.sum(diagonal)
    delta = 8 * jnp.finfo(M.dtype).eps * jnp.where(trace > 0, trace, 1)
    inverse, _ = inverse_and_factor(M + delta * jnp.eye(len(M), dtype=M.dtype))
    # Its eigenvalues, times delta, are delta / (lambda + delta): 1 where M is singular.
    left = jnp.where(diagonal > 0, delta * inverse, 0)
    return inverse, jnp.sum(left * left) < 0.25


def root_of(H: Array) -> tuple[Array, Array, Array, Array]:
    """R with R'R = H, whether H is singular, if not H^-1, and the noise of R.

    R is the Cholesky factor, or else by eigenvalues. Where H v is no more than rounding, R v is that divided by the
    smallest singular value of R: columns of duplicates differ by so much. Taken for rounding alone, that made them
    independent (20 of 1344 columns of 5 variables, float32, CONVERGED far from the least norm), and projections went
    after it: with a condition of 1e2 to 1e4 in float64, 448 of 1440 columns with duplicates were PRECISION, now 20.
    Where columns almost depend on others, what was CONVERGED is PRECISION more often, whether far from the least norm
    or not: of overlapping peaks, float64, 540 are solved and 14 far from it, instead of 588 and 51, and without MOST
    526 and 8. Columns of sizes from 1e-2 to 1e2, float32: 596 and 3 instead of 634 and 1.
    """
    n, eps = H.shape[0], jnp.finfo(H.dtype).eps
    inverse, factor = inverse_and_factor(H)
    singular = ~jnp.all(jnp.diag(inverse) * 16 * n * eps < 1)  # not by their maximum, which may lose NaN

    def by_eigenvalues(H: Array) -> tuple[Array, Array]:
        values, vectors = lapack.eigh(H)
        kept = values > n * eps * jnp.max(values, initial=0)
        least = jnp.min(jnp.where(kept, values, 1), initial=1)
        return jnp.sqrt(jnp.where(kept, values, 0))[:, None] * vectors.T, eps * jnp.minimum(1 / jnp.sqrt(least), MOST)

    R, noise = once(singular, by_eigenvalues, H, (factor.T, jnp.full((), eps, H.dtype)))
    return R, singular, inverse, noise
