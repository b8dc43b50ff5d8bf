"""`smoothing`: the value stays, the derivative is that of the problem with a log barrier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxnnls
from jaxnnls import _relax

KAPPA = 1e-2


def barrier_minimum(H, c, lower, upper, kappa):
    """Independently: x with H x + c - kappa / (x - lower) + kappa / (upper - x) = 0, by damped Newton steps."""
    low, high = np.isfinite(lower), np.isfinite(upper)
    finite_lower, finite_upper = np.where(low, lower, 0), np.where(high, upper, 0)
    middle = (finite_lower + finite_upper) / 2
    x = np.where(low & high, middle, np.where(low, finite_lower + 1, np.where(high, finite_upper - 1, 0)))
    for _ in range(200):
        s, t = np.where(low, x - lower, np.inf), np.where(high, upper - x, np.inf)
        g = H @ x + c - kappa / s + kappa / t
        d = -np.linalg.solve(H + np.diag(kappa / s**2 + kappa / t**2), g)
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(d < 0, -s / d, np.where(d > 0, t / d, np.inf))
        x = x + min(1, 0.9 * room.min()) * d
    return x


def problem_of(kind):
    rng = np.random.default_rng(len(kind))
    m, n = 12, 7
    A, B = rng.standard_normal((m, n)), rng.standard_normal((m, 3))
    lower, upper = np.zeros((n, 3)), np.full((n, 3), np.inf)
    if kind == "boxed":
        lower, upper = lower - rng.random((n, 3)), rng.random((n, 3))
    if kind == "mixed":
        lower[:2], upper[2:4] = -np.inf, 0.5
    return A, B, lower, upper


def relaxed_solution(A, B, lower, upper, ridge=0.0):
    columns = [barrier_minimum(A.T @ A + ridge * np.eye(A.shape[1]), -A.T @ b, *box, KAPPA)
               for b, *box in zip(B.T, lower.T, upper.T)]  # fmt: skip
    return np.stack(columns, axis=1)


def solve(A, B, lower, upper, smoothing=KAPPA, **options):
    return jaxnnls.lsq_linear(A, B, (lower, upper), smoothing=smoothing, **options).x


@jax.jit
def forward(args, direction):
    return jax.jvp(solve, args, direction)


@jax.jit
def backward(args, weight):
    return jax.grad(lambda args: jnp.sum(weight * solve(*args)))(args)


@jax.jit
def backward_by_kappa(args, weight, kappa):
    return jax.grad(lambda args: jnp.sum(jnp.where(weight > 0, weight * solve(*args, kappa) ** 3, 0)))(args)


@pytest.mark.parametrize("kind", ["tall", "boxed", "mixed"])
def test_derivative_is_that_of_the_relaxed_problem(x64, kind):
    args = problem_of(kind)
    rng = np.random.default_rng(0)
    directions = [np.where(np.isfinite(a), rng.standard_normal(a.shape), 0) for a in args]
    x, dx = forward(args, tuple(directions))
    # Two programs may round in two ways.
    np.testing.assert_allclose(x, jaxnnls.lsq_linear(*args[:2], args[2:]).x, rtol=1e-13)
    h = 1e-5
    ahead, behind = (relaxed_solution(*(a + sign * h * d for a, d in zip(args, directions))) for sign in (1, -1))
    np.testing.assert_allclose(dx, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)
    # Reverse mode is the transpose.
    weight = rng.standard_normal(x.shape)
    gradients = backward(args, weight)
    total = sum(float(np.sum(g * d)) for g, d in zip(gradients, directions))
    assert total == pytest.approx(float(np.sum(weight * dx)), rel=1e-9)
    assert np.any(np.abs(gradients[1]) > 1e-3)


def test_second_derivative(x64):
    A, B, lower, upper = problem_of("boxed")
    b, box = B[:, 0], (lower[:, 0], upper[:, 0])
    d = np.random.default_rng(1).standard_normal(b.shape)
    slope = lambda b: jax.jvp(lambda b: solve(A, b, *box), (b,), (d,))[1]  # noqa: E731
    slope, curvature = jax.jit(lambda b: jax.jvp(slope, (b,), (d,)))(b)
    h = 1e-4
    x = [barrier_minimum(A.T @ A, -A.T @ (b + step * h * d), *box, KAPPA) for step in (-1, 0, 1)]
    np.testing.assert_allclose(slope, (x[2] - x[0]) / (2 * h), atol=1e-6)
    np.testing.assert_allclose(curvature, (x[2] - 2 * x[1] + x[0]) / h**2, rtol=1e-4, atol=1e-4)
    assert np.any(np.abs(curvature) > 1e-2)


def test_small_kappa_gives_the_derivative_of_the_solution(x64):
    args = problem_of("tall")
    exact = jax.jit(jax.grad(lambda A: jnp.sum(solve(A, *args[1:], smoothing=None) ** 3)))(args[0])
    ones = np.ones_like(args[2])
    gradients = [backward_by_kappa(args, ones, kappa)[0] for kappa in (1e-3, 1e-6, 1e-10)]
    errors = [np.abs(np.asarray(gradient) - exact).max() for gradient in gradients]
    assert errors[0] > 1e-3 > errors[1] > errors[2]
    assert errors[2] < 1e-7


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_columns_that_take_no_part(x64, scale):
    A, B, lower, upper = problem_of("tall")
    A[:, 2] = 0  # a variable without equations
    lower[3], upper[3] = 0.25, 0.25  # a fixed one
    weight = np.ones_like(lower)
    weight[:, 1] = 0
    plain, _, _, _ = backward_by_kappa((A, B, lower, upper), weight, KAPPA)
    B = B.copy()  # for JAX may not have read the other
    B[:, 1] = np.nan
    dA, dB, _, _ = backward_by_kappa((A * scale, B * scale, lower, upper), weight, KAPPA * scale**2)
    assert np.all(np.isfinite(dA)) and np.all(np.isfinite(dB))
    np.testing.assert_array_equal(dA[:, 2], 0)
    np.testing.assert_array_equal(dB[:, 1], 0)
    np.testing.assert_allclose(dA * scale, plain, rtol=1e-6, atol=1e-8)


def test_fixed_variables_follow_their_lower_bound(x64):
    # Scaled and back, some of them were above it, and followed the upper one.
    A, B, lower, upper = problem_of("boxed")
    for rng in map(np.random.default_rng, range(6)):
        fixed = rng.random(lower.shape) < 0.5
        low = np.where(fixed, upper * rng.random(lower.shape), lower)
        args = A, B, low, np.where(fixed, low, upper)
        _, dx = forward(args, (0 * A, 0 * B, np.ones_like(lower), 0 * upper))
        np.testing.assert_allclose(dx[fixed], 1, rtol=1e-14)


def test_smoothing_of_a_quadratic_program_and_under_vmap(x64):
    A, B, lower, upper = problem_of("boxed")

    def f(Q, q, lower, upper):
        return jaxnnls.box_qp(Q, q, (lower, upper), smoothing=KAPPA).x

    d = np.random.default_rng(3).standard_normal(B.shape)
    args = (A.T @ A, A.T @ B, lower, upper)
    batched = jax.vmap(lambda q, dq, *box: jax.jvp(lambda q: f(args[0], q, *box), (q,), (dq,))[1], 1, 1)
    nothing = (np.zeros_like(A), d, np.zeros_like(lower), np.zeros_like(upper))
    expected = forward((A, B, lower, upper), nothing)[1]
    np.testing.assert_allclose(batched(args[1], A.T @ d, lower, upper), expected, atol=1e-8)


def test_smoothing_must_be_positive():
    with pytest.raises(ValueError, match="smoothing > 0"):
        jaxnnls.nnls(jnp.eye(2), jnp.ones(2), smoothing=0.0)


def test_functions_of_the_namesake(x64):
    rng = np.random.default_rng(5)
    A, b, w = rng.standard_normal((30, 8)), rng.standard_normal(30), rng.standard_normal(8)
    Q, q = A.T @ A, A.T @ b
    x, s, z, converged, iterations = jaxnnls.solve_nnls(Q, q)
    assert converged == 1 and iterations > 0
    np.testing.assert_array_equal(s, x)
    assert np.all(x >= 0) and np.all(z >= 0) and np.all(np.minimum(x, z) == 0) and 0 < np.sum(x == 0) < 8
    np.testing.assert_allclose(Q @ x - q, z, atol=1e-12)

    value, slope = jax.value_and_grad(lambda q: w @ jaxnnls.solve_nnls_primal(Q, q, target_kappa=KAPPA))(q)
    assert value == pytest.approx(float(w @ x))
    relaxed = barrier_minimum(Q, -q, np.zeros(8), np.full(8, np.inf), KAPPA)
    np.testing.assert_allclose(slope, np.linalg.solve(Q + np.diag(KAPPA / relaxed**2), w), rtol=1e-8)
    assert not np.allclose(slope, jax.grad(lambda q: w @ jaxnnls.box_qp(Q, q).x)(q), rtol=1e-2)


def relaxed_by_newton(A, b, kappa):
    """The minimiser of 1/2 ||A x - b||^2 - kappa sum(log x), by damped Newton steps from larger weights on."""
    H, x = A.T @ A, np.ones(A.shape[1])
    for weight in kappa * 2.0 ** np.arange(30, -1, -1):
        for _ in range(20):
            g = H @ x - A.T @ b - weight / x
            d = -np.linalg.solve(H + np.diag(weight / x**2), g)
            decrement = np.sqrt(max(-g @ d / weight, 0))  # below 1 a whole step stays inside: self-concordance
            x = x + d / (1 + decrement) if decrement > 0.1 else x + d
    return x


@pytest.mark.parametrize("kappa", [10.0, 1e-2, 1e-6])
def test_every_column_of_many(kappa, x64):
    rng = np.random.default_rng(0)
    A, B = rng.random((12, 9)), rng.random((12, 60))
    _, dx = jax.jvp(lambda B: jaxnnls.nnls(A, B, smoothing=kappa), (B,), (jnp.ones_like(B),))
    for b, dx_b in zip(B.T, dx.T):
        x = relaxed_by_newton(A, b, kappa)
        expected = np.linalg.solve(A.T @ A + np.diag(kappa / x**2), A.sum(0))
        np.testing.assert_allclose(dx_b, expected, rtol=0, atol=1e-7 * abs(expected).max())


def test_what_has_no_relaxed_solution_has_no_derivative():
    # Along d >= 0 with A d = 0 the barrier falls without limit; in float32 x was believed to be there at some point.
    rng = np.random.default_rng(2)
    A, B = rng.standard_normal((6, 12)), rng.standard_normal((6, 8)).astype("f")
    ray = scipy.optimize.linprog(np.zeros(12), A_eq=np.vstack([A, np.ones(12)]), b_eq=np.append(np.zeros(6), 1))
    assert ray.status == 0
    _, dx = jax.jvp(lambda B: jaxnnls.nnls(A.astype("f"), B, smoothing=1e-3), (B,), (jnp.ones_like(B),))
    assert np.isnan(dx).all(axis=0).all()


def test_float32_beside_a_small_kappa():
    rng = np.random.default_rng(0)
    A = rng.random((16, 6), dtype="f")
    B = 1000 * A @ np.maximum(rng.standard_normal((6, 60)), 0).astype("f")
    _, dx = jax.jvp(lambda B: jaxnnls.nnls(A, B, smoothing=1e-4), (B,), (jnp.ones_like(B),))
    assert np.isfinite(dx).all()


def test_what_cannot_be_relaxed_has_no_derivative(x64, monkeypatch):
    monkeypatch.setattr(_relax, "STEPS", 1)
    A, B = np.random.default_rng(0).random((7, 5)), np.ones((7, 2))
    B[0, 1] = np.nan
    _, dx = jax.jvp(lambda B: jaxnnls.nnls(A, B, smoothing=1e-3), (B,), (jnp.ones_like(B),))
    assert np.isnan(dx[:, 0]).all() and (dx[:, 1] == 0).all()
