"""Conjugate gradients for all columns of a block at once.

`jax.scipy.sparse.linalg.cg` takes one system, or by vmap one a lane; here a product with all columns is one matrix
product, and a column that is done waits for the others.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._loops import while_loop


class State(NamedTuple):
    """Columns in progress."""

    d: Array  # (n, k)
    r: Array  # (n, k), what is left of the right-hand side
    p: Array  # (n, k)
    rz: Array  # (k,), r'z with z the preconditioned r
    square: Array  # (k,), r'r
    going: Array  # (k,), bool
    step: Array


def conjugate_gradients(
    product: Callable[[Array], Array],
    r: Array,
    target: Array,
    steps: int,
    precondition: Callable[[Array], Array] = lambda r: r,
    left: Array | int = 0,
) -> tuple[Array, Array]:
    """Solve M d = r for each column, M symmetric and positive semidefinite, from d = 0.

    Parameters
    ----------
    product : callable
        v -> M v, (n, k) -> (n, k).
    r : Array, shape (n, k)
    target : Array, shape (k,)
        A column is done when its squared residual has fallen to this.
    steps : int
        Limit.
    precondition : callable
        r -> about M^-1 r.
    left : int or Array of int, shape ()
        So many columns need not be waited for.

    Returns
    -------
    d : Array, shape (n, k)
    square : Array, shape (k,)
        The squared residual reached.
    """

    def advance(state: State) -> State:
        d, r, p, rz, square, going, step = state
        q = product(p)
        curvature = jnp.sum(p * q, axis=0)
        # A column without curvature left has nothing to win.
        going &= curvature > 0
        alpha = jnp.where(going, rz / jnp.where(going, curvature, 1), 0)
        d, r = d + alpha * p, r - alpha * q
        z = precondition(r)
        new = jnp.sum(r * z, axis=0)
        p = z + jnp.where(going, new / jnp.where(going, rz, 1), 0) * p
        square = jnp.sum(r * r, axis=0)
        return State(d, r, p, new, square, going & (square > target) & (new > 0), step + 1)

    z = precondition(r)
    square = jnp.sum(r * r, axis=0)
    start = State(jnp.zeros_like(r), r, z, jnp.sum(r * z, axis=0), square, square > target, jnp.zeros((), jnp.int32))
    end = while_loop(lambda state: (state.step < steps) & (jnp.sum(state.going) > left), advance, start)
    return end.d, end.square
