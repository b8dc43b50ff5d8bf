"""Few variables: the active-set method of Lawson and Hanson, a pivot a step, all columns of a block at once.

From the free set F a step goes towards the minimiser on it, x_F <- x_F + t d, d = -H_FF^-1 g_F, as far as the bounds
allow. Where that is all the way, the variable with the most wrong multiplier is freed; where not, the variable that
stands in the way leaves F. The objective falls with every step, and no free set comes twice (Lawson and Hanson 1974,
chapter 23, for x >= 0; Stark and Parker 1995 for bounds).

H_FF^-1 is kept in a tableau T (n, n) per column, which starts as H and takes one pivot a step (the sweep operator,
Goodnight 1979, doi:10.1080/00031305.1979.10482685): T_FF = H_FF^-1, and outside of F the Schur complement. It only
serves for directions, while the gradient is computed anew from A: rounding errors of the pivots do not reach x.

This is for ill-conditioned curves with few parameters: it starts from an empty F, and the free sets of solutions are
small and well conditioned, whatever A is. Its arithmetic is 5 n^2 a step and column, and no call of a factorisation.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._blocks import while_loop, work_off
from jaxnnls._objective import (
    Columns,
    Problem,
    attainable,
    columns_of,
    einsum,
    gradient,
    with_columns,
)

FEW = 16  # variables
VISITS = 4
GROUP = 128  # columns that take steps together


class State(NamedTuple):
    """Columns in progress."""

    x: Array  # (n, k)
    T: Array  # (n, n, k)
    free: Array  # (n, k), 0 or 1
    pivot: Array  # (n, k), 1 for the variable that leaves F next
    settled: Array  # (k,), bool: whether the last step went all the way
    stale: Array  # (k,), max |g| over F at the last step
    done: Array  # (k,), bool
    nit: Array  # (k,)
    step: Array


def first(hit: Array, dtype: jnp.dtype[Any]) -> Array:
    """1 for the first hit of each column, (n, k) -> (n, k). As a product: argmax is slow on a CPU."""
    n, hit = len(hit), hit.astype(dtype)
    return hit * (einsum("ij,jk->ik", jnp.tri(n, k=-1, dtype=dtype), hit) == 0)


def weighted_sum(T: Array, weight: Array) -> Array:
    """sum_i weight_i T_i, (n, n, k) and (n, k) -> (n, k). Written out: XLA reduces one number at a time on a CPU."""
    return functools.reduce(jnp.add, [T[i] * weight[i] for i in range(len(T))])


def exchange(T: Array, free: Array, pivot: Array) -> tuple[Array, Array]:
    """Move the pivot of each column into F or out of it; returns T and free.

    A pivot is 1 for one variable or 0 for all. A variable whose column depends on those of F stays outside.
    """
    row = weighted_sum(T, pivot)
    size = jnp.sum(pivot * row, axis=0)
    possible = size > jnp.finfo(T.dtype).eps
    pivot = jnp.where(possible, pivot, 0)
    column = jnp.where(free == jnp.sum(pivot * free, axis=0), row, -row)
    factor = (column - pivot) * jnp.where(possible, 1 / jnp.where(possible, size, 1), 0)
    return T - factor[:, None] * (row + pivot)[None], jnp.abs(free - pivot)


def active_set(
    problem: Problem, gram: Array, x: Array, active: Array, tol: Array, max_steps: Array
) -> tuple[Array, Array, Array]:
    """Solve the active columns from x.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled.
    gram : Array, shape (n, n)
        H.
    x : Array, shape (n, k)
        The start, within bounds.
    active : Array of bool, shape (k,)
    tol : Array, shape ()
    max_steps : Array of int, shape ()

    Returns
    -------
    x : Array, shape (n, k)
    regular : Array of bool, shape (k,)
        Whether the columns of the free variables are known to be independent.
    nit : Array of int, shape (k,)
    """
    n = x.shape[0]
    most = jnp.minimum(VISITS * n, max_steps)

    def run(given: Columns, state: tuple[Array, Array, Array], own: Array) -> tuple[tuple[Array, Array, Array], Array]:
        part = with_columns(problem, given)
        lower, upper = given.lower, given.upper

        def step(state: State) -> State:
            x, T, free, pivot, settled, before, done, nit, count = state
            g = gradient(part, x)
            room = attainable(x, tol)
            # What is inside its bounds has to be free; what is on one may be freed if its multiplier is wrong.
            wrong = jnp.where(x <= lower, -g, jnp.where(x >= upper, g, jnp.inf))
            wrong = jnp.where((free > 0) | (lower == upper), 0, wrong)
            worst = jnp.max(wrong, axis=0)
            stale = jnp.max(jnp.abs(free * g), axis=0)
            # Beyond tol, down to rounding, as long as that is quick.
            fine = (stale <= attainable(x, 0)) | ((stale <= room) & (stale > 0.5 * before))
            done |= settled & (worst <= room) & fine
            enter = first((wrong == worst) & settled & (worst > room), x.dtype)
            T, new_free = exchange(T, free, jnp.where(settled, enter, pivot) * ~done)
            done |= (settled & (worst > room) & jnp.all(new_free == free, axis=0)) | (nit >= most)
            free = new_free
            d = -free * weighted_sum(T, free * g)
            d = jnp.where(done, 0, d)
            ratio = jnp.where(d == 0, jnp.inf, (jnp.where(d > 0, upper, lower) - x) / jnp.where(d == 0, 1, d))
            t = jnp.min(ratio, axis=0)
            leave = first((ratio == t) & (t < 1), x.dtype)
            x = jnp.clip(x + jnp.minimum(t, 1) * d, lower, upper)
            x = jnp.where(leave > 0, jnp.where(d > 0, upper, lower), x)
            return State(x, T, free, leave, t >= 1, stale, done, nit + ~done, count + 1)

        x, _, nit = state
        nothing = jnp.zeros_like(x)
        start = State(
            x,
            jnp.broadcast_to(gram[:, :, None], (n, n, x.shape[1])),
            nothing,
            nothing,
            jnp.ones_like(own),
            jnp.full_like(x[0], jnp.inf),
            ~own,
            nit,
            jnp.zeros((), jnp.int32),
        )
        end = while_loop(lambda s: (s.step < n) & ~jnp.all(s.done), step, start)
        # In F, 1 / T_jj is the squared distance of column j from the span of the others.
        inverse = jnp.stack([end.T[j, j] for j in range(n)]) * end.free
        regular = jnp.all(inverse * 16 * n * jnp.finfo(x.dtype).eps < 1, axis=0)
        # A column that depends on those in F was kept outside, even if its variable is inside its bounds.
        regular &= jnp.all((end.free > 0) | (end.x <= lower) | (end.x >= upper), axis=0)
        # Pivots begin anew for those who need many: their tableau is worn, and easy columns need not wait for them.
        return (end.x, regular, end.nit), ~end.done & (end.nit < most)

    start = (x, jnp.zeros_like(active), jnp.zeros_like(active, jnp.int32))
    return work_off(run, columns_of(problem), start, active, GROUP)
