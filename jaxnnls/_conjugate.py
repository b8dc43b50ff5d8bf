"""Conjugate gradients for all columns of a block at once.

`jax.scipy.sparse.linalg.cg` takes one system, or by vmap one a lane; here a product with all columns is one matrix
product. A column that is done waits for the others, or for as many of them as the caller wants to wait for: what is
left can be taken up again, and every column takes the same steps whatever the others do.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._loops import while_loop


class Conjugate(NamedTuple):
    """Columns in progress."""

    d: Array  # (n, k)
    r: Array  # (n, k), what is left of the right-hand side
    p: Array  # (n, k)
    rz: Array  # (k,), r'z with z the preconditioned r
    square: Array  # (k,), r'r
    steps: Array  # (k,), int32
    going: Array  # (k,), bool


def conjugate_gradients(
    product: Callable[[Array], Array],
    r: Array,
    target: Array,
    steps: int,
    precondition: Callable[[Array], Array] = lambda r: r,
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

    Returns
    -------
    d : Array, shape (n, k)
    square : Array, shape (k,)
        The squared residual reached.
    """
    end = advance(product, start(r, target, precondition), target, steps, precondition)
    return end.d, end.square


def start(r: Array, target: Array, precondition: Callable[[Array], Array]) -> Conjugate:
    """The state at d = 0."""
    z, square = precondition(r), jnp.sum(r * r, axis=0)
    steps = jnp.zeros_like(square, jnp.int32)
    return Conjugate(jnp.zeros_like(r), r, z, jnp.sum(r * z, axis=0), square, steps, square > target)


def advance(
    product: Callable[[Array], Array],
    state: Conjugate,
    target: Array,
    steps: int,
    precondition: Callable[[Array], Array],
    left: Array | int = 0,
) -> Conjugate:
    """Take steps until no more than `left` columns are going; otherwise as `conjugate_gradients`."""

    def step(state: Conjugate) -> Conjugate:
        d, r, p, rz, square, count, going = state
        q = product(p)
        curvature = jnp.sum(p * q, axis=0)
        # A column without curvature left has nothing to win.
        going &= curvature > 0
        alpha = jnp.where(going, rz / jnp.where(going, curvature, 1), 0)
        d, r = d + alpha * p, r - alpha * q
        z = precondition(r)
        new = jnp.sum(r * z, axis=0)
        p = z + jnp.where(going, new / jnp.where(going, rz, 1), 0) * p
        square, count = jnp.sum(r * r, axis=0), count + going
        return Conjugate(d, r, p, new, square, count, going & (square > target) & (new > 0) & (count < steps))

    return while_loop(lambda state: jnp.sum(state.going) > left, step, state)
