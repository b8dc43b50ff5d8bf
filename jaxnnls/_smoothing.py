"""A derivative that sees inactive variables: that of a relaxed problem.

With a barrier of weight kappa, x_kappa minimises f(x) - kappa (sum log(x - lower) + sum log(upper - x)), or

    g(x) - y + z = 0,    y = kappa / (x - lower),    z = kappa / (upper - x)

and differentiating that, with D = kappa / (x - lower)^2 and E = kappa / (upper - x)^2,

    (H + D + E) dx = -dg + D dlower + E dupper

It is smooth in the problem, also where a variable meets its bound, and tends to the derivative of the solution as
kappa tends to 0. qpax relaxes quadratic programs so (Tracy and Manchester 2024, arXiv:2406.11749).

The slacks are kept beside x, since x - lower would lose all digits where x is close to a bound.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._blocks import block_size, broadcasting, fill_columns, map_columns
from jaxnnls._face import hessian
from jaxnnls._interior import factor_masked, solve_factored
from jaxnnls._objective import Problem, einsum
from jaxnnls._relax import relax
from jaxnnls._scaling import column_size, matrix_scales, scale_columns, scale_matrix
from jaxnnls._tangent import gradient_tangent, moving, unscaled

FAR = 10  # times the size of the solution, in units of the data


class Relaxed(NamedTuple):
    """Relaxed solutions, (n, N); NaN in columns that have none."""

    x: Array
    s: Array  # x - lower
    t: Array  # upper - x


class Block(NamedTuple):
    """The columns of one block."""

    x: Array  # (n, k)
    b: Array | None  # (m, k)
    linear: Array  # here and below (n, k) or (n, 1)
    lower: Array
    upper: Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def relaxed(problem: Problem, x: Array, kappa: Array, block_bytes: int) -> Relaxed:
    """The relaxed solutions beside the solutions x (n, N)."""
    return relaxed_columns(problem, x, kappa, block_bytes)


@relaxed.defjvp
def _relaxed_jvp(
    block_bytes: int, primals: tuple[Problem, Array, Array], tangents: tuple[Problem, Array, Array]
) -> tuple[Relaxed, Relaxed]:
    problem, x, kappa = primals
    dproblem = tangents[0]
    point = relaxed(problem, x, kappa, block_bytes)
    dx = tangent_at(point, problem, kappa, dproblem, block_bytes)
    ds, dt = (
        jnp.where(jnp.isfinite(bound), sign * (dx - dbound), 0)
        for sign, bound, dbound in ((1, problem.lower, dproblem.lower), (-1, problem.upper, dproblem.upper))
    )
    return point, Relaxed(dx, ds, dt)


def smooth_tangent(problem: Problem, x: Array, kappa: Array, dproblem: Problem, block_bytes: int) -> Array:
    """The relaxed dx for a change dproblem of the problem with solutions x, (n, N)."""
    point = relaxed(problem, lax.stop_gradient(x), lax.stop_gradient(kappa), block_bytes)
    return tangent_at(point, problem, kappa, dproblem, block_bytes)


@broadcasting
def relaxed_columns(problem: Problem, x: Array, kappa: Array, block_bytes: int) -> Relaxed:
    """`relaxed` without a derivative."""
    problem, x, kappa = lax.stop_gradient((problem, x, kappa))
    scales = matrix_scales(problem)
    matrix = scale_matrix(problem, scales)
    H = hessian(matrix)
    # What takes no part keeps its place, and a unit diagonal.
    H = jnp.where(jnp.eye(len(H), dtype=bool), 1, H)

    def block(part: Block) -> Relaxed:
        boxed = jnp.all(part.lower <= part.upper, axis=0)
        usable = jnp.all(jnp.isfinite(part.x), axis=0) & boxed
        x = jnp.where(usable, part.x, 0)
        pinned = scales.junk | ~usable
        clean = problem._replace(
            b=None if part.b is None else jnp.where(usable, part.b, 0),
            linear=jnp.where(usable, part.linear, 0),
            lower=jnp.where(pinned, x, part.lower),
            upper=jnp.where(pinned, x, part.upper),
        )
        beta = column_size(clean, scales)
        scaled = scale_columns(
            matrix._replace(
                b=clean.b,
                linear=clean.linear / scales.s,
                lower=clean.lower * scales.s,
                upper=clean.upper * scales.s,
            ),
            beta,
        )
        # The products of slacks and multipliers scale like beta^2.
        point, error = relax(scaled, H, (kappa / beta / beta)[0], usable)
        unit = beta / scales.s
        # Without a relaxed solution there is no derivative: NaN, by slacks that are. Bad data have one of zero. In
        # float32 an error of 1e-4 may be all that rounding leaves beside a small kappa, and may be that of a point on a
        # ray along which the barrier falls without limit, far from the solution.
        eps, own = jnp.finfo(x.dtype).eps, jnp.sum(jnp.abs(x) / unit, axis=0)
        near = jnp.sum(jnp.abs(point.x), axis=0) <= FAR * (1 + own)
        solved = (error <= eps**0.75) | ((error <= jnp.sqrt(eps)) & near)
        s, t = (jnp.where(solved, v * unit, jnp.nan) for v in (point.s, point.t))
        # A fixed variable is at its lower bound, which it follows, whatever scaling makes of it.
        x = jnp.where(clean.lower == clean.upper, clean.lower, point.x * unit)
        return Relaxed(*(jnp.where(usable, v, jnp.nan) for v in (x, s, t)))

    columns = Block(x, problem.b, problem.linear, problem.lower, problem.upper)
    empty = Relaxed(*(jnp.zeros_like(x) for _ in Relaxed._fields))
    return fill_columns(block, columns, empty, block_of(problem, x, block_bytes))


def block_of(problem: Problem, x: Array, block_bytes: int) -> int:
    """Columns in a block, each with a few matrices."""
    n, m = len(x), 0 if problem.A is None else len(problem.A)
    return block_size(x.shape[1], (4 * n * n + 24 * n + 12 * m) * x.dtype.itemsize, block_bytes)


class Part(NamedTuple):
    """The columns of one block and their tangents."""

    point: Relaxed
    b: Array | None
    linear: Array
    lower: Array
    upper: Array
    db: Array | None
    dlinear: Array
    dlower: Array
    dupper: Array


@broadcasting
def tangent_at(point: Relaxed, problem: Problem, kappa: Array, dproblem: Problem, block_bytes: int) -> Array:
    """dx at relaxed solutions, (n, N)."""
    scales = matrix_scales(problem)
    columns = Part(
        point,
        problem.b,
        problem.linear,
        problem.lower,
        problem.upper,
        dproblem.b,
        dproblem.linear,
        dproblem.lower,
        dproblem.upper,
    )

    matrix, dmatrix = scale_matrix(problem, scales), scale_matrix(dproblem, scales)
    H = hessian(matrix)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(part: Part) -> Array:
        """dx_F = (H + D + E)_FF^-1 (-dg + D dlower + E dupper)_F."""
        own = matrix._replace(b=part.b, linear=part.linear, lower=part.lower, upper=part.upper)
        down = dmatrix._replace(b=part.db, linear=part.dlinear, lower=part.dlower, upper=part.dupper)
        this = moving(own, down, part.point.x, scales)

        def barrier(slack: Array, bound: Array, dbound: Array) -> tuple[Array, Array]:
            counts = this.free & jnp.isfinite(bound)
            slack = jnp.where(counts, slack, 1) * this.to_scaled
            weight = jnp.where(counts, kappa * (this.to_scaled / scales.s / slack) ** 2, 0)
            return weight, weight * jnp.where(counts, dbound, 0) * this.to_scaled

        D, from_lower = barrier(part.point.s, part.lower, part.dlower)
        E, from_upper = barrier(part.point.t, part.upper, part.dupper)
        right = -gradient_tangent(this) + from_lower + from_upper
        factor = factor_masked(*lax.stop_gradient((H, this.free, D + E)))

        def product(v: Array) -> Array:
            return jnp.where(this.free, einsum("ij,jk->ik", H, jnp.where(this.free, v, 0)) + (D + E) * v, v)

        # A factorisation has derivatives, but those of the solution are more of its own.
        right = jnp.where(this.free, right, 0)
        solve = lax.custom_linear_solve(product, right, lambda _, r: solve_factored(factor, r), symmetric=True)
        return unscaled(this, solve)

    return map_columns(block, columns, point.x.shape[1], block_of(problem, point.x, block_bytes))
