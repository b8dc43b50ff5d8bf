"""Factorisations on the threads of XLA rather than on those of LAPACK.

LAPACK comes from SciPy, whose OpenBLAS has threads of its own. For matrices of a few hundred rows they are slower than
one, and afterwards they wait for more work by spinning, 0.1 s long, on the cores where XLA is to go on: half of the
processor time of a solve. So what is not small is factorised by products, which are XLA's, and by LAPACK only where it
takes a single thread. Large matrices are left to LAPACK: two of its threads do not pay at 256 variables, and do at 512.

Measured, float32, 2 cores, of the time with LAPACK alone: 1025 x 32 learnt 0.74, 1025 x 64 random 0.68, 1025 x 128
learnt 0.80, 256 x 84 chroma 0.84, 128 x 1025 and 80 x 513 mel bands that nothing fits 0.72, 256 x 513 0.63. Blocks of
16 rows in `substitute` take 0.64 of its time for 128 rows, and more to compile; doubling takes three times its time.
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _device as device
from jaxnnls import _lapack as lapack
from jaxnnls._loops import fori_loop, once
from jaxnnls._objective import einsum

SMALL = 8192  # numbers in a matrix whose QR factorisation is left to LAPACK: OpenBLAS has threads for 9216
LARGE = 256  # variables
ALONE = 160_000  # bytes of a matrix that OpenBLAS factorises by Cholesky's method on one thread


def qr(A: Array) -> tuple[Array, Array]:
    """Orthonormal columns Q and an upper triangular R, A = Q R to rounding. (m, n) -> (m, n) and (n, n), m >= n."""
    if device.on_gpu() or A.size <= SMALL or A.shape[1] > LARGE:
        return lapack.qr(A)
    return cholesky_qr(A)


def cholesky_qr(A: Array) -> tuple[Array, Array]:
    """Q and R by two Cholesky factorisations, or, where these are not exact, by LAPACK's reflections.

    With R'R = A'A, Q = A R^-1 has orthonormal columns but for rounding times the squared condition of A. As long as
    that is less than 1, the same with Q in the place of A leaves rounding alone ("CholeskyQR2": Yamamoto, Nakatsukasa,
    Yanagisawa and Fukaya 2015, Electron. Trans. Numer. Anal. 44, 306). A product with R^-1 leaves rounding times the
    condition of A in A - Q R, which a step of refinement takes away.
    """
    identity = jnp.eye(A.shape[1], dtype=A.dtype)
    R = lapack.cholesky(einsum("ij,ik->jk", A, A)).T
    inverse = triangular_inverse(R)
    Q = einsum("ij,jk->ik", A, inverse)
    Q += einsum("ij,jk->ik", A - einsum("ij,jk->ik", Q, R), inverse)
    square = einsum("ij,ik->jk", Q, Q)
    exact = jnp.all(jnp.sum(jnp.abs(square - identity), axis=0) < 0.5)  # no less than the norm; false for NaN
    rest = lapack.cholesky(jnp.where(exact, square, identity)).T
    Q, R = einsum("ij,jk->ik", Q, triangular_inverse(rest)), einsum("ij,jk->ik", rest, R)

    return once(~exact, lapack.qr, A, (Q, R))


def substitute(L: Array, B: Array) -> Array:
    """L^-1 B for a lower triangular L, row by row. (n, n), (n, p) -> (n, p)."""
    scale = 1 / jnp.diag(L)[:, None]
    rows = -jnp.tril(L, -1) * scale

    def solve_row(i: Array, X: Array) -> Array:
        row, own = (lax.dynamic_slice_in_dim(a, i, 1) for a in (rows, X))
        return lax.dynamic_update_slice_in_dim(X, own + einsum("ij,jk->ik", row, X), i, axis=0)

    return fori_loop(len(L), solve_row, B * scale)


def triangular_inverse(R: Array) -> Array:
    """R^-1 for an upper triangular R, (n, n)."""
    if device.on_gpu() or len(R) > LARGE:
        return lapack.triangular_inverse(R)
    return substitute(R.T, jnp.eye(len(R), dtype=R.dtype)).T


def cholesky(M: Array) -> Array:
    """The lower Cholesky factor of M, whose lower triangle is read; NaN where M is not positive definite. (n, n)."""
    size, half = M.size * M.dtype.itemsize, len(M) // 2
    if device.on_gpu() or not ALONE < size <= 4 * ALONE:  # up to there the halves are small enough
        return lapack.cholesky(M)
    first = lapack.cholesky(M[:half, :half])
    across = substitute(first, M[half:, :half].T)
    second = lapack.cholesky(M[half:, half:] - einsum("ij,ik->jk", across, across))
    return jnp.block([[first, jnp.zeros_like(across)], [across.T, second]])


def inverse_and_factor(M: Array) -> tuple[Array, Array]:
    """M^-1 and the lower Cholesky factor of M, (n, n)."""
    # LAPACK wants columns contiguous, and XLA has rows: transposed, what is symmetric need not be copied.
    factor = cholesky(M.T)
    identity = jnp.eye(len(M), dtype=M.dtype)
    if device.on_gpu() or len(M) > LARGE:
        return lapack.solve_cholesky(factor, identity).T, factor
    half = substitute(factor, identity)
    return einsum("ji,jk->ik", half, half), factor


def solve(M: Array, b: Array) -> Array:
    """M^-1 b for a positive definite M; NaN for others. (n, n), (n,)."""
    return lapack.solve_cholesky(cholesky(M), b)
