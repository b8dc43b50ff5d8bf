"""Problems that only the robust path solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxnnls


def bands(m, n):
    """Overlapping triangles on a logarithmic axis, (m, n), as of a mel basis; those that hold no point are left out."""
    edges, at = np.geomspace(1, n, m + 2)[:, None], np.arange(n) + 0.5
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    A = np.maximum(0, np.minimum((at - left) / (centre - left), (right - at) / (right - centre))) * 2 / (right - left)
    return A[A.sum(axis=1) > 0]


def test_wide_bands_that_nothing_fits_to_float32():
    A = bands(40, 160).astype("f")
    B = np.random.default_rng(0).random((len(A), 100), "f")
    sol = jax.jit(lambda A, B: jaxnnls.lsq_linear(A, B, (0, np.inf)))(A, B)
    assert np.all(sol.residual_norm > 1e-4 * np.linalg.norm(B, axis=0))
    assert np.max(sol.optimality) < 4e-6  # eight times tol and more where proximal steps stay short
    assert np.mean(sol.success) > 0.95


def test_many_rows_that_nothing_fits():
    """Conjugate gradients on Newton's systems solve the first, and failed for matrices like the others."""
    rng = np.random.default_rng(1)
    regular = bands(160, 500)
    m, n = regular.shape
    at = np.linspace(0, 1, m)[:, None]
    peaks = np.exp(-0.5 * ((at - np.linspace(0, 1, n)) / 0.01) ** 2)
    low_rank = rng.random((m, 60)) @ rng.random((60, n))
    regular, peaks, low_rank = (A.astype("f") for A in (regular, peaks, low_rank))
    B = rng.random((m, 8), "f")
    solve = jax.jit(lambda A, B, ridge: jaxnnls.lsq_linear(A, B, (0, np.inf), ridge=ridge))
    for A, ridge in (regular, 0), (peaks, 0), (low_rank, 0), (regular, 1e-4 * np.mean(regular**2) * m):
        sol = solve(A, B, jnp.float32(ridge))
        assert np.max(sol.optimality) < 4e-6
        assert np.mean(sol.success) >= (0.5 if A is peaks else 1)  # so narrow that least norm is hard to prove
        x, zeros = np.asarray(sol.x, float), np.zeros(n)
        stacked = np.vstack([A, np.sqrt(ridge) * np.eye(n)]).astype(float)
        expected = [scipy.optimize.nnls(stacked, np.hstack([b, zeros]))[1] for b in B.T]
        reached = np.hypot(np.linalg.norm(A @ x - B, axis=0), np.sqrt(ridge) * np.linalg.norm(x, axis=0))
        np.testing.assert_allclose(reached, expected, rtol=1e-4)


def mixed_bounds():
    """A, B and bounds of 40 variables: fixed, without a lower one, boxed, and x >= 0."""
    k = np.arange(40)
    lower = np.choose(k % 4, [0.2, -np.inf, 0, 0])[:, None]
    upper = np.choose(k % 4, [0.2, np.inf, 0.1, np.inf])[:, None]
    A = np.random.default_rng(0).random((12, 40))
    w = np.random.default_rng(5).standard_normal((12, 200))
    return A, A @ np.clip(A.T @ w, lower, upper), (lower, upper)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("solver", ["lsq_linear", "box_qp"])
def test_from_one_bound_to_the_other(solver, ridge, x64):
    """A step that takes a variable across its box keeps the free set, and was taken for exact."""
    A, B, bounds = mixed_bounds()
    if solver == "box_qp":
        sol = jaxnnls.box_qp(A.T @ A, A.T @ B, bounds, ridge=ridge)
    else:
        sol = jaxnnls.lsq_linear(A, B, bounds, ridge=ridge)
    np.testing.assert_array_equal(sol.status, jaxnnls.Status.CONVERGED)
    x = np.asarray(sol.x)
    g = A.T @ (A @ x - B) + ridge * x
    assert np.max(np.abs(x - np.clip(x - g, *bounds))) < 1e-9 * np.max(np.linalg.norm(B, axis=0))


