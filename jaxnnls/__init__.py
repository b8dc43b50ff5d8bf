"""Exact, least-norm, bounded least squares for every column of a batch: differentiable, in JAX.

    X   = jaxnnls.nnls(A, B)                                    min 1/2 ||A x - b||^2,  x >= 0
    sol = jaxnnls.lsq_linear(A, B, bounds=(lower, upper))       the same within bounds, with status and multipliers
    sol = jaxnnls.box_qp(Q, q, bounds=(lower, upper))           min 1/2 x'Qx - q'x within bounds

`solve_nnls` and `solve_nnls_primal` run code that was written for the package of this name on PyPI until 1.0.1.

One call goes through the modules in this order, and back: `_api` (public functions), `_problem` (checks, shapes),
`_derivative` (the rule through the KKT conditions), `_solver` (one block of columns after another), and the solver's
parts `_dual`, `_active_set`, `_interior`, `_descent` and `_proximal`. `_objective` holds the objective, written once.
"""

from importlib.metadata import version as _version

from jaxnnls._api import box_qp as box_qp
from jaxnnls._api import lsq_linear as lsq_linear
from jaxnnls._api import nnls as nnls
from jaxnnls._librosa import in_librosa as in_librosa
from jaxnnls._namesake import solve_nnls as solve_nnls
from jaxnnls._namesake import solve_nnls_primal as solve_nnls_primal
from jaxnnls._solution import Solution as Solution
from jaxnnls._solution import Status as Status
from jaxnnls._solution import raise_if_failed as raise_if_failed
from jaxnnls._stream import lsq_linear_blocks as lsq_linear_blocks

__all__ = [
    "Solution",
    "Status",
    "box_qp",
    "in_librosa",
    "lsq_linear",
    "lsq_linear_blocks",
    "nnls",
    "raise_if_failed",
    "solve_nnls",
    "solve_nnls_primal",
]
__version__ = _version("jaxnnls")
