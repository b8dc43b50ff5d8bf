"""Problems that only the robust path solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxnnls
from jaxnnls._matrix import regularised_inverse
from jaxnnls._weighted import newton_systems


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
    """More rows than conjugate gradients need to be the cheaper way, in float32, and what they cannot do."""
    rng = np.random.default_rng(1)
    regular = bands(160, 500)
    m, n = regular.shape
    assert m > 2 * np.finfo("f").eps ** -0.25
    dependent = regular.copy()
    dependent[7] = dependent[6] + dependent[8]
    low_rank = rng.random((m, 60)) @ rng.random((60, n))
    B = rng.random((m, 16), "f")
    solve = jax.jit(lambda A, B, ridge: jaxnnls.lsq_linear(A, B, (0, np.inf), ridge=ridge))
    for A, ridge in (regular, 0), (dependent, 0), (low_rank, 0), (regular, 1e-4 * np.mean(regular**2) * m):
        A = A.astype("f")
        sol = solve(A, B, jnp.float32(ridge))
        assert np.max(sol.optimality) < 4e-6
        assert np.all(sol.success)
        x, zeros = np.asarray(sol.x, float), np.zeros(n)
        stacked = np.vstack([A, np.sqrt(ridge) * np.eye(n)]).astype(float)
        expected = [scipy.optimize.nnls(stacked, np.hstack([b, zeros]))[1] for b in B.T]
        reached = np.hypot(np.linalg.norm(A @ x - B, axis=0), np.sqrt(ridge) * np.linalg.norm(x, axis=0))
        np.testing.assert_allclose(reached, expected, rtol=1e-4)


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_systems_of_many_rows(able, k):
    rng = np.random.default_rng(2)
    R = bands(160, 500).astype("f")
    assert len(R) > 2 * np.finfo("f").eps ** -0.25
    weight, damping, r = rng.random((R.shape[1], k), "f") > 0.1, np.full(k, 1e-3, "f"), rng.standard_normal((len(R), k))
    own = np.arange(k) < max(1, k - 1)

    @jax.jit
    def solve(R, weight, damping, r, able, own):
        inverse, _ = regularised_inverse(R @ R.T)
        systems, _ = newton_systems(R, inverse, jnp.ones((R.shape[1], 1), R.dtype), able)
        return systems(weight.astype(R.dtype), damping, r, own)

    d = np.asarray(solve(R, weight, damping, r.astype("f"), able, own), float)
    left = R @ (weight * (R.T @ d)) + damping * d - r
    size = np.linalg.norm(left, axis=0) / np.linalg.norm(r, axis=0)
    assert np.all(size[own] < (0.02 if able else 1e-3))
