"""Whether some columns are independent, beside NumPy's rank by singular values."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnnls._rank import independent


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_independent(x64, dtype):
    rng = np.random.default_rng(3)
    A = rng.standard_normal((10, 9))
    A[:, 4], A[:, 6], A[:, 8] = A[:, 1], A[:, 0] - 2 * A[:, 5], 1e-3 * A[:, 2] + A[:, 3]
    A /= np.linalg.norm(A, axis=0)
    R = np.linalg.qr(A)[1]
    chosen = rng.random((9, 300)) < 0.4
    others = ~chosen & (rng.random((9, 300)) < 0.2)
    chosen[:, 0], others[:, 0] = False, True  # none is independent of nothing, and no other is zero
    chosen[:, 1] = others[:, 1] = False

    def rank(member):
        return np.linalg.matrix_rank(A[:, member], tol=1e-8) if member.any() else 0

    expected = []
    for c, o in zip(chosen.T, others.T):
        alone = all(rank(c | (np.arange(9) == j)) == c.sum() + 1 for j in np.flatnonzero(o))
        expected.append(rank(c) == c.sum() and alone)
    assert 50 < np.sum(expected) < 250
    rounding = 4 * np.sqrt(10) * np.finfo(dtype).eps
    found = independent(jnp.asarray(R, dtype), jnp.asarray(chosen), jnp.asarray(others), jnp.asarray(rounding, dtype))
    np.testing.assert_array_equal(found, expected)


def test_a_column_near_the_span_of_others(x64):
    rng = np.random.default_rng(4)
    A = rng.standard_normal((6, 3))
    for distance, apart in ((1e-3, True), (1e-6, True), (1e-13, True), (1e-17, False)):
        B = np.column_stack([A, A @ [1.0, -2.0, 0.5] + distance * rng.standard_normal(6)])
        R = jnp.asarray(np.linalg.qr(B / np.linalg.norm(B, axis=0))[1])
        all_of_them, one = jnp.ones((4, 1), bool), jnp.arange(4)[:, None] == 3
        rounding = jnp.asarray(4 * np.sqrt(6) * np.finfo(float).eps)
        assert independent(R, all_of_them, ~all_of_them, rounding)[0] == apart
        assert independent(R, ~one, one, rounding)[0] == apart
