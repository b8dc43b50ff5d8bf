"""What a solve returns, and what to do when it failed."""

import enum
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray


class Status(enum.IntEnum):
    """How the solve of one column ended; `advice` says what to do about it."""

    CONVERGED = 0
    MAX_STEPS = 1
    PRECISION = 2
    NONFINITE = 3
    INFEASIBLE = 4
    UNBOUNDED = 5

    @property
    def advice(self) -> str:
        """What it means and what to do, in a sentence."""
        return _ADVICE[self]


_ADVICE = {
    Status.CONVERGED: "Optimal within tol.",
    Status.MAX_STEPS: "max_steps were spent before tol was reached: raise max_steps, or leave it at None.",
    Status.PRECISION: (
        "Not within tol, or not certainly of least norm, as far as this dtype can tell: solve in float64"
        " (jax.config.update('jax_enable_x64', True)), or leave out columns of A that are almost combinations of"
        " others."
    ),
    Status.NONFINITE: "NaN or inf in the data of this column or in A: look for what made it upstream.",
    Status.INFEASIBLE: "lower exceeds upper somewhere in this column: check how the bounds are computed.",
    Status.UNBOUNDED: "The objective falls without limit: add finite bounds or a ridge, or check that Q fits q.",
}


class Solution(NamedTuple):
    """The solutions of a batch of bounded least-squares problems, one a column.

    x, dual and residual_norm carry derivatives. Printing a solution waits for it and says how it went.

    Attributes
    ----------
    x : Array, shape (n,) or (..., n, N)
        The solution. A variable that is not free equals its bound exactly.
    dual : Array, shape of x
        The gradient of the objective at x: zero where x is free, non-negative at a lower bound, non-positive at an
        upper one.
    residual_norm : Array, shape () or (..., N)
        ||A x - b||; NaN from `box_qp`.
    optimality : Array, shape () or (..., N)
        The scaled natural residual, 0 at a KKT point, without units.
    nit : Array of int32, shape () or (..., N)
        Steps taken.
    status : Array of int32, shape () or (..., N)
        One `Status` per column.
    active_mask : Array of int32, shape of x
        -1 where x equals its lower bound, 1 its upper one, 0 elsewhere, as in SciPy.

    Examples
    --------
    >>> import jaxnnls, numpy as np
    >>> jaxnnls.lsq_linear(np.eye(2), np.array([[1.0, np.nan], [2.0, 3.0]]))
    Solution: x (2, 2) float32, 1 of 2 columns converged, worst optimality 0.0e+00, at most 2 steps
    NONFINITE (1 column, first 1): NaN or inf in the data of this column or in A: look for what made it upstream.
    """

    x: Array
    dual: Array
    residual_norm: Array
    optimality: Array
    nit: Array
    status: Array
    active_mask: Array

    @property
    def success(self) -> Array:
        """Which columns converged, shape of status, bool."""
        return self.status == Status.CONVERGED

    def __repr__(self) -> str:
        if not all(isinstance(a, np.ndarray | Array) and not isinstance(a, jax.core.Tracer) for a in self):
            # While it is traced, or where `jax.tree.map` has put something else.
            return f"Solution({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"
        status, optimality, nit = (np.asarray(a) for a in (self.status, self.optimality, self.nit))
        known = optimality[~np.isnan(optimality)]
        columns = f"{np.count_nonzero(status == Status.CONVERGED)} of {status.size} columns converged"
        worst = f"worst optimality {np.max(known, initial=0):.1e}, at most {np.max(nit, initial=0)} steps"
        head = f"Solution: x {self.x.shape} {self.x.dtype}, {columns}, {worst}"
        return "\n".join([head, *failures(tally(status))])


def raise_if_failed(solution: Solution) -> None:
    """Raise if any column failed, saying how many, why, and what to try.

    Waits for the result; call it outside `jax.jit`.

    Parameters
    ----------
    solution : Solution
        What `lsq_linear` or `box_qp` returned.

    Raises
    ------
    RuntimeError
        If any status is not `Status.CONVERGED`.

    Examples
    --------
    >>> import jaxnnls, numpy as np
    >>> sol = jaxnnls.lsq_linear(np.eye(2), np.array([[1.0, np.nan], [2.0, 3.0]]))
    >>> jaxnnls.raise_if_failed(sol)
    Traceback (most recent call last):
    ...
    RuntimeError: 1 of 2 columns failed.
    NONFINITE (1 column, first 1): NaN or inf in the data of this column or in A: look for what made it upstream.
    """
    status = np.asarray(solution.status)
    failed = np.flatnonzero(status)
    if not failed.size:
        return
    raise RuntimeError("\n".join([f"{failed.size} of {status.size} columns failed.", *failures(tally(status))]))


class Outcome(NamedTuple):
    """How many columns ended in one way."""

    columns: int
    first: tuple[int, ...]  # index of the first of them


def tally(status: NDArray[np.int32]) -> dict[Status, Outcome]:
    """How many columns ended in which way, and where first."""
    values, first, counts = np.unique(status, return_index=True, return_counts=True)
    return {
        Status(value): Outcome(int(count), tuple(int(i) for i in np.unravel_index(index, status.shape)))
        for value, index, count in zip(values, first, counts)
    }


def failures(outcomes: Mapping[Status, Outcome]) -> list[str]:
    """One line for each way in which columns failed: how many, where first, and what to do."""
    lines = []
    for status, (count, first) in sorted(outcomes.items()):
        if status != Status.CONVERGED:
            where = f"{count} column{'s' * (count != 1)}, first {', '.join(str(i) for i in first) or '0'}"
            lines.append(f"{status.name} ({where}): {status.advice}")
    return lines


def choose_status(converged: Array, out_of_steps: Array, finite: Array, feasible: Array, bounded: Array) -> Array:
    """The status of each column from what is known of it, the most telling first. Shapes (N,)."""
    status = jnp.where(out_of_steps, Status.MAX_STEPS, Status.PRECISION)
    status = jnp.where(converged, Status.CONVERGED, status)
    status = jnp.where(bounded, status, Status.UNBOUNDED)
    status = jnp.where(feasible, status, Status.INFEASIBLE)
    return jnp.where(finite, status, Status.NONFINITE).astype(jnp.int32)
