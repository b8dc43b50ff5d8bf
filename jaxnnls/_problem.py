"""From what the user passes to a `Problem`: the only checks, the only ValueErrors, and the only reshaping."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxnnls._blocks import broadcasting
from jaxnnls._iteration import Options
from jaxnnls._objective import Problem
from jaxnnls._solver import DEFAULT_MAX_STEPS

DEFAULT_BLOCK_BYTES = 2**25  # half as many: 1.1 times the time for mel bands and decay curves; twice: the same
OPTIONAL = ("x_init", "tol", "max_steps", "smoothing")


class Arguments(NamedTuple):
    """The arguments of one call, checked but not yet reshaped."""

    matrix: ArrayLike  # A (m, n) or Q (n, n)
    columns: ArrayLike  # B (m,) or (..., m, N), or q
    lower: ArrayLike
    upper: ArrayLike
    x_init: ArrayLike | None
    ridge: ArrayLike
    l1: ArrayLike
    tol: ArrayLike | None
    max_steps: ArrayLike | None
    smoothing: ArrayLike | None


def known(value: Any) -> bool:
    """Whether the value of an array can be looked at now: not while it is traced."""
    return not isinstance(value, jax.core.Tracer)


def check(arguments: Arguments, quadratic: bool, block_bytes: int) -> tuple[Arguments, int]:
    """Raise for anything the solver cannot take. Returns the arguments with lists as arrays, and block_bytes.

    The integers of Python become floating numbers, for which there are programs already.

    Raises
    ------
    ValueError
        For ranks and sizes that do not fit, and for values out of range where they are known at trace time.
    TypeError
        For complex, non-numeric, sparse and masked arrays.
    """
    name, right = ("Q", "q") if quadratic else ("A", "B")
    labels = (name, right, *Arguments._fields[2:])
    given: list[Any] = []
    for label, value in zip(labels, arguments):
        given.append(None if value is None and label in OPTIONAL else as_array(label, value))
    arguments = Arguments(*given)
    matrix, columns, lower, upper, x_init, ridge, l1, tol, max_steps, smoothing = arguments
    rows, shape = np.shape(matrix), np.shape(columns)
    if len(rows) != 2:
        raise ValueError(f"Expected {name} with two axes, got shape {rows}; for several {name} use jax.vmap.")
    if quadratic and rows[0] != rows[1]:
        raise ValueError(f"Expected a square Q, got shape {rows}.")
    if not shape:
        raise ValueError(f"Expected {right} with at least one axis, got a scalar.")
    length = shape[0] if len(shape) == 1 else shape[-2]
    if length != rows[0]:
        raise ValueError(
            f"Expected {right} of shape ({rows[0]},) or (..., {rows[0]}, N) to go with {name} of shape {rows}, got"
            f" shape {shape}; columns are problems, so a transpose may be missing."
        )
    n = rows[1]
    x_shape = (n,) if len(shape) == 1 else (*shape[:-2], n, shape[-1])
    for label, bound in (("lower", lower), ("upper", upper)):
        _check_bound(label, np.shape(bound), x_shape, n)
    if x_init is not None and np.shape(x_init) != x_shape:
        raise ValueError(f"Expected x_init of the shape of x, {x_shape}, got shape {np.shape(x_init)}.")
    scalars = {"ridge": ridge, "l1": l1, "tol": tol, "max_steps": max_steps, "smoothing": smoothing}
    for label, value in scalars.items():
        if value is None:
            continue
        if np.shape(value) != ():
            raise ValueError(f"Expected a scalar {label}, got shape {np.shape(value)}.")
        number = float(np.asarray(value)) if known(value) else 0.0
        if not number >= 0 and label != "smoothing":
            raise ValueError(f"Expected {label} >= 0, got {value}.")
        if np.isinf(number) and label in ("ridge", "l1"):
            raise ValueError(f"Expected a finite {label}, got {value}.")
    steps = 0.0 if max_steps is None or not known(max_steps) else float(np.asarray(max_steps))
    if not (steps.is_integer() and steps < 2**31):
        raise ValueError(f"Expected max_steps to be an integer below 2**31, got {max_steps}.")
    if smoothing is not None and known(smoothing) and not np.asarray(smoothing) > 0:
        raise ValueError(f"Expected smoothing > 0, got {smoothing}; None gives the derivative of the solution itself.")
    _check_tol(arguments)
    if not isinstance(block_bytes, int | np.integer) or block_bytes <= 0:
        raise ValueError(f"Expected block_bytes to be a positive int, got {block_bytes!r}.")
    _check_box(arguments, x_shape)
    integers = {name: float(a) for name, a in arguments._asdict().items() if type(a) is int and name != "max_steps"}
    return arguments._replace(**integers), int(block_bytes)


def _check_tol(arguments: Arguments) -> None:
    """JAX takes float64 for float32 without a word; who asks for more than that has to be told."""
    tol, given = arguments.tol, (getattr(a, "dtype", None) for a in (arguments.matrix, arguments.columns))
    if tol is None or not known(tol) or np.float64 not in given:
        return
    dtype = jnp.promote_types(result_dtype(arguments), jnp.float32)
    if 0 < np.asarray(tol) < jnp.finfo(dtype).eps:
        why = "; None is the smallest of use."
        if dtype != np.float64:
            why = ": the data are float64, but JAX computes in float32 until jax.config.update('jax_enable_x64', True)."
        raise ValueError(f"Expected tol >= {jnp.finfo(dtype).eps:.1e}, the rounding error of {dtype}, got {tol}{why}")


def pair(bounds: tuple[ArrayLike, ArrayLike]) -> tuple[ArrayLike, ArrayLike]:
    """Lower and upper bounds."""
    try:
        lower, upper = bounds
    except (TypeError, ValueError):
        raise ValueError(f"Expected bounds to be a pair (lower, upper), got {bounds!r}.") from None
    return lower, upper


def as_array(label: str, a: Any) -> Any:
    """What is like an array as an array of real numbers; integers that JAX would wrap, in its default float dtype.

    Lists, tables and the tensors of others are taken as NumPy takes them, and objects that stand for an array of JAX,
    such as the parameters of a model, as JAX does. A copy of a masked array would be all of its data, what is masked as
    well.
    """
    if a is None:
        raise TypeError(f"Expected numbers in {label}, got None.")
    if hasattr(a, "__jax_array__") and not isinstance(a, jax.Array):
        a = a.__jax_array__()
    if not isinstance(a, jax.Array | np.ndarray | np.generic | int | float | complex):
        if hasattr(a, "todense"):
            kind = type(a).__name__
            raise TypeError(f"Expected a dense {label}, got a sparse {kind}; give what its `todense` makes.")
        a = np.asanyarray(a)
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"Expected {label} without a mask, got a masked array; give its `filled` values.")
    try:
        dtype = jnp.result_type(a)
    except TypeError:  # text, objects, dates, numbers of 128 bits
        dtype = np.asarray(a).dtype
        raise TypeError(f"Expected numbers in {label}, of a dtype that JAX has, got dtype {dtype}.") from None
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"Expected a real {label}, got dtype {dtype}; solve for real and imaginary part separately.")
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise TypeError(f"Expected numbers in {label}, got dtype {dtype}.")
    if isinstance(a, np.ndarray | np.integer) and a.dtype.kind in "iu" and a.size:
        held = jax.dtypes.canonicalize_dtype(a.dtype)
        if held != a.dtype and (a.min() < np.iinfo(held).min or a.max() > np.iinfo(held).max):
            return a.astype(np.float32)
    return a


def _check_bound(label: str, shape: tuple[int, ...], x_shape: tuple[int, ...], n: int) -> None:
    if shape in ((), (n,)):
        return
    if len(shape) == 1:
        raise ValueError(f"Expected a one-dimensional {label} to have one entry per variable, {n}, got {shape[0]}.")
    try:
        fits = np.broadcast_shapes(shape, x_shape) == x_shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"Expected {label} to broadcast to the shape of x, {x_shape}, got shape {shape}.")


def _check_box(arguments: Arguments, x_shape: tuple[int, ...]) -> None:
    lower, upper, l1 = arguments.lower, arguments.upper, arguments.l1
    if known(lower) and known(upper):
        dtype = jnp.promote_types(jnp.result_type(arguments.matrix, arguments.columns, float), jnp.float32)
        with np.errstate(over="ignore"):  # what is beyond it is infinite
            low, high = (np.asarray(bound).astype(dtype) for bound in (lower, upper))
        if len(x_shape) > 1:
            low, high = (bound[:, None] if bound.ndim == 1 else bound for bound in (low, high))
        crossed = low > high
        if np.any(crossed):
            raise ValueError(
                f"Expected lower <= upper, got lower > upper in {np.count_nonzero(crossed)} of {crossed.size} places."
            )
        if np.any(low == np.inf) or np.any(high == -np.inf):
            raise ValueError("Expected lower < inf and upper > -inf, got a box without finite points.")
    if known(l1) and np.asarray(l1) > 0 and known(lower) and np.any(np.asarray(lower) < 0):
        raise ValueError("Expected lower >= 0 where l1 > 0, since l1 weighs sum(x); raise lower or use ridge.")


def result_dtype(arguments: Arguments) -> Any:
    """The dtype of x: the promoted inexact dtype of the matrix and the right-hand sides."""
    return jnp.result_type(jnp.asarray(arguments.matrix), jnp.asarray(arguments.columns), float)


@broadcasting
def assemble(arguments: Arguments, quadratic: bool) -> tuple[Problem, Options]:
    """The problem with columns last, in the dtype that it is solved in."""
    dtype = result_dtype(arguments)
    dtype = jnp.promote_types(dtype, jnp.float32)
    matrix, columns = jnp.asarray(arguments.matrix, dtype), jnp.asarray(arguments.columns, dtype)
    n = matrix.shape[1]
    x_shape = (n,) if columns.ndim == 1 else (*columns.shape[:-2], n, columns.shape[-1])

    def spread(value: ArrayLike) -> Array:
        """A bound as (n, N), or (n, 1) where all columns share it."""
        value = jnp.asarray(value, dtype)
        value = value[:, None] if value.ndim == 1 and len(x_shape) > 1 else value
        shared = value.ndim < 2 or (value.shape[-1] == 1 and math.prod(value.shape[:-2]) == 1)
        if shared and len(x_shape) > 1:
            return jnp.broadcast_to(value, (*value.shape[:-2], n, 1)).reshape(n, 1)
        return columns_last(jnp.broadcast_to(value, x_shape))

    ridge, l1 = jnp.asarray(arguments.ridge, dtype), jnp.asarray(arguments.l1, dtype)
    linear = jnp.broadcast_to(l1, (n, 1))
    right = columns_last(columns)
    lower, upper = spread(arguments.lower), spread(arguments.upper)
    x_init = None if arguments.x_init is None else columns_last(jnp.asarray(arguments.x_init, dtype))

    # No equations are one equation 0 x = 0; no variables are one variable fixed at 0 (`columns_back` drops it).
    if n == 0:
        linear, lower, upper = (jnp.zeros((1, 1), dtype) for _ in range(3))
        x_init = None
        matrix = jnp.zeros((1, 1) if quadratic else (matrix.shape[0], 1), dtype)
        right = jnp.zeros((1, right.shape[1]), dtype) if quadratic else right
    if matrix.shape[0] == 0:
        matrix, right = jnp.zeros((1, matrix.shape[1]), dtype), jnp.zeros((1, right.shape[1]), dtype)

    if quadratic:
        problem = Problem(None, matrix, None, linear - right, ridge, lower, upper)
    else:
        problem = Problem(matrix, None, right, linear, ridge, lower, upper)
    tol = jnp.finfo(dtype).eps ** 0.823 if arguments.tol is None else arguments.tol
    max_steps = DEFAULT_MAX_STEPS if arguments.max_steps is None else arguments.max_steps
    smoothing = None if arguments.smoothing is None else jnp.asarray(arguments.smoothing, dtype)
    return problem, Options(x_init, jnp.asarray(tol, dtype), jnp.asarray(max_steps, jnp.int32), smoothing, l1)


def columns_last(a: Array) -> Array:
    """(m,) -> (m, 1); (..., m, N) -> (m, all columns)."""
    if a.ndim == 1:
        return a[:, None]
    return jnp.moveaxis(a, -2, 0).reshape(a.shape[-2], math.prod(a.shape[:-2]) * a.shape[-1])


def columns_back(a: Array, arguments: Arguments) -> Array:
    """The inverse of `columns_last` for (n, N) in the shape of x, or (N,), one number a column."""
    n, shape = np.shape(arguments.matrix)[1], np.shape(arguments.columns)
    if a.ndim == 2:
        a = a[:n]
    if len(shape) == 1:
        return a[..., 0]
    batch = (*shape[:-2], shape[-1])
    return a.reshape(batch) if a.ndim == 1 else jnp.moveaxis(a.reshape(n, *batch), 0, -2)
