"""Values: optimality by an independent measure, known solutions, SciPy, least norm, status."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import problems
import pytest
from problems import MANY, SQUARE, TALL, WIDE
from scipy.optimize import nnls as scipy_nnls

import jaxnnls
from jaxnnls import Status


def scaled_columns(rng, m, n):
    return problems.matrix(rng, m, n) * np.geomspace(1e-4, 1e4, n)


# Few shapes, so few compilations for each dtype.
CASES = {
    "tall": lambda rng: problems.full_rank(rng, *TALL),
    "tall boxed": lambda rng: problems.full_rank(rng, *TALL, bounded=True),
    "tall fixed": lambda rng: problems.full_rank(rng, *TALL, bounded=True, fixed=0.3),
    "tall degenerate": lambda rng: problems.full_rank(rng, *TALL, degenerate=0.5),
    "tall ridge": lambda rng: problems.full_rank(rng, *TALL, bounded=True, ridge=0.1),
    "tall l1": lambda rng: problems.full_rank(rng, *TALL, l1=0.05),
    "tall ridge l1": lambda rng: problems.full_rank(rng, *TALL, ridge=0.2, l1=0.05),
    "tall duplicate": lambda rng: problems.fit(rng, *TALL, A=problems.deficient(rng, *TALL, "duplicate")),
    "tall zero": lambda rng: problems.fit(rng, *TALL, bounded=True, A=problems.deficient(rng, *TALL, "zero")),
    "tall junk": lambda rng: problems.fit(rng, *TALL, A=problems.deficient(rng, *TALL, "junk")),
    "many": lambda rng: problems.full_rank(rng, *MANY),
    "many boxed": lambda rng: problems.full_rank(rng, *MANY, bounded=True, fixed=0.1),
    "many degenerate": lambda rng: problems.full_rank(rng, *MANY, degenerate=0.5),
    "many ridge l1": lambda rng: problems.full_rank(rng, *MANY, ridge=0.2, l1=0.05),
    "many duplicate": lambda rng: problems.fit(rng, *MANY, A=problems.deficient(rng, *MANY, "duplicate")),
    "square": lambda rng: problems.full_rank(rng, *SQUARE),
    "square boxed": lambda rng: problems.full_rank(rng, *SQUARE, bounded=True),
    "square duplicate": lambda rng: problems.fit(rng, *SQUARE, A=problems.deficient(rng, *SQUARE, "duplicate")),
    "wide fit": lambda rng: problems.fit(rng, *WIDE),
    "wide fit boxed": lambda rng: problems.fit(rng, *WIDE, bounded=True),
    "wide fit duplicate": lambda rng: problems.fit(rng, *WIDE, A=problems.deficient(rng, *WIDE, "duplicate")),
    "wide fit junk": lambda rng: problems.fit(rng, *WIDE, A=problems.deficient(rng, *WIDE, "junk")),
    "wide vertex": lambda rng: problems.vertex(rng, *WIDE),
    "wide misfit": lambda rng: problems.wide_misfit(rng, *WIDE),
    "wide ridge": lambda rng: problems.wide_misfit(rng, *WIDE)._replace(ridge=0.3, l1=0.05),
}


def problem_of(name):
    return CASES[name](np.random.default_rng(list(CASES).index(name)))


@functools.cache
def solved(name, dtype):
    args, options = problem_of(name).astype(dtype)
    return jax.tree.map(np.asarray, jaxnnls.lsq_linear(*args, **options))


@pytest.mark.parametrize("name", CASES)
def test_optimal(name, dtype):
    problem, sol = problem_of(name).rounded(dtype), solved(name, dtype)
    X = sol.x.astype(float)
    assert sol.x.dtype == dtype and sol.dual.dtype == dtype and sol.optimality.dtype == dtype
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    assert np.all(oracle.optimality(problem, X)[0] <= oracle.attainable(problem, X, dtype))
    assert np.all(sol.optimality <= oracle.attainable(problem, X, dtype))
    # Feasible exactly, and the mask is equality with the bounds.
    assert np.all((problem.lower <= X) & (problem.upper >= X))
    at_lower, at_upper = problem.lower == X, problem.upper == X
    np.testing.assert_array_equal(sol.active_mask, np.where(at_lower, -1, np.where(at_upper, 1, 0)))
    # Multipliers: the gradient, with the signs of the contract.
    eps = 200 * np.finfo(dtype).eps
    s, size = np.linalg.norm(problem.A, axis=0)[:, None], np.linalg.norm(problem.B, axis=0) + np.abs(X).sum(0)
    np.testing.assert_allclose(sol.dual, oracle.gradient(problem, X), atol=eps * size.max())
    # Junk columns take no part: the gradient of theirs may have any sign, at rounding level.
    slack = np.where(s > 1e-14 * s.max(), s, s.max()) * np.maximum(size, 1) * (1e-12 if dtype == "f8" else 1e-5)
    assert np.all(sol.dual[at_lower & ~at_upper] >= -np.broadcast_to(slack, X.shape)[at_lower & ~at_upper])
    assert np.all(sol.dual[at_upper & ~at_lower] <= np.broadcast_to(slack, X.shape)[at_upper & ~at_lower])
    assert np.all(np.abs(sol.dual) <= np.where(at_lower | at_upper, np.inf, slack))
    residual = np.linalg.norm(problem.A @ X - problem.B, axis=0)
    np.testing.assert_allclose(sol.residual_norm, residual, rtol=eps, atol=eps * size.max())


@pytest.mark.parametrize("name", [name for name in CASES if problem_of(name).X is not None])
def test_known_solution(name, dtype):
    # Also the least-norm one, where there are several.
    problem, sol = problem_of(name), solved(name, dtype)
    tol = {"float64": 1e-9, "float32": 1e-4}[dtype.name]
    np.testing.assert_allclose(sol.x, problem.X, atol=tol * np.abs(problem.X).max())
    if dtype == "f8":
        gap = oracle.objective(problem, sol.x) - oracle.objective(problem, problem.X)
        assert np.max(np.abs(gap)) <= 1e-12 * np.max(oracle.objective(problem, problem.X) + 1)


@pytest.mark.parametrize(
    "name", ["tall", "tall boxed", "tall fixed", "tall ridge l1", "tall l1", "square", "wide ridge"]
)
def test_agrees_with_scipy(name, x64):
    problem, sol = problem_of(name), solved(name, np.dtype("f8"))
    expected = oracle.scipy_solution(problem)
    np.testing.assert_allclose(sol.x, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["wide misfit", "wide fit", "tall duplicate", "tall zero"])
def test_least_norm(name, dtype):
    problem, sol = problem_of(name).rounded(dtype), solved(name, dtype)
    X = sol.x.astype(float)
    best = oracle.least_norm(problem, X)
    norms = np.linalg.norm(best, axis=0)
    np.testing.assert_allclose(np.linalg.norm(X, axis=0), norms, rtol=2e-3 if dtype == "f4" else 1e-6)
    assert np.max(norms) > 0.1
    for x, a, b in zip(X.T, problem.B.T, sol.residual_norm):
        if name == "wide misfit":
            np.testing.assert_allclose(np.linalg.norm(problem.A @ x - a), scipy_nnls(problem.A, a)[1], rtol=1e-5)
            assert b == pytest.approx(np.linalg.norm(problem.A @ x - a), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_badly_scaled_columns(scale, dtype):
    rng = np.random.default_rng(5)
    s = scale ** np.linspace(-1, 1, TALL[1])
    problem = problems.full_rank(rng, *TALL)
    problem = problem._replace(A=problem.A * s, X=problem.X / s[:, None])
    args, options = problem.astype(dtype)
    sol = jaxnnls.lsq_linear(*args, **options)
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    tol = {"float64": 1e-9, "float32": 1e-4}[dtype.name]
    np.testing.assert_allclose(
        sol.x * s[:, None], problem.X * s[:, None], atol=tol * np.abs(problem.X * s[:, None]).max()
    )


@pytest.mark.parametrize("kind", ["tall", "tall boxed", "tall l1"])
def test_box_qp_is_lsq_linear_on_the_gram_matrix(kind, x64):
    problem = problem_of(kind)
    A, B, lower, upper = problem[:4]

    def solve(max_steps):
        l1 = np.asarray(problem.l1)
        return jaxnnls.box_qp(A.T @ A, A.T @ B, (lower, upper), l1=l1, max_steps=np.asarray(max_steps))

    sol = solve(500)
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    np.testing.assert_allclose(sol.x, problem.X, atol=1e-9 * np.abs(problem.X).max())
    np.testing.assert_allclose(sol.dual, oracle.gradient(problem, problem.X), atol=1e-9)
    assert np.all(np.isnan(sol.residual_norm))
    # Optimality is in units of q, whatever l1.
    begin = solve(0)
    x, s = np.asarray(begin.x), np.linalg.norm(A, axis=0)[:, None]
    beta = np.max(np.abs(A.T @ B) / s, axis=0)
    x, g, low, high = x * s / beta, oracle.gradient(problem, x) / s / beta, lower * s / beta, upper * s / beta
    np.testing.assert_allclose(begin.optimality, np.abs(x - np.clip(x - g, low, high)).max(0), rtol=1e-12)
    assert np.max(begin.optimality) > 0.1


def test_nnls_is_lsq_linear_from_zero(dtype):
    args, _ = problem_of("tall").astype(dtype)
    x = jaxnnls.nnls(*args[:2])
    assert x.dtype == dtype
    np.testing.assert_allclose(x, solved("tall", dtype).x, atol=1e-4 if dtype == "f4" else 1e-12)


@pytest.mark.parametrize("tol", [1e-4, 0.1, 0.9])
def test_loose_tol_is_refined(tol, x64):
    problem = problem_of("tall")
    args, options = problem.astype("f8")
    sol = jaxnnls.lsq_linear(*args, **options, tol=tol)
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    np.testing.assert_allclose(sol.x, problem.X, atol=1e-9)
    assert np.all(oracle.optimality(problem, np.asarray(sol.x))[0] < 1e-12)


def test_small_part_of_a_right_hand_side_is_fitted():
    # Of a size below the default tol, but above rounding.
    sol = jaxnnls.lsq_linear(np.array([[1], [0]], "f"), np.array([[1e-6, 1, 0], [1, 0, 1]], "f"))
    np.testing.assert_allclose(sol.x, [[1e-6, 1, 0]], rtol=1e-6)


def test_integers_and_half_precision():
    rng = np.random.default_rng(0)
    A, B = rng.integers(0, 5, TALL), rng.integers(0, 9, (TALL[0], 10))
    exact = jaxnnls.nnls(A, B)
    assert exact.dtype == jnp.float32
    for half, eps in ((jnp.float16, 1e-3), (jnp.bfloat16, 8e-3)):
        x = jaxnnls.nnls(jnp.asarray(A, half), jnp.asarray(B, half))
        assert x.dtype == half
        # These integers are exact in half precision: only the result is rounded.
        np.testing.assert_allclose(x.astype(float), exact, rtol=eps, atol=1e-5)


def test_float16_says_what_it_cannot_hold():
    A, B = np.diag([1e-3, 1]).astype(np.float16), np.array([[1000, 1], [1, 1]], np.float16)
    sol = jaxnnls.lsq_linear(A, B)
    np.testing.assert_array_equal(np.isinf(sol.x), [[True, False], [False, False]])
    np.testing.assert_array_equal(sol.status, [jaxnnls.Status.PRECISION, jaxnnls.Status.CONVERGED])


def test_start_without_bounds_saves_steps():
    # Columns with a common part, along which sweeps from 0 are slow: from there it is twice as many steps.
    rng = np.random.default_rng(0)
    A = np.abs(rng.standard_normal((400, 64))).astype("f")
    x = rng.uniform(size=(64, 100)) * (rng.uniform(size=(64, 100)) < 0.3)
    B = (A @ x + 0.1 * rng.standard_normal((400, 100))).astype("f")
    cold = jaxnnls.lsq_linear(A, B, bounds=(0, np.inf))
    zero = jaxnnls.lsq_linear(A, B, bounds=(0, np.inf), x_init=np.zeros_like(x))
    assert cold.success.all() and zero.success.all()
    assert cold.nit.mean() < 0.6 * zero.nit.mean()
