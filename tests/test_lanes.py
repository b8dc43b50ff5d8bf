"""Columns under `jax.vmap`: with one matrix beside one another, with matrices of their own one after another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import scipy.optimize
from problems import MANY, TALL, WIDE

import jaxnnls
from jaxnnls._lanes import ENOUGH

LANES, PER_LANE = 3, 2


def apart(a):
    """(p, N) as lanes (LANES, p, N / LANES)."""
    return np.moveaxis(np.reshape(a, (len(a), LANES, -1)), 1, 0)


def one_matrix(shape):
    """A, b, lower, upper and another start of 6 columns; the one solution."""
    rng = np.random.default_rng(0)
    problem = (problems.fit if shape == WIDE else problems.full_rank)(rng, *shape, N=LANES * PER_LANE, bounded=True)
    return problem, rng.normal(size=problem.X.shape)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_one_matrix(shape, x64):
    problem, start = one_matrix(shape)
    A, B, lower, upper, *_ = problem

    def solve(B, lower, upper, x_init):
        return jaxnnls.lsq_linear(A, B, (lower, upper), x_init=x_init)

    sol = jax.jit(jax.vmap(solve))(*map(apart, (B, lower, upper, start)))
    assert np.all(sol.success) and sol.nit.shape == (LANES, PER_LANE)
    np.testing.assert_allclose(sol.x, apart(problem.X), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(sol.active_mask, (sol.x >= apart(upper)) * 1 - (sol.x <= apart(lower)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_lanes_of_lanes(order, x64):
    # Of two matrices, three b and four bounds, one b a call.
    rng = np.random.default_rng(1)
    args = rng.random((2, *TALL)), rng.normal(size=(3, TALL[0])), rng.random((4, TALL[1]))

    def every(A, b, upper):
        return jaxnnls.lsq_linear(A, b, (0, upper)).x

    for k in reversed(order):
        every = jax.vmap(every, [0 if k == which else None for which in range(3)])
    x = np.asarray(jax.jit(every)(*args)).transpose(*np.argsort(order), 3)
    for (i, A), (j, b), (k, upper) in itertools.product(*map(enumerate, args)):
        expected = scipy.optimize.lsq_linear(A, b, (0, upper), method="bvls", tol=1e-14).x
        np.testing.assert_allclose(x[i, j, k], expected, rtol=0, atol=1e-9)


def test_matrices_of_their_own(x64):
    # Enough of them to go alone: a lane takes its own steps, whatever others do.
    rng = np.random.default_rng(2)
    m, n = MANY
    A = np.stack([rng.random(MANY), np.exp(-np.linspace(0.1, 5, m)[:, None] / np.geomspace(0.1, 20, n))])
    B = A @ np.maximum(rng.normal(size=(2, n, -(-ENOUGH // n))), 0) + 0.01 * rng.normal(size=(2, m, -(-ENOUGH // n)))
    solve = jax.jit(lambda A, B: jaxnnls.lsq_linear(A, B, (0, np.inf)))
    sol = jax.jit(jax.vmap(solve))(A, B)
    easy, hard = (solve(A[k], B[k]) for k in range(2))
    np.testing.assert_allclose(sol.x[0], easy.x, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(sol.nit[0], easy.nit)
    np.testing.assert_allclose(sol.residual_norm[1], hard.residual_norm, rtol=1e-9)
    assert np.all(sol.nit[0] < np.max(sol.nit[1])) and np.all(sol.success[0])


def test_what_is_computed_for_each_lane():
    """A'A of every lane at a time shows in the program, where lanes with matrices of their own go together."""
    n = TALL[1]

    def together(axes, N):
        A, B = jnp.ones((3, *TALL)[axes[0] is None :]), jnp.ones((3, TALL[0], N))
        return f"[3,{n},{n}]" in str(jax.make_jaxpr(jax.vmap(jaxnnls.nnls, axes))(A, B))

    assert together((0, 0), 2) and not together((0, 0), ENOUGH) and not together((None, 0), 2)
