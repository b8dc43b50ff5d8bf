"""Factorisations: as exact as LAPACK's, on either side of every limit at which the method changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnnls import _factor as factor
from jaxnnls import _lapack as lapack


def with_condition(m, n, condition, dtype):
    """Unit columns, singular values from 1 to 1 / condition before that."""
    rng = np.random.default_rng(m + n)
    left, right = (np.linalg.qr(rng.standard_normal((rows, n)))[0] for rows in (m, n))
    A = left * np.geomspace(1, 1 / condition, n) @ right.T
    return (A / np.linalg.norm(A, axis=0)).astype(dtype)


@pytest.mark.parametrize("power", [0.25, 0.45, 0.55, 1, 2])
@pytest.mark.parametrize(("m", "n"), [(900, 16), (300, 90), (300, 257), (20, 8)])
def test_qr(m, n, power, dtype):
    eps = np.finfo(dtype).eps
    A = with_condition(m, n, eps**-power, dtype)
    Q, R = (np.asarray(a, float) for a in jax.jit(factor.qr)(A))
    assert np.abs(Q.T @ Q - np.eye(n)).max() < 20 * eps
    assert np.linalg.norm(A - Q @ R, axis=0).max() < 20 * eps
    assert np.all(np.tril(R, -1) == 0)


def test_qr_takes_products_where_they_are_exact(monkeypatch):
    """And only there: LAPACK's is replaced by something wrong, and that shows where it should."""
    monkeypatch.setattr(factor.device, "on_gpu", lambda: False)
    monkeypatch.setattr(lapack, "qr", lambda A: (jnp.zeros_like(A), jnp.zeros((A.shape[1],) * 2, A.dtype)))
    for condition, by_products in ((1e2, True), (1e6, False)):
        R = jax.jit(lambda A: factor.qr(A)[1])(with_condition(600, 30, condition, np.float32))  # traced anew
        assert bool(jnp.any(R != 0)) == by_products


@pytest.mark.parametrize("n", [1, 60, 150, 257, 290])
def test_cholesky_and_what_comes_of_it(n, dtype):
    eps = np.finfo(dtype).eps
    A = with_condition(2 * n, n, 30, dtype)
    M = np.asarray(A.T @ A, dtype)
    b = np.linspace(-1, 1, n).astype(dtype)
    L = np.asarray(factor.cholesky(jnp.asarray(np.tril(M))), float)  # reads no more than this
    assert np.abs(L @ L.T - M).max() < 20 * eps
    assert np.all(np.triu(L, 1) == 0)
    inverse, also_L = (np.asarray(a, float) for a in factor.inverse_and_factor(jnp.asarray(M)))
    expected, size = np.linalg.inv(M.astype(float)), np.linalg.cond(M)
    assert np.abs(also_L - L).max() < 20 * eps * size
    assert np.abs(inverse - expected).max() < 5 * eps * size * np.abs(expected).max()
    x = factor.solve(jnp.asarray(M), jnp.asarray(b))
    assert np.abs(x - expected @ b).max() < 5 * eps * size * np.abs(expected @ b).max()
    half = np.asarray(factor.triangular_inverse(jnp.asarray(L.T, dtype)), float)
    assert np.abs(half @ L.T - np.eye(n)).max() < 20 * eps * np.sqrt(size)


@pytest.mark.parametrize("n", [12, 220])
def test_not_positive_definite_is_nan(n):
    M = jnp.eye(n).at[n - 1, n - 1].set(-1)
    assert bool(jnp.all(jnp.isnan(factor.solve(M, jnp.ones(n)))))


@pytest.mark.parametrize("n", [12, 220])
def test_lanes_are_solved_one_by_one(n):
    stack = jnp.asarray(np.stack([with_condition(n, n, c, np.float32) for c in (2, 20)]))
    M = jnp.einsum("kij,kil->kjl", stack, stack, precision="highest")
    together = jax.vmap(functools.partial(factor.solve, b=jnp.ones(n)))(M)
    for own, x in zip(M, together):
        np.testing.assert_allclose(x, factor.solve(own, jnp.ones(n)), rtol=1e-3, atol=1e-3 * float(jnp.abs(x).max()))
