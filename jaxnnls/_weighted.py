"""The systems of Newton's method, another one for each column: (R diag(weight) R' + diag(damping)) d = r.

By a Cholesky factorisation each, or by conjugate gradients for many columns at once, whose preconditioner is made of
(R R')^-1. With a damping of sqrt(eps) these take some eps^(-1/4) steps, 54 in float32 and 8192 in float64, and pay
where R has more than twice as many rows, and where the inverse is of use: not with many dependent rows, whose singular
values of every size take more steps than there is patience for, nor with a ridge.

Measured, float32, mel bands that nothing fits, this and 10 for 20 steps of descent before it: 256 x 1025 in 0.36 to
0.47 of the time of the whole solve, 256 x 513 in 0.5 to 0.6 (11 columns in 0.87), 128 x 1025 in 0.65 to 0.75 (by
conjugate gradients alone 0.9 to 1.07), at the same accuracy, and with 98 instead of 99 % of the columns proved to be of
least norm. By conjugate gradients, 80 x 513 and 60 x 100 would take 1.1 and 1.4 of the time; in float64, 128 x 1025
twice the time, and some columns would end without a solution; and 150 x 400 of rank 60, rows of sizes 1 to 1e-4, and
decay curves 2.4 to 4 times the time, with 5 to 10 of 64 columns without a solution. With a ridge of 1e-4 of a mean
column all columns would end at an optimality of 1e-3.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import cho_factor, cho_solve

from jaxnnls._conjugate import conjugate_gradients
from jaxnnls._loops import anywhere, fori_loop
from jaxnnls._objective import einsum

CG_STEPS = 80
CG_REDUCTION = 1e-2
GROUP = 16  # columns that take a step together, at most: those that need this are few, and each has its own number
GROUP_BY_STEPS = 64
GROUP_ELEMENTS = 2**16  # of the matrices that are factorised at a time, at most

Solve = Callable[[Array, Array, Array, Array], Array]


def newton_systems(R: Array, inverse: Array | None, unit: Array, able: Array) -> tuple[Solve, int]:
    """How to solve the systems of columns that share R, (m, n), and how many columns at a time.

    inverse, (m, m), is about (C C')^-1 with C = R diag(unit), and `able` whether it is of use. The function returned
    takes weight (n, k), damping (k,), r (m, k) and own (k,), bool: the first columns, those that count.
    """
    m = len(R)
    size = max(1, min(GROUP, GROUP_ELEMENTS // max(m * m, 1)))

    def by_factors(weight: Array, damping: Array, r: Array) -> Array:
        identity = jnp.eye(m, dtype=R.dtype)
        matrix = einsum("kij,lj->kil", weight.T[:, None] * R, R) + damping[:, None, None] * identity
        return cho_solve(cho_factor(matrix), r.T[:, :, None])[:, :, 0].T

    if inverse is None or m <= 2 * float(jnp.finfo(R.dtype).eps) ** -0.25:
        return lambda weight, damping, r, own: by_factors(weight, damping, r), size
    rows = jnp.sum((R * unit.T) ** 2, axis=1, keepdims=True)

    def by_steps(weight: Array, damping: Array, r: Array, own: Array) -> Array:
        enough = CG_REDUCTION**2 * jnp.sum(r * r, axis=0)
        return weighted_solve(R, inverse, rows, weight, damping, jnp.where(own, r, 0), enough, CG_STEPS)

    def piece_by_piece(weight: Array, damping: Array, r: Array, own: Array) -> Array:
        few = min(size, r.shape[1])

        def piece(i: Array, d: Array) -> Array:
            parts = (lax.dynamic_slice_in_dim(a, i * few, few, axis=-1) for a in (weight, damping, r))
            return lax.dynamic_update_slice_in_dim(d, by_factors(*parts), i * few, axis=-1)

        return fori_loop(-(-jnp.sum(own) // few), piece, jnp.zeros_like(r))

    def solve(weight: Array, damping: Array, r: Array, own: Array) -> Array:
        return lax.cond(anywhere(~able), piece_by_piece, by_steps, weight, damping, r, own)

    return solve, GROUP_BY_STEPS


def weighted_solve(
    R: Array, inverse: Array, rows: Array, weight: Array, damping: Array, r: Array, target: Array, steps: int
) -> Array:
    """d with (R diag(weight) R' + diag(damping)) d = r, (m, k), by conjugate gradients for all columns at once.

    inverse is about (R R')^-1 in some units of the columns, in which rows, (m, 1), are the squared lengths of the rows
    of R. The preconditioner is D inverse D, where the diagonal D makes up for what the rows have lost of their size to
    the weights, (n, k). damping is () or (k,), target (k,) and steps as for `conjugate_gradients`.
    """
    D = jnp.sqrt(rows / (einsum("ij,jk->ik", R * R, weight) + damping))

    def product(v: Array) -> Array:
        return einsum("ij,jk->ik", R, weight * einsum("ij,ik->jk", R, v)) + damping * v

    def precondition(v: Array) -> Array:
        return D * einsum("ij,jk->ik", inverse, D * v)

    return conjugate_gradients(product, r, target, steps, precondition)[0]
