"""One call: as one program where it is traced, as two or three outside of that.

    begin     all that most calls need
    finish    what is left: minimisers that may not be unique, and columns that the first algorithms do not solve
    output    what the caller gets of the result, with its derivative

`finish` is half of what there is to compile, and an eager call can look whether it is asked for. That is decided by the
data alone: the same call takes the same programs, and gives the same numbers. Derivatives outside of `jax.jit` pass
through `output` alone, since what was solved are values.
"""

import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _derivative as derivative
from jaxnnls import _solver as solver
from jaxnnls._blocks import broadcasting
from jaxnnls._loops import alike
from jaxnnls._matrix import Matrix
from jaxnnls._objective import Problem
from jaxnnls._problem import Arguments, assemble, known
from jaxnnls._sharding import leave_to_xla
from jaxnnls._solver import Result

U = TypeVar("U")


class Output(NamedTuple, Generic[U]):
    """What the caller gets."""

    of: Callable[[Arguments, Problem, Result, int], U]  # from these and block_bytes
    variables: Any  # at each leaf, whether it has an axis for the variables, as x, or only those of the columns
    judged: bool  # whether it tells optimality and status


def values(arguments: Arguments) -> Arguments:
    """The arguments without derivatives: outside of `jax.jit` and `jax.vmap`, their values are known."""
    return jax.tree.map(lambda a: a if known(a) else lax.stop_gradient(a), arguments)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def solve_at_once(arguments: Arguments, block_bytes: int, quadratic: bool, output: Output[U]) -> U:
    """Solve by one program, wherever the arguments are."""

    def solved(arguments: Arguments) -> U:
        # The gradient of what all devices share is summed over them here, not in every block.
        problem, options = alike(assemble(arguments, quadratic))
        result = solver.solve(*lax.stop_gradient((problem, options)), block_bytes)
        x = derivative.attach(problem, options.smoothing, result, block_bytes)
        return output.of(arguments, problem, result._replace(x=x), block_bytes)

    return leave_to_xla(solved, arguments, output.variables)


def solve_in_stages(arguments: Arguments, block_bytes: int, quadratic: bool, output: Output[U]) -> U:
    """Solve by several programs. Waits for the first."""
    own = values(arguments)
    matrix, result, pending, some = _begin(own, block_bytes, quadratic, output.judged)
    if jax.device_get(some):
        result = _finish(own, matrix, result, pending, block_bytes, quadratic, output.judged)
    return _output(arguments, result, block_bytes, quadratic, output)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
@broadcasting
def _begin(
    arguments: Arguments, block_bytes: int, quadratic: bool, judged: bool
) -> tuple[Matrix, Result, Array, Array]:
    problem, options = assemble(arguments, quadratic)
    matrix, result, pending = solver.begin(problem, options, block_bytes)
    return matrix, _told(result, judged), pending, jnp.any(pending)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
@broadcasting
def _finish(
    arguments: Arguments,
    matrix: Matrix,
    result: Result,
    pending: Array,
    block_bytes: int,
    quadratic: bool,
    judged: bool,
) -> Result:
    problem, options = assemble(arguments, quadratic)
    if not judged:
        number = jnp.zeros_like(result.x[0])
        result = result._replace(optimality=number, status=number.astype(jnp.int32))
    return _told(solver.finish(problem, options, matrix, result, pending, block_bytes), judged)


def _told(result: Result, judged: bool) -> Result:
    """The result, with nothing in the place of what nobody asks for: XLA leaves out what is computed for it."""
    if judged:
        return result
    return result._replace(optimality=result.optimality[:0], status=result.status[:0])


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _output(arguments: Arguments, result: Result, block_bytes: int, quadratic: bool, output: Output[U]) -> U:
    problem, options = assemble(arguments, quadratic)
    x = derivative.attach(problem, options.smoothing, result, block_bytes)
    return output.of(arguments, problem, result._replace(x=x), block_bytes)
