"""Quadratic programs with more than a handful of variables: ill-conditioned Gram systems, alone and under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls as scipy_nnls

import jaxnnls
from jaxnnls import Status
from jaxnnls._dual_active_set import dual_active_set
from jaxnnls._minimise import FEW_COLUMNS, TRIES
from jaxnnls._objective import Problem, gradient, natural_residual
from jaxnnls._small import SOME

N_PIXELS, N_CURVES = 64, 24


def gram_system(seed, n_pixels=N_PIXELS):
    """Nearly collinear Gaussians beside a blurred, regularised grid of pixels: a condition number near 1e11."""
    rng = np.random.default_rng(seed)
    t = np.linspace(-1, 1, 200)[:, None]
    curves = np.exp(-0.5 * (t / np.geomspace(0.03, 1.5, N_CURVES)) ** 2)
    pixels = np.exp(-0.5 * ((t - np.linspace(-1, 1, n_pixels)) / 0.03) ** 2)
    A = np.concatenate([pixels, curves], axis=1)
    x = np.concatenate([np.exp(-0.5 * np.linspace(-4, 4, n_pixels) ** 2), rng.gamma(0.3, 1, N_CURVES)])
    image = A @ (x * (rng.random(len(x)) < 0.7))
    steps = np.diff(np.eye(n_pixels), axis=0)
    Q = A.T @ A
    Q[:n_pixels, :n_pixels] += steps.T @ steps
    Q += 1e-9 * np.eye(len(Q))
    return Q, A.T @ (image + 0.05 * image.std() * rng.standard_normal(len(image)))


def optimality(Q, q, x):
    """The natural residual after scaling Q to a unit diagonal and q to size 1."""
    s = np.sqrt(np.diag(Q))
    size = np.abs(q / s).max()
    x, g = x * s / size, (Q @ x - q) / s / size
    return np.abs(x - np.maximum(x - g, 0)).max()


@pytest.mark.parametrize("seed", range(4))
def test_gram_system(x64, seed):
    Q, q = gram_system(seed)
    assert np.linalg.cond(Q / np.sqrt(np.outer(np.diag(Q), np.diag(Q)))) > 1e8
    sol = jaxnnls.box_qp(Q, q)
    assert sol.status == Status.CONVERGED
    assert optimality(Q, q, np.asarray(sol.x)) < 1e-13
    assert sol.nit < len(q) / 2 + 30  # pivots, and where these do not do, steps with a factorisation
    R = np.linalg.cholesky(Q).T
    expected = scipy_nnls(R, np.linalg.solve(R.T, q))[0]
    assert 0 < np.sum(expected == 0) < len(q)
    np.testing.assert_allclose(Q @ sol.x, Q @ expected, atol=1e-9 * np.abs(q).max())


def bounded_program(rng, n, k, held):
    """H with a unit diagonal, and programs of known solution with `held` active bounds in each column, of all kinds."""
    A = rng.standard_normal((2 * n, n)) * np.geomspace(1, 1e-2, n)
    H = A.T @ A
    H /= np.sqrt(np.outer(np.diag(H), np.diag(H)))
    x = rng.standard_normal((n, k))
    place = np.argsort(rng.random((n, k)), axis=0)
    at_lower, at_upper = place < held // 2, (place >= held // 2) & (place < held)
    fixed = at_lower & (rng.random((n, k)) < 0.2)
    lower = np.where(at_lower, x, np.where(rng.random((n, k)) < 0.5, -np.inf, x - rng.uniform(0.1, 1, (n, k))))
    upper = np.where(at_upper, x, np.where(rng.random((n, k)) < 0.5, np.inf, x + rng.uniform(0.1, 1, (n, k))))
    lower, upper = np.where(at_upper & (lower == -np.inf), x - 1, lower), np.where(fixed, x, upper)
    multiplier = rng.uniform(0.1, 1, (n, k)) * (at_lower * 1.0 - at_upper)
    multiplier = np.where(fixed, rng.standard_normal((n, k)), multiplier)
    linear = multiplier - H @ x
    problem = Problem(None, jnp.asarray(H), None, jnp.asarray(linear), jnp.zeros((n, 1)), lower, upper)
    return problem, x, np.clip(np.zeros((n, k)), lower, upper)


@pytest.mark.parametrize("held", [0, 1, 20, 50])
def test_bounds_become_active_one_by_one(x64, held):
    problem, expected, start = bounded_program(np.random.default_rng(held), 80, 4, held)
    active = jnp.array([True, True, False, True])
    solve = jax.jit(dual_active_set)
    x, pivots = solve(problem, jnp.linalg.inv(problem.Q), jnp.asarray(start), active, jnp.full(4, 400))
    np.testing.assert_allclose(x[:, active], expected[:, active], atol=1e-9)
    np.testing.assert_array_equal(x[:, 2], start[:, 2])
    on_bounds = (expected == problem.lower) | (expected == problem.upper)
    np.testing.assert_array_equal((x == expected)[:, active] & on_bounds[:, active], on_bounds[:, active])
    assert pivots[2] == 0 and np.all(pivots[active] >= held) and np.all(pivots <= 2 * held)


@pytest.mark.parametrize(("slots", "limit"), [(32, 400), (256, 10)])
def test_too_many_active_bounds_are_left_to_others(x64, monkeypatch, slots, limit):
    monkeypatch.setattr("jaxnnls._dual_active_set.SLOTS", slots)
    problem, expected, start = bounded_program(np.random.default_rng(7), 80, 2, 50)
    K = jnp.linalg.inv(problem.Q)
    x, pivots = dual_active_set(problem, K, jnp.asarray(start), jnp.ones(2, bool), jnp.full(2, limit))
    assert np.all(np.isfinite(x)) and np.all((problem.lower <= x) & (x <= problem.upper))
    assert not np.allclose(x, expected, atol=1e-3) and np.all(pivots <= limit)

    def residual(x):
        return natural_residual(x, gradient(problem, x), problem.lower, problem.upper)

    assert np.all(residual(x) <= residual(jnp.asarray(start)))


def test_more_active_bounds_than_pivots(x64):
    n = 80
    problem, expected, _ = bounded_program(np.random.default_rng(8), n, 1, n - 5)
    sol = jaxnnls.box_qp(problem.Q, -problem.linear, bounds=(problem.lower, problem.upper))
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    np.testing.assert_allclose(sol.x, expected, atol=1e-9)


def test_many_columns_of_a_gram_system_cost_what_each_costs_alone(x64):
    # By sweeps and proximal steps, as for columns that are not almost combinations of others, it is 100 times as much.
    Q, q = gram_system(4, n_pixels=112)
    assert len(q) > SOME
    columns = q[:, None] * (1 + 0.1 * np.random.default_rng(4).standard_normal((len(q), 12)))
    sol = jaxnnls.box_qp(Q, columns)
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    few = jaxnnls.box_qp(Q, columns[:, :FEW_COLUMNS])
    np.testing.assert_array_equal(sol.nit[:FEW_COLUMNS], few.nit + TRIES)
    np.testing.assert_allclose(Q @ sol.x[:, :FEW_COLUMNS], Q @ few.x, atol=1e-9 * np.abs(q).max())
    for column, x in zip(columns.T, np.asarray(sol.x).T):
        assert optimality(Q, column, x) < 1e-13


@pytest.mark.parametrize("close", [False, True])
def test_boxes_that_sweeps_solve_take_no_pivots(x64, close):
    n, N = 140, 12
    rng = np.random.default_rng(3)
    A = rng.standard_normal((2 * n, n))
    if close:
        A[:, 1] = A[:, 0] + 1e-5 * A[:, 2]
    A /= np.linalg.norm(A, axis=0)
    q = A.T @ (rng.standard_normal((2 * n, N)) + A @ rng.standard_normal((n, N)))
    sol = jaxnnls.box_qp(A.T @ A, q, (-0.02, 0.02))
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    assert np.max(sol.nit) <= TRIES  # 6 by pivots


def test_gram_systems_under_vmap(x64):
    # Batched factorisations that run at the same time would block each other for ever.
    systems = [gram_system(seed) for seed in range(3)]
    Q, q = (jnp.stack(parts) for parts in zip(*systems))
    sol = jax.jit(jax.vmap(jaxnnls.box_qp))(Q, q)
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    for x, (own_Q, own_q) in zip(np.asarray(sol.x), systems):
        assert optimality(own_Q, own_q, x) < 1e-13


def test_gram_system_in_float32_is_honest():
    Q, q = gram_system(0)
    sol = jaxnnls.box_qp(Q.astype(np.float32), q.astype(np.float32))
    assert np.all(np.isfinite(sol.x)) and np.all(sol.x >= 0)
    assert sol.status in (Status.CONVERGED, Status.PRECISION)
    if sol.status == Status.CONVERGED:
        assert optimality(Q, q, np.asarray(sol.x, float)) < 1e-4


def test_gradient_of_a_gram_system(x64):
    Q, q = gram_system(1)
    weight = np.random.default_rng(2).standard_normal(len(q))

    @jax.jit
    def derivatives(Q, q):
        def f(Q, q):
            sol = jaxnnls.box_qp(Q, q)
            return weight @ sol.dual, sol.x

        _, pushforward, x = jax.linearize(f, Q, q, has_aux=True)
        forward = pushforward(jnp.zeros_like(Q), weight)
        return x, forward, jax.linear_transpose(pushforward, Q, q)(jnp.ones(()))[1]

    x, forward, gradient = derivatives(Q, q)
    free = np.asarray(x) > 0
    # The dual of what is at its bound: g_N = Q_NF Q_FF^-1 q_F - q_N.
    expected = np.where(free, 0, -weight)
    expected[free] = np.linalg.solve(Q[np.ix_(free, free)], Q[np.ix_(free, ~free)] @ weight[~free])
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(Q @ gradient, Q @ expected, atol=1e-5 * np.abs(Q @ expected).max())
    np.testing.assert_allclose(forward, gradient @ weight, rtol=1e-5)


@pytest.mark.parametrize("kind", ["boxed", "fixed", "free", "unbounded"])
@pytest.mark.parametrize("rank", [12, 40])
def test_bounds_and_rank(x64, kind, rank):
    n, columns = 24, 3
    rng = np.random.default_rng([rank, len(kind)])
    A = rng.standard_normal((rank, n))
    Q, q = A.T @ A, A.T @ (A @ np.maximum(rng.standard_normal((n, columns)), 0) + rng.standard_normal((rank, columns)))
    lower, upper = np.zeros((n, columns)), np.full((n, columns), np.inf)
    if kind == "boxed":
        lower, upper = lower - rng.random((n, columns)), lower + rng.random((n, columns))
    if kind == "fixed":
        lower = np.where(rng.random((n, columns)) < 0.3, 0.25, lower)
        upper = np.where(lower > 0, lower, upper)
    if kind == "free":
        lower = np.where(rng.random((n, columns)) < 0.5, -np.inf, lower)
    if kind == "unbounded":
        lower = np.full((n, columns), -np.inf)
    sol = jaxnnls.box_qp(Q, q, (lower, upper))
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    x = np.asarray(sol.x)
    assert np.all((lower <= x) & (x <= upper))
    g = Q @ x - q
    np.testing.assert_allclose(x, np.clip(x - g, lower, upper), atol=1e-10)
    same = jaxnnls.lsq_linear(A, np.linalg.lstsq(A.T, q)[0], (lower, upper))
    np.testing.assert_allclose(x, same.x, atol=1e-5)


@pytest.mark.parametrize(("n", "condition"), [(4, 10), (10, 100)])
def test_duplicates_share_in_a_singular_program(n, condition, dtype):
    # The root of Q knows of them to eps / condition only: 20 % were PRECISION in float32, and in float64 with 1000.
    if dtype == "f8":
        condition *= 10
    rng = np.random.default_rng(0)
    k, N = n // 2, 20
    for _ in range(4):
        U, V = (np.linalg.qr(rng.normal(size=(m, n)))[0] for m in (2 * n, n))
        G = U * np.geomspace(1, 1 / condition, n) @ V.T
        factor = rng.choice([-1, 0.5, 1, 4.0], k)
        A = np.concatenate([G, G[:, :k] * factor], axis=1).astype(dtype)
        y = np.maximum(rng.normal(size=(n, N)), 0)
        Q, q = A.T @ A, A.T @ (A[:, :n] @ y).astype(dtype)
        lower = np.concatenate([np.zeros(n), np.where(factor > 0, 0, -np.inf)]).astype(dtype)
        solution = jaxnnls.box_qp(Q, q, (lower, np.where(lower == 0, np.inf, 0).astype(dtype)))
        np.testing.assert_array_equal(solution.status, Status.CONVERGED)
        x = np.asarray(solution.x, float)
        np.testing.assert_allclose(x[n:], factor[:, None] * x[:k], rtol=0, atol=1e-2 if dtype == "f4" else 1e-6)
