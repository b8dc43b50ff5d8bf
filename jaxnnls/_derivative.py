"""The derivative of the solution: `_tangent` for all columns, attached to the solver.

It is a forward rule for the whole solve, in blocks that keep nothing for the backward pass. JAX transposes it, block
after block, summing the cotangent of a shared A inside each block, and differentiates it again.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._blocks import block_size, broadcasting, map_columns
from jaxnnls._device import group_size
from jaxnnls._loops import anywhere
from jaxnnls._objective import Problem
from jaxnnls._scaling import matrix_scales, scale_matrix
from jaxnnls._smoothing import smooth_tangent
from jaxnnls._solver import Result
from jaxnnls._tangent import fit_rule, general_rule, gradient_tangent, moving, regular_rule, share, unscaled


def attach(problem: Problem, smoothing: Array | None, result: Result, block_bytes: int) -> Array:
    """The solutions x (n, N) of a result, with their derivative with respect to the problem."""
    # Flags as numbers: `shard_map` rejects rules for integers, whose tangents do not say over what they vary.
    known = jnp.stack([result.regular, result.fitted]).astype(result.x.dtype)
    return differentiable(problem, smoothing, result.x, known, block_bytes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def differentiable(problem: Problem, smoothing: Array | None, x: Array, known: Array, block_bytes: int) -> Array:
    """The solutions x (n, N) of the problem, with their derivative; known (2, N), regular and fitted of `Result`."""
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def differentiable_again(problem: Problem, smoothing: Array | None, x: Array, known: Array, block_bytes: int) -> Array:
    """As `differentiable`, for what has been differentiated once; without the rule, its derivative is NaN.

    In reverse mode JAX keeps of the body of a `lax.scan` or `lax.map` what the backward pass needs, and there the rules
    of custom_jvp are gone. Differentiating that, x would pass for a constant, and second derivatives be wrong without
    a word. With `jax.checkpoint` around the body the rules stay.
    """
    leaves = [jnp.where(jnp.isfinite(leaf), leaf, 0) for leaf in jax.tree.leaves(problem)]
    zero = sum(jnp.sum(leaf - lax.stop_gradient(leaf)) for leaf in leaves)
    return x + jnp.sqrt(zero)


@differentiable_again.defjvp
@differentiable.defjvp
def _rule(
    block_bytes: int,
    primals: tuple[Problem, Array | None, Array, Array],
    tangents: tuple[Problem, Array | None, Array, Array],
) -> tuple[Array, Array]:
    problem, smoothing, x, known = primals
    x = differentiable_again(problem, smoothing, x, known, block_bytes)
    if smoothing is None:
        return x, tangent(problem, x, known, tangents[0], block_bytes)
    return x, smooth_tangent(problem, x, smoothing, tangents[0], block_bytes)


GROUP = 128  # columns that take the general rule together, at most, where one of them needs it
# Numbers in an array of conjugate gradients, several of which then stay in the cache: value and gradient of 256 x 84
# chroma take 0.82 of the time of blocks of 431 columns, others the same; with half as many, nmf128 takes 1.1 times.
CACHED = 2**15


class Part(NamedTuple):
    """The columns of one block and their tangents."""

    x: Array  # (n, k)
    known: Array  # (2, k)
    b: Array | None  # (m, k)
    linear: Array  # here and below (n, k) or (n, 1)
    lower: Array
    upper: Array
    db: Array | None
    dlinear: Array
    dlower: Array
    dupper: Array


@broadcasting
def tangent(problem: Problem, x: Array, known: Array, dproblem: Problem, block_bytes: int) -> Array:
    """dx (n, N) for a change dproblem of the problem with solutions x, in blocks that keep nothing for later."""
    n, N = x.shape
    m = n if problem.A is None else problem.A.shape[0]
    itemsize = x.dtype.itemsize
    columns = Part(
        x,
        known,
        problem.b,
        problem.linear,
        problem.lower,
        problem.upper,
        dproblem.b,
        dproblem.linear,
        dproblem.lower,
        dproblem.upper,
    )
    scales = matrix_scales(problem)
    matrix, dmatrix = scale_matrix(problem, scales), scale_matrix(dproblem, scales)
    shared = share(matrix, dmatrix, scales)
    some = block_size(N, (12 * min(m, n) ** 2 + 24 * n + 12 * m) * itemsize, block_bytes)
    some = min(some, group_size(GROUP))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(part: Part) -> Array:
        own = matrix._replace(b=part.b, linear=part.linear, lower=part.lower, upper=part.upper)
        down = dmatrix._replace(b=part.db, linear=part.dlinear, lower=part.dlower, upper=part.dupper)
        this = moving(own, down, part.x, scales)
        free, (regular, fitted) = this.free, part.known > 0

        def if_any(own: Array, rule: Callable[[], Array]) -> Array:
            return lax.cond(anywhere(jnp.any(own)), rule, lambda: jnp.zeros_like(this.x))

        if shared.H is None:
            few = jnp.sum(free, axis=0) <= m
            fitted |= regular & ~few & (shared.ridge > 0) & jnp.all(part.linear == 0, axis=0)
            regular &= few
            quick = fit_rule(shared, this, free & fitted)
            quick += if_any(regular, lambda: regular_rule(shared, free & regular, gradient_tangent(this)))
        else:
            dg = gradient_tangent(this)
            quick = regular_rule(shared, free & regular, dg)

        others = this.usable & ~(regular | fitted)

        def general() -> Array:
            columns = (this.x, free & others, gradient_tangent(this) if shared.H is None else dg)
            return where_needed(functools.partial(general_rule, shared), columns, others, some)

        slow = if_any(others, general)
        return unscaled(this, jnp.where(others, slow, quick))

    size = block_size(N, (24 * n + 12 * m) * itemsize, block_bytes)
    return map_columns(block, columns, N, block_size(N, 1, min(size, group_size(max(GROUP, CACHED // min(m, n))))))


def where_needed(f: Callable[..., Array], columns: tuple[Array, ...], needed: Array, size: int) -> Array:
    """f of the columns (n, k) that need it (k,), `size` at a time; others may have any value. (n, k).

    Those that need it come first: 24 of 2000 decay curves of 40 parameters, spread over all groups, would take as long
    as all (2.5 instead of 1.6 times the solve).
    """

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def group(part: tuple[tuple[Array, ...], Array]) -> Array:
        columns, needed = part
        return lax.cond(anywhere(jnp.any(needed)), f, lambda *columns: jnp.zeros_like(columns[0]), *columns)

    order = jnp.argsort(~needed)
    ordered = jax.tree.map(lambda leaf: leaf[..., order], (columns, needed))
    result = map_columns(group, ordered, len(needed), size)
    return jnp.zeros_like(result).at[:, order].set(result, unique_indices=True)
