"""The dual method for wide A: the proof that nothing within the bounds fits, and a class of hard fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnnls
from jaxnnls._dual import Columns, out_of_reach

M, N = 8, 64
BOUNDS = {"x >= 0": (0, np.inf), "boxed": (-1, 1), "mixed": (-0.5, np.where(np.arange(24) % 2, np.inf, 2)[:, None])}


def judged(A, B, lower, upper, w):
    part = Columns(B, *(np.broadcast_to(bound, (A.shape[1], N)).astype(B.dtype) for bound in (lower, upper)))
    return np.asarray(jax.jit(out_of_reach)(part, A, w, A.T @ w))


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("sign", ["positive", "any sign"])
def test_what_fits_is_never_out_of_reach(sign, bounds):
    rng = np.random.default_rng(0)
    lower, upper = BOUNDS[bounds]
    for scale in 10.0 ** np.arange(-4, 5):
        A = rng.standard_normal((M, 24)) * np.geomspace(1, scale, 24)
        A = np.abs(A) if sign == "positive" else A
        A[:, 3] = 0
        X = np.clip(rng.standard_normal((24, N)) * (rng.random((24, N)) < 0.2), lower, upper)
        X[0] = 0.5
        B = A @ X
        size = np.linalg.norm(B, axis=0)  # right-hand sides of size 1, and bounds in their units
        W = np.linalg.lstsq(A @ A.T, B / size, rcond=None)[0] * 10.0 ** rng.integers(-3, 4, N)
        W = np.where(np.arange(N) % 2, W, rng.standard_normal((M, N)) * scale)
        args = (a.astype("f") for a in (A, B / size, lower / size, upper / size, W))
        assert not np.any(judged(*args))


@pytest.mark.parametrize("bounds", ["x >= 0", "boxed"])
def test_proof_for_what_is_far_away(bounds):
    rng = np.random.default_rng(1)
    A = rng.random((M, 24))
    B = rng.standard_normal((M, N)) if bounds == "x >= 0" else 100 * A @ rng.standard_normal((24, N))
    B -= np.mean(B, axis=0) if bounds == "x >= 0" else 0  # at right angles to the sum of the rows, a positive vector
    size = np.linalg.norm(B, axis=0)
    lower, upper = (bound / size for bound in BOUNDS[bounds])
    args = (a.astype("f") for a in (A, B / size, lower, upper, np.linalg.solve(A @ A.T, B / size)))
    assert np.mean(judged(*args)) > 0.9


def test_out_of_reach_of_nothing():
    part = Columns(jnp.ones((M, N)), jnp.zeros((0, N)), jnp.zeros((0, N)))
    assert out_of_reach(part, jnp.zeros((M, 0)), jnp.ones((M, N)), jnp.zeros((0, N))).shape == (N,)


def test_power_of_tones_in_bands(dtype):
    """Bands of next to nothing between large ones: mel spectrograms of power, which ended at PRECISION."""
    rng = np.random.default_rng(0)
    edges = np.cumsum(np.linspace(3, 8, 26))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.arange(np.ceil(edges[-1]))
    A = np.maximum(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0)
    tones = [
        np.exp(-((bins[:, None] - k * rng.uniform(5, 12, N)) ** 2)) * 10 ** rng.uniform(-4, 0, N) for k in range(1, 12)
    ]
    B = (A @ (sum(tones) + 1e-6)).astype(dtype)
    sol = jaxnnls.lsq_linear(A.astype(dtype), B, (0, np.inf))
    assert np.all(sol.status == jaxnnls.Status.CONVERGED)
    assert np.all(np.linalg.norm(A @ np.asarray(sol.x, float) - B, axis=0) <= 1e-5 * np.linalg.norm(B, axis=0))
