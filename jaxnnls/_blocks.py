"""Columns in blocks, so that memory does not grow with their number. No numerics here."""

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._loops import fori_loop, varying_with

T = TypeVar("T")
U = TypeVar("U")
P = ParamSpec("P")


def broadcasting(f: Callable[P, U]) -> Callable[P, U]:
    """Let f broadcast and promote by NumPy's rules, whatever the user's `jax.numpy_rank_promotion` and the like.

    (N,) meets (n, N) all over, and flags are counted.
    """

    @functools.wraps(f)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> U:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return f(*args, **kwargs)

    return wrapped


def block_size(N: int, bytes_per_column: int, block_bytes: int) -> int:
    """Columns in a block: as many as the budget holds, at least one, the last block as full as the others."""
    most = max(1, min(max(N, 1), block_bytes // max(bytes_per_column, 1)))
    return math.ceil(max(N, 1) / math.ceil(max(N, 1) / most))


@broadcasting
def map_columns(f: Callable[[T], U], columns: T, N: int, size: int) -> U:
    """Apply f to blocks of `size` columns, one after another.

    Leaves of `columns` have last axis N, or 1 for what all columns share; f sees (..., size) or (..., 1) and returns
    leaves with last axis `size`; the result has last axis N. Each block is one call of f on whole arrays: f may hold
    while loops, which stop as soon as this block is done. The last block is filled up with columns of the one before
    it, so that f is compiled for a single size.
    """
    leaves, treedef = jax.tree.flatten(columns)
    mapped = [leaf.shape[-1] == N for leaf in leaves]

    def call(parts: list[Array]) -> U:
        remaining = iter(parts)
        block: T = jax.tree.unflatten(treedef, [next(remaining) if own else leaf for leaf, own in zip(leaves, mapped)])
        return f(block)

    own_leaves = [leaf for leaf, own in zip(leaves, mapped) if own]
    if N == 0:
        zeros = [jnp.zeros((*leaf.shape[:-1], 1), leaf.dtype) for leaf in own_leaves]
        return jax.tree.map(lambda leaf: leaf[..., :0], call(zeros))
    if size >= N:
        return call(own_leaves)

    blocks = math.ceil(N / size)
    tail = N - (blocks - 1) * size
    starts = jnp.minimum(jnp.arange(blocks) * size, N - size)

    def split(leaf: Array) -> Array:
        # One gather lays the blocks out; padding and a transposition would copy everything twice.
        return jax.vmap(lambda start: lax.dynamic_slice_in_dim(leaf, start, size, axis=leaf.ndim - 1))(starts)

    def join(leaf: Array) -> Array:
        full = jnp.moveaxis(leaf[:-1], 0, -2)
        full = full.reshape(*full.shape[:-2], (blocks - 1) * size)
        return jnp.concatenate([full, leaf[-1][..., size - tail :]], axis=-1)

    return jax.tree.map(join, lax.map(call, [split(leaf) for leaf in own_leaves]))


@broadcasting
def fill_columns(f: Callable[[T], U], columns: T, empty: U, size: int) -> U:
    """As `map_columns`, in the memory of a block and the result: for what is not differentiated.

    Blocks are sliced where they lie and written where they belong, into what is `empty`, with last axis N. The
    transpose of that would run over all columns for every block, so `map_columns`, which has a transpose, lays them out
    first.
    """
    N = jax.tree.leaves(empty)[0].shape[-1]
    if size >= N:
        return map_columns(f, columns, N, size)

    def fill(i: Array, out: U) -> U:
        start = jnp.minimum(i * size, N - size)
        block = jax.tree.map(
            lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size, axis=-1) if leaf.shape[-1] == N else leaf, columns
        )
        return jax.tree.map(
            lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, axis=-1), out, f(block)
        )

    return fori_loop(math.ceil(N / size), fill, varying_with(empty, columns))
