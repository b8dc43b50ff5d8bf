"""Columns in blocks, so that memory does not grow with their number. No numerics here."""

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

T = TypeVar("T")
U = TypeVar("U")
P = ParamSpec("P")


def broadcasting(f: Callable[P, U]) -> Callable[P, U]:
    """Let f broadcast by NumPy's rules, whatever the user's `jax.numpy_rank_promotion`: (N,) meets (n, N) all over."""

    @functools.wraps(f)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> U:
        with jax.numpy_rank_promotion("allow"):
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
    while loops, which stop as soon as this block is done. Padding columns are zero.
    """
    leaves, treedef = jax.tree.flatten(columns)
    mapped = [leaf.shape[-1] == N for leaf in leaves]
    blocks = math.ceil(max(N, 1) / size)
    padding = blocks * size - N

    def split(leaf: Array) -> Array:
        leaf = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, padding)]) if padding else leaf
        return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], blocks, size), -2, 0)

    def call(parts: list[Array]) -> U:
        parts_iterator = iter(parts)
        block: T = jax.tree.unflatten(
            treedef, [next(parts_iterator) if own else leaf for leaf, own in zip(leaves, mapped)]
        )
        return f(block)

    def join(leaf: Array) -> Array:
        leaf = jnp.moveaxis(leaf, 0, -2)
        return leaf.reshape(*leaf.shape[:-2], blocks * size)[..., :N]

    if blocks == 1 and not padding:
        return call([leaf for leaf, own in zip(leaves, mapped) if own])
    return jax.tree.map(join, lax.map(call, [split(leaf) for leaf, own in zip(leaves, mapped) if own]))
