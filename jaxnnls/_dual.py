"""The least-norm solution of A x = b, lower <= x <= upper, by Newton's method on its dual, all columns at once.

    maximise over w    b'w - phi(A'w),      phi(u) = max_x u'x - 1/2 ||x||^2 = u'x - 1/2 ||x||^2 at x = clip(u)

so x = clip(A'w), and w solves the m equations A clip(A'w) = b, which are piecewise linear and monotone. This is the
flagship case, A wide and b in its cone: mel inversion takes 3 to 8 steps. Each step solves

    (A_F A_F' + mu A_N A_N' + sigma I) dw = r,     F free, N the rest

by conjugate gradients, then searches along dw, exactly and without further products with A. The weight mu keeps rows
alive whose columns are all at a bound, sigma keeps the step finite; neither changes what the iteration converges to.
Both fade with the residual, as in Levenberg and Marquardt's method: spectra of power have bands of next to nothing
between large ones, which decide about few variables, by small eigenvalues.
The preconditioner is D (A A')^-1 D, where the diagonal D makes up for what the rows lose of their size to N.

See Li, Sun and Toh (2018, doi:10.1137/16M1097572) for semismooth Newton with conjugate gradients on such duals.
Unfinished columns are gathered for each step, GROUP at a time: a column costs its own steps. Within a step conjugate
gradients end with half of the columns, or all would take 2.4 times as many as they need: the others have a direction
that is not as good, but one of ascent, and meet later, when the easy ones are done. Those that nothing fits would spend
ten steps and more for nothing; where `out_of_reach` proves it, they take none (all of 256 x 513 mel bands of random
targets and of 64 x 256 uniform A and b, for 0.95 and 0.6 of the time of the solve; few whose best residual is below
1e-2, so the proof is tried once and not after each step).

Measured, mel 128 x 1025, float32: with D, 1.9 times less time for a recording and 3.6 times less for decaying plucked
strings, whose frames have silent bands (3.1 to 0.87 s for 646, 7 Newton steps each): without it, conjugate gradients
spend all of 80 steps. With mu and sigma that fade, a patience of 30 steps instead of 10, and steps as below, of 130
frames of five notes as power 2 instead of 54 are left to others (335 instead of 650 ms), of 259 of 80 bands none
instead of 30 (102, 245), of 400 with bands down to nothing none instead of 139 (290, 2700); in float64 of the first two
4 and 2 instead of 95 and 20. For that misfits pay, 1.15 to 1.2 times the time where `out_of_reach` proves nothing.

Steps that end with half of the columns instead of all take 0.53 of the time for that recording and 0.5 to 0.95 for
eleven other wide matrices, with as many solutions or more; with a fifth, a third or seven eighths of the columns 1.2,
0.63 and 0.73. Groups of 128 columns then take 1.06 times the time.

Not chosen: accelerated gradients on the same dual with the same preconditioner (100 steps reach 1e-4 where this
reaches 2e-6 in less time); mu = 0 (stalls on frames with silent bands); mu = 1e-3 (a tenth faster on a recording, but
23 of 1292 frames of plucked strings stop without a solution, none at 1e-5); conjugate gradients to 0.1 and 0.01 of the
residual (1.7 and 1.05 times the time, the first for more Newton steps); 40 conjugate-gradient steps (2 of 1292 stop);
sigma taken out by the method of multipliers (up to twice as slow, 2 % of the frames stop at 4e-6); a sparse A,
`jax.experimental.sparse.BCOO` with the 2018 entries of a mel basis (before D: products 5 to 8 times as fast, this
method 3.1 times, the whole call of 1292 frames 2.1 times, 382 to 181 ms, at the same accuracy: less than a second form
of A and of its derivative is worth).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._conjugate import conjugate_gradients
from jaxnnls._device import group_size
from jaxnnls._linesearch import step_length
from jaxnnls._objective import einsum, is_least
from jaxnnls._queue import work_off

CG_STEPS = 80
CG_REDUCTION = 0.03
INACTIVE_WEIGHT = 1e-5  # mu, at the start
GROUP = 64  # columns that take a step together
UNCLEAR = 1e3  # eps: what of a proof may be rounding
PATIENCE = 30  # steps a column may take without a substantial decrease; those without a solution stop here


class Columns(NamedTuple):
    """The constraints of some columns."""

    b: Array  # (m, k)
    lower: Array  # (n, k)
    upper: Array  # (n, k)


class Dual(NamedTuple):
    """Columns in progress."""

    w: Array  # (m, k), the dual variable
    u: Array  # (n, k), A'w; x = clip(u)
    misfit: Array  # (m, k), b - A x
    best: Array  # (k,), the smallest ||misfit|| that counted as progress
    since: Array  # (k,), steps since then
    nit: Array  # (k,)


def norm(v: Array) -> Array:
    """Euclidean norms of columns, (m, k) -> (k,)."""
    return jnp.sqrt(jnp.sum(v * v, axis=0))


def out_of_reach(part: Columns, A: Array, w: Array, u: Array) -> Array:
    """Whether w, with u = A'w, proves that no x within the bounds has A x = b, (k,).

    For every y, such an x has b'y = x'A'y <= sum_j max(lower_j (A'y)_j, upper_j (A'y)_j) (Farkas' lemma). Here y = w,
    if all bounds are finite. Without upper ones A'y has to be negative, and y = w - c v with v the sum of the columns
    of A and the smallest c that does it, of any sign: for A >= 0, and wherever else A'v > 0. Zero columns do not count.
    """
    b, lower, upper = part
    eps = jnp.finfo(A.dtype).eps
    length, above = norm(A)[:, None], upper == jnp.inf
    v = jnp.sum(A, axis=1, keepdims=True)
    along = einsum("ij,ik->jk", A, v)
    ratio = (u + 8 * eps * length * norm(w)) / jnp.where(along > 0, along, 1)
    c = jnp.max(jnp.where(above & (along > 0), ratio, -jnp.inf), axis=0, initial=-jnp.inf)
    c = jnp.where(jnp.isfinite(c), c, 0)
    y, slope = w - c * v, u - c * along
    bound = jnp.where(slope > 0, upper, lower)
    gap = jnp.sum(b * y, axis=0) - jnp.sum(jnp.where(slope == 0, 0, bound * slope), axis=0)
    size = norm(w) + jnp.abs(c) * norm(v)
    unclear = UNCLEAR * eps * size * (1 + jnp.sum(jnp.where(slope == 0, 0, jnp.abs(bound) * length), axis=0))
    able = (lower > -jnp.inf) & (~above | (along > 0)) | (length == 0)
    return jnp.all(able, axis=0) & (gap > unclear)


def least_norm(
    A: Array,
    inverse: Array,
    b: Array,
    lower: Array,
    upper: Array,
    w: Array,
    active: Array,
    max_steps: Array,
) -> tuple[Array, Array, Array]:
    """Project 0 onto {x : A x = b, lower <= x <= upper}, for the columns for which that set is not empty.

    Parameters
    ----------
    A : Array, shape (m, n)
    inverse : Array, shape (m, m)
        About (A A')^-1.
    b : Array, shape (m, k)
        Right-hand sides of size at most 1.
    lower, upper : Array, shape (n, k)
    w : Array, shape (m, k)
        The start.
    active : Array of bool, shape (k,)
    max_steps : Array of int, shape ()

    Returns
    -------
    x : Array, shape (n, k)
        Whatever it fits, it is the least-norm point that fits it. It fits b to rounding where that is possible.
    shortest : Array of bool, shape (k,)
        Whether what is left of the misfit does not matter for its norm.
    nit : Array of int, shape (k,)
    """
    m = A.shape[0]
    first_sigma = 0.1 * jnp.sqrt(jnp.finfo(A.dtype).eps) * jnp.sum(A * A) / m
    target = 14 * jnp.finfo(A.dtype).eps
    squares = A * A  # times weights, the diagonal of A diag(weight) A'
    rows = jnp.sum(squares, axis=1, keepdims=True)

    def misfit_of(part: Columns, u: Array) -> Array:
        return part.b - einsum("ij,jk->ik", A, jnp.clip(u, part.lower, part.upper))

    def unfinished(state: Dual) -> Array:
        return (norm(state.misfit) > target) & (state.since < PATIENCE) & (state.nit < max_steps)

    def step(part: Columns, state: Dual, own: Array) -> tuple[Dual, Array]:
        b, lower, upper = part
        w, u, r, best, since, nit = state
        fade = jnp.minimum(norm(r), 1)
        sigma = fade * first_sigma
        weight = jnp.where((u > lower) & (u < upper), 1, fade * INACTIVE_WEIGHT)

        def product(v: Array) -> Array:
            return einsum("ij,jk->ik", A, weight * einsum("ij,ik->jk", A, v)) + sigma * v

        D = jnp.sqrt((rows + sigma) / (einsum("ij,jk->ik", squares, weight) + sigma))

        def precondition(v: Array) -> Array:
            return D * einsum("ij,jk->ik", inverse, D * v)

        stop = jnp.maximum(CG_REDUCTION * norm(r), 0.3 * target)
        d, _ = conjugate_gradients(
            product, jnp.where(own, r, 0), stop * stop, CG_STEPS, precondition, jnp.sum(own) // 2
        )
        image = einsum("ij,ik->jk", A, d)
        straight = jnp.sum(b * d, axis=0)

        def slope(t: Array) -> Array:
            return straight - jnp.sum(jnp.clip(u + t * image, lower, upper) * image, axis=0)

        t = step_length(slope, jnp.sum(r * d, axis=0), own)
        w, u = w + t * d, u + t * image
        misfit = misfit_of(part, u)
        size = norm(misfit)
        better = size < 0.7 * best
        new = Dual(w, u, misfit, jnp.where(better, size, best), jnp.where(better, 0, since + 1), nit + 1)
        return new, unfinished(new)

    part = Columns(b, lower, upper)
    u = einsum("ij,ik->jk", A, w)
    misfit = misfit_of(part, u)
    zero = jnp.zeros_like(active, jnp.int32)
    start = Dual(w, u, misfit, norm(misfit), zero, zero)
    pending = active & unfinished(start) & ~out_of_reach(part, A, w, u)
    end = work_off(step, part, start, pending, group_size(GROUP))
    x = jnp.clip(end.u, lower, upper)
    squared = jnp.sum(x * x, axis=0)
    return x, is_least(squared, squared + 2 * jnp.sum(end.w * end.misfit, axis=0)), end.nit
