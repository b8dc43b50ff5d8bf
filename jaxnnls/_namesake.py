"""The functions of the package called jaxnnls on PyPI until 1.0.1, over our solver, so that its users' code still runs.

Their meaning is that of its documentation, https://pypi.org/project/jaxnnls/.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnnls._api import box_qp


def solve_nnls(Q: ArrayLike, q: ArrayLike) -> tuple[Array, Array, Array, Array, Array]:
    r"""Minimise :math:`\tfrac12 x^\top Q x - q^\top x` subject to x >= 0, with slacks and multipliers.

    For code written for the package of this name on PyPI until 1.0.1; `box_qp` says more and takes bounds.

    Parameters
    ----------
    Q : array_like, shape (n, n)
        Positive semidefinite.
    q : array_like, shape (n,)
        The linear term.

    Returns
    -------
    x : Array, shape (n,)
        The solution; differentiable.
    s : Array, shape (n,)
        The slack of x >= 0, which is x.
    z : Array, shape (n,)
        The multipliers: Q x - q where x is 0, else 0.
    converged : Array of int, shape ()
        1 or 0.
    iterations : Array of int, shape ()
        Steps taken.

    Raises
    ------
    ValueError, TypeError
        As `box_qp`.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnnls
    >>> x, s, z, converged, _ = jaxnnls.solve_nnls(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([1.0, -1.0]))
    >>> x, z, int(converged)
    (Array([0.5, 0. ], dtype=float32), Array([0., 1.], dtype=float32), 1)
    """
    solution = box_qp(Q, q)
    z = jnp.where(solution.active_mask < 0, jnp.maximum(solution.dual, 0), 0)
    return solution.x, solution.x, z, solution.success.astype(jnp.int32), solution.nit


def solve_nnls_primal(Q: ArrayLike, q: ArrayLike, target_kappa: ArrayLike = 1e-3) -> Array:
    r"""Minimise :math:`\tfrac12 x^\top Q x - q^\top x` subject to x >= 0; the derivative is smoothed.

    For code written for the package of this name on PyPI until 1.0.1; it is `box_qp` with smoothing = target_kappa.

    Parameters
    ----------
    Q : array_like, shape (n, n)
        Positive semidefinite.
    q : array_like, shape (n,)
        The linear term.
    target_kappa : float
        The derivative is that of the problem relaxed so far: x_j z_j = target_kappa.

    Returns
    -------
    x : Array, shape (n,)
        The solution itself.

    Raises
    ------
    ValueError, TypeError
        As `box_qp`.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnnls
    >>> jaxnnls.solve_nnls_primal(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([1.0, -1.0]))
    Array([0.5, 0. ], dtype=float32)
    """
    return box_qp(Q, q, smoothing=target_kappa).x
