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
from jaxnnls._matrix import regularised_inverse
from jaxnnls._objective import Problem, einsum
from jaxnnls._scaling import matrix_scales, relative, scale_matrix
from jaxnnls._smoothing import smooth_tangent
from jaxnnls._solver import Result
from jaxnnls._tangent import Known, Rule, face_tangent, fit_rule, general_rule, regular_rule


def attach(problem: Problem, smoothing: Array | None, result: Result, block_bytes: int) -> Array:
    """The solutions x (n, N) of a result, with their derivative with respect to the problem."""
    # A flag as a number: `shard_map` rejects rules for integers, whose tangents do not say over what they vary.
    plain = result.plain.astype(result.x.dtype)
    return differentiable(problem, smoothing, result.x, plain, block_bytes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def differentiable(problem: Problem, smoothing: Array | None, x: Array, plain: Array, block_bytes: int) -> Array:
    """The solutions x (n, N) of the problem, with their derivative. plain (N,) is 0 or 1, as in `Result`."""
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def differentiable_again(problem: Problem, smoothing: Array | None, x: Array, plain: Array, block_bytes: int) -> Array:
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
    problem, smoothing, x, plain = primals
    x = differentiable_again(problem, smoothing, x, plain, block_bytes)
    if smoothing is None:
        return x, tangent(problem, x, plain, tangents[0], block_bytes)
    return x, smooth_tangent(problem, x, smoothing, tangents[0], block_bytes)


# Columns that take the general rule together, at most, where one of them needs it. Those that do come first: 24 of 2000
# decay curves of 40 parameters, spread over all groups, would take as long as all (2.5 instead of 1.6 times the solve).
GROUP = 128
# Numbers in an array of conjugate gradients, several of which then stay in the cache: value and gradient of 256 x 84
# chroma take 0.82 of the time of blocks of 431 columns, others the same; with half as many, nmf128 takes 1.1 times.
CACHED = 2**15


class Part(NamedTuple):
    """The columns of one block and their tangents."""

    x: Array  # (n, k)
    plain: Array  # (k,)
    b: Array | None  # (m, k)
    linear: Array  # here and below (n, k) or (n, 1)
    lower: Array
    upper: Array
    db: Array | None
    dlinear: Array
    dlower: Array
    dupper: Array


@broadcasting
def tangent(problem: Problem, x: Array, plain: Array, dproblem: Problem, block_bytes: int) -> Array:
    """dx (n, N) for a change dproblem of the problem with solutions x, in blocks that keep nothing for later."""
    n, N = x.shape
    m = n if problem.A is None else problem.A.shape[0]
    itemsize = x.dtype.itemsize
    columns = Part(
        x,
        plain,
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
    inverse = None
    if m < n:
        scaled = lax.stop_gradient(scale_matrix(problem, scales))
        assert scaled.A is not None
        C = scaled.A * relative(scales).T
        inverse, _ = regularised_inverse(einsum("ij,kj->ik", C, C))

    def rule(kind: Rule, part: Part) -> Array:
        def insert(whole: Problem, b: Array | None, linear: Array, lower: Array, upper: Array) -> Problem:
            return whole._replace(b=b, linear=linear, lower=lower, upper=upper)

        return face_tangent(
            insert(problem, part.b, part.linear, part.lower, part.upper),
            Known(part.x, scales, inverse),
            insert(dproblem, part.db, part.dlinear, part.dlower, part.dupper),
            kind,
        )

    def is_easy(part: Part) -> Array:
        return (part.plain > 0) | ~jnp.isfinite(part.x[0])

    def where_any(flags: Array, compute: Callable[[Part], Array], part: Part) -> Array:
        return lax.cond(anywhere(jnp.any(flags)), compute, lambda part: jnp.zeros_like(part.x), part)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def general(part: Part) -> Array:
        return where_any(~is_easy(part), lambda part: rule(general_rule, part), part)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(part: Part) -> Array:
        k, easy = part.x.shape[1], is_easy(part)
        few = block_size(k, (12 * min(m, n) ** 2 + 24 * n + 12 * m) * itemsize, block_bytes)
        few = min(few, group_size(GROUP))
        quick = where_any(easy, lambda part: rule(regular_rule if inverse is None else fit_rule, part), part)

        def first_those_that_need_it(part: Part) -> Array:
            order = jnp.argsort(easy)
            ordered = jax.tree.map(lambda leaf: leaf[..., order] if leaf.shape[-1] == k else leaf, part)
            return map_columns(general, ordered, k, few)[:, jnp.argsort(order)]

        slow = where_any(~easy, first_those_that_need_it, part)
        return jnp.where(easy, quick, slow)

    size = block_size(N, (24 * n + 12 * m) * itemsize, block_bytes)
    return map_columns(block, columns, N, block_size(N, 1, min(size, group_size(max(GROUP, CACHED // min(m, n))))))
