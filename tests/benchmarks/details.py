"""What a solve by this package costs beside the least that it could: derivatives, eager calls, memory, more columns."""

import inspect
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxnnls

from .measure import Say, timed
from .peers import jitted, our_solver
from .workloads import Kind, Workload

MORE = 16
FEWER = 7
MIB = 2**20


@dataclass
class Details:
    """Seconds, MiB and ratios; NaN where the budget did not allow it, or the device does not tell.

    Attributes
    ----------
    workload : str
    note : str
        The exception's name if there was one.
    columns : int
        How many were solved: all, or as many as the budget allows. No time here is scaled up.
    solve, gradient, gradient_first : float
        Seconds of the solve and of the value and gradient of sum(x**2) with respect to A and B.
    gradient_ratio, shifted_ratio : float
        gradient / solve, and the same of sum((x - 1)**2), which depends on the variables at their bounds as well.
    floor, floors : float
        Seconds of A'B and of one check of the solution, and how many of these a solve takes.
    growth : float
        Cost of a column among 16 N / among N.
    eager_extra : float
        Seconds that a call outside `jax.jit` takes longer than one inside.
    eager_first, eager_gradient_first : float
        Seconds of the first call outside `jax.jit`, and of the first value and gradient there after it.
    eager_other : float
        Seconds of the first call outside `jax.jit` for another number of columns.
    temporaries, temporaries_more, block : float
        MiB of temporaries of the solve of N and of 16 N columns, and the budget that `block_bytes` sets.
    """

    workload: str
    columns: int
    note: str = ""
    solve: float = np.nan
    gradient: float = np.nan
    gradient_first: float = np.nan
    gradient_ratio: float = np.nan
    shifted_ratio: float = np.nan
    floor: float = np.nan
    floors: float = np.nan
    growth: float = np.nan
    eager_extra: float = np.nan
    eager_first: float = np.nan
    eager_gradient_first: float = np.nan
    eager_other: float = np.nan
    temporaries: float = np.nan
    temporaries_more: float = np.nan
    block: float = inspect.signature(jaxnnls.nnls).parameters["block_bytes"].default / MIB


def floor(kind: Kind) -> Callable[[Any, Any, Any], Any]:
    """What every method has to compute at least: A'b, and the violation of the optimality conditions at x."""

    def violation(X: jax.Array, gradient: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(X > 0, jnp.abs(gradient), jnp.maximum(-gradient, 0)), axis=0)

    def quadratic(Q: jax.Array, q: jax.Array, X: jax.Array) -> jax.Array:
        return violation(X, Q @ X - q)

    def least_squares(A: jax.Array, B: jax.Array, X: jax.Array) -> tuple[jax.Array, jax.Array]:
        return A.T @ B, violation(X, A.T @ (A @ X - B))

    if kind == "gram":
        return quadratic
    return jax.vmap(least_squares) if kind == "vmap" else least_squares


def examine(workload: Workload, repeat: int, budget: float, say: Say) -> Details:
    """Measure all of this.

    Parameters
    ----------
    workload : Workload
    repeat : int
    budget : float
        Seconds that the solve of 16 N columns, and the repetitions of the others, may take each.
    say : callable
        Takes a line on progress.

    Returns
    -------
    details : Details
    """
    say("jaxnnls in detail")
    details = Details(workload.name, workload.units)
    try:
        _fill(details, workload, repeat, budget)
    except Exception as error:  # the other workloads go on
        details.note = type(error).__name__
        say(f"jaxnnls in detail: {error!r}")
    return details


def _fill(details: Details, workload: Workload, repeat: int, budget: float) -> None:
    solver = our_solver(workload.kind)
    A, B = jnp.asarray(workload.A), jnp.asarray(workload.B)
    jax.clear_caches()

    def loss(A: jax.Array, B: jax.Array) -> jax.Array:
        return jnp.sum(solver(A, B) ** 2)

    def shifted_loss(A: jax.Array, B: jax.Array) -> jax.Array:
        return jnp.sum((solver(A, B) - 1) ** 2)

    both, shifted_both = (jax.value_and_grad(f, argnums=(0, 1)) for f in (loss, shifted_loss))
    details.eager_first, _ = timed(lambda: solver(A, B))
    details.eager_gradient_first, _ = timed(lambda: both(A, B))
    jax.clear_caches()
    solve, gradient, shifted = (jitted(f, workload) for f in (solver, both, shifted_both))
    details.gradient_first, _ = timed(gradient)
    _, X = timed(solve)
    check = jax.jit(floor(workload.kind))
    calls = [solve, gradient, shifted, lambda: check(A, B, X), lambda: solver(A, B)]

    other = workload.take(workload.sample(workload.units - FEWER)) if workload.units > FEWER else workload.tiled(FEWER)
    other_A, other_B = jnp.asarray(other.A), jnp.asarray(other.B)
    for call in calls:
        timed(call)
    details.eager_other, _ = timed(lambda: solver(other_A, other_B))

    details.solve, details.gradient, shifted_seconds, details.floor, eager = _in_turn(calls, repeat, budget)
    details.gradient_ratio, details.shifted_ratio = details.gradient / details.solve, shifted_seconds / details.solve
    details.floors = details.solve / details.floor
    details.eager_extra = eager - details.solve
    details.temporaries = _temporaries(solver, workload)
    if MORE * details.solve * 3 > budget:
        return
    more = workload.tiled(MORE)
    details.temporaries_more = _temporaries(solver, more)
    solve_more = jitted(solver, more)
    timed(solve_more)
    few, many = _in_turn([solve, solve_more], repeat, budget)
    details.growth = many / few / MORE


def _in_turn(calls: list[Callable[[], Any]], repeat: int, budget: float) -> list[float]:
    """The median seconds of each call, made one after the other, fewer times if time is short."""
    seconds = [[timed(call)[0] for call in calls]]
    turns = min(repeat, int(budget / sum(seconds[0])))
    seconds += [[timed(call)[0] for call in calls] for _ in range(turns - 1)]
    return [statistics.median(column) for column in zip(*seconds)]


def _temporaries(solver: Callable[[Any, Any], Any], workload: Workload) -> float:
    """MiB that the compiled solve allocates besides its arguments and its result."""
    compiled = jax.jit(solver).lower(jnp.asarray(workload.A), jnp.asarray(workload.B)).compile()
    memory = compiled.memory_analysis()
    return float("nan") if memory is None else memory.temp_size_in_bytes / MIB
