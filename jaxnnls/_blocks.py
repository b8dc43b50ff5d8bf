"""Columns in blocks, so that memory does not grow with their number. No numerics here."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

STAY = 0.75  # of a group that has to be unfinished for it to take another step before others have theirs

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


def varying_axes(leaf: Array) -> frozenset[str]:
    """The axes of a mesh over which a value differs between devices, inside of `jax.shard_map`."""
    kind = jax.typeof(leaf)
    axes: frozenset[str] = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
    return axes  # the name until JAX 0.10.1 is vma


def alike(tree: T) -> T:
    """The tree with all leaves varying over the same axes of a mesh; outside of `jax.shard_map`, the tree.

    `shard_map` tells values that differ between devices from those that do not, and what enters a loop has to be what
    leaves it: a count of steps that starts at 0 everywhere and ends with each device's own number varies from the
    start.
    """
    axes = frozenset().union(*(varying_axes(leaf) for leaf in jax.tree.leaves(tree)))

    def cast(leaf: Array) -> Array:
        missing = tuple(axes - varying_axes(leaf))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree


def varying_with(tree: T, other: Any) -> T:
    """The tree with all leaves varying as those of another tree do."""
    return alike((tree, [leaf.ravel()[:0] for leaf in jax.tree.leaves(other)]))[0]


def while_loop(going: Callable[[T], Array], step: Callable[[T], T], start: T) -> T:
    """`lax.while_loop` that also runs under `jax.shard_map`."""
    return lax.while_loop(going, lambda state: alike(step(state)), alike(start))


def fori_loop(count: int | Array, step: Callable[[Array, T], T], start: T) -> T:
    """`lax.fori_loop` from 0 that also runs under `jax.shard_map`.

    Its counter is unsigned: before a signed index is used, XLA asks whether it counts from the end.
    """
    count = jnp.asarray(count, jnp.uint32)
    return lax.fori_loop(jnp.zeros_like(count), count, lambda i, state: alike(step(i, state)), alike(start))


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
def fill_columns(f: Callable[[T], U], columns: T, N: int, size: int) -> U:
    """As `map_columns`, in the memory of a block and the result: for what is not differentiated.

    Blocks are sliced where they lie and written where they belong. The transpose of that would run over all columns
    for every block, so `map_columns`, which has a transpose, lays them out first.
    """
    if size >= N:
        return map_columns(f, columns, N, size)

    def block(start: Array) -> U:
        return f(
            jax.tree.map(
                lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size, axis=-1) if leaf.shape[-1] == N else leaf,
                columns,
            )
        )

    def fill(i: Array, out: U) -> U:
        start = jnp.minimum(i * size, N - size)
        return jax.tree.map(
            lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, axis=-1), out, block(start)
        )

    shapes = jax.eval_shape(block, jnp.zeros((), jnp.int32))
    out = jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape[:-1], N), leaf.dtype), shapes)
    return fori_loop(math.ceil(N / size), fill, varying_with(out, columns))


def work_off(step: Callable[[U, T, Array], tuple[T, Array]], given: U, state: T, pending: Array, size: int) -> T:
    """Apply step to `size` pending columns at a time, round after round, until none is pending.

    What a column costs then depends on its own number of steps, not on the slowest column of its block. A group goes on
    as long as most of it is unfinished, since taking it out and putting it back costs about as much as a step.

    Parameters
    ----------
    step : callable
        From the given and the state of `size` columns, and which of them count, to their new state and whether they
        are still pending.
    given, state : trees of columns
        All leaves have last axis k.
    pending : Array of bool, shape (k,)
    size : int
    """
    k = pending.shape[0]
    size = min(size, k)
    packed_given, unpack_given = _pack(given)
    packed_state, unpack_state = _pack(state)

    def group(order: Array, at: Array, count: Array) -> Array:
        return jnp.where(at + jnp.arange(size) < count, lax.dynamic_slice_in_dim(order, at, size), k)

    def turn(carry: Turn) -> Turn:
        at, count, index, order, state, pending = carry

        def take(tree: Packed) -> Packed:
            return {name: jnp.take(rows, index, axis=0, mode="clip") for name, rows in tree.items()}

        own = index < k
        part = unpack_given(take(packed_given))

        def advance(carry: tuple[Array, T, Array]) -> tuple[Array, T, Array]:
            _, old, left = carry
            new, still = step(part, old, left)
            return jnp.zeros_like(carry[0]), jax.tree.map(lambda a, b: jnp.where(left, a, b), new, old), left & still

        def busy(carry: tuple[Array, T, Array]) -> Array:
            return carry[0] | (jnp.sum(carry[2]) > STAY * jnp.sum(own))

        begin = (jnp.ones_like(own[0]), unpack_state(take(state)), own)
        _, new, left = while_loop(busy, advance, begin)
        packed, _ = _pack(new)
        state = {
            name: rows.at[index].set(packed[name], mode="drop", unique_indices=True) for name, rows in state.items()
        }
        pending = pending.at[index].set(left, mode="drop", unique_indices=True)
        return Turn(at + size, count, group(order, at + size, count), order, state, pending)

    def work(carry: tuple[Packed, Array]) -> tuple[Packed, Array]:
        state, pending = carry
        # Where they are, one after another: a cumulative sum, as sorting takes twenty times as long.
        place = jnp.cumsum(pending)
        count = place[-1]
        order = (
            jnp.full(k + 2 * size, k).at[jnp.where(pending, place - 1, k + 2 * size)].set(jnp.arange(k), mode="drop")
        )
        start = Turn(0 * count, count, group(order, 0 * count, count), order, state, pending)
        end = while_loop(lambda turn: turn.at < turn.count, turn, start)
        return end.state, end.pending

    return unpack_state(while_loop(lambda carry: jnp.any(carry[1]), work, (packed_state, pending))[0])


class Turn(NamedTuple):
    """Where `work_off` is in a round."""

    at: Array  # (), how many columns have had their turn
    count: Array  # (), how many there are
    index: Array  # (size,), the next of them; computed a turn ahead, or XLA would do so for every number it gathers
    order: Array  # (k + 2 size,), all of them
    state: "Packed"
    pending: Array  # (k,), bool


Packed = dict[str, Array]


def _pack(tree: T) -> tuple[Packed, Callable[[Packed], T]]:
    """All that belongs to a column as a row, one array (k, .) for each dtype, and the way back.

    So a few columns are a few contiguous rows. Taking them leaf by leaf along the last axis, XLA would transpose
    every whole leaf first, and half of the code it compiles would do that.
    """
    leaves, treedef = jax.tree.flatten(tree)
    shapes = [leaf.shape[:-1] for leaf in leaves]
    groups: dict[str, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.dtype.name, []).append(i)

    def unpack(packed: Packed) -> T:
        parts: list[Any] = [None] * len(shapes)
        for name, group in groups.items():
            columns, start = lax.optimization_barrier(packed[name].T), 0
            for i in group:
                stop = start + math.prod(shapes[i])
                parts[i] = columns[start:stop].reshape(*shapes[i], columns.shape[-1])
                start = stop
        return jax.tree.unflatten(treedef, parts)

    def rows(leaf: Array) -> Array:
        return leaf.reshape(math.prod(leaf.shape[:-1]), leaf.shape[-1])

    packed = {name: jnp.concatenate([rows(leaves[i]) for i in group]).T for name, group in groups.items()}
    return packed, unpack


@jax.custom_batching.custom_vmap
def anywhere(flag: Array) -> Array:
    """A flag, () bool; under vmap, whether it is raised in any lane.

    A cond on it stays a cond under vmap. One whose predicate is batched becomes a selection, with a stop_gradient on
    its operands that cannot be transposed where they are tangents.
    """
    return flag


@anywhere.def_vmap
def _anywhere_in_batch(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return anywhere(jnp.any(flag)), False


def after(value: Array, other: Array) -> Array:
    """The value, made to wait for something else.

    jaxlib spreads a batched factorisation over a pool of threads and waits for them within one of those threads; two
    that run at the same time wait for each other for ever (0.10.2, two cores, a batch of three Cholesky and of three
    QR factorisations of 300 x 300). So under vmap none may start before the one before it is done, and XLA respects
    dependencies between data only, no `optimization_barrier`.
    """
    always = jnp.all(jnp.isfinite(jnp.nan_to_num(lax.stop_gradient(other))))
    return jnp.where(always, value, jnp.nan)
