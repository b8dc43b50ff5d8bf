"""Filter banks of triangles, whose rows overlap with their neighbours alone; shuffled, they are like any other A."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnnls
from jaxnnls._tridiagonal import bands, is_tridiagonal, neighbours, solve

BOUNDS = {"x >= 0": (0, np.inf), "boxed": (0, 0.5), "mixed": (-0.1, np.where(np.arange(150) % 2, np.inf, 0.5)[:, None])}


def triangles(m, n):
    """Overlapping triangles on a logarithmic axis, (m, n), as of a mel basis."""
    edges, at = np.geomspace(2, n, m + 2)[:, None], np.arange(n) + 0.5
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    return np.maximum(0, np.minimum((at - left) / (centre - left), (right - at) / (right - centre)))


def targets(rng, A, kind):
    """What A fits, or, off by as much as it is, what nothing does."""
    B = A @ rng.exponential(size=(A.shape[1], 24))
    return B if kind == "fits" else B * np.exp(rng.standard_normal(B.shape))


@pytest.mark.parametrize("m", [1, 2, 3, 12])
def test_elimination(m, dtype):
    rng = np.random.default_rng(m)
    A = np.zeros((m, 40))
    above = rng.integers(0, max(m - 1, 1), 40)
    A[above, np.arange(40)] = rng.standard_normal(40)
    A[np.minimum(above + 1, m - 1), np.arange(40)] += rng.standard_normal(40)
    v, shift, r = rng.random((40, 5)), rng.random((m, 5)) + 0.1, rng.standard_normal((m, 5))
    assert is_tridiagonal(jnp.asarray(A, dtype))
    products = neighbours(jnp.asarray(A, dtype))
    x = solve(bands(products, jnp.asarray(v, dtype)), jnp.asarray(shift, dtype), jnp.asarray(r, dtype))
    expected = np.stack([np.linalg.solve(A * w @ A.T + np.diag(s), b) for w, s, b in zip(v.T, shift.T, r.T)], axis=1)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e3 * np.finfo(dtype).eps * np.abs(expected).max())


def test_what_is_tridiagonal():
    A = triangles(12, 40).astype("f")
    assert is_tridiagonal(A) and is_tridiagonal(-A[::-1])
    assert not is_tridiagonal(A[np.r_[1, 0, 2:12]])
    A[5, np.flatnonzero(A[7])[0]] = 1e-6
    assert not is_tridiagonal(A)


@pytest.mark.parametrize("kind", ["fits", "nothing fits"])
@pytest.mark.parametrize(
    ("bounds", "penalty"),
    [(b, p) for b in BOUNDS for p in ("none", "ridge", "l1") if (b, p) != ("mixed", "l1")],  # it needs lower >= 0
)
def test_the_order_of_rows_does_not_matter(bounds, penalty, kind, x64):
    rng = np.random.default_rng(0)
    A = triangles(20, 150)
    B, order = targets(rng, A, kind), rng.permutation(20)
    options = {} if penalty == "none" else {penalty: 1e-2 if penalty == "ridge" else 1e-2 * float(np.max(A.T @ B))}
    sol = jaxnnls.lsq_linear(A, B, BOUNDS[bounds], **options)
    shuffled = jaxnnls.lsq_linear(A[order], B[order], BOUNDS[bounds], **options)
    np.testing.assert_array_equal(sol.status, jaxnnls.Status.CONVERGED)
    np.testing.assert_array_equal(shuffled.status, jaxnnls.Status.CONVERGED)
    np.testing.assert_allclose(sol.x, shuffled.x, atol=1e-6 * np.max(np.abs(shuffled.x)))
    np.testing.assert_allclose(sol.residual_norm, shuffled.residual_norm, atol=1e-9 * np.max(np.abs(B)))


@pytest.mark.parametrize(("kind", "ridge"), [("fits", 0), ("nothing fits", 1e-2)])
def test_the_derivative_knows_no_order_of_rows(kind, ridge, x64):
    rng = np.random.default_rng(0)
    A = triangles(20, 150)
    B, order = targets(rng, A, kind), rng.permutation(20)
    gradient = jax.grad(lambda A, B: jnp.sum(jaxnnls.nnls(A, B, ridge=ridge) ** 2), (0, 1))
    for d, e in zip(gradient(A, B), gradient(A[order], B[order])):
        np.testing.assert_allclose(d[order], e, atol=1e-7 * np.abs(e).max())


def test_power_down_to_nothing(x64):
    """Decaying strings: a third of the frames ended at PRECISION, after up to 300 steps."""
    A, t = triangles(40, 250), np.arange(120)
    S = np.zeros((250, 120))
    for at in range(10, 240, 11):
        S[at] = np.exp(-t * at / 200) * np.random.default_rng(at).uniform(0.1, 1)
    S += 1e-6 * np.random.default_rng(0).random(S.shape)
    sol = jaxnnls.lsq_linear(A, A @ S**2, (0, np.inf))
    np.testing.assert_array_equal(sol.status, jaxnnls.Status.CONVERGED)
    assert np.all(sol.residual_norm <= 1e-12 * np.linalg.norm(A @ S**2, axis=0))
    assert np.max(sol.nit) < 100


def test_beside_another_matrix():
    rng = np.random.default_rng(0)
    A = np.stack([triangles(12, 60), rng.random((12, 60))]).astype("f")
    B = np.stack([targets(rng, a, kind) for a, kind in zip(A, ("nothing fits", "fits"))]).astype("f")
    X = jax.vmap(jaxnnls.nnls)(A, B)
    for a, b, x in zip(A, B, X):
        expected = jaxnnls.nnls(a, b)
        np.testing.assert_allclose(x, expected, atol=1e-3 * np.abs(expected).max())


def test_rows_that_repeat_others(x64):
    # What no A x has, in a direction in which rounding leaves A 1e-16, was fitted by variables of 1e16.
    rng = np.random.default_rng(0)
    row, B = rng.random((1, 10)), rng.standard_normal((2, 100))
    lower = np.where(rng.random((10, 100)) < 0.3, -np.inf, -0.3)
    bounds = lower, np.where(rng.random((10, 100)) < 0.5, np.inf, 0.4)
    A, times = np.concatenate([row, 2.3 * row]), np.array([1, 2.3]) / (1 + 2.3**2)
    sol = jaxnnls.lsq_linear(A, B, bounds)
    np.testing.assert_array_equal(sol.status, jaxnnls.Status.CONVERGED)
    # The same problem in one row, beside one of zeros.
    one = np.concatenate([row, 0 * row])
    x = jaxnnls.lsq_linear(one, np.stack([times @ B, 0 * B[0]]), bounds).x
    np.testing.assert_allclose(sol.x, x, rtol=0, atol=1e-8 * np.max(np.abs(x)))
