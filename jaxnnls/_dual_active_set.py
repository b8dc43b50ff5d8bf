"""Quadratic programs of full rank, few columns: the dual active-set method of Goldfarb and Idnani.

It starts at the minimiser without bounds. The bound that x violates most is made active: x moves to it, along the
minimisers with the active bounds as equations, unless a multiplier on the way becomes zero, whose bound is let go
first. The dual objective rises with every bound, so no active set comes twice (Goldfarb and Idnani 1983,
doi:10.1007/BF02591962). In the solution of an ill-conditioned program few bounds are active, whatever the path of a
primal method there: 54 of 460 and 61 of 1504 in two of condition 1e11, by 78 and 87 pivots.

Active bounds take slots s: variable p_s, sign +1 for a lower bound and -1 for an upper one. With K = H^-1, the signed
rows W_s = sign_s K[p_s] and M the inverse of sign_s sign_t K[p_s, p_t], bound p with row w = sign K[p] is met along

    dx = w - W'r,    dy = -r for the multipliers of the others, 1 for its own,    r = M (sign_s w[p_s])

and M changes by a matrix of rank one. Only rows in use are read, CHUNK at a time: a pivot costs n numbers per active
bound. What K and M gather of rounding matters little: in the end x is refined on its free set by the residuals of
H itself, with P = K - W'M W in the place of H_FF^-1. If the active set was wrong, that shows in its optimality.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls._device import group_size
from jaxnnls._loops import fori_loop, while_loop
from jaxnnls._objective import (
    Columns,
    Problem,
    attainable,
    columns_of,
    einsum,
    gradient,
    natural_residual,
    with_columns,
)
from jaxnnls._queue import work_off

CHUNK = 32  # rows that are read together; 64 and 128 take 1.0 and 1.3 times the time (n = 460)
SLOTS = 256  # active bounds, at most
GROUP = 8  # columns that are solved together: each has slots (n + slots) numbers


class State(NamedTuple):
    """One column in progress."""

    x: Array  # (n,)
    held: Array  # (n,), bool: on an active bound
    W: Array  # (slots, n)
    M: Array  # (slots, slots), zero outside of slots in use
    variable: Array  # (slots,), int32: p_s
    sign: Array  # (slots,), 0 where a slot is not in use
    y: Array  # (slots,), multipliers
    p: Array  # (), int32: the variable whose bound is being made active
    p_sign: Array  # (), 0 if there is none
    p_y: Array  # ()
    going: Array  # (), bool
    pivots: Array  # (), int32


class Solved(NamedTuple):
    """Columns before and after."""

    x: Array  # (n, k)
    pivots: Array  # (k,), int32


class Refinement(NamedTuple):
    """Columns with an active set on the way to their minimiser there."""

    x: Array  # (n, k)
    g: Array  # (n, k)
    optimality: Array  # (k,)
    going: Array  # (k,), bool


def chunks_in_use(sign: Array) -> Array:
    """How many chunks of rows hold all slots in use, ()."""
    last = jnp.max(jnp.where(sign != 0, jnp.arange(1, len(sign) + 1), 0))
    return (last + CHUNK - 1) // CHUNK


def weighted_rows(weight: Array, T: Array, chunks: Array) -> Array:
    """sum_s weight_s T_s over the first chunks of rows, (slots,) and (slots, w) -> (w,)."""

    def add(state: tuple[Array, Array]) -> tuple[Array, Array]:
        i, total = state
        rows, own = (lax.dynamic_slice_in_dim(a, i * CHUNK, CHUNK) for a in (T, weight))
        return i + 1, total + einsum("i,ij->j", own, rows)

    return while_loop(lambda state: state[0] < chunks, add, (jnp.zeros_like(chunks), jnp.zeros_like(T[0])))[1]


def corrected(M: Array, size: Array, u: Array, keep: Array, chunks: Array) -> Array:
    """M + size u u' in the rows and columns to keep, zero in others, over the first chunks of rows."""

    def change(state: tuple[Array, Array]) -> tuple[Array, Array]:
        i, M = state
        rows, own, kept = (lax.dynamic_slice_in_dim(a, i * CHUNK, CHUNK) for a in (M, u, keep))
        rows = jnp.where(kept[:, None] & keep, rows + size * own[:, None] * u, 0)
        return i + 1, lax.dynamic_update_slice_in_dim(M, rows, i * CHUNK, axis=0)

    return while_loop(lambda state: state[0] < chunks, change, (jnp.zeros_like(chunks), M))[1]


