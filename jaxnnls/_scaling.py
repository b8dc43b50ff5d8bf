"""Equilibration: every problem is solved with unit columns and a right-hand side of unit size.

    x_scaled = x s / beta,    s_j = sqrt(H_jj),    H = A'A + ridge I  or  Q + ridge I,
    beta = max(||b||, ||A clip(0, lower, upper)||)  or, with Q,  max_j |q_j| / s_j;  1 where that is 0.

The scaled H has a unit diagonal, so no result depends on the units of A, B or (where the minimiser is unique) of a
single column of A. Tolerances refer to the scaled problem. Columns of negligible norm take no part: they are
replaced by zeros and their variables fixed where the rest of the objective wants them.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._loops import anywhere
from jaxnnls._objective import Problem, einsum

# Mel bases hold columns whose norm is the rounding error of the others; in any dtype they mean zero.
NEGLIGIBLE = 2.2e-15


class Scales(NamedTuple):
    """The units of one matrix."""

    s: Array  # (n, 1), sqrt(H_jj); the largest of them for negligible columns
    junk: Array  # (n, 1), bool: negligible columns


def power_of_two(x: Array) -> Array:
    """The power of two next to x; 1 for 0. Multiplying by it is exact. Shape of x."""
    exponent = jnp.frexp(x)[1]
    return jnp.where((x > 0) & jnp.isfinite(x), jnp.ldexp(jnp.ones_like(x), exponent), 1)


def column_norm(a: Array) -> Array:
    """Norms of columns that neither overflow nor vanish, (m, N) -> (1, N). Not to be differentiated."""
    size = power_of_two(jnp.max(jnp.abs(a), axis=0, keepdims=True, initial=0))
    return size * jnp.sqrt(jnp.sum((a / size) ** 2, axis=0, keepdims=True))


def matrix_scales(problem: Problem) -> Scales:
    """Column norms of the matrix of a problem, and which of them are negligible."""
    if problem.A is not None:
        s = jnp.hypot(column_norm(problem.A).T, jnp.sqrt(problem.ridge))
    else:
        assert problem.Q is not None
        s = jnp.sqrt(jnp.maximum(jnp.diag(problem.Q)[:, None] + problem.ridge, 0))
    largest = jnp.max(s, initial=0)
    junk = s <= NEGLIGIBLE * largest
    s = jnp.where(junk, jnp.where(largest > 0, largest, 1), s)
    return Scales(lax.stop_gradient(s), lax.stop_gradient(junk))


def relative(scales: Scales) -> Array:
    """Column norms in units of the largest, (n, 1)."""
    return scales.s / jnp.max(scales.s, initial=0)


def column_size(problem: Problem, scales: Scales, l1: Array | float = 0.0) -> Array:
    """beta, the size of each right-hand side, (1, N). With Q, of q = l1 - linear; without l1, it is a size like it."""
    if problem.A is not None:
        assert problem.b is not None
        A, b, start = lax.stop_gradient((problem.A, problem.b, jnp.clip(0, problem.lower, problem.upper)))
        size = column_norm(b)
        # Nearly always 0 is within the bounds, and the product need not be computed.
        away = lax.cond(
            anywhere(jnp.any(start != 0)),
            lambda start: jnp.broadcast_to(column_norm(einsum("ij,jk->ik", A, start)), size.shape),
            lambda start: jnp.zeros_like(size),
            start,
        )
        size = jnp.maximum(size, away)
    else:
        size = jnp.max(
            jnp.where(scales.junk, 0, jnp.abs(problem.linear - l1) / scales.s), axis=0, keepdims=True, initial=0
        )
    return lax.stop_gradient(jnp.where(size > 0, size, 1))


def scale_matrix(problem: Problem, scales: Scales) -> Problem:
    """The problem with unit columns; linear in the data, so it is differentiated as it stands."""
    s, junk = scales
    per_s = 1 / s  # XLA turns ridge / s / s into ridge / (s s), which underflows in small units
    return problem._replace(
        A=None if problem.A is None else jnp.where(junk.T, 0, problem.A / s.T),
        Q=None if problem.Q is None else jnp.where(junk | junk.T, 0, problem.Q / s / s.T),
        linear=problem.linear / s,
        ridge=jnp.where(junk, 0, problem.ridge * per_s * per_s),
        lower=problem.lower * s,
        upper=problem.upper * s,
    )


def scale_columns(problem: Problem, beta: Array) -> Problem:
    """The problem with right-hand sides of unit size; linear in the data."""
    return problem._replace(
        b=None if problem.b is None else problem.b / beta,
        linear=problem.linear / beta,
        lower=problem.lower / beta,
        upper=problem.upper / beta,
    )
