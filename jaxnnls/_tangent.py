"""How the solutions of a block move with the problem: the KKT conditions, differentiated.

With F the free set, H = A'A + ridge I (or Q) and g the gradient of the objective, the KKT conditions say g_F = 0 and
x_j = a bound elsewhere. Differentiating them, with dg the tangent of g at fixed x_F (bounds that move included),

    dx_F = -H_FF^+ (dg)_F + (I - H_FF^+ H_FF) (dH v)_F,      v = H_FF^+ x_F

and x follows its bound elsewhere. The second term turns the null space along with A: x_F is the least-norm solution,
that is x_F = H_FF v. It is zero where H_FF is regular; without it the gradient of mel inversion is wrong throughout.
Transposed, with u = H_FF^+ x_bar_F, w = A_F v and r = b - A x, this is

    b_bar = A u,     A_bar = r u' - (A u) x' + w [(I - H_FF^+ H_FF) x_bar_F]'

Only the forward rule is written here; it consists of differentiable operations, so it can be differentiated again. It
comes in three forms, and the solver says for each column whether the plain one of its problem will do:

    regular_rule   H_FF regular: dx_F = -H_FF^-1 (dg)_F
    fit_rule       wide A, A x = b, independent rows B = A_F: x_F = B'y with B B'y = b less what is fixed, so that
                   dx_F = dB'y + B'dy,   B B'dy = -(dr + B dB'y)   with dr the tangent of A x - b at fixed x_F
    general_rule   the formula above by a pseudo-inverse per column; for wide A, H_FF^+ = B'K K B and
                   H_FF^+ H_FF = B'K B with K = (B B')^+; with a ridge,
                   (B'B + ridge I)^-1 = (I - B'(B B' + ridge I)^-1 B) / ridge

The plain ones solve by conjugate gradients, in which a value and its gradient take 1.3 to 2.0 times the solve alone
(float32, 2 cores: 1025 x 64, 1025 x 128, 256 x 84, mel 128 x 1025); by a pseudo-inverse per column it was 1.8 to 4.7.

At a kink (x_j on its bound with zero dual) the derivative is the one of the side on which x_j stays on its bound.
Null spaces count in the units of x, so variables are z = x_scaled / unit wherever minimisers may not be unique.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._face import fit_face, gram_face, hessian, regular_face, wide_face
from jaxnnls._objective import Problem, einsum, gradient, residual
from jaxnnls._scaling import Scales, column_size, relative, scale_columns, scale_matrix


class Known(NamedTuple):
    """What the tangent of a block is computed from, besides the problem; only x is differentiated."""

    x: Array  # (n, k)
    scales: Scales
    inverse: Array | None  # (m, m), about (C C')^-1, C = A unit; for wide A


class Setting(NamedTuple):
    """The faces of a block, and how the scaled problem moves."""

    problem: Problem
    dproblem: Problem
    scale: Callable[[Problem], Problem]
    x: Array  # (n, k), scaled
    dx_fixed: Array  # (n, k), scaled: how the variables at their bounds move
    weight: Array  # (n, k)
    unit: Array  # (n, 1)
    to_scaled: Array  # (n, k), scaled x / x
    known: Known


Rule = Callable[[Setting], Array]


def face_tangent(problem: Problem, known: Known, dproblem: Problem, rule: Rule) -> Array:
    """dx for the columns of one block by one of the rules below, (n, k)."""
    # Columns without a solution have no derivative; zeros keep their NaN out of the gradient of a shared A.
    scales = known.scales
    usable = jnp.all(jnp.isfinite(known.x), axis=0)
    x = jnp.where(usable, known.x, 0)
    bounds = lax.stop_gradient((problem.lower, problem.upper))
    clean = problem._replace(b=None if problem.b is None else jnp.where(usable, problem.b, 0))
    beta = column_size(clean, scales)
    to_scaled = scales.s / beta
    at_lower = x <= bounds[0]
    at_upper = ~at_lower & (x >= bounds[1])
    free = ~at_lower & ~at_upper & ~scales.junk & usable
    dlower, dupper = (jnp.where(jnp.isfinite(b), d, 0) for b, d in zip(bounds, (dproblem.lower, dproblem.upper)))
    dx_fixed = jnp.where(at_lower, dlower, jnp.where(at_upper, dupper, 0)) * to_scaled

    # Bounds enter through dx_fixed alone: in the gradient they would only bring 0 times infinity.
    nowhere = {"lower": jnp.zeros_like(problem.lower), "upper": jnp.zeros_like(problem.upper)}
    dclean = dproblem._replace(b=None if dproblem.b is None else jnp.where(usable, dproblem.b, 0), **nowhere)
    unit = relative(scales) if rule in (fit_rule, general_rule) else jnp.ones_like(scales.s)
    setting = Setting(
        problem=clean._replace(**nowhere),
        dproblem=dclean,
        scale=lambda problem: scale_columns(scale_matrix(problem, scales), beta),
        x=x * to_scaled,
        dx_fixed=dx_fixed,
        weight=jnp.where(free, unit, 0),
        unit=unit,
        to_scaled=to_scaled,
        known=known,
    )
    return jnp.where(usable, dx_fixed + setting.weight * rule(setting), 0) / to_scaled


def gradient_tangent(setting: Setting) -> Array:
    """dg, at fixed free variables. (n, k)."""
    problem, dproblem, scale, x, dx_fixed = setting[:5]
    return jax.jvp(lambda p, x: gradient(scale(p), x), (problem, x), (dproblem, dx_fixed))[1]


def regular_rule(setting: Setting) -> Array:
    """dz = -H_FF^-1 dg_F."""
    return -regular_face(hessian(setting.scale(setting.problem)), setting.weight)(gradient_tangent(setting))


def fit_rule(setting: Setting) -> Array:
    """dz = dB'w + B'dw where z = B'w and B z = b less what the fixed variables explain."""
    problem, dproblem, scale, x, dx_fixed, weight, unit, _, known = setting

    def image(problem: Problem, z: Array) -> Array:
        A = scale(problem).A
        assert A is not None
        return einsum("ij,jk->ik", A, weight * z)

    def back(problem: Problem, w: Array) -> Array:
        A = scale(problem).A
        assert A is not None
        return weight * einsum("ij,ik->jk", A, w)

    A = scale(problem).A
    assert A is not None and known.inverse is not None
    solve = fit_face(A, known.inverse, unit, weight)
    w = solve(einsum("ij,jk->ik", A, jnp.where(weight > 0, x, 0)))
    _, dr = jax.jvp(lambda p, x: residual(scale(p), x), (problem, x), (dproblem, dx_fixed))
    _, dBw = jax.jvp(lambda p: back(p, w), (problem,), (dproblem,))
    return dBw + back(problem, solve(-dr - image(problem, dBw)))


def general_rule(setting: Setting) -> Array:
    """dz = -H_FF^+ dg_F + (I - H_FF^+ H_FF) (dH v)_F."""
    problem, dproblem, scale, x, _, weight, unit, _, known = setting
    own = scale(problem)
    ridge = problem.ridge / jnp.max(known.scales.s, initial=0) ** 2
    face = gram_face(hessian(own), weight) if known.inverse is None else wide_face(own, weight, ridge)
    v = weight * face.pinv(jnp.where(weight > 0, x / unit, 0))

    def hessian_product(problem: Problem) -> Array:
        return jax.jvp(lambda x: gradient(scale(problem), x), (jnp.zeros_like(v),), (v,))[1]

    _, dHv = jax.jvp(hessian_product, (problem,), (dproblem,))
    return -face.solve(weight * gradient_tangent(setting)) + face.null(weight * dHv)
