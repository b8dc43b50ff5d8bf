"""The robust path: proximal point steps, each solved by Newton's method with a factorisation for each column.

With R'R = A'A (or Q), from a feasible x_k with gradient g_k, a proximal step goes to the exact minimiser of

    g_k'(x - x_k) + 1/2 ||R (x - x_k)||^2 + ridge/2 ||x - x_k||^2 + sigma/2 ||x - x_k||^2,    lower <= x <= upper

It converges for every convex problem, singular or not, in few steps as sigma is small (Rockafellar 1976,
doi:10.1137/0314056), and no step raises the objective, so there are no cycles. The smaller sigma, the further a step
goes, and the more of Newton's steps it takes, up to hundreds: so sigma starts large, and is a tenth of that after each
step, down to a tenth of what the dtype allows; after a step that rounding spoilt it is larger. The minimiser is

    x = clip(a + W R'w)    where    R x + (sigma + e) w = R x_k

with a = x_k - g_k / (sigma + ridge), W = (sigma + e) / (sigma + ridge) and e the least ridge of a (scaled) variable: as
many equations as R has rows, piecewise linear and monotone: Newton's method solves them. With a = 0, W = unit^2 and
nothing before w the same equations project 0 onto {x : R x = R x_k}, the minimisers, once x_k is one of them: the
least-norm solution.

Where the minimiser is unique, a last step of the smallest sigma refines it, or of none, where there is a ridge. Then x
is exact to rounding times the condition of A, where an x that is optimal to tol is off by tol / ridge, or by rounding
times the square of that condition (float32: mel bands with ridges of 7e-4 to 7e-7 of their largest column squared, 0.1
to 21 % of x, now 2e-7; peaks with more rows than columns, 20 %, now 5e-5). Of 36,000 columns of wide A, with ridges of
1e-2 to 1e-10 of that, float64, 1991 ended at PRECISION with a smallest sigma above the ridge, and none does without.

Columns wait in the queue for each step of Newton's method, so that none waits for another's (with the method as a loop
of its own in a proximal step: 1.1 to 1.35 times the time, the same points).

Sigma from 2e-3 of the mean eigenvalue on, a tenth of that each time, and not from sqrt(eps) of it: wide A of six kinds,
columns of more than 40 steps, float64 0.38 of the time, and of 720 columns none left instead of 12; float32 0.93, and
as many left; with 2e-4 or 2e-2, or a thirtieth or a hundredth each time, up to 0.49 and 1.01. Until sigma is as small
as it gets, a good step need not make progress otherwise: with a ridge of 1e-6 of the largest eigenvalue half of the
columns were given up. With a ridge, wide A take two steps of descent, and then proximal ones from 0, not from there:
those stay near the range of A', as the solution does (float32, of the time with ten steps of descent, proximal ones
from where they ended and no last step: 40 x 120 0.8 and 1.05, 128 x 400 0.65, 12 x 40 0.85, mel bands 1 to 1.5; 40 x
120 with a ridge that descent alone could solve 1.9, and misfits of few free variables 2). Without a ridge that makes no
difference.

Where the systems are tridiagonal, as those of mel bands, elimination takes the place of factorisations
(`_tridiagonal`), and sigma may fall further: of filter banks with l1, float64, 45 of 240 columns are left instead of 90
with a fiftieth of sqrt(eps), and fewer still with eps^(3/4); in float32 it makes no difference. Such banks, nine kinds
with six kinds of problems each, 40 columns: 0.3 of the time with factorisations. A smaller FIRST is no good there
either: 2e-4 and 2e-5 take 2 to 6 times as long in boxes, and up to two thirds of the columns are left.

Measured by factorisations, float32, 128 x 1025 and 80 x 513 mel bands with 198 targets that nothing fits: 30 end at
PRECISION, with optimalities to 2.4e-5, if sigma is not to fall below sqrt(eps); with a tenth of that 5, to 3.8e-6. With
a fiftieth, of 1200 tall A in boxes 97 are left instead of 110, of 1520 others 207 instead of 202, in 1.04 of the time.

Measured and not chosen: matrices of 16, 32 and 64 columns at a time where they are 128 x 128 (1.0 to 1.9 times the time
of 4); block principal pivoting (cycles on Gram systems with condition 1e11), projected Newton (zigzags there), adding
one variable at a time (3 factorisations on an easy dictionary, 60 and more on wide problems without a unique minimiser;
this takes 5 to 20 on all of them); the Newton system by the free block of H and the Woodbury formula (a third of the
arithmetic for n <= m, but it loses sqrt(eps) and stops at an optimality of 1e-8). Conjugate gradients, preconditioned
as in `least_norm`, in the place of factorisations for wide A, 64 columns a step: float32 0.4 of the time for 256 x 1025
mel bands, 0.55 for 256 x 513, 0.9 to 1.07 for 128 x 1025, as accurate, 1.1 for 80 x 513; but what (A A')^-1 has to do
with A_F A_F' differs from matrix to matrix, with independent rows too. 120 x 200 Gaussian peaks, condition 760: none of
9 columns is solved, the optimality 3.5e-3 where factorisations reach 6e-7; with a ridge, and with many dependent rows,
the same. float64 about twice the time, and some columns without a solution. Projections of wide A by `least_norm`, as
exact fits of A x with the variables fixed that have a multiplier: 0.62 to 0.85 of the time for mel bands, but 1.1 to
2.2 times for overlapping peaks and bands of more overlap, some of which then are not solved. The factorisation of an
earlier step as the preconditioner of 15 conjugate gradients saves a third to a half of the factorisations for 4 to 11
conjugate gradients each. The problem with a ridge of 1e-4, by the same dual as `least_norm`, in the place of sweeps,
and projections from its multipliers: 0.85 of the time for 128 mel bands with wild noise, but 2 to 5 times for peaks and
for uniform and normal A.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnnls._device import group_size
from jaxnnls._matrix import Matrix
from jaxnnls._newton import Equations, Iterate, Systems, largest, newton_step
from jaxnnls._objective import (
    Columns,
    Problem,
    attainable,
    columns_of,
    einsum,
    gradient,
    is_least,
    natural_residual,
    with_columns,
)
from jaxnnls._queue import work_off
from jaxnnls._tridiagonal import neighbours

NEWTON_STEPS = 50  # of a proximal step; a projection ends by itself
PATIENCE = 4
FIRST = 2e-3  # sigma, of the mean eigenvalue of A'A
CAUTION = 10  # how much larger sigma becomes after a step that failed, and smaller after one that did not
SMALLEST = 0.1  # sigma, of sqrt(eps) times the mean eigenvalue; for tridiagonal systems, eps^(3/4) of that eigenvalue
# Columns that take a step together, at most: those that need this are few, and each has its own number. With 8 and 32,
# mel bands with a ridge and ones that nothing fits, float32, take 1.1 to 1.4 and 0.8 to 1.3 times the time.
GROUP = 16

MINIMISE, SHORTEN, REFINE, DONE = range(4)


def rounding(x: Array) -> Array:
    """What the gradient at x may be wrong by. (n, k) -> (k,)."""
    return jnp.finfo(x.dtype).eps * (1 + jnp.sum(jnp.abs(x), axis=0))


class State(NamedTuple):
    """Columns in progress."""

    x: Array  # (n, k), the best x so far
    g: Array  # (n, k)
    optimality: Array  # (k,)
    previous: Array  # (k,), the optimality that counted as progress
    since: Array  # (k,), steps since then
    sigma: Array  # (k,)
    nit: Array  # (k,)
    stage: Array  # (k,), MINIMISE, SHORTEN, REFINE or DONE
    least: Array  # (k,), half the squared norm that no minimiser is below; infinite before a projection
    left: Array  # (k,), what is left of the equations of this step; infinite before Newton's first
    inner: Iterate  # Newton's method on its way from x to the next point


class Rescued(NamedTuple):
    """What `rescue` has reached."""

    x: Array  # (n, k)
    g: Array  # (n, k), the gradient at x
    optimality: Array  # (k,)
    shortest: Array  # (k,), bool: whether x is known to be the minimiser of least norm
    nit: Array  # (k,), factorisations


def rescue(
    problem: Problem,
    matrix: Matrix,
    x: Array,
    g: Array,
    optimality: Array,
    active: Array,
    tol: Array,
    max_steps: Array,
    warm: bool = False,
) -> Rescued:
    """Bring columns to optimality and, where the minimiser may not be unique, to the least norm.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled.
    matrix : Matrix
        R is its root; least norm refers to x_scaled / unit.
    x, g : Array, shape (n, k)
        The start, within bounds, and the gradient there.
    optimality : Array, shape (k,)
        Of the start.
    active : Array of bool, shape (k,)
        Other columns are returned as they are.
    tol : Array, shape ()
    max_steps : Array of int, shape (k,)
    warm : bool
        Whether x may have a large part that makes no difference to A x, as a user's start has. Its rounding is then
        in the target of a projection. (For any x, 25 of 14,256 columns more end at PRECISION in float32, of matrices
        as hard as peaks.)
    """
    R, determined, singular, ridge = matrix.root, matrix.determined, matrix.singular, problem.ridge
    root_eps = jnp.sqrt(jnp.finfo(x.dtype).eps)
    # x_scaled / x, at most 1 for what may differ between minimisers. The rest has no part in how it does.
    unit = matrix.scales.s / jnp.max(jnp.where(determined, 0, matrix.scales.s), initial=0)
    metric = jnp.where(determined, 1, unit**2)

    def half_norm(x: Array) -> Array:
        return jnp.sum((x / unit) ** 2, axis=0) / 2

    def mean_eigenvalue(R: Array) -> Array:
        mean = jnp.sum(R * R) / max(R.shape[0], 1)
        return jnp.where(mean > 0, mean, 1)

    wide = matrix.inverse is not None
    systems = Systems(R, neighbours(R) if wide else None, matrix.tridiagonal)
    size = mean_eigenvalue(R)
    smallest = jnp.where(matrix.tridiagonal, root_eps**1.5, SMALLEST * root_eps) * size
    smallest = jnp.maximum(smallest, matrix.ridge)
    damping = root_eps * mean_eigenvalue(jnp.where(determined, 0, R.T * unit).T)

    def ridge_alone(state: State) -> Array:
        return (matrix.ridge > 0) & (state.sigma <= smallest)

    def equations_at(state: State, lower: Array, upper: Array) -> Equations:
        x, g, shorten = state.x, state.g, state.stage == SHORTEN
        # After a projection the way back to optimality is short in the units of the norm. In those of the columns, a
        # small one could go far.
        W = jnp.where(shorten | (jnp.isfinite(state.least) & (state.since < PATIENCE / 2)), metric, 1)
        sigma = jnp.where(ridge_alone(state), 0, state.sigma)
        total = jnp.where(matrix.scales.junk, 1, sigma + ridge)
        sigma += matrix.ridge
        # All minimisers share R x, and a variable with a multiplier stays where it is.
        held = shorten & (determined | (jnp.abs(g) > jnp.maximum(32 * rounding(x), 4 * state.optimality)))
        target = einsum("ij,jk->ik", R, x)
        # Of a Q any x may have such a part as a user's start, since it is known less exactly than A.
        far = largest(x) if warm or problem.Q is not None else 0
        return Equations(
            a=jnp.where(shorten, 0, x - W * g / total),
            W=jnp.where(shorten, W, W * sigma / total),
            lower=jnp.where(held, x, lower),
            upper=jnp.where(held, x, upper),
            target=target,
            noise=matrix.noise * jnp.maximum(far, largest(target)),
            sigma=jnp.where(shorten, 0, sigma),
            damping=jnp.where(shorten, damping, sigma),
        )

    def step(given: tuple[Columns, Array], state: State, own: Array) -> tuple[State, Array]:
        part, max_steps = with_columns(problem, given[0]), given[1]
        equations = equations_at(state, part.lower, part.upper)
        inner, rest, going = newton_step(systems, equations, state.inner, own)
        nit = state.nit + 1
        x, g = state.x, state.g
        minimise, shorten, refine = (state.stage == stage for stage in (MINIMISE, SHORTEN, REFINE))
        # What Newton's method ends with is as exact as its last direction: to refine it is to go on.
        left = largest(rest - equations.sigma * inner.w)
        halved = (left > 4 * jnp.finfo(x.dtype).eps * largest(equations.target)) & (left < 0.5 * state.left)
        going |= (refine | (minimise & ridge_alone(state))) & halved
        going &= (shorten | (inner.steps < NEWTON_STEPS)) & (nit < max_steps)

        # Where Newton's method has ended, y is judged.
        y = jnp.clip(inner.u, equations.lower, equations.upper)
        misfit = largest(rest)
        g_new = gradient(part, y)
        optimality = natural_residual(y, g_new, part.lower, part.upper)
        # A proximal step must lower the objective, or what is left to optimality. A projection that is close is made
        # optimal again by a proximal step, which moves it no further.
        lower_objective = jnp.sum((y - x) * (g + g_new), axis=0) < 0
        better = minimise & (lower_objective | (optimality < state.optimality))
        # x = clip(W R'w) is the shortest of all that share R x with it. Both norms count: below the misfit that
        # rounding leaves there may be room for small columns with large variables.
        norm, new_norm = half_norm(x), half_norm(y)
        # For a = 0 and sigma = 0 the dual objective: at most 1/2 sum x^2 / W of any feasible x.
        bound = jnp.sum(equations.target * inner.w, axis=0) - jnp.sum((inner.u - y / 2) * y / equations.W, axis=0)
        bound += jnp.sum(jnp.where(determined, (x / unit) ** 2 - x * x, 0), axis=0) / 2
        short = shorten & (misfit <= jnp.minimum(1e4 * tol, root_eps))
        short &= is_least(new_norm, bound)
        take = better | short | (refine & (optimality <= jnp.maximum(state.optimality, attainable(y, 0))))
        # Where rounding keeps the projection away, x itself may be shown to be of least norm.
        least = jnp.where(shorten, bound, state.least)
        shortest = ~singular | is_least(jnp.where(take, new_norm, norm), least)
        x, g = jnp.where(take, y, x), jnp.where(take, g_new, g)
        progress = better & (optimality < 0.5 * state.previous) | short
        # A step of large sigma that goes well gains a smaller sigma, if not yet more.
        since = jnp.where(progress, 0, state.since + (minimise & ~(better & (state.sigma > smallest))))
        previous = jnp.where(progress, optimality, state.previous)
        optimality = jnp.where(take, optimality, state.optimality)
        sigma = jnp.where(better, state.sigma / CAUTION, state.sigma * jnp.where(minimise, CAUTION, 1))
        sigma = jnp.where(short, damping, jnp.maximum(sigma, smallest))

        # What is to be projected afterwards is first solved as well as rounding allows.
        optimal = optimality <= attainable(x, tol)
        # A projection may leave a misfit that is barely optimal, and by A itself, which rounds otherwise, is not.
        enough = optimality <= jnp.where(shortest, attainable(x, tol / 2), rounding(x))
        enough |= since >= PATIENCE
        last = jnp.where(singular, jnp.where(shortest | (least < jnp.inf), DONE, SHORTEN), REFINE)
        stage = jnp.where(enough, jnp.where(optimal, last, DONE), MINIMISE)
        stage = jnp.where(refine | (shorten & ~short) | (nit >= max_steps), DONE, stage)
        sigma = jnp.where(stage == REFINE, smallest, sigma)
        anew = inner._replace(steps=jnp.zeros_like(nit))
        ended = State(x, g, optimality, previous, since, sigma, nit, stage, least, jnp.full_like(left, jnp.inf), anew)
        new = jax.tree.map(lambda a, b: jnp.where(going, a, b), state._replace(inner=inner, nit=nit, left=left), ended)
        return new, new.stage < DONE

    zero = jnp.zeros_like(max_steps)
    optimal = optimality <= jnp.where(singular, rounding(x), attainable(x, tol))
    stage = jnp.where(optimal, jnp.where(singular, SHORTEN, REFINE), MINIMISE)
    sigma = jnp.where(stage == REFINE, smallest, FIRST * size)
    least, rows = jnp.full_like(optimality, jnp.inf), jnp.zeros((len(R), x.shape[1]), x.dtype)
    inner = Iterate(rows, x, optimality, zero, zero)
    start = State(x, g, optimality, optimality, zero, sigma, zero, stage, least, least, inner)
    group = group_size(GROUP)
    end = work_off(step, (columns_of(problem), max_steps), start, active & (stage < DONE), group)
    return Rescued(end.x, end.g, end.optimality, ~singular | is_least(half_norm(end.x), end.least), end.nit)
