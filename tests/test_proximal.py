"""Problems that only the robust path solves."""

import jax
import numpy as np

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
