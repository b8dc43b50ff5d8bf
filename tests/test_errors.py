"""Bad input raises at trace time, with what was expected and what came."""

import array
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import jaxnnls

A, B = np.ones((4, 3), "f"), np.ones((4, 2), "f")
Q, q = np.eye(3, dtype="f"), np.ones((3, 2), "f")
ls, qp = jaxnnls.lsq_linear, jaxnnls.box_qp


class Parameter(NamedTuple):
    """As models have them."""

    value: jax.Array

    def __jax_array__(self):
        return self.value


SHAPES = {
    "A is a vector": (lambda: ls(A[0], B), r"Expected A with two axes, got shape \(3,\)"),
    "A is a batch": (lambda: ls(A[None], B), r"Expected A with two axes, got shape \(1, 4, 3\); .*jax.vmap"),
    "B is a scalar": (lambda: ls(A, 1.0), "Expected B with at least one axis, got a scalar"),
    "B is transposed": (
        lambda: ls(A, B.T),
        r"Expected B of shape \(4,\) or \(..., 4, N\).*got shape \(2, 4\).*transpose",
    ),
    "b is too short": (lambda: ls(A, B[:3, 0]), r"Expected B of shape \(4,\).*got shape \(3,\)"),
    "Q is not square": (lambda: qp(A, B), r"Expected a square Q, got shape \(4, 3\)"),
    "Q is a vector": (lambda: qp(Q[0], q), r"Expected Q with two axes, got shape \(3,\)"),
    "q is too long": (lambda: qp(Q, B), r"Expected q of shape \(3,\) or \(..., 3, N\).*got shape \(4, 2\)"),
    "lower too short": (
        lambda: ls(A, B, (np.zeros(2), 1)),
        "Expected a one-dimensional lower .* per variable, 3, got 2",
    ),
    "upper per column": (lambda: ls(A, B[..., :1], (0, np.ones((3, 2)))), r"Expected upper to broadcast .*\(3, 1\)"),
    "upper of another shape": (lambda: ls(A, B, (0, np.ones((2, 2)))), r"Expected upper to broadcast .*\(3, 2\), got"),
    "x_init": (
        lambda: jaxnnls.nnls(A, B, x_init=B),
        r"Expected x_init of the shape of x, \(3, 2\), got shape \(4, 2\)",
    ),
    "ridge": (lambda: jaxnnls.nnls(A, B, ridge=np.ones(3)), r"Expected a scalar ridge, got shape \(3,\)"),
    "l1": (lambda: jaxnnls.nnls(A, B, l1=np.ones(1)), r"Expected a scalar l1, got shape \(1,\)"),
    "tol": (lambda: jaxnnls.nnls(A, B, tol=np.ones(2)), "Expected a scalar tol"),
    "max_steps": (lambda: jaxnnls.nnls(A, B, max_steps=np.ones(2, int)), "Expected a scalar max_steps"),
    "one bound": (lambda: ls(A, B, 0.0), r"Expected bounds to be a pair \(lower, upper\), got 0.0"),
    "three bounds": (lambda: qp(Q, q, (0, 1, 2)), r"Expected bounds to be a pair \(lower, upper\), got \(0, 1, 2\)"),
    "max_steps, float": (lambda: jaxnnls.nnls(A, B, max_steps=2.5), "Expected max_steps to be an integer .*, got 2.5"),
    "max_steps, large": (lambda: jaxnnls.nnls(A, B, max_steps=10**10), "Expected max_steps to be an integer below"),
    "block_bytes": (lambda: jaxnnls.nnls(A, B, block_bytes=0), "Expected block_bytes to be a positive int, got 0"),
    "blocks, one bound": (lambda: next(jaxnnls.lsq_linear_blocks(A, [B], None)), "Expected bounds to be a pair"),
    "width, float": (lambda: next(jaxnnls.lsq_linear_blocks(A, [B], width=2.5)), "Expected width to be a positive int"),
    "block_bytes, float": (lambda: jaxnnls.nnls(A, B, block_bytes=1e6), "Expected block_bytes to be a positive int"),
}


def with_x64(solve, **options):
    with jax.enable_x64(True):
        return solve(A.astype("d"), B, **options)