def test_boxes_of_crowded_variables(x64):
    """20 of 600 ended at PRECISION, these among them."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        A = np.exp(-np.arange(48)[:, None] / np.geomspace(0.5, 60, 40))
        lower, upper = np.where(rng.random((40, 1)) < 0.5, 0, -0.3), np.where(rng.random((40, 1)) < 0.7, 0.05, np.inf)
        B = 0.3 * A @ rng.random((40, 50)) + 0.05 * rng.standard_normal((48, 50))
        sol = jaxnnls.lsq_linear(A, B, (lower, upper))
        np.testing.assert_array_equal(sol.status, jaxnnls.Status.CONVERGED)


@pytest.mark.parametrize("seed", [1, 4])
def test_least_norm_at_the_edge_of_the_cone(x64, seed):
    """Twice as many columns as rows: x > 0 that fit are few and far, and on the way to w too few variables are free."""
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((30, 60)), rng.standard_normal((30, 40))
    sol = jaxnnls.lsq_linear(A, B, (0, np.inf))
    np.testing.assert_array_equal(sol.status, jaxnnls.Status.CONVERGED)
    assert np.all(sol.residual_norm < 1e-9 * np.linalg.norm(B, axis=0))
    # Of least norm is x = max(0, A'w), whatever w.
    for x in np.asarray(sol.x).T:
        free = x > 0
        w = np.linalg.lstsq(A[:, free].T, x[free], rcond=None)[0]
        np.testing.assert_allclose(np.maximum(0, A.T @ w), x, atol=1e-7 * x.max())


@pytest.mark.parametrize("bounds", [(0, 0.5), (-0.2, 0.2)])
@pytest.mark.parametrize("crowd", ["decay curves", "random walks"])
def test_boxes_of_wide_matrices_take_few_steps(x64, crowd, bounds):
    # From a tiny sigma on, up to 390 steps, and some columns left at an optimality of 7e-2.
    rng = np.random.default_rng(5)
    m, n, N = 60, 200, 20
    t, T = np.linspace(0, 10, m)[:, None], np.geomspace(0.1, 10, n)
    A = np.exp(-t / T) if crowd == "decay curves" else np.cumsum(rng.standard_normal((m, n)), axis=0)
    B = A @ (np.maximum(rng.standard_normal((n, N)), 0) * (rng.random((n, N)) < 0.3))
    B += 0.3 * rng.standard_normal((m, N)) * np.linalg.norm(B, axis=0) / np.sqrt(m)
    solution = jaxnnls.lsq_linear(A, B, bounds)
    np.testing.assert_array_equal(solution.status, 0)
    assert np.max(solution.nit) < 180
    assert np.max(solution.optimality) < 1e-13


@jax.jit
def with_ridge(A, B, bounds, ridge, max_steps):
    return jaxnnls.lsq_linear(A, B, bounds, ridge=ridge, max_steps=max_steps)


def ridged(A, bounds, ridge, dtype, max_steps=500):
    """x known to minimise with a ridge, and the solution found."""
    w = 1 + np.random.default_rng(5).standard_normal((12, 200))
    x = np.clip(A.T @ w, *bounds)
    return x, with_ridge(
        *(np.asarray(a, dtype) for a in (A, A @ x + ridge * w)), bounds, np.asarray(ridge, dtype), max_steps
    )


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_small_ridge_is_solved_for_and_not_to_tol(dtype, x64):
    """An x that is optimal to tol is off by tol / ridge: with ridges of 1e-4 and less, by more than x in float32."""
    A, _, bounds = mixed_bounds()
    smallest, rtol = (1e-5, 5e-5) if dtype == "f4" else (1e-11, 1e-8)
    for ridge in np.geomspace(0.1, smallest, 5):
        x, sol = ridged(A, bounds, float(ridge.astype(dtype)), dtype)
        assert sol.success.all()
        assert np.max(np.linalg.norm(sol.x - x, axis=0) / np.linalg.norm(x, axis=0)) < rtol


def test_ridge_that_rounding_hides_for_some_variables(x64):
    # Of the larger columns; the smaller ones were held where they were, as if the ridge decided about them.
    A, _, bounds = mixed_bounds()
    A *= np.geomspace(1, 1e-2, 40)
    x, sol = ridged(A, bounds, float(np.float32(1e-8 * np.sum(A[:, 0] ** 2))), "f4")
    assert sol.success.all()
    assert np.median(np.linalg.norm(sol.x - x, axis=0) / np.linalg.norm(x, axis=0)) < 1e-3


def test_ridge_of_crowded_columns_in_float32(x64):
    at = np.linspace(0, 1, 60)[:, None]
    A = np.exp(-0.5 * ((at - np.linspace(0, 1, 40)) * 20) ** 2).astype("f")
    B = np.random.default_rng(0).random((60, 50), "f")
    ridge = np.float32(1e-4)
    sol = jaxnnls.lsq_linear(A, B, ridge=ridge)
    stacked = np.vstack([A, np.sqrt(ridge, dtype=float) * np.eye(40)]).astype(float)
    x = np.linalg.lstsq(stacked, np.vstack([B, np.zeros((40, 50))]), rcond=None)[0]
    assert sol.success.all()
    np.testing.assert_allclose(sol.x, x, atol=1e-3 * np.max(np.abs(x)))


def test_ridge_with_few_steps_keeps_what_there_is(x64):
    # Proximal steps begin anew from 0.
    A = np.random.default_rng(0).random((12, 40))
    bounds = np.zeros((40, 1)), np.full((40, 1), np.inf)
    ridge = 1e-8 * np.max(np.sum(A**2, axis=0))
    reached = np.array([ridged(A, bounds, ridge, "f8", most)[1].optimality for most in (1, 2, 3, 4, 6, 9, 40)])
    best = np.minimum.accumulate(reached, axis=0)
    assert np.mean(reached > np.maximum(2 * best, 1e-13)) < 0.02
    assert np.max(reached[1]) < 0.1
    assert np.max(reached[-1]) < 1e-13
