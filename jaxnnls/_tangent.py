"""How the solutions of a block move with the problem: the KKT conditions, differentiated.

With F the free set, H = A'A + ridge I (or Q) and g the gradient of the objective, the KKT conditions say g_F = 0 and
x_j = a bound elsewhere. Differentiating them, with dg the tangent of g at fixed x_F (bounds that move included),

    dx_F = -H_FF^+ (dg)_F + (I - H_FF^+ H_FF) (dH v)_F,      v = H_FF^+ x_F

and x follows its bound elsewhere. The second term turns the null space along with A: x_F is the least-norm solution,
that is x_F = H_FF v. It is zero where H_FF is regular; without it the gradient of mel inversion is wrong throughout.
Transposed, with u = H_FF^+ x_bar_F, w = A_F v and r = b - A x, this is

    b_bar = A u,     A_bar = r u' - (A u) x' + w [(I - H_FF^+ H_FF) x_bar_F]'

Only the forward rule is written here; it consists of differentiable operations, so it can be differentiated again. It
comes in three forms, and the solver says for each column whether one of the first two will do:

    regular_rule   H_FF regular, and for wide A no more free variables than rows: dx_F = -H_FF^-1 (dg)_F
    fit_rule       wide A, B = A_F: x_F = B'w with B x_F + ridge w = b less what is fixed, so that
                   dx_F = dB'w + B'dw,   (B B' + ridge I) dw = -(dr + B dB'w + dridge w)
                   with dr the tangent of A x - b at fixed x_F; where A x = b and rows are independent, or where there
                   is a ridge, no linear term, and more variables are free than there are rows
    general_rule   the formula above by a pseudo-inverse per column; for wide A, H_FF^+ = B'K K B and
                   H_FF^+ H_FF = B'K B with K = (B B')^+; with a ridge,
                   (B'B + ridge I)^-1 = (I - B'(B B' + ridge I)^-1 B) / ridge

The first two solve by conjugate gradients; a value and its gradient take 1.3 to 2.2 times the solve alone (float32, 2
cores: 1025 x 64, 1025 x 128, 256 x 84, mel 128 x 1025); by a pseudo-inverse per column it was 1.8 to 4.7. Misfits of
40 x 120 and 128 x 400, with a ridge and without: 1.0 to 1.4 times, and by a pseudo-inverse 2.4 to 4.7.

At a kink (x_j on its bound with zero dual) the derivative is the one of the side on which x_j stays on its bound.
Null spaces count in the units of x, so variables are z = x_scaled / unit wherever minimisers may not be unique.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._face import few_face, fit_face, gram_face, hessian, regular_face, wide_face
from jaxnnls._matrix import regularised_inverse
from jaxnnls._objective import Problem, einsum, gradient, residual
from jaxnnls._scaling import Scales, column_size, relative, scale_columns
from jaxnnls._tridiagonal import is_tridiagonal


class Shared(NamedTuple):
    """What all columns share, scaled."""

    problem: Problem  # A or Q, and ridge
    dproblem: Problem
    unit: Array  # (n, 1), scaled x / z
    ridge: Array  # (), that of z; 0 where it is less than rounding of the largest column
    H: Array | None  # (n, n); None for wide A
    inverse: Array | None  # (m, m), about (C C')^-1, C = A unit; for wide A
    tridiagonal: Array | None  # (), bool: whether A diag(v) A' is for any v; for wide A


def share(problem: Problem, dproblem: Problem, scales: Scales) -> Shared:
    """What the rules take, of a scaled problem and how it moves."""
    unit = relative(scales)
    # It is the same for all variables, but for rounding and for negligible columns.
    ridge = jnp.max(problem.ridge * unit**2, initial=0)
    ridge = jnp.where(ridge > jnp.finfo(unit.dtype).eps, ridge, 0)
    if problem.A is None or problem.A.shape[0] >= problem.A.shape[1]:
        return Shared(problem, dproblem, unit, ridge, hessian(problem), None, None)
    C = lax.stop_gradient(problem.A) * unit.T
    M = einsum("ij,kj->ik", C, C) + lax.stop_gradient(ridge) * jnp.eye(len(C), dtype=C.dtype)
    inverse, _ = regularised_inverse(M)
    return Shared(problem, dproblem, unit, ridge, None, inverse, is_tridiagonal(C))


class Moving(NamedTuple):
    """The scaled problems of a block, and how they move."""

    problem: Problem  # without bounds: they act through dx_fixed alone
    dproblem: Problem
    x: Array  # (n, k)
    free: Array  # (n, k), bool
    dx_fixed: Array  # (n, k), how the variables at their bounds move
    usable: Array  # (k,), bool: columns that have a solution
    to_scaled: Array  # (n, k), scaled x / x


def moving(problem: Problem, dproblem: Problem, x: Array, scales: Scales) -> Moving:
    """The columns of a block at their solutions x (n, k); of the problem, only what all columns share is scaled."""
    # Columns without a solution have no derivative; zeros keep their NaN out of the gradient of a shared A.
    usable = jnp.all(jnp.isfinite(x), axis=0)
    x = jnp.where(usable, x, 0)
    lower, upper = lax.stop_gradient((problem.lower, problem.upper))
    at_lower = x <= lower
    at_upper = ~at_lower & (x >= upper)
    dlower, dupper = (
        jnp.where(jnp.isfinite(bound), d, 0) for bound, d in ((lower, dproblem.lower), (upper, dproblem.upper))
    )

    clean = problem._replace(b=None if problem.b is None else jnp.where(usable, problem.b, 0))
    beta = column_size(clean, scales)
    to_scaled = scales.s / beta

    def scaled(problem: Problem) -> Problem:
        # Bounds would only bring 0 times infinity.
        nowhere = jnp.zeros_like(scales.s)
        b = None if problem.b is None else jnp.where(usable, problem.b, 0)
        linear = problem.linear / scales.s
        return scale_columns(problem._replace(b=b, linear=linear, lower=nowhere, upper=nowhere), beta)

    return Moving(
        problem=scaled(problem),
        dproblem=scaled(dproblem),
        x=x * to_scaled,
        free=~at_lower & ~at_upper & ~scales.junk & usable,
        dx_fixed=jnp.where(at_lower, dlower, jnp.where(at_upper, dupper, 0)) * to_scaled,
        usable=usable,
        to_scaled=to_scaled,
    )


def unscaled(block: Moving, dx_free: Array) -> Array:
    """dx in the user's units, given how the free variables move, (n, k)."""
    return jnp.where(block.usable, block.dx_fixed + dx_free, 0) / block.to_scaled


