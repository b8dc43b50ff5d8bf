"""Problems on which this library failed once: found by `fuzz`, by the property tests, or at work on real data."""

import cases
import checks
import jax
import numpy as np
import oracle
import pytest
from problems import Problem

import jaxnnls
from jaxnnls import Status


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("upper", [1, np.inf])
def test_dependent_columns_of_every_size(upper, order, x64):
    # Found by `python -m tests.fuzz`. Of [a + d, a, d] with a small d, the last column has a pivot of eps |a| / |d|.
    a, d, rest = np.array([2, 2, 1, 1, 2, -2.0]), np.array([4, -2, 3, -4, 1, 3.0]), np.array([1, 0, -2, 0, 0, 0.0])
    null = np.array([1.0, -1, -1])[list(order)]
    feasible = np.array([0.3, 0.4, 0.9])[list(order)]
    for scale in 10.0 ** -np.arange(4):
        A = np.stack([a + scale * d, a, scale * d], axis=1)[:, order]
        b = A @ feasible + rest - A @ np.linalg.lstsq(A, rest, 1e-10)[0]
        solution = jaxnnls.lsq_linear(A, b, (np.full(3, -np.inf if upper == np.inf else 0), np.full(3, float(upper))))
        # Minimisers are feasible + t null.
        ends = np.stack([-feasible / null, (upper - feasible) / null])
        low, high = (-np.inf, np.inf) if upper == np.inf else (np.max(ends.min(0)), np.min(ends.max(0)))
        expected = feasible + np.clip(-feasible @ null / (null @ null), low, high) * null
        assert solution.status == Status.CONVERGED
        np.testing.assert_allclose(solution.x, expected, rtol=0, atol=1e-10 / scale)


def test_near_and_exact_duplicates():
    # Found by the property tests: where some columns are almost dependent, others may be so exactly.
    kinds = ["normal", "normal", "zero", "near", "normal", "normal", "duplicate"]
    problem = cases.build(cases.Recipe(kinds, ["x >= 0"] * 3, ["normal"] * 3, False, 0.0, 0.0, 196), 7, np.dtype("f4"))
    twins = np.flatnonzero(np.all(problem.A[:, 3:4] == problem.A, axis=0))
    arguments, options = problem.astype(np.dtype("f4"))
    solution = jaxnnls.lsq_linear(*arguments, **options)
    assert len(twins) == 2
    np.testing.assert_array_equal(solution.status, Status.CONVERGED)
    np.testing.assert_allclose(solution.x[twins[0]], solution.x[twins[1]], rtol=1e-5)
    assert np.max(solution.x[twins[0]]) > 0.1


@pytest.mark.parametrize(("n", "dtype"), [(6, "float64"), (16, "float32")], indirect=["dtype"])
def test_few_free_variables_take_a_step_each(n, dtype):
    # They did not fit into the steps before a new beginning, and were left to slower methods, which did not always do.
    rng = np.random.default_rng(0)
    A = rng.standard_normal((3 * n, n)).astype(dtype)
    B = rng.standard_normal((3 * n, 20)).astype(dtype)
    solution = jaxnnls.lsq_linear(A, B)
    np.testing.assert_array_equal(solution.status, Status.CONVERGED)
    assert np.max(solution.nit) <= n + 3
    expected = np.linalg.lstsq(A.astype(float), B.astype(float))[0]
    np.testing.assert_allclose(solution.x, expected, rtol=0, atol=1e4 * np.finfo(dtype).eps * np.abs(expected).max())


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_decay_curves_in_float32(noise):
    # 2 and 7 of 100 were PRECISION: a variable whose column almost depends on those of the free ones could not enter.
    rng = np.random.default_rng(0)
    A = np.exp(-np.linspace(10, 480, 48)[:, None] / np.geomspace(10, 2000, 12)).astype(np.float32)
    x = rng.random((12, 1000)) * (rng.random((12, 1000)) < 0.25)
    B = (A @ x + noise * rng.standard_normal((48, 1000))).astype(np.float32)
    solution = jaxnnls.lsq_linear(A, B, (0, np.inf))
    assert np.mean(solution.success) >= 0.995
    problem = Problem(A, B, np.zeros((12, 1000)), np.full((12, 1000), np.inf))
    assert np.max(oracle.optimality(problem, np.asarray(solution.x, float))[0]) <= 5e-6


