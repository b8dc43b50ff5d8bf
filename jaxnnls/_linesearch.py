"""The step along a direction of a concave piecewise quadratic, exact or nearly so."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._loops import while_loop

FLAT = 0.1  # how much of the slope at 0 there may be beyond the maximum
PLAIN = 8  # evaluations, before an end that stays counts half
MAX_EVALUATIONS = 32
LONGEST = 1e3  # Newton steps


def step_length(slope: Callable[[Array], Array], slope_at_zero: Array, active: Array, rest: float = FLAT) -> Array:
    """t > 0 where the decreasing function `slope` has fallen to `rest` of what it is at 0, or less, for each column.

    Tries t = 1, the Newton step; then longer steps while the slope is positive, and false position once it is
    bracketed. Where that goes on for long, since the slope is flat on one side and steep on the other, an end that
    stays counts half (Dowell and Jarratt 1971, doi:10.1007/BF01934364): 42 of 9000 columns with a duplicate in a box
    (7 x 4, float64) were given up as PRECISION after 16 evaluations, now 2. From the beginning, it would leave one of
    12 columns with duplicates, 200 x 150 in float32, that is solved. Shapes (k,).
    """

    class State(NamedTuple):
        t: Array
        value: Array
        low: Array
        low_value: Array
        high: Array
        high_value: Array
        rising: Array  # whether the slope was positive at the t before
        evaluations: Array

    def unfinished(state: State) -> Array:
        # A slope that stays along the way is rounding, or a target out of reach.
        part = state.value / slope_at_zero
        return active & ((part > rest) | (part < -FLAT)) & (state.t < LONGEST)

    def advance(state: State) -> State:
        t, value, low, low_value, high, high_value, before, evaluations = state
        rising = value > 0
        again = jnp.where((rising == before) & (evaluations >= PLAIN), 0.5, 1)
        low, low_value = jnp.where(rising, t, low), jnp.where(rising, value, again * low_value)
        high, high_value = jnp.where(rising, high, t), jnp.where(rising, again * high_value, value)
        bracketed = jnp.isfinite(high)
        width = jnp.where(bracketed, high - low, 0)
        secant = low + width * jnp.clip(low_value / jnp.where(bracketed, low_value - high_value, 1), 0.1, 0.9)
        new = jnp.where(unfinished(state), jnp.where(bracketed, secant, 4 * t), t)
        return State(new, slope(new), low, low_value, high, high_value, rising, evaluations + 1)

    one, zero = jnp.ones_like(slope_at_zero), jnp.zeros_like(slope_at_zero)
    rising = jnp.ones_like(active)  # at t = 0
    start = State(one, slope(one), zero, slope_at_zero, zero + jnp.inf, zero, rising, jnp.zeros((), jnp.int32))
    return while_loop(lambda s: (s.evaluations < MAX_EVALUATIONS) & jnp.any(unfinished(s)), advance, start).t