VALUES = {
    "lower > upper": (lambda: ls(A, B, (1, 0)), "Expected lower <= upper, got lower > upper in 1 of 1 places"),
    "lower > upper in one": (lambda: ls(A, B, (0, np.array([1, -1, 1]))), "got lower > upper in 1 of 3 places"),
    "lower > upper, qp": (lambda: qp(Q, q, (1, np.zeros((3, 2)))), "got lower > upper in 6 of 6 places"),
    "lower is inf": (lambda: ls(A, B, (np.inf, np.inf)), "Expected lower < inf and upper > -inf"),
    "upper is -inf": (lambda: ls(A, B, (-np.inf, -np.inf)), "Expected lower < inf and upper > -inf"),
    "ridge": (lambda: jaxnnls.nnls(A, B, ridge=-1.0), "Expected ridge >= 0, got -1.0"),
    "l1": (lambda: jaxnnls.nnls(A, B, l1=np.float32(-0.5)), "Expected l1 >= 0, got -0.5"),
    "tol": (lambda: jaxnnls.nnls(A, B, tol=-1e-3), "Expected tol >= 0"),
    "tol of float64": (
        lambda: jaxnnls.nnls(A.astype("d"), B, tol=1e-10),
        r"Expected tol >= 1.2e-07, the rounding error of float32, got 1e-10: .*jax_enable_x64",
    ),
    "tol, float64 after all": (
        lambda: with_x64(jaxnnls.nnls, tol=1e-20),
        "the rounding error of float64, got 1e-20; None",
    ),
    "tol, nan": (lambda: jaxnnls.nnls(A, B, tol=np.nan), "Expected tol >= 0, got nan"),
    "ridge, nan": (lambda: jaxnnls.nnls(A, B, ridge=np.nan), "Expected ridge >= 0, got nan"),
    "l1, inf": (lambda: jaxnnls.nnls(A, B, l1=np.inf), "Expected a finite l1, got inf"),
    "smoothing": (lambda: jaxnnls.nnls(A, B, smoothing=-1.0), "Expected smoothing > 0, got -1.0; None gives"),
    "lower beyond float32": (lambda: ls(A, B, (1e39, np.inf)), "Expected lower < inf and upper > -inf"),
    "l1, lower < 0": (lambda: ls(A, B, (-1, 1), l1=0.1), "Expected lower >= 0 where l1 > 0"),
    "l1, no bounds": (lambda: ls(A, B, l1=0.1), "Expected lower >= 0 where l1 > 0"),
    "l1, lower < 0, qp": (lambda: qp(Q, q, (np.array([0, -1, 0]), 1), l1=0.1), "Expected lower >= 0 where l1 > 0"),
}

