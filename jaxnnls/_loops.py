"""Loops and conditions that also run under `jax.shard_map` and `jax.vmap`, where those of JAX itself ask for more."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

T = TypeVar("T")
U = TypeVar("U")


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


def if_any(flags: Array, f: Callable[[T], T], start: T) -> T:
    """f(start) where any flag is raised, in any lane under vmap; else start.

    What XLA takes out of the loops of f it then computes only if f is.
    """
    return lax.cond(anywhere(jnp.any(flags)), lambda start: alike(f(start)), lambda start: start, alike(start))


def while_loop(going: Callable[[T], Array], step: Callable[[T], T], start: T) -> T:
    """`lax.while_loop` that also runs under `jax.shard_map`, and is fast under `jax.vmap`.

    There all lanes take a step as long as any of them is going, so a step has to leave alone what is done. Where the
    condition is batched, JAX chooses between the old and the new of everything in the state, lane by lane, in every
    step: half of the time of 256 small problems.
    """
    return lax.while_loop(lambda state: anywhere(going(state)), lambda state: alike(step(state)), alike(start))


def once(flag: Array, f: Callable[[T], U], given: T, otherwise: U) -> U:
    """f(given) where the flag is raised, which has to be all that f uses; else the other value.

    A loop of at most one turn: under `jax.vmap` a cond would compute both sides. XLA takes out of a loop what does not
    change in it, and would compute it in any case, so what is given does not outlive the turn.
    """

    def turn(state: tuple[Array, T, U]) -> tuple[Array, T, U]:
        return alike((jnp.zeros_like(flag), jax.tree.map(jnp.zeros_like, state[1]), f(state[1])))

    return lax.while_loop(lambda state: state[0], turn, alike((flag, given, otherwise)))[2]


def fori_loop(count: int | Array, step: Callable[[Array, T], T], start: T) -> T:
    """`lax.fori_loop` from 0 that also runs under `jax.shard_map`.

    Its counter is unsigned: before a signed index is used, XLA asks whether it counts from the end.
    """
    count = jnp.asarray(count, jnp.uint32)
    return lax.fori_loop(jnp.zeros_like(count), count, lambda i, state: alike(step(i, state)), alike(start))