def gradient_tangent(block: Moving) -> Array:
    """dg, at fixed free variables. (n, k)."""
    return jax.jvp(gradient, (block.problem, block.x), (block.dproblem, block.dx_fixed))[1]


def regular_rule(shared: Shared, free: Array, dg: Array) -> Array:
    """dx_F = -H_FF^-1 dg_F; for wide A, with no more free variables than rows."""
    problem, H, weight = shared.problem, shared.H, free.astype(dg.dtype)
    if H is not None:
        return -regular_face(H, weight)(dg)
    assert problem.A is not None
    return -few_face(problem.A, problem.ridge, weight)(dg)


def fit_rule(shared: Shared, block: Moving, free: Array) -> Array:
    """dz = dB'w + B'dw - dq where z = B'w - q, and B z + ridge w = b less what the fixed variables explain.

    With a ridge, q is the linear term divided by it. Columns come here where that is 0, to be differentiated again.
    """
    A, dA, inverse, tridiagonal = block.problem.A, block.dproblem.A, shared.inverse, shared.tridiagonal
    assert A is not None and dA is not None and inverse is not None and tridiagonal is not None
    assert block.problem.b is not None
    weight = jnp.where(free, shared.unit, 0)
    positive = shared.ridge > 0
    solve = fit_face(A, shared.ridge, inverse, tridiagonal, shared.unit, weight)
    divisor = jnp.where(positive, shared.ridge, 1)
    # The largest column has unit 1. A ridge that comes in, c |z|^2 / 2: dz = -c H_FF^+ z = -c B'K K B z, K B z = w.
    c = block.dproblem.ridge[jnp.argmax(shared.unit)]
    q = jnp.where(positive, weight * block.problem.linear, 0) / divisor
    dq = jnp.where(positive, weight * block.dproblem.linear - c * q, 0) / divisor
    _, dr = jax.jvp(residual, (block.problem, block.x), (block.dproblem, block.dx_fixed))
    # B (z + q) + ridge w, or without a ridge, where b may be fitted but for rounding, B z.
    fitting = jnp.where(free, block.x, 0)
    known = jnp.where(positive, weight * q + fitting - block.x, fitting)
    w = solve(einsum("ij,jk->ik", A, known) + jnp.where(positive, block.problem.b, 0))
    dBw = weight * einsum("ij,ik->jk", dA, w) - dq
    dw = solve(-dr - einsum("ij,jk->ik", A, weight * dBw) - c * w)
    return weight * (dBw + weight * einsum("ij,ik->jk", A, dw))


def general_rule(shared: Shared, x: Array, free: Array, dg: Array) -> Array:
    """dz = -H_FF^+ dg_F + (I - H_FF^+ H_FF) (dH v)_F, of columns x, free and dg (n, k)."""
    problem, dproblem, unit, ridge, H, *_ = shared
    weight = jnp.where(free, unit, 0)
    if H is not None:
        face = gram_face(H, weight)
    else:
        assert problem.A is not None
        face = wide_face(problem.A, ridge, weight)
    v = weight * face.pinv(jnp.where(free, x / unit, 0))

    def without_columns(problem: Problem) -> Problem:
        b = None if problem.A is None else jnp.zeros_like(problem.A[:, :1])
        return problem._replace(b=b, linear=jnp.zeros_like(unit))

    parts = without_columns(problem), without_columns(dproblem)
    _, dHv = jax.jvp(lambda problem: gradient(problem, v), parts[:1], parts[1:])
    return weight * (face.null(weight * dHv) - face.solve(weight * dg))