TYPES = {
    "A": (lambda: ls(A + 1j, B), "Expected a real A, got dtype complex64; solve for real and imaginary part"),
    "B": (lambda: jaxnnls.nnls(A, B.astype("c8")), "Expected a real B, got dtype complex64"),
    "q": (lambda: qp(Q, q * 1j), "Expected a real q"),
    "lower": (lambda: ls(A, B, (1j, 2)), "Expected a real lower"),
    "upper": (lambda: ls(A, B, (0, 1j)), "Expected a real upper"),
    "x_init": (lambda: jaxnnls.nnls(A, B, x_init=q * 1j), "Expected a real x_init"),
    "ridge": (lambda: jaxnnls.nnls(A, B, ridge=1j), "Expected a real ridge"),
    "text": (lambda: ls([["1", "2"]], [1]), "Expected numbers in A, of .* got dtype <U1"),
    "objects": (lambda: ls(A, B, (0, [object()])), "Expected numbers in upper, of .* got dtype object"),
    "durations": (lambda: ls(A, B.astype("m8[s]")), r"Expected numbers in B, of .* got dtype timedelta64\[s\]"),
    "name of a dtype": (lambda: jaxnnls.nnls(A, B, ridge="f"), "Expected numbers in ridge, of .* got dtype <U1"),
    "sparse A": (
        lambda: ls(scipy.sparse.csr_array(A), B),
        "Expected a dense A, got a sparse csr_array; give what its `todense` makes",
    ),
    "no A": (lambda: jaxnnls.nnls(None, B), "Expected numbers in A, got None"),
    "no ridge": (lambda: jaxnnls.nnls(A, B, ridge=None), "Expected numbers in ridge, got None"),
    "no lower": (lambda: ls(A, B, (None, 1)), "Expected numbers in lower, got None"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name):
    call, message = SHAPES[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", VALUES)
def test_value(name):
    call, message = VALUES[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", TYPES)
def test_type(name):
    call, message = TYPES[name]
    with pytest.raises(TypeError, match=message):
        call()


def test_masked_arrays_are_not_taken_for_their_data():
    masked = np.ma.masked_array(B, np.zeros(B.shape, bool))
    for call in (
        lambda: jaxnnls.nnls(A, masked),
        lambda: jaxnnls.nnls(A, Parameter(masked)),
        lambda: list(jaxnnls.lsq_linear_blocks(A, [masked])),
    ):
        with pytest.raises(TypeError, match="Expected B without a mask, got a masked array"):
            call()


def test_shapes_raise_while_tracing():
    with pytest.raises(ValueError, match="Expected B of shape"):
        jax.jit(ls).lower(A, B.T)
    with pytest.raises(ValueError, match="Expected x_init"):
        jax.eval_shape(lambda a, b: jaxnnls.nnls(a, b, x_init=b), A, B)
    with pytest.raises(ValueError, match="Expected A with two axes"):
        jax.grad(lambda a: jnp.sum(jaxnnls.nnls(a, B)))(A[None])
    with pytest.raises(TypeError, match="Expected a real A"):
        jax.eval_shape(jaxnnls.nnls, A + 1j, B)


def test_traced_values_do_not_raise():
    # They cannot be looked at: the status says what came of them (test_status.py).
    jax.eval_shape(lambda low, high, l1: ls(A, B, (low, high), ridge=-l1, l1=l1), 1.0, 0.0, 0.5)


def test_concrete_values_raise_under_jit_too():
    with pytest.raises(ValueError, match="Expected lower <= upper"):
        jax.eval_shape(lambda a: ls(a, B, (np.ones(3), np.zeros(3))), A)
    with pytest.raises(ValueError, match="Expected ridge >= 0"):
        jax.eval_shape(lambda a: jaxnnls.nnls(a, B, ridge=-1), A)
    with pytest.raises(ValueError, match="Expected lower >= 0 where l1 > 0"):
        jax.eval_shape(lambda a: ls(a, B, (-1, 1), l1=1), A)


def test_lists_are_arrays():
    x = jaxnnls.nnls([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0])
    np.testing.assert_allclose(x, [0, 1.7], atol=1e-5)
    sol = ls([[1, 2], [3, 4]], [5, 6], ([0, 0], [1, 1]), x_init=[0, 0])
    np.testing.assert_allclose(sol.x, [0.8, 0.9], atol=1)


def test_what_is_like_an_array():
    for A, b in ((memoryview(Q), array.array("f", [1, 2, 3])), (Parameter(jnp.asarray(Q)), q[:, 0])):
        np.testing.assert_allclose(jaxnnls.nnls(A, b), b, rtol=1e-6)
    upper = Parameter(jnp.asarray([0.5, 2, 0.5]))
    (solution,) = jaxnnls.lsq_linear_blocks(Parameter(jnp.asarray(Q)), [q], (0, upper))
    np.testing.assert_allclose(solution.x[:, 0], [0.5, 1, 0.5], rtol=1e-6)
    with pytest.raises(ValueError, match="bounds that all columns share"):
        list(jaxnnls.lsq_linear_blocks(Q, [q], (0, Parameter(jnp.ones((3, 2))))))
    gradient = jax.grad(lambda b: jnp.sum(jaxnnls.nnls(Q, Parameter(b)) ** 2))(q[:, 0])
    np.testing.assert_allclose(gradient, 2 * q[:, 0], rtol=1e-6)


def test_integers_beyond_int32_are_not_wrapped():
    np.testing.assert_allclose(jaxnnls.nnls(Q, q, ridge=10**20), 0, atol=1e-19)
    large = 3_000_000_000
    for b in ([large, large, 1000], np.array([large, large, 1000])):
        np.testing.assert_allclose(ls(Q, b, (0, np.full(3, 2**40))).x, b, rtol=1e-6, atol=1e-6 * large)
    blocks = jaxnnls.lsq_linear_blocks(np.eye(3, dtype=int) * large, [np.full((3, 1), large)])
    np.testing.assert_allclose(next(blocks).x, 1, rtol=1e-6)
