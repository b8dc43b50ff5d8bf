"""Quadratic programs given by Q: by pivots where few bounds are active, the others by factorisations.

For few columns, and for what sweeps leave of many with more than SOME variables.

One of condition 1e11 with n = 460 takes 15 ms so, and n = 1504 takes 0.27 s (float64, 2 cores); by the interior point
alone 50 ms and 0.9 s. Where bounds are active on more than about a third of the variables, the limit on pivots is
reached for nothing: up to twice the time of the interior point.

Measured against sweeps and proximal steps alone, float64, of the time: 9 to 64 columns of such a system 0.003 (5 s
without), peaks and their boxes of 150 and 300 variables 0.1 to 0.6, random walks 0.8 to 1.2, what sweeps solve 1.0 to
1.3; float32 0.4 to 1.3. Two of 40 boxes of 300 peaks, left at an optimality of 3e-4, are solved. To compile this for
many columns as well takes 2 s. Slower than before, and left so: singular programs that are unbounded, 0.08 to 0.4 s for
20 columns of 150 variables.
"""

import jax.numpy as jnp
from jax import Array

from jaxnnls._dual_active_set import dual_active_set
from jaxnnls._interior import interior_point
from jaxnnls._loops import if_any
from jaxnnls._matrix import Matrix
from jaxnnls._objective import Problem, attainable, gradient, natural_residual


def solve_quadratic(
    problem: Problem, matrix: Matrix, x: Array, active: Array, tol: Array, max_steps: Array
) -> tuple[Array, Array]:
    """Solve the active columns.

    Parameters
    ----------
    problem : Problem
        A block of k columns, scaled, with a Q.
    matrix : Matrix
    x : Array, shape (n, k)
        Returned where nothing better is found.
    active : Array of bool, shape (k,)
    tol : Array, shape ()
    max_steps : Array of int, shape ()

    Returns
    -------
    x : Array, shape (n, k)
    nit : Array of int, shape (k,)
        Pivots and steps.
    """
    gram, inverse = matrix.gram, matrix.gram_inverse
    assert gram is not None and inverse is not None
    most = jnp.minimum(max_steps, len(x)) // 2
    x, pivots = dual_active_set(problem, inverse, x, active & ~matrix.singular, most)
    optimality = natural_residual(x, gradient(problem, x), problem.lower, problem.upper)
    unsolved = active & ~(optimality <= attainable(x, tol))

    def by_factorisations(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return interior_point(problem, gram, state[0], unsolved, tol, max_steps - most)

    x, steps = if_any(unsolved, by_factorisations, (x, jnp.zeros_like(pivots)))
    return x, pivots + steps
