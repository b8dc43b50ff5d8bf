"""Columns under `jax.vmap`. No numerics here.

Lanes that share their matrix, as the examples of a batch do in a model, are columns beside one another: what belongs to
the matrix is computed once, and a column costs its own number of steps. Lanes with matrices of their own go one after
another where each has enough to do. Otherwise, and on a GPU, they go together, each for as long as any of them takes.

Measured, float32, 2 cores, of the time in which lanes go together. One matrix:

    1025 x 64       1000 lanes of a column    0.09     10 lanes of 100 columns    0.19
    40 x 16         1000 of 1                 0.20     10 of 100                  0.40
    128 x 1025      100 of 1                  0.26     10 of 10                   0.91

Matrices of their own, one after another (and 0.85 of the compilation). The small lanes of the last column go together,
since when those of 40 x 16 take half of the time that is 1 here (see `LEFT` in `_active_set`):

    16 of 64 x 128, 8 columns      0.46    32 of 100 x 32, 100        0.90     64 of 40 x 16, 8    2.5
    16 of 200 x 100, 4             0.55    16 of 30 x 12, 300         0.60     64 of 64 x 32, 8    1.4
    32 of 100 x 64, 16             0.73    8 of 513 x 64, 100         0.45     256 of 40 x 16, 1   1.3
    32 of 100 x 32, 32             0.63    31 of 48 x 32, 32, and one of decay curves, which takes many steps    0.16
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _device as device

S = TypeVar("S")
C = TypeVar("C")
U = TypeVar("U")

ENOUGH = 400  # numbers in the solution of a lane that goes alone


def by_lanes(f: Callable[[S, C], U], n: int, N: int) -> Callable[[S, C], U]:
    """f, and what it is under `jax.vmap`.

    Parameters
    ----------
    f : callable
        Of what all columns share, and of what belongs to columns, whose leaves have last axis N, or 1 where columns
        share it. The leaves of its result have last axis N.
    n : int
        Variables of a column.
    N : int
    """
    # JAX lowers it by tracing it again, what is jitted excepted: 0.1 to 0.2 s of a first call.
    guarded = jax.custom_batching.custom_vmap(jax.jit(f))

    @guarded.def_vmap
    def lanes(count: int, batched: tuple[S, C], shared: S, columns: C) -> tuple[U, Any]:
        countable = isinstance(count, int)  # `jax.export` has counts that are no numbers
        if countable and not any(jax.tree.leaves(batched[0])):
            beside = jax.tree.map(functools.partial(_beside, count, N), batched[1], columns)
            result = jax.tree.map(functools.partial(_apart, count, N), by_lanes(f, n, count * N)(shared, beside))
        elif countable and n * N >= ENOUGH and not device.on_gpu():
            lane, own = _lane(by_lanes(f, n, N), batched, (shared, columns))
            result = lax.map(lane, own)
        else:
            lane, own = _lane(f, batched, (shared, columns))
            result = jax.vmap(lane)(own)
        return result, jax.tree.map(lambda _: True, result)

    return guarded


def _lane(f: Callable[..., U], batched: Any, args: Any) -> tuple[Callable[[list[Array]], U], list[Array]]:
    """f of what a lane has of its own, and that of all lanes."""
    leaves, tree = jax.tree.flatten(args)
    flags = jax.tree.leaves(batched)

    def of_own(own: list[Array]) -> U:
        rest = iter(own)
        return f(*jax.tree.unflatten(tree, [next(rest) if flag else leaf for leaf, flag in zip(leaves, flags)]))

    return of_own, [leaf for leaf, flag in zip(leaves, flags) if flag]


def _beside(count: int, N: int, own: bool, leaf: Array) -> Array:
    """A leaf of columns with the columns of all lanes, (count, p, N) -> (p, count N)."""
    if not own and leaf.shape[-1] != N:
        return leaf
    leaf = leaf if own else jnp.broadcast_to(leaf, (count, *leaf.shape))
    leaf = jnp.broadcast_to(leaf, (*leaf.shape[:-1], N))
    return jnp.moveaxis(leaf, 0, -2).reshape(*leaf.shape[1:-1], count * N)


def _apart(count: int, N: int, leaf: Array) -> Array:
    """A leaf of results as that of each lane, (..., count N) -> (count, ..., N)."""
    return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], count, N), -2, 0)
