"""Dual variables and residual norms of given solutions, in blocks, differentiable."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._blocks import block_size, broadcasting, map_columns
from jaxnnls._objective import Problem, gradient, residual
from jaxnnls._scaling import power_of_two


class Part(NamedTuple):
    """The columns of one block."""

    x: Array  # (n, k)
    b: Array | None  # (m, k)
    linear: Array  # (n, k) or (n, 1)


def norm(r: Array) -> Array:
    """Norms of columns, (m, k) -> (k,), without overflow or underflow; the derivative at 0 is 0."""
    size = lax.stop_gradient(power_of_two(jnp.max(jnp.abs(r), axis=0, initial=0)))
    square = jnp.sum((r / size) ** 2, axis=0)
    positive = square != 0
    return jnp.where(positive, size * jnp.sqrt(jnp.where(positive, square, 1)), 0)


@broadcasting
def dual_and_residual_norm(problem: Problem, x: Array, block_bytes: int) -> tuple[Array, Array]:
    """The gradient of the objective at x, (n, N), and ||A x - b||, (N,), NaN where there is no A."""

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(part: Part) -> tuple[Array, Array]:
        # Columns without a solution are computed from zeros: their NaN stays out of the gradient of a shared A.
        known = jnp.all(jnp.isfinite(part.x), axis=0)
        x = jnp.where(known, part.x, 0)
        own = problem._replace(
            b=None if part.b is None else jnp.where(known, part.b, 0), linear=jnp.where(known, part.linear, 0)
        )
        size = jnp.full_like(x[0], jnp.nan) if problem.A is None else norm(residual(own, x))
        return jnp.where(known, gradient(own, x), jnp.nan), jnp.where(known, size, jnp.nan)

    n, N = x.shape
    m = 0 if problem.A is None else problem.A.shape[0]
    size = block_size(N, (4 * n + 4 * m) * x.dtype.itemsize, block_bytes)
    return map_columns(block, Part(x, problem.b, problem.linear), N, size)
