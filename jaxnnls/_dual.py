"""The least-norm solution of A x = b, lower <= x <= upper, by Newton's method on its dual, all columns at once.

    maximise over w    b'w - phi(A'w),      phi(u) = max_x u'x - 1/2 ||x||^2 = u'x - 1/2 ||x||^2 at x = clip(u)

so x = clip(A'w), and w solves the m equations A clip(A'w) = b, which are piecewise linear and monotone. This is the
flagship case, A wide and b in its cone: mel inversion takes 3 to 8 steps. Each step solves

    (A_F A_F' + mu A_N A_N' + sigma I) dw = r,     F free, N the rest

by conjugate gradients, then searches along dw, without further products with A. The weight mu keeps rows alive whose
columns are all at a bound, sigma keeps the step finite; neither changes what the iteration converges to. Both fade with
the residual, as in Levenberg and Marquardt's method: spectra of power have bands of next to nothing between large ones,
which decide about few variables, by small eigenvalues. What stays of sigma is for rows that depend on others: there r
holds nothing but rounding, which would be divided by it.
The preconditioner is D (A A')^-1 D, where the diagonal D makes up for what the rows lose of their size to N.

See Li, Sun and Toh (2018, doi:10.1137/16M1097572) for semismooth Newton with conjugate gradients on such duals.
Unfinished columns are gathered for each step, GROUP at a time: a column costs its own steps. They need 4 conjugate
gradients a step, some of them 60. So these go on until two thirds of a group have their direction; then those take
their step, and the others go on in the next round, with whoever waits then. A column takes the same steps whatever
others are beside it. (Directions as they were when half of a group had theirs were as fast, but hard columns beside
ones that nothing fits never got a good one.) Those that nothing fits would spend ten steps and more for nothing; where
`out_of_reach` proves it, they take none (all of 256 x 513 mel bands of random targets and of 64 x 256 uniform A and b,
for 0.95 and 0.6 of the time of the solve; few whose best residual is below 1e-2, so the proof is tried once and not
after each step).

A step may stop where three quarters of the slope are left: to go beyond a Newton step, which the line search did until
a tenth was left, costs evaluations, and the next step is worse for it (a recording: 6.9 steps a column become 5.4, and
0.65 of the time; decaying strings 13.9, 10.7 and 0.73).

Where A A' is tridiagonal, as of mel bands, the step is solved by elimination instead (`_tridiagonal`), exactly, so that
mu may be next to nothing, small bands may take their steps, and w soon proves that nothing fits, if so. Of the time by
conjugate gradients, float32 and float64: a recording 0.6 and 0.4; decaying strings as power, 80 bands, with what is
left to `rescue`, 0.04 and 0.015, and 862 of 862 frames solved in float64 instead of 784 (with mu and patience as below
0.1, and 815). Noise on bands that nothing fits takes 0.65 of the time for the proof after each step.

Measured, for any A, mel 128 x 1025, float32: with D, 1.9 times less time for a recording and 3.6 times less for
decaying plucked strings, whose frames have silent bands: without it, conjugate gradients spend all of 80 steps. With a
patience of 10 steps 9 of 130 frames of power are left to others in float64, with 15 none; with 30 what nothing fits
takes up to 1.25 times as long.

Measured in turn with the code before directions waited and steps stopped early, float32: 130 frames of five notes as
power, 128 bands, 13 instead of 31 steps a column and 0.4 of the time; 80 bands, 12, 17 and 0.7; decaying strings with
bands down to nothing 0.77; a recording the same. float64: 0.6, 0.9, 0.8, and 1.1 for the recording. In wide matrices of
low rank, 40 x 64 to 100 x 300, 1 of 2880 columns ends at PRECISION in float32, where 221 and, with a sigma that fades
to nothing, 193 did.

Not chosen: accelerated gradients on the same dual with the same preconditioner (100 steps reach 1e-4 where this
reaches 2e-6 in less time); mu = 0 (stalls on frames with silent bands); mu = 1e-3 (a tenth faster on a recording, but
23 of 1292 frames of plucked strings stop without a solution, none at 1e-5); conjugate gradients to 0.1 and 0.03 of the
residual (1.2 to 4 and 1.0 to 1.4 times the time, for more Newton steps); 40 conjugate-gradient steps (2 of 1292 stop);
sigma taken out by the method of multipliers (up to twice as slow, 2 % of the frames stop at 4e-6); a sparse A,
`jax.experimental.sparse.BCOO` with the 2018 entries of a mel basis (before D: products 5 to 8 times as fast, this
method 3.1 times, the whole call of 1292 frames 2.1 times, 382 to 181 ms, at the same accuracy: less than a second form
of A and of its derivative is worth).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnnls._conjugate import Conjugate, advance, start
from jaxnnls._device import group_size
from jaxnnls._linesearch import step_length
from jaxnnls._loops import if_any, once
from jaxnnls._objective import einsum, is_least
from jaxnnls._queue import work_off
from jaxnnls._tridiagonal import bands, neighbours, solve

ENOUGH = 14  # eps: the misfit of what fits, of a b of size 1
CG_STEPS = 80
CG_REDUCTION = 0.015
INACTIVE_WEIGHT = 1e-5  # mu, at the start
REST = 0.75  # of the slope along a step
LEFT = 3  # conjugate gradients end when one of so many columns is still without a direction
GROUP = 64  # columns that take a step together
UNCLEAR = 1e3  # eps: what of a proof may be rounding
PATIENCE = 15  # steps a column may take without a substantial decrease; those without a solution stop here
LAST_PATIENCE = 3  # where x fits and may not be of least norm, since what is left of the misfit has a large w
IMPATIENCE = 10  # where rows depend on others, and rounding can put a target out of reach
# Where A A' is tridiagonal a step costs little and its direction is exact: small bands need more steps and less weight.
TRIDIAGONAL_PATIENCE = 30
TRIDIAGONAL_WEIGHT = 1e-9


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
    direction: Conjugate  # on its way; new where it has taken no steps


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
    independent: Array,
    tridiagonal: Array,
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
    independent : Array of bool, shape ()
        Whether the rows of A are.
    tridiagonal : Array of bool, shape ()
        Whether A diag(v) A' is, for any v.

    Returns
    -------
    x : Array, shape (n, k)
        Whatever it fits, it is the least-norm point that fits it. It fits b to rounding where that is possible.
    shortest : Array of bool, shape (k,)
        Whether what is left of the misfit does not matter for its norm.
    nit : Array of int, shape (k,)
    """
    m = A.shape[0]
    eps, mean = jnp.finfo(A.dtype).eps, jnp.sum(A * A) / m  # eigenvalue of A A'
    enough, most = ENOUGH * eps, jnp.where(independent, PATIENCE, IMPATIENCE)
    most = jnp.where(tridiagonal, TRIDIAGONAL_PATIENCE, most)
    least_weight = jnp.where(tridiagonal, TRIDIAGONAL_WEIGHT, INACTIVE_WEIGHT)
    squares = A * A  # times weights, the diagonal of A diag(weight) A'
    rows = jnp.sum(squares, axis=1, keepdims=True)
    products = neighbours(A)

    def misfit_of(part: Columns, u: Array) -> Array:
        return part.b - einsum("ij,jk->ik", A, jnp.clip(u, part.lower, part.upper))

    def is_shortest(part: Columns, state: Dual) -> Array:
        squared = jnp.sum(jnp.clip(state.u, part.lower, part.upper) ** 2, axis=0)
        return is_least(squared, squared + 2 * jnp.sum(state.w * state.misfit, axis=0))

    def unfinished(part: Columns, state: Dual) -> Array:
        fits = norm(state.misfit) <= enough
        patience = jnp.where(fits, LAST_PATIENCE, most)
        return ~(fits & is_shortest(part, state)) & (state.since < patience) & (state.nit < max_steps)

    def step(part: Columns, state: Dual, own: Array) -> tuple[Dual, Array]:
        b, lower, upper = part
        w, u, r, best, since, nit, direction = state
        fade = jnp.minimum(norm(r), 1)
        sigma = jnp.maximum(0.1 * fade * jnp.sqrt(eps), eps) * mean
        weight = jnp.where((u > lower) & (u < upper), 1, fade * least_weight)

        def product(v: Array) -> Array:
            return einsum("ij,jk->ik", A, weight * einsum("ij,ik->jk", A, v)) + sigma * v

        D = jnp.sqrt((rows + sigma) / (einsum("ij,jk->ik", squares, weight) + sigma))

        def precondition(v: Array) -> Array:
            return D * einsum("ij,jk->ik", inverse, D * v)

        target = jnp.maximum(CG_REDUCTION * norm(r), 0.3 * enough) ** 2
        fresh = start(jnp.where(own, r, 0), target, precondition)
        direction = jax.tree.map(lambda a, b: jnp.where(state.direction.steps == 0, a, b), fresh, direction)
        direction = direction._replace(going=direction.going & own & ~tridiagonal)
        direction = advance(product, direction, target, CG_STEPS, precondition, jnp.sum(own) // LEFT)

        def by_elimination(given: tuple[Array, Array, Array]) -> Array:
            weight, sigma, r = given
            return solve(bands(products, weight), sigma, r)

        direct = once(tridiagonal, by_elimination, (weight, sigma, r), r)
        going, d = direction.going, jnp.where(tridiagonal, direct, direction.d)
        image = einsum("ij,ik->jk", A, d)
        straight = jnp.sum(b * d, axis=0)

        def slope(t: Array) -> Array:
            return straight - jnp.sum(jnp.clip(u + t * image, lower, upper) * image, axis=0)

        t = step_length(slope, jnp.sum(r * d, axis=0), own & ~going, REST)
        w, u = w + t * d, u + t * image
        misfit = misfit_of(part, u)
        size = norm(misfit)
        better = size < 0.7 * best
        best, since = jnp.where(better, size, best), jnp.where(better, 0, since + 1)
        stepped = Dual(w, u, misfit, best, since, nit + 1, direction._replace(steps=jnp.zeros_like(nit)))
        waiting = state._replace(direction=direction)
        new = jax.tree.map(lambda a, b: jnp.where(going, a, b), waiting, stepped)
        # Along exact directions w soon proves it, where nothing fits; conjugate gradients seldom get there.
        none = jnp.zeros_like(own)
        hopeless = if_any(tridiagonal, lambda _: out_of_reach(part, A, new.w, new.u), none)
        return new, unfinished(part, new) & ~hopeless

    part = Columns(b, lower, upper)
    u = einsum("ij,ik->jk", A, w)
    misfit = misfit_of(part, u)
    zero = jnp.zeros_like(active, jnp.int32)
    begun = Dual(w, u, misfit, norm(misfit), zero, zero, start(misfit, jnp.zeros_like(norm(misfit)), lambda r: r))
    pending = active & unfinished(part, begun) & ~out_of_reach(part, A, w, u)
    end = work_off(step, part, begun, pending, group_size(GROUP))
    return jnp.clip(end.u, lower, upper), is_shortest(part, end), end.nit
