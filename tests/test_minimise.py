"""Which algorithm solves what, told by the number of steps; and that it is solved."""

import numpy as np
import pytest
import scipy.optimize

import jaxnnls


def overlapping_peaks(m, n, width):
    t = np.linspace(0, 1, m)[:, None]
    return np.exp(-0.5 * ((t - np.linspace(0, 1, n)) * n / width) ** 2)


def nearly_twice(rng, m, n):
    A = rng.standard_normal((m, n // 2))
    return np.concatenate([A, A + 1e-4 * rng.standard_normal(A.shape)], axis=1)


@pytest.mark.parametrize("bounds", [(-2, 2), (-0.5, np.inf)])
@pytest.mark.parametrize("crowd", ["peaks", "nearly twice", "common part"])
def test_bounds_around_zero_and_columns_almost_combinations_of_others(x64, crowd, bounds):
    # By proximal steps 90 to 240 steps, and some columns of the second at PRECISION.
    rng = np.random.default_rng(5)
    m, n, N = 90, 60, 6
    A = {
        "peaks": lambda: overlapping_peaks(m, n, 3),
        "nearly twice": lambda: nearly_twice(rng, m, n),
        "common part": lambda: rng.random((m, n)) + 3,
    }[crowd]()
    B = A @ rng.standard_normal((n, N))
    B += 0.1 * rng.standard_normal((m, N)) * np.linalg.norm(B, axis=0) / np.sqrt(m)
    solution = jaxnnls.lsq_linear(A, B, bounds)
    np.testing.assert_array_equal(solution.status, 0)
    assert np.max(solution.nit) < 60
    for b, norm in zip(B.T, solution.residual_norm):
        best = scipy.optimize.lsq_linear(A, b, bounds, method="bvls", tol=1e-14, max_iter=1000)
        assert norm**2 <= 2 * best.cost * (1 + 1e-9)


def test_many_columns_of_a_quadratic_program_with_bounds_around_zero(x64):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((60, 37)) @ rng.standard_normal((37, 40))
    Q, q = A.T @ A, A.T @ rng.standard_normal((60, 12)) * 30
    few, many = jaxnnls.box_qp(Q, q[:, :8], (-2, 2)), jaxnnls.box_qp(Q, q, (-2, 2))
    np.testing.assert_array_equal(many.status, 0)
    assert np.max(many.nit) < 60
    value = [np.sum(s.x[:, :8] * (Q @ s.x[:, :8] / 2 - q[:, :8]), axis=0) for s in (few, many)]
    np.testing.assert_allclose(*value, rtol=1e-11)


@pytest.mark.parametrize(("upper", "most"), [(np.inf, 35), (0.5, 60)])
def test_columns_that_stand_twice_are_no_matter_for_pivots(x64, upper, most):
    # Nor do they hinder descent: by pivots 60 to 211 steps.
    rng = np.random.default_rng(150)
    half = rng.random((200, 75))
    A = np.concatenate([half, half], axis=1)
    x = np.where(rng.random((150, 12)) < 0.3, rng.random((150, 12)), 0)
    B = A @ np.concatenate([x[:, :6], rng.standard_normal((150, 6))], axis=1)
    B += 0.02 * np.std(B) * rng.standard_normal(B.shape)
    solution = jaxnnls.lsq_linear(A, B, (0, upper))
    np.testing.assert_array_equal(solution.status, 0)
    assert np.max(solution.nit) < most
    np.testing.assert_allclose(solution.x[:75], solution.x[75:], atol=1e-9)


def test_the_interior_point_does_not_inherit_what_pivots_knew_of_their_columns(x64):
    # With too few steps for all pivots it moves on to another face, and was believed to be the only minimiser there.
    rng = np.random.default_rng(7)
    A = rng.random((60, 13)) @ rng.random((13, 40))
    B = A @ rng.random((40, 9))
    B += 0.3 * B.std() * rng.standard_normal(B.shape)
    least = np.linalg.norm(jaxnnls.lsq_linear(A, B, (0, np.inf), max_steps=500).x, axis=0)
    for max_steps in range(23, 41, 3):
        solution = jaxnnls.lsq_linear(A, B, (0, np.inf), max_steps=max_steps)
        norm = np.linalg.norm(solution.x, axis=0)
        assert np.all(norm[solution.success] <= least[solution.success] * (1 + 1e-6))
