"""The step along a direction of a concave piecewise quadratic, exact or nearly so."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnnls._loops import while_loop

FLAT = 0.1  # how much of the slope at 0 there may be beyond the maximum
MAX_EVALUATIONS = 16
LONGEST = 1e3  # Newton steps


def step_length(slope: Callable[[Array], Array], slope_at_zero: Array, active: Array, rest: float = FLAT) -> Array:
    """t > 0 where the decreasing function `slope` has fallen to `rest` of what it is at 0, or less, for each column.

    Tries t = 1, the Newton step; then longer steps while the slope is positive, and false position safeguarded by
    bisection once it is bracketed. Shapes (k,).
    """

    class State(NamedTuple):
        t: Array
        value: Array
        low: Array
        low_value: Array
        high: Array
        high_value: Array
        evaluations: Array

    def unfinished(state: State) -> Array:
        # A slope that stays along the way is rounding, or a target out of reach.
        part = state.value / slope_at_zero
        return active & ((part > rest) | (part < -FLAT)) & (state.t < LONGEST)

    def advance(state: State) -> State:
        t, value, low, low_value, high, high_value, evaluations = state
        rising = value > 0
        low, low_value = jnp.where(rising, t, low), jnp.where(rising, value, low_value)
        high, high_value = jnp.where(rising, high, t), jnp.where(rising, high_value, value)
        bracketed = jnp.isfinite(high)
        width = jnp.where(bracketed, high - low, 0)
        secant = low + width * jnp.clip(low_value / jnp.where(bracketed, low_value - high_value, 1), 0.1, 0.9)
        new = jnp.where(unfinished(state), jnp.where(bracketed, secant, 4 * t), t)
        return State(new, slope(new), low, low_value, high, high_value, evaluations + 1)

    one, zero = jnp.ones_like(slope_at_zero), jnp.zeros_like(slope_at_zero)
    start = State(one, slope(one), zero, slope_at_zero, zero + jnp.inf, zero, jnp.zeros((), jnp.int32))
    return while_loop(lambda s: (s.evaluations < MAX_EVALUATIONS) & jnp.any(unfinished(s)), advance, start).t