def pivot(K: Array, lower: Array, upper: Array, limit: Array, state: State) -> State:
    """Make a bound active, or let one go that stands in its way."""
    x, held, W, M, variable, sign, y, p, p_sign, p_y, going, pivots = state
    eps = jnp.finfo(x.dtype).eps
    violation = jnp.where(held, 0, jnp.maximum(lower - x, x - upper))
    # The bound that is furthest in the norm of H.
    worst = jnp.argmax(violation * lax.rsqrt(jnp.diag(K))).astype(jnp.int32)
    fresh = p_sign == 0
    p = jnp.where(fresh, worst, p)
    p_sign = jnp.where(fresh, jnp.where(lower[p] > x[p], 1, -1), p_sign).astype(x.dtype)
    p_y = jnp.where(fresh, 0, p_y)
    going &= ~fresh | (violation[worst] > 4 * eps * jnp.max(jnp.abs(x)))

    w = p_sign * K[p]
    chunks = chunks_in_use(sign)
    r = weighted_rows(sign * w[variable], M, chunks)
    dx = jnp.where(held, 0, w - weighted_rows(r, W, chunks))
    curvature = p_sign * dx[p]
    ratio = jnp.where((sign != 0) & (r > 0), y / jnp.where(r > 0, r, 1), jnp.inf)
    blocking, unused = jnp.argmin(ratio), jnp.argmin(sign != 0)
    bound = jnp.where(p_sign > 0, lower[p], upper[p])
    full = jnp.where(curvature > 0, p_sign * (bound - x[p]) / jnp.where(curvature > 0, curvature, 1), jnp.inf)
    t = jnp.minimum(ratio[blocking], full)
    adding = full <= ratio[blocking]
    going &= jnp.isfinite(t) & (pivots < limit) & ~(adding & (sign[unused] != 0))

    slot = jnp.where(adding, unused, blocking)
    own, here = jnp.arange(len(sign)) == slot, jnp.arange(len(x))
    u = jnp.where(adding, r - own, M[slot])
    size = jnp.where(going, jnp.where(adding, 1 / curvature, -1 / M[slot, slot]), 0)
    # A column that is done is left alone.
    taken, left = going & adding, going & ~adding
    chunks = jnp.maximum(chunks, jnp.where(taken, slot // CHUNK + 1, 0))
    t = jnp.where(going, t, 0)
    moved = jnp.where(taken & (here == p), bound, x + t * dx)
    return State(
        x=jnp.where(going, moved, x),
        held=jnp.where(here == p, held | taken, held & ~(left & (here == variable[slot]))),
        W=W.at[slot].set(jnp.where(taken, w, W[slot])),
        M=corrected(M, size, u, ~(own & left), chunks),
        variable=jnp.where(own & taken, p, variable),
        sign=jnp.where(own, jnp.where(taken, p_sign, jnp.where(left, 0, sign)), sign),
        y=jnp.where(own & taken, p_y + t, y - t * r),
        p=p,
        p_sign=jnp.where(taken, 0, p_sign),
        p_y=p_y + t,
        going=going,
        pivots=pivots + going,
    )


def dual_active_set(problem: Problem, K: Array, x: Array, active: Array, limit: Array) -> tuple[Array, Array]:
    """Solve the active columns.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled, with a positive definite H.
    K : Array, shape (n, n)
        H^-1.
    x : Array, shape (n, k)
        Returned where nothing better is found.
    active : Array of bool, shape (k,)
    limit : Array of int, shape (k,)
        On pivots.

    Returns
    -------
    x : Array, shape (n, k)
    pivots : Array of int, shape (k,)
    """
    n, dtype = len(K), K.dtype
    slots = -(-min(n, SLOTS) // CHUNK) * CHUNK

    def solve(x: Array, lower: Array, upper: Array, active: Array, limit: Array) -> State:
        nothing, zero = jnp.zeros(slots, dtype), jnp.zeros((), jnp.int32)
        state = State(
            x=x,
            held=jnp.zeros(n, bool),
            W=jnp.zeros((slots, n), dtype),
            M=jnp.zeros((slots, slots), dtype),
            variable=jnp.zeros(slots, jnp.int32),
            sign=nothing,
            y=nothing,
            p=zero,
            p_sign=jnp.zeros((), dtype),
            p_y=jnp.zeros((), dtype),
            going=active & jnp.all(jnp.isfinite(x)),
            pivots=zero,
        )
        return while_loop(lambda state: state.going, lambda state: pivot(K, lower, upper, limit, state), state)

    def run(given: tuple[Columns, Array], old: Solved, own: Array) -> tuple[Solved, Array]:
        part, limit, x = with_columns(problem, given[0]), given[1], old.x

        def judged(x: Array) -> tuple[Array, Array]:
            g = gradient(part, x)
            return g, natural_residual(x, g, part.lower, part.upper)

        start = jnp.zeros_like(x)
        start = fori_loop(2, lambda _, x: x - einsum("ij,jk->ik", K, gradient(part, x)), start)
        end = jax.vmap(solve, in_axes=(1, 1, 1, 0, 0))(start, part.lower, part.upper, own, limit)
        free = ~end.held.T

        def refine(state: Refinement) -> Refinement:
            v = einsum("ij,jk->ik", K, jnp.where(free, state.g, 0))
            r = einsum("kst,kt->ks", end.M, end.sign * jnp.take_along_axis(v.T, end.variable, axis=1))
            v -= einsum("ks,ksj->jk", r, end.W)
            x = jnp.clip(state.x - jnp.where(free, v, 0), part.lower, part.upper)
            g, optimality = judged(x)
            better = state.going & (optimality < state.optimality)
            going = (optimality < 0.5 * state.optimality) & (optimality > attainable(x, 0))
            x, g = (jnp.where(better, new, old) for new, old in ((x, state.x), (g, state.g)))
            return Refinement(x, g, jnp.where(better, optimality, state.optimality), better & going)

        solution = jnp.clip(end.x.T, part.lower, part.upper)
        state = while_loop(lambda state: jnp.any(state.going), refine, Refinement(solution, *judged(solution), own))
        better = own & (state.optimality < judged(x)[1])
        return Solved(jnp.where(better, state.x, x), end.pivots), jnp.zeros_like(own)

    start = Solved(x, jnp.zeros_like(active, jnp.int32))
    end = work_off(run, (columns_of(problem), limit), start, active, group_size(GROUP))
    return end.x, end.pivots
