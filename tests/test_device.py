"""What runs on a GPU, on whatever is here: larger groups, gradients in the place of coordinate descent; batches."""

import jax
import numpy as np
import pytest
from scipy.optimize import nnls as scipy_nnls

import jaxnnls
from jaxnnls import _device, _sweeps


@pytest.fixture
def gpu(monkeypatch):
    jax.clear_caches()
    monkeypatch.setattr(_device, "on_gpu", lambda: True)
    monkeypatch.setattr(_sweeps, "by_coordinates", None)  # not there
    yield
    jax.clear_caches()


def test_where_programs_go(monkeypatch):
    cpu = jax.devices("cpu")[0]
    for choice in (cpu, "cpu"):
        with jax.default_device(choice):
            assert not _device.on_gpu()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _device.on_gpu()
    with jax.default_device(cpu):
        assert not _device.on_gpu()


@pytest.mark.parametrize(
    ("shape", "options", "dtype"),
    [
        ((40, 25), {}, "float32"),  # by H
        ((9, 25), {"ridge": 0.3}, "float64"),  # by A
        ((30, 8), {}, "float32"),  # by pivots
    ],
    indirect=["dtype"],
)
def test_solutions(gpu, dtype, shape, options):
    m, n = shape
    rng = np.random.default_rng(0)
    A, B = rng.uniform(size=shape).astype(dtype), rng.uniform(size=(m, 30)).astype(dtype)
    solution = jaxnnls.lsq_linear(A, B, (0, np.inf), **options)
    assert solution.success.all()
    A, B = A.astype(float), B.astype(float)
    ridge = options.get("ridge", 0)
    A_ridge, B_ridge = np.vstack([A, np.sqrt(ridge) * np.eye(n)]), np.vstack([B, np.zeros((n, 30))])
    expected = np.stack([scipy_nnls(A_ridge, b)[0] for b in B_ridge.T], axis=1)
    np.testing.assert_allclose(solution.x, expected, rtol=0, atol=1e3 * np.finfo(dtype).eps * np.abs(expected).max())


def test_no_matrices():
    assert jax.vmap(jaxnnls.nnls)(np.zeros((0, 4, 3)), np.zeros((0, 4, 2))).shape == (0, 3, 2)