def test_twins_in_a_box(x64):
    # Where both are at a bound, and then should not be, the slope is flat for long and steep at the end: 42 of 9000
    # were left where they were.
    rng = np.random.default_rng(5)
    for _ in range(150):
        A, B = rng.normal(size=(7, 4)), rng.normal(size=(7, 6))
        A[:, 1] = A[:, 0]
        lower = 0.1 * rng.random((4, 6))
        upper = lower + 0.05 + rng.random((4, 6))
        solution = jaxnnls.lsq_linear(A, B, (lower, upper))
        np.testing.assert_array_equal(solution.status, Status.CONVERGED)
        both = np.sum(solution.x[:2], axis=0)
        low, high = np.maximum(lower[0], both - upper[1]), np.minimum(upper[0], both - lower[1])
        np.testing.assert_allclose(solution.x[0], np.clip(both / 2, low, high), rtol=0, atol=1e-7)


def test_twins_stay_together(x64):
    # Found by `python -m tests.fuzz`: free them both, and rounding sends them apart as far as the bounds allow.
    A = np.random.default_rng(0).normal(size=(9, 4))[:, [0, 1, 2, 0, 3, 2, 1]]
    B = np.random.default_rng(1).normal(size=(9, 20))
    solution = jaxnnls.lsq_linear(A, B, (-1e10, 1e10))
    np.testing.assert_array_equal(solution.status, Status.CONVERGED)
    np.testing.assert_allclose(solution.x, np.linalg.pinv(A) @ B, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("copies", "m"), [(1, 3), (9, 12)])
def test_ridge_that_counts_for_a_small_column_only(copies, m, dtype):
    # It was taken to make the minimiser unique, and the twins were left as far apart as they happened to be.
    rng = np.random.default_rng(3)
    base = rng.uniform(0.1, 1, (m, 3))
    small = np.finfo(dtype).eps
    # Three twins (30 for nine copies, more than the active-set method takes), and a column of length about sqrt(eps).
    A = np.column_stack([*[base[:, [0, 0, 1]]] * copies, np.sqrt(small) * base[:, 2]]).astype(dtype)
    B = (A[:, :3] @ rng.uniform(1, 2, (3, 4))).astype(dtype) + 0.1 * base[:, 2:].astype(dtype)
    ridge = 0.01 * small
    solution = jaxnnls.lsq_linear(A, B, (0, np.inf), ridge=ridge)
    np.testing.assert_array_equal(solution.status, Status.CONVERGED)
    X = np.asarray(solution.x, float)
    assert np.min(X) > 0
    first = np.arange(3 * copies).reshape(copies, 3)
    np.testing.assert_allclose(X[first[:, :2]], np.broadcast_to(X[0], (copies, 2, 4)), rtol=1e-3)
    np.testing.assert_allclose(X[first[:, 2]], np.broadcast_to(X[2], (copies, 4)), rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "m", "n", "N", "seed", "column"),
    [
        # A large column that is at its bound, and one of 5e-5 that is not.
        ("f8", 1, 6, 40, 500000716, 17),
        ("f8", 3, 8, 5, 1100001382, 0),
        # Optimal by R to 0.9 tol, but not by A.
        ("f4", 36, 15, 27, 500001851, 0),
        # The bounds are 1e-19 of what matters, and the squares of x would be 0.
        ("f4", 12, 2, 10, 2100002891, 0),
        # A ridge that counts for one small column, and duplicates among the others.
        ("f4", 9, 3, 3, 500000850, 2),
        # Twins beside a near duplicate, whose pivot of 1e-12 had spoilt what the tableau says of them.
        ("f8", 6, 6, 5, 1100015706, 1),
        ("f8", 12, 7, 5, 1100032733, 1),
        ("f8", 4, 4, 10, 1100026534, 7),
        # A small column with 5e-5 of a null vector that rounding may turn by 1e-4.
        ("f8", 23, 5, 17, 1200010157, 8),
    ],
)
def test_found_by_fuzz(dtype, m, n, N, seed, column):
    dtype = np.dtype(dtype)
    problem = cases.build(cases.draw(np.random.default_rng(seed), n, N), m, dtype)
    arguments, options = problem.astype(dtype)
    with jax.enable_x64(dtype == "f8"):
        solution = jax.tree.map(np.asarray, jaxnnls.lsq_linear(*arguments, **options))
    assert solution.status[column] == Status.CONVERGED
    assert checks.violations(problem, solution, dtype) == []
