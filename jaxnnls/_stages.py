"""One call: as one program where it is traced, as two outside of that.

    result    what is solved, without a derivative
    output    what the caller gets of it, with its derivative

Derivatives outside of `jax.jit` pass through `output` alone, since what was solved are values.

Tried and taken back: what only some columns need, half of all that is compiled, as a third program, for calls with such
a column. First calls took 2.2 to 2.6 s instead of 3.6 to 4.5, but a call then waits for its first program, to see
whether there is one.
"""

import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxnnls import _derivative as derivative
from jaxnnls import _solver as solver
from jaxnnls._loops import alike
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
    # XLA would compute what follows from constants while it compiles, slowly, and complain of that on stderr: A'A, say.
    # Compilation takes 0.70 of the time for 256 x 513 mel bands in a model, 0.91 for 128 x 1025, 0.94 for 1025 x 128.
    arguments = jax.tree.map(lambda a: lax.optimization_barrier(a) if jnp.ndim(a) else a, arguments)

    def solved(arguments: Arguments) -> U:
        # The gradient of what all devices share is summed over them here, not in every block.
        problem, options = alike(assemble(arguments, quadratic))
        result = solver.solve(*lax.stop_gradient((problem, options)), block_bytes)
        x = derivative.attach(problem, options.smoothing, result, block_bytes)
        return output.of(arguments, problem, result._replace(x=x), block_bytes)

    return leave_to_xla(solved, arguments, output.variables)


def solve_in_stages(arguments: Arguments, block_bytes: int, quadratic: bool, output: Output[U]) -> U:
    """Solve by two programs."""
    result = _result(values(arguments), block_bytes, quadratic, output.judged)
    return _output(arguments, result, block_bytes, quadratic, output)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _result(arguments: Arguments, block_bytes: int, quadratic: bool, judged: bool) -> Result:
    result = solver.solve(*assemble(arguments, quadratic), block_bytes)
    if judged:
        return result
    # XLA leaves out what is computed for nobody.
    return result._replace(optimality=result.optimality[:0], status=result.status[:0])


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _output(arguments: Arguments, result: Result, block_bytes: int, quadratic: bool, output: Output[U]) -> U:
    problem, options = assemble(arguments, quadratic)
    x = derivative.attach(problem, options.smoothing, result, block_bytes)
    return output.of(arguments, problem, result._replace(x=x), block_bytes)
