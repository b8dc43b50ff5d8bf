r"""Exact, least-norm, bounded least squares for every column of a batch: differentiable, in JAX.

    X   = jaxnnls.nnls(A, B)                                    min 1/2 ||A x - b||^2,  x >= 0
    sol = jaxnnls.lsq_linear(A, B, bounds=(lower, upper))       the same within bounds, with status and multipliers
    sol = jaxnnls.box_qp(Q, q, bounds=(lower, upper))           min 1/2 x'Qx - q'x within bounds

`lsq_linear_blocks` takes more columns than fit into memory. A `Solution` has a `Status` for every column, and
`raise_if_failed` makes an exception of it. `in_librosa` puts this solver into librosa. `solve_nnls` and
`solve_nnls_primal` run code that was written for the package of this name on PyPI until 1.0.1.

## The problem

For every column b of B, independently of all others,

.. math::
    \min_{\ell \,\le\, x \,\le\, u} f(x), \qquad
    f(x) = \tfrac12 \|A x - b\|^2 + \tfrac{\text{ridge}}2 \|x\|^2 + \text{l1} \sum_j x_j

`nnls` is the case :math:`\ell = 0`, :math:`u = \infty`, and `box_qp` has :math:`\tfrac12 x^\top Q x - q^\top x` for the
first term. Below, g is the gradient of f and H its Hessian, :math:`A^\top A + \text{ridge}\, I` or
:math:`Q + \text{ridge}\, I`; F are the free variables, those strictly between their bounds.

## Least norm

Where several x are optimal, because columns of A depend on each other or there are more of them than rows, the
solution is the one of least :math:`\|x\|` within the bounds. It is unique, so that x is a function of the data and has
a derivative almost everywhere. Its free variables lie in the row space of their columns:

.. math:: x_F = A_F^\top w \quad \text{for some } w, \qquad \text{with } Q \text{: } x_F = H_{FF}\, v.

## Optimality

x is optimal if and only if the Karush-Kuhn-Tucker conditions hold: for every j

.. math::
    g_j = 0 \text{ where } \ell_j < x_j < u_j, \qquad
    g_j \ge 0 \text{ where } x_j = \ell_j, \qquad
    g_j \le 0 \text{ where } x_j = u_j,

or in one equation :math:`x = \operatorname{clip}(x - g, \ell, u)`. `Solution.dual` is g. `Solution.optimality` is how
far the equation is from holding, the natural residual, once columns and right-hand side have unit size:

.. math::
    \max_j \, \bigl| \hat x_j - \operatorname{clip}(\hat x_j - \hat g_j, \hat\ell_j, \hat u_j) \bigr|, \qquad
    \hat x_j = \frac{s_j}{\beta} x_j, \quad \hat g_j = \frac{g_j}{s_j \beta}, \quad s_j = \sqrt{H_{jj}},

with :math:`\hat\ell` and :math:`\hat u` scaled as :math:`\hat x` is, and
:math:`\beta = \max(\|b\|, \|A \operatorname{clip}(0, \ell, u)\|)`, or :math:`\max_j \, |q_j| / s_j` where there is a Q.
It has no units. A column has converged where it is at most `tol`, or what rounding leaves of it, and where x is certain
to be the shortest solution.

## The derivative

Variables on their bounds stay there. Differentiating :math:`g_F = 0`, with dg the change of g at fixed :math:`x_F`,

.. math::
    \mathrm{d}x_F = -H_{FF}^+ (\mathrm{d}g)_F + (I - H_{FF}^+ H_{FF}) (\mathrm{d}H\, v)_F, \qquad
    v = H_{FF}^+ x_F,

and every other variable follows its bound. The second term is zero where :math:`H_{FF}` is regular; elsewhere it keeps
the solution the shortest while the null space turns with A. In reverse, from the cotangent :math:`\bar x`, with
:math:`u = H_{FF}^+ \bar x_F` on the free variables and zero on the others,

.. math::
    \bar b = A u, \qquad
    \bar A = (b - A x) u^\top - (A u) x^\top + A_F v \bigl[ (I - H_{FF}^+ H_{FF}) \bar x_F \bigr]^\top,

where the last term belongs to the columns F. Where a variable is on its bound with a multiplier of zero, the derivative
jumps; this is the one of the side on which it stays there. With `smoothing` :math:`= \kappa > 0` nothing jumps: the
derivative is that of the minimiser of :math:`f(x) - \kappa \sum_j (\log(x_j - \ell_j) + \log(u_j - x_j))`,

.. math::
    (H + D + E)\, \mathrm{d}x = -\mathrm{d}g + D\, \mathrm{d}\ell + E\, \mathrm{d}u, \qquad
    D_{jj} = \frac{\kappa}{(x_j - \ell_j)^2}, \quad E_{jj} = \frac{\kappa}{(u_j - x_j)^2}.

## When a solve fails

Nothing raises inside a compiled function. Each column has a `Status`, whose `Status.advice` says what to do, and
`raise_if_failed` says it in an exception.

## The modules

One call goes through them in this order, and back: `_api` (public functions), `_problem` (checks, shapes), `_programs`
(outside of jit, which compiled programs to use), `_stages` (one call as one program, or as two), `_derivative` (the
rule through the KKT conditions), `_solver` (one block of columns after another), `_iteration` (which of the solver's
parts takes which columns), and these parts: `_dual`, `_minimise` (which calls `_descent`, `_active_set`,
`_dual_active_set` and `_interior`) and `_proximal`.
`_objective` holds the objective, written once.
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
