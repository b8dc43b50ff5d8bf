"""Pseudo-inverse of positive semidefinite matrices, differentiable to any order.

With K = M^+ and N = I - M K, the projector on the null space, and for perturbations that keep the rank of M,

    dK = -K dM K + N dM K K + K K dM N
    dN = -N dM K - K dM N

(Golub and Pereyra 1973, doi:10.1137/0710036, for symmetric M). K and N stand on the right-hand side again, so the
rule can be differentiated again. An eigendecomposition cannot: its derivative divides by differences of eigenvalues.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _lapack as lapack
from jaxnnls._loops import while_loop
from jaxnnls._objective import einsum


@jax.custom_jvp
def pseudoinverse(M: Array) -> tuple[Array, Array]:
    """K = M^+ and N = I - M K.

    Parameters
    ----------
    M : Array, shape (k, p, p)
        Symmetric, positive semidefinite. Rows and columns of zeros are exact members of the null space.

    Returns
    -------
    K, N : Array, shape (k, p, p)
        N is exactly zero where M has full rank.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> K, N = pseudoinverse(jnp.array([[[4.0, 0.0], [0.0, 0.0]]]))
    >>> print(K[0].tolist(), N[0].tolist())
    [[0.25, 0.0], [0.0, 0.0]] [[0.0, 0.0], [0.0, 1.0]]
    """
    p = M.shape[-1]
    eps = jnp.finfo(M.dtype).eps
    identity = jnp.eye(p, dtype=M.dtype)
    diagonal = jnp.einsum("kii->ki", M)
    zero = diagonal <= 0
    scale = jnp.where(zero, 1, lax.rsqrt(jnp.where(zero, 1, diagonal)))
    scaled = scale[:, :, None] * M * scale[:, None, :] + identity * zero[:, None, :]

    # Regular matrices, the common case, cost a Cholesky factorisation.
    factor = jax.vmap(lapack.cholesky)(scaled)
    pivots = jnp.einsum("kii->ki", factor) ** 2
    regular = jnp.all(pivots > 1e3 * p * eps, axis=1)  # not by their minimum, which may lose NaN
    half = jax.vmap(functools.partial(lapack.triangular_inverse, lower=True))(factor)
    inverse = einsum("kji,kjl->kil", half, half)
    K = scale[:, :, None] * inverse * scale[:, None, :] - identity * zero[:, None, :]
    N = identity * zero[:, None, :].astype(M.dtype)

    def by_eigenvalues(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        regular, K, N = state
        values, vectors = jax.vmap(lapack.eigh)(jnp.where(regular[:, None, None], identity, M))
        kept = values > 8 * p * eps * jnp.max(values, axis=1, keepdims=True)
        inverted = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
        K_new = einsum("kij,kj,klj->kil", vectors, inverted, vectors)
        N_new = einsum("kij,kj,klj->kil", vectors, (~kept).astype(M.dtype), vectors)
        choose = regular[:, None, None]
        return jnp.ones_like(regular), jnp.where(choose, K, K_new), jnp.where(choose, N, N_new)

    # At most one turn, and none where all matrices are regular, also under vmap.
    _, K, N = while_loop(lambda state: jnp.any(~state[0]), by_eigenvalues, (regular, K, N))
    return K, N


@pseudoinverse.defjvp
def _pseudoinverse_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    K, N = pseudoinverse(*primals)
    (dM,) = tangents
    K_dM, N_dM = (einsum("kij,kjl->kil", P, dM) for P in (K, N))
    KK = einsum("kij,kjl->kil", K, K)
    N_dM_K = einsum("kij,kjl->kil", N_dM, K)
    N_dM_KK = einsum("kij,kjl->kil", N_dM, KK)
    dK = -einsum("kij,kjl->kil", K_dM, K) + N_dM_KK + jnp.swapaxes(N_dM_KK, 1, 2)
    return (K, N), (dK, -N_dM_K - jnp.swapaxes(N_dM_K, 1, 2))
