"""What the active-set method for few variables says beside its solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxnnls
from jaxnnls import _iteration, _minimise
from jaxnnls._active_set import active_set
from jaxnnls._matrix import prepare
from jaxnnls._objective import Problem
from jaxnnls._proximal import Rescued


def test_columns_said_to_be_apart_are():
    rng = np.random.default_rng(0)
    n, k = 6, 64
    seen = []
    for distance in 10.0 ** -np.arange(9):
        A = rng.standard_normal((10, n))
        A[:, 3], A[:, 5] = (A[:, j] + distance * rng.standard_normal(10) for j in (0, 1))
        R = np.linalg.qr(A / np.linalg.norm(A, axis=0))[1].astype("f")
        b = (R @ rng.standard_normal((n, k))).astype("f")
        b /= np.linalg.norm(b, axis=0)
        lower = np.broadcast_to(np.where(np.arange(k) % 2, -np.inf, 0), (n, k)).astype("f")
        zero = jnp.zeros((n, k), "f")
        problem = Problem(jnp.asarray(R), None, jnp.asarray(b), zero, zero[:, :1], jnp.asarray(lower), zero + jnp.inf)
        solved = active_set(problem, jnp.asarray(R.T @ R), zero, jnp.ones(k, bool), jnp.float32(2e-6), jnp.full(k, 500))
        free = np.asarray((solved.x > lower) & (solved.x < np.inf))
        for F, apart in zip(free.T, np.asarray(solved.apart)):
            if apart:
                least = 1 / np.linalg.norm(np.linalg.pinv(R[:, F].astype(float)), axis=1).max(initial=1)
                assert least > 1e-3
        seen.append(np.mean(solved.apart))
    assert seen[0] == 1 and seen[-1] < 0.6


def test_few_steps_on_decay_curves():
    # 5.5 where the variable is freed by which the objective falls most, 6.5 by its gradient alone.
    rng = np.random.default_rng(1)
    t = np.arange(48)[:, None]
    A = np.exp(-t / np.geomspace(1, 200, 12)).astype("f")
    B = A @ (rng.uniform(size=(12, 1000)) * (rng.uniform(size=(12, 1000)) < 0.15)) + 1e-3 * rng.normal(size=(48, 1000))
    solution = jaxnnls.lsq_linear(A, B.astype("f"), (0, jnp.inf))
    assert np.mean(solution.status == 0) > 0.99
    assert np.mean(solution.nit) < 6


def decay_curves(m, n):
    return np.exp(-np.arange(1, m + 1)[:, None] / np.geomspace(1, 2 * m, n)).astype("f")


def test_crowded_columns_converge():
    # By descent and rescue two of five do, in float32, and in twenty times the time.
    rng = np.random.default_rng(2)
    A = decay_curves(48, 24)
    B = A @ (rng.uniform(size=(24, 200)) * (rng.uniform(size=(24, 200)) < 0.3)) + 1e-3 * rng.normal(size=(48, 200))
    solution = jaxnnls.lsq_linear(A, B.astype("f"), (0, jnp.inf))
    assert np.mean(solution.status == 0) > 0.95
    assert np.max(solution.optimality) < 1e-5


@pytest.mark.parametrize("upper", [np.inf, 0.5])
def test_more_than_128_crowded_columns(x64, upper):
    # By descent and rescue some of these are left, and those that are not take ten times as long.
    rng = np.random.default_rng(0)
    m, n, N = 225, 150, 10
    A = np.exp(-np.linspace(0, 1, m)[:, None] * np.geomspace(0.5, 100, n))
    b = A @ (np.maximum(rng.standard_normal((n, N)), 0) * (rng.random((n, N)) < 0.1))
    b += 0.01 * np.linalg.norm(b, axis=0) / np.sqrt(m) * rng.standard_normal((m, N))
    solution = jaxnnls.lsq_linear(A, b, (0, upper))
    np.testing.assert_array_equal(solution.status, 0)
    for column, norm in zip(b.T[:3], solution.residual_norm):
        best = scipy.optimize.lsq_linear(A, column, (0, upper), tol=1e-14, max_iter=1000)
        assert norm**2 <= 2 * best.cost * (1 + 1e-6)


@pytest.mark.parametrize(("upper", "most"), [(0.5, 100), (0.05, 40), (0.01, 40)])
def test_crowded_boxes_from_zero(upper, most):
    # Where many variables are at their upper bounds pivots start from there: from 0, each of them would take two.
    rng = np.random.default_rng(0)
    m, n, N = 150, 100, 20
    t = np.linspace(0, 1, m)[:, None]
    A = np.exp(-0.5 * ((t - np.linspace(0, 1, n)) * n / 3) ** 2).astype("f")
    b = A @ (np.maximum(rng.standard_normal((n, N)), 0) * (rng.random((n, N)) < 0.1))
    solution = jaxnnls.lsq_linear(A, (b + 0.01 * rng.standard_normal((m, N))).astype("f"), (0, upper))
    np.testing.assert_array_equal(solution.status, 0)
    assert np.max(solution.nit) < most  # 99 and 75 from 0


def test_what_descent_leaves_is_first_left_to_pivots(x64, monkeypatch):
    def nobody(problem, matrix, x, g, optimality, pending, tol, left, warm):
        return Rescued(x, g, optimality, jnp.zeros_like(pending), jnp.zeros_like(left))

    def nothing(problem, H, x, active, tol, left):
        return x, jnp.zeros_like(left)

    monkeypatch.setattr(_iteration, "rescue", nobody)
    monkeypatch.setattr(_minimise, "interior_point", nothing)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    # A large part in common, along which descent is slow, and not so much that columns would be crowded.
    A, b = rng.random((120, 80)) + 3, rng.random((120, 20))
    solution = jaxnnls.lsq_linear(A, b, (0, np.inf))
    jax.clear_caches()
    np.testing.assert_array_equal(solution.status, 0)
    assert np.max(solution.nit) > _minimise.DESCENT_STEPS


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (-0.3, 0.4)])
def test_crowded_columns_without_a_bound_at_zero(bounds):
    # Pivots would end on a ray far from the solution, or spend all steps.
    rng = np.random.default_rng(4)
    A = decay_curves(150, 100)
    B = A @ (rng.uniform(size=(100, 8)) * (rng.uniform(size=(100, 8)) < 0.3)) + 1e-3 * rng.normal(size=(150, 8))
    solution = jaxnnls.lsq_linear(A, B.astype("f"), bounds)
    best = [scipy.optimize.lsq_linear(A.astype(float), b, bounds).fun for b in B.astype("f").T]
    assert np.max(solution.residual_norm - np.linalg.norm(best, axis=1)) < 1e-3 * np.max(np.linalg.norm(B, axis=0))
    assert np.max(solution.optimality) < 1e-5
    assert np.max(solution.nit) < 500


@pytest.mark.parametrize("quadratic", [False, True])
def test_which_columns_are_crowded(quadratic):
    rng = np.random.default_rng(3)
    dictionary = rng.random((60, 24)).astype("f")
    duplicates = dictionary.copy()
    duplicates[:, 20] = 2 * duplicates[:, 3]
    duplicates[:, 8:13] = 0
    centred = dictionary.copy()
    centred[:, 5] = centred.sum(axis=1) - centred[:, 5]

    def crowded(A, ridge=0.0):
        zero = jnp.zeros((24, 1), "f")
        given = (None, A.T @ A, None) if quadratic else (A, None, jnp.zeros((60, 1), "f"))
        return bool(prepare(Problem(*given, zero, jnp.float32(ridge), zero, zero)).crowded)

    curves = decay_curves(60, 24)[:, rng.permutation(24)]
    assert crowded(curves)
    assert not crowded(curves, ridge=0.1)
    assert not any(map(crowded, (dictionary, duplicates, centred)))
