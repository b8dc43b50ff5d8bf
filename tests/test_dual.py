"""The dual method for wide A: the proof that nothing within the bounds fits, and a class of hard fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnnls
from jaxnnls import Status
from jaxnnls._dual import Columns, out_of_reach
from jaxnnls._matrix import regularised_inverse

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


def stalling_mates(A, count):
    """Right-hand sides that nothing fits, by so little that no proof finds it: steps for nothing, each soon done."""
    B = A @ np.abs(np.random.default_rng(1).standard_normal((A.shape[1], count)))
    B[7] = -1e-3
    return B


@pytest.mark.parametrize("seed", [0, 1])
def test_hard_columns_do_not_depend_on_those_beside_them(seed):
    rng = np.random.default_rng(seed)
    edges = np.cumsum(np.linspace(3, 8, 42))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    k = np.arange(np.ceil(edges[-1]))
    A = np.maximum(np.minimum((k - low) / (centre - low), (high - k) / (high - centre)), 0).astype("f")
    tones = sum(
        np.exp(-((k[:, None] - j * rng.uniform(5, 12, 28)) ** 2)) * 10 ** rng.uniform(-4, 0, 28) for j in range(1, 12)
    )
    B = (A @ (tones + 1e-6)).astype("f")
    alone = jaxnnls.lsq_linear(A, B, (0, np.inf))
    beside = jaxnnls.lsq_linear(A, np.hstack([stalling_mates(A, 36).astype("f"), B]), (0, np.inf))
    np.testing.assert_array_equal(alone.status, Status.CONVERGED)
    np.testing.assert_array_equal(beside.status[36:], Status.CONVERGED)
    np.testing.assert_allclose(beside.x[:, 36:], alone.x, atol=1e-5 * np.max(alone.x))


@pytest.mark.parametrize(("m", "n", "rank"), [(60, 150, 30), (20, 50, 19)])
def test_rows_that_depend_on_others(m, n, rank):
    rng = np.random.default_rng([m, n, rank])
    A = np.abs(rng.standard_normal((m, rank))) @ np.abs(rng.standard_normal((rank, n)))
    X = np.maximum(rng.standard_normal((n, 20)), 0)
    sol = jaxnnls.lsq_linear(A.astype("f"), (A @ X).astype("f"), (0, np.inf))
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    assert np.max(sol.residual_norm / np.linalg.norm(A @ X, axis=0)) < 1e-5
    assert np.all(np.linalg.norm(sol.x, axis=0) < 1.001 * np.linalg.norm(X, axis=0))
    assert np.max(sol.nit) <= 40


@pytest.mark.parametrize(("m", "n", "rank"), [(40, 64, 20), (100, 300, 50)])
def test_low_rank_in_float64(m, n, rank, x64):
    """They fit, but for rounding out of the range of A, for which some of 100 x 300 ended at PRECISION."""
    rng = np.random.default_rng([m, n])
    A = np.abs(rng.standard_normal((m, rank))) @ np.abs(rng.standard_normal((rank, n)))
    # x = clip(A'w) is the shortest of all that fit A x.
    X = np.maximum(A.T @ rng.standard_normal((m, 40)), 0)
    sol = jaxnnls.lsq_linear(A, A @ X, (0, np.inf))
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    np.testing.assert_allclose(sol.x, X, rtol=0, atol=1e-7 * X.max())


@pytest.mark.parametrize("rows", ["repeated", "sums", "zero", "none"])
def test_dependent_rows_are_told(rows, dtype):
    rng = np.random.default_rng(0)
    A = rng.random((20, 60))
    more = {"repeated": A[:3], "sums": [A[:6].sum(axis=0)], "zero": np.zeros((2, 60)), "none": np.zeros((0, 60))}[rows]
    A = jnp.asarray(np.vstack([A, more]), dtype)
    _, regular = regularised_inverse(jnp.matmul(A, A.T, precision="highest"))
    assert regular == (rows in ("zero", "none"))


def test_rows_that_are_sums_with_noise(x64):
    """What is not in the range of A has no part in x, whether it is rounding or noise."""
    rng = np.random.default_rng(0)
    A = rng.random((12, 40))
    A = np.vstack([A, A[:6].sum(axis=0), A[:2]])
    X = np.maximum(A.T @ rng.standard_normal((15, 6)), 0)
    null = np.linalg.svd(A)[0][:, 12:]
    expected = jaxnnls.lsq_linear(A, A @ X, (0, np.inf))
    np.testing.assert_allclose(expected.x, X, rtol=0, atol=1e-9 * X.max())
    for noise in (1e-13, 1e-9, 1e-3, 1):
        sol = jaxnnls.lsq_linear(A, A @ X + noise * null @ rng.standard_normal((3, 6)), (0, np.inf))
        np.testing.assert_array_equal(sol.status, Status.CONVERGED)
        np.testing.assert_allclose(sol.x, X, rtol=0, atol=1e-6 * X.max())


def test_derivative_where_rows_are_sums(x64):
    rng = np.random.default_rng(1)
    A = rng.random((6, 20))
    A = np.vstack([A, A[:5].sum(axis=0)])
    X = np.maximum(A.T @ rng.standard_normal((7, 3)), 0)
    C = rng.standard_normal((20, 3))
    T = np.vstack([np.eye(6), np.arange(6) < 5])  # from six rows to seven: the derivative stays where A x = b

    def loss(rows, b):
        return jnp.sum(C * jaxnnls.nnls(T @ rows, T @ b))

    def plain(rows, b):
        return jnp.sum(C * jaxnnls.nnls(rows, b))

    args = jnp.asarray(A[:6]), jnp.asarray(A[:6] @ X)
    for a, b in zip(jax.grad(loss, (0, 1))(*args), jax.grad(plain, (0, 1))(*args)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("distance", [1e-9, 1e-10, 1e-11])
def test_rows_that_nearly_repeat_others(distance, x64):
    # By more than rounding: a turn would spoil what distinguishes them.
    rng = np.random.default_rng(1)
    A = rng.random((60, 200))
    A[30:] = A[:30] + distance * rng.standard_normal((30, 200))
    X = np.maximum(A.T @ rng.standard_normal((60, 40)), 0)
    sol = jaxnnls.lsq_linear(A, A @ X, (0, np.inf))
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    assert np.all(np.linalg.norm(sol.x, axis=0) <= 1.0001 * np.linalg.norm(X, axis=0))
