"""Few variables, columns innermost: sums written out, and choices as products.

A small matrix for each of many columns is one array (n, n, k). Each of its elements is a vector of k numbers, and a
step of elimination for all columns a few loops over such vectors, which is what XLA compiles best: a batch of 256
factorisations of 12 x 12 by LAPACK takes four times as long.
"""

import functools

import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _device as device
from jaxnnls._loops import fori_loop
from jaxnnls._objective import einsum

FEW = 16  # variables, for which sums are written out in full, and pivots are ahead of sweeps for any columns
TOGETHER = 4  # terms of a longer sum in a turn of a loop; with 1, 40 decay curves take 1.1 times as long
# Variables, up to which pivots are ahead of factorisations where columns are crowded: of a Q, and of a tall A.
SOME = 128
MANY = 1024


def pivots_pay(n: int, quadratic: bool) -> bool:
    """Whether pivots may be ahead of factorisations, for a Q or a tall A of n variables."""
    return n <= (SOME if quadratic else MANY)


def materialised(v: Array) -> Array:
    """v as a value of its own, (n, k): what XLA fuses, it computes anew for each element of what it fuses it into.

    A product with the identity; an `optimization_barrier` does not help.
    """
    return einsum("ij,jk->ik", jnp.eye(len(v), dtype=v.dtype), v)


def first(hit: Array) -> Array:
    """1 for the first hit of each column, (n, k), 0 or 1. By two products: argmax is slow on a CPU."""
    n, dtype = len(hit), hit.dtype
    begun = jnp.minimum(einsum("ij,jk->ik", jnp.tri(n, dtype=dtype), hit), 1)
    return einsum("ij,jk->ik", jnp.eye(n, dtype=dtype) - jnp.eye(n, k=-1, dtype=dtype), begun)


def weighted_sum(T: Array, weight: Array, axis: int = 0) -> Array:
    """sum_i weight_i T_i over an axis of T, 0 or 1, or as much of it as has weights. (n, p, k) and (n, k) -> (p, k).

    Written out, or, where that would take long to compile, a loop: XLA reduces one number at a time on a CPU.
    """
    n = len(weight)
    if device.on_gpu():
        return jnp.sum(lax.slice_in_dim(T, 0, n, axis=axis) * jnp.expand_dims(weight, 1 - axis), axis=axis)

    def terms(start: Array | int, count: int) -> Array:
        def term(i: Array | int) -> Array:
            return lax.dynamic_index_in_dim(T, i, axis, keepdims=False) * lax.dynamic_index_in_dim(weight, i)

        return functools.reduce(jnp.add, [term(start + j) for j in range(count)])

    if n <= FEW:
        return terms(0, n)
    turns, rest = divmod(n, TOGETHER)
    nothing = jnp.zeros_like(lax.index_in_dim(T, 0, axis, keepdims=False))
    total = terms(turns * TOGETHER, rest) if rest else nothing
    return fori_loop(turns, lambda i, total: total + terms(i * TOGETHER, TOGETHER), total)
