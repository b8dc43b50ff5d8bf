"""Eager calls with another number of columns, as for one recording after another: by programs that exist already.

A program is for one number of columns N, and takes seconds to compile. The first call for matrices of a shape has
programs of its own. A later one with another N has columns added for those that hold a little more, at most twice as
many and at most `block_bytes` more; where there are none, they are compiled for N rounded up to a power of two. The
columns that are added are NaN, which no algorithm touches, and are taken away afterwards. (Integers cannot be NaN: they
have programs for each N.) An N keeps its programs, so that the same call gives the same numbers, to the last bit,
whatever is called between.
"""

import functools
import math
from collections.abc import Hashable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import SingleDeviceSharding

from jaxnnls._minimise import FEW_COLUMNS
from jaxnnls._problem import Arguments, known
from jaxnnls._stages import Output, solve_at_once, solve_in_stages, values

U = TypeVar("U")

# For calls that differ in N only: the number of columns of the program that solves N.
programs: dict[Hashable, dict[int, int]] = {}


def solve(arguments: Arguments, block_bytes: int, quadratic: bool, output: Output[U]) -> U:
    """Solve, by programs that exist if there are any.

    Traced calls become a part of another program, and columns on several devices stay where they are.
    """
    # JAX may read the memory of NumPy arrays after the call has returned, when the caller may write to it.
    own: list[Any] = [np.array(a) if isinstance(a, np.ndarray) else a for a in arguments]
    arguments = Arguments(*own)
    if jax.debug_nans.value or not all(map(_at_hand, jax.tree.leaves(values(arguments)))):
        return solve_at_once(arguments, block_bytes, quadratic, output)
    shape, kind = np.shape(arguments.columns), jax.typeof(arguments.columns)
    able = len(shape) > 1 and jnp.issubdtype(kind.dtype, jnp.inexact) and not kind.weak_type  # to hold NaN, as it is
    if not able:
        return solve_in_stages(arguments, block_bytes, quadratic, output)
    N = shape[-1]
    kinds = tuple(None if a is None else _kind(a, name, N) for name, a in arguments._asdict().items())
    bytes_per_column = max(1, math.prod(shape[:-2]) * sum(np.shape(arguments.matrix)) * kind.dtype.itemsize)
    few = quadratic and N <= FEW_COLUMNS  # there the solver takes another way
    sizes = programs.setdefault((kinds, block_bytes, quadratic, few), {})
    size = _program(sizes, N, block_bytes // bytes_per_column)
    if size == N:
        return solve_in_stages(arguments, block_bytes, quadratic, output)
    wide = {name: a for name, a in arguments._asdict().items() if _has_columns(a, name, N)}
    widened = arguments._replace(**_widened(wide, size))
    return _first(solve_in_stages(widened, block_bytes, quadratic, output), N)


def _program(sizes: dict[int, int], N: int, room: int) -> int:
    """The number of columns of the program for N, given those for other N; `room` columns may be added for nothing."""
    if N not in sizes:
        spare = max(1, min(N, room))
        step = 1 << (spare.bit_length() - 1)
        rounded = -(-N // step) * step if sizes else N
        there = tuple(sizes.values())  # at once: other threads may add to it
        sizes[N] = min((size for size in there if N <= size <= N + spare), default=rounded)
    return sizes[N]


def _at_hand(a: Any) -> bool:
    return known(a) and isinstance(getattr(a, "sharding", None), SingleDeviceSharding | None)


def _has_columns(a: Any, name: str, N: int) -> bool:
    """Whether an argument has one entry, or more, for each of N columns."""
    return name in ("columns", "lower", "upper", "x_init") and np.ndim(a) > 1 and np.shape(a)[-1] == N


def _kind(a: Any, name: str, N: int) -> Hashable:
    """What a program knows of an argument, but for N."""
    kind, shape = jax.typeof(a), np.shape(a)
    return kind.dtype, kind.weak_type, (*shape[:-1], -1) if _has_columns(a, name, N) else shape


@functools.partial(jax.jit, static_argnums=1)
def _widened(own: dict[str, Array], size: int) -> dict[str, Array]:
    """The arguments with columns added: NaN for B, and zeros, which are finite bounds."""

    def widen(name: str, a: Array) -> Array:
        ends = [(0, 0)] * (a.ndim - 1) + [(0, size - a.shape[-1])]
        return jnp.pad(a, ends, constant_values=jnp.nan if name == "columns" else 0)

    return {name: widen(name, a) for name, a in own.items()}


@functools.partial(jax.jit, static_argnums=1)
def _first(tree: U, N: int) -> U:
    """The first N columns of everything."""
    return jax.tree.map(lambda a: a[..., :N], tree)
