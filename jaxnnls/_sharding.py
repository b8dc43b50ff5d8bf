"""Arrays that are spread over devices with Explicit axes: the solver leaves it to XLA what each device does.

On such a mesh every operation has to say how its result is spread, and sorting columns, for example, cannot. Within
`jax.sharding.auto_axes` nothing has to; the results are spread as the columns of B are.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnnls._problem import Arguments

U = TypeVar("U")


def leave_to_xla(f: Callable[[Arguments], U], arguments: Arguments, outputs: Any) -> U:
    """f(arguments), whatever the mesh.

    Parameters
    ----------
    f : callable
    arguments : Arguments
    outputs : tree as f returns
        At each leaf, whether it has an axis for the variables, as x, or only those of the columns, as status.
    """
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arguments)]
    explicit = [mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types]
    if not explicit:
        return f(arguments)
    spread = tuple(jax.typeof(arguments.columns).sharding.spec)
    leading, column = (spread[:-2], spread[-1:]) if len(spread) > 1 else ((), ())

    def sharding(variables: bool) -> NamedSharding:
        return NamedSharding(explicit[0], P(*leading, *((None,) if variables else ()), *column))

    result: U = jax.sharding.auto_axes(f, out_sharding=jax.tree.map(sharding, outputs))(arguments)
    return result
