"""Problems that only the robust path solves."""

import jax
import jax.numpy as jnp
import numpy as np
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
