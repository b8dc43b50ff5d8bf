"""The derivative of the solution, through the KKT conditions.

With F the free set, H = A'A + ridge I (or Q) and g the gradient of the objective, the KKT conditions say g_F = 0 and
x_j = a bound elsewhere. Differentiating them, with dg the tangent of g at fixed x_F (bounds that move included),

    dx_F = -H_FF^+ (dg)_F + (I - H_FF^+ H_FF) (dH v)_F,      v = H_FF^+ x_F

and x follows its bound elsewhere. The second term turns the null space along with A: x_F is the least-norm solution,
that is x_F = H_FF v. It is zero where H_FF is regular; without it the gradient of mel inversion is wrong throughout.
Transposed, with u = H_FF^+ x_bar_F, w = A_F v and r = b - A x, this is

    b_bar = A u,     A_bar = r u' - (A u) x' + w [(I - H_FF^+ H_FF) x_bar_F]'

Only the forward rule is written here: it is linear, so JAX transposes it, block after block, summing the cotangent of
a shared A inside each block. It consists of differentiable operations, so it can be differentiated again.

For wide A, H_FF^+ = B'K K B and H_FF^+ H_FF = B'K B with B = A_F and K = (B B')^+; with a ridge,
(B'B + ridge I)^-1 = (I - B'(B B' + ridge I)^-1 B) / ridge.

At a kink (x_j on its bound with zero dual) the derivative is the one of the side on which x_j stays on its bound.
Null spaces count in the units of x, so variables are z = x_scaled / unit wherever minimisers may not be unique.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _solver
from jaxnnls._blocks import block_size, broadcasting, map_columns
from jaxnnls._objective import Problem, einsum, gradient
from jaxnnls._pseudoinverse import pseudoinverse
from jaxnnls._scaling import column_size, matrix_scales, scale_columns, scale_matrix
from jaxnnls._solver import Options, Result


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def solve(problem: Problem, options: Options, block_bytes: int) -> Result:
    """`_solver.solve` with a derivative of x with respect to the problem."""
    return _solver.solve(problem, options, block_bytes)


@solve.defjvp
def _solve_jvp(
    block_bytes: int, primals: tuple[Problem, Options], tangents: tuple[Problem, Options]
) -> tuple[Result, Result]:
    problem, options = primals
    result = solve(problem, options, block_bytes)
    dx = tangent(problem, result.x, result.singular, tangents[0], block_bytes)
    zero = jax.tree.map(_zero_tangent, result)
    return result, zero._replace(x=dx)


def _zero_tangent(value: Array) -> Array:
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return jnp.zeros(value.shape, jax.dtypes.float0)


class Part(NamedTuple):
    """The columns of one block and their tangents."""

    x: Array  # (n, k)
    b: Array | None  # (m, k)
    linear: Array  # here and below (n, k) or (n, 1)
    lower: Array
    upper: Array
    db: Array | None
    dlinear: Array
    dlower: Array
    dupper: Array


@broadcasting
def tangent(problem: Problem, x: Array, singular: Array, dproblem: Problem, block_bytes: int) -> Array:
    """dx for a change dproblem of the problem, in blocks that keep nothing for the backward pass. (n, N)."""
    n, N = x.shape
    m = n if problem.A is None else problem.A.shape[0]
    size = block_size(N, (12 * min(m, n) ** 2 + 24 * n + 12 * m) * x.dtype.itemsize, block_bytes)
    columns = Part(
        x,
        problem.b,
        problem.linear,
        problem.lower,
        problem.upper,
        dproblem.b,
        dproblem.linear,
        dproblem.lower,
        dproblem.upper,
    )

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(part: Part) -> Array:
        def insert(whole: Problem, b: Array | None, linear: Array, lower: Array, upper: Array) -> Problem:
            return whole._replace(b=b, linear=linear, lower=lower, upper=upper)

        return block_tangent(
            insert(problem, part.b, part.linear, part.lower, part.upper),
            part.x,
            singular,
            insert(dproblem, part.db, part.dlinear, part.dlower, part.dupper),
        )

    return map_columns(block, columns, N, size)


def block_tangent(problem: Problem, x: Array, singular: Array, dproblem: Problem) -> Array:
    """dx for the columns of one block, (n, k)."""
    # Columns without a solution have no derivative; zeros keep their NaN out of the gradient of a shared A.
    usable = jnp.all(jnp.isfinite(x), axis=0)
    x = jnp.where(usable, x, 0)
    bounds = lax.stop_gradient((problem.lower, problem.upper))
    scales = matrix_scales(problem)
    clean = problem._replace(b=None if problem.b is None else jnp.where(usable, problem.b, 0))
    beta = column_size(clean, scales)
    to_scaled = scales.s / beta
    at_lower = x <= bounds[0]
    at_upper = ~at_lower & (x >= bounds[1])
    free = ~at_lower & ~at_upper & ~scales.junk & usable
    dlower, dupper = (jnp.where(jnp.isfinite(b), d, 0) for b, d in zip(bounds, (dproblem.lower, dproblem.upper)))
    dx_fixed = jnp.where(at_lower, dlower, jnp.where(at_upper, dupper, 0)) * to_scaled

    def scaled_gradient(problem: Problem, x: Array) -> Array:
        return gradient(scale_columns(scale_matrix(problem, scales), beta), x)

    def hessian_product(problem: Problem, v: Array) -> Array:
        return jax.jvp(lambda x: scaled_gradient(problem, x), (jnp.zeros_like(v),), (v,))[1]

    # Bounds enter through dx_fixed alone: in the gradient they would only bring 0 times infinity.
    dclean = dproblem._replace(
        b=None if dproblem.b is None else jnp.where(usable, dproblem.b, 0),
        lower=jnp.zeros_like(problem.lower),
        upper=jnp.zeros_like(problem.upper),
    )
    clean = clean._replace(lower=jnp.zeros_like(problem.lower), upper=jnp.zeros_like(problem.upper))
    _, dg = jax.jvp(scaled_gradient, (clean, x * to_scaled), (dclean, dx_fixed))

    largest = jnp.max(scales.s, initial=0)
    wide = problem.A is not None and problem.A.shape[0] < problem.A.shape[1]
    unit = jnp.where(singular | wide, scales.s / largest, 1)
    weight = jnp.where(free, unit, 0)
    scaled = scale_matrix(clean, scales)
    face = (
        wide_face(scaled, weight, problem.ridge * (1 / largest) * (1 / largest)) if wide else gram_face(scaled, weight)
    )
    v = weight * face.pinv(jnp.where(free, x * to_scaled / unit, 0))
    _, dHv = jax.jvp(lambda problem: hessian_product(problem, v), (clean,), (dclean,))
    dz = -face.solve(weight * dg) + face.null(weight * dHv)
    return jnp.where(usable, dx_fixed + weight * dz, 0) / to_scaled


class Face(NamedTuple):
    """Linear algebra on the free set in the variables z = x / unit; maps (n, k), zero off the free set, to the same."""

    solve: Callable[[Array], Array]  # H_FF^+
    pinv: Callable[[Array], Array]  # H_FF^+ where there is no ridge
    null: Callable[[Array], Array]  # I - H_FF^+ H_FF


def gram_face(problem: Problem, weight: Array) -> Face:
    """By the free block of H itself, for n <= m and for Q. weight (n, k) is unit on the free set, else 0."""
    if problem.A is not None:
        H = einsum("ij,ik->jk", problem.A, problem.A)
    else:
        assert problem.Q is not None
        H = (problem.Q + problem.Q.T) / 2
    H += jnp.diag(problem.ridge[:, 0])
    K, N = pseudoinverse(einsum("ik,ij,jk->kij", weight, H, weight))
    apply = functools.partial(einsum, "kij,jk->ik", K)
    return Face(solve=apply, pinv=apply, null=lambda v: jnp.where(weight > 0, einsum("kij,jk->ik", N, v), 0))


def wide_face(problem: Problem, weight: Array, ridge: Array) -> Face:
    """By the m x m matrices B B' + ridge I, B = A diag(weight), for m < n."""
    A = problem.A
    assert A is not None
    m = A.shape[0]
    K, N = pseudoinverse(einsum("ij,jk,lj->kil", A, weight**2, A) + ridge * jnp.eye(m, dtype=A.dtype))
    rank = m - jnp.round(jnp.einsum("kii->k", N))
    deficient = rank < jnp.sum(weight > 0, axis=0)
    positive = ridge > 0

    def across(v: Array) -> Array:  # K B v
        return einsum("kij,jk->ik", K, einsum("ij,jk->ik", A, weight * v))

    def back(y: Array) -> Array:  # B'y
        return weight * einsum("ij,ik->jk", A, y)

    def pinv(v: Array) -> Array:
        return back(einsum("kij,jk->ik", K, across(v)))

    def solve(v: Array) -> Array:
        return jnp.where(positive, (v - back(across(v))) / jnp.where(positive, ridge, 1), pinv(v))

    return Face(solve, pinv, null=lambda v: jnp.where(deficient & ~positive, v - back(across(v)), 0))
