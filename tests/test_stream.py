"""Blocks of columns in, solutions out."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxnnls


def test_blocks_are_the_columns_of_one_solve(x64):
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(9, 5)), rng.normal(size=(9, 11))
    bounds = (np.zeros(5), np.linspace(0.1, 0.5, 5))
    parts = list(jaxnnls.lsq_linear_blocks(A, np.split(B, [4, 4, 8], axis=1), bounds, ridge=0.1))
    assert [part.status.size for part in parts] == [4, 0, 4, 3]
    whole = jaxnnls.lsq_linear(A, B, bounds, ridge=0.1)
    for name in ("x", "dual", "status", "active_mask"):
        joined = np.concatenate([getattr(part, name) for part in parts], axis=-1)
        np.testing.assert_allclose(joined, getattr(whole, name), rtol=0, atol=20 * np.finfo(float).eps)
        assert joined.dtype == getattr(whole, name).dtype
    assert list(jaxnnls.lsq_linear_blocks(A, [])) == []


def test_next_block_is_fetched_while_one_is_solved():
    events = []

    def blocks():
        for i in range(3):
            events.append(f"read {i}")
            yield np.full((2, 1), i + 1.0)

    for i, solution in enumerate(jaxnnls.lsq_linear_blocks(jnp.eye(2), blocks())):
        events.append(f"write {i}")
        np.testing.assert_allclose(solution.x, i + 1.0)
    assert events == ["read 0", "read 1", "write 0", "read 2", "write 1", "write 2"]


def on_a_cache_line(shape):
    """An uninitialised array in memory that JAX would use in place."""
    memory = np.empty(4 * int(np.prod(shape)) + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][: 4 * int(np.prod(shape))].view("f").reshape(shape)


def test_memory_is_the_callers_once_a_call_has_returned():
    rng = np.random.default_rng(1)
    A, B = on_a_cache_line((60, 20)), on_a_cache_line((60, 500))
    A[:], given = rng.random(A.shape), rng.random((5, *B.shape), "f")

    def blocks():  # a reader with one buffer
        for block in given:
            B[:] = block
            yield B

    expected = [np.asarray(jaxnnls.nnls(A, block)) for block in given]
    for x, solution in zip(expected, jaxnnls.lsq_linear_blocks(A, blocks(), (0, np.inf))):
        np.testing.assert_allclose(solution.x, x, atol=1e-5)
        A[:] = np.nan


def test_what_fails_comes_after_what_is_done():
    def blocks():
        yield np.ones((2, 1))
        yield np.full((2, 1), 2.0)
        raise OSError("gone")

    for broken in (blocks(), [np.ones((2, 1)), np.full((2, 1), 2.0), np.ones(3)]):
        solutions, seen = jaxnnls.lsq_linear_blocks(np.eye(2), broken), []
        with pytest.raises((OSError, ValueError), match=r"gone|blocks of shape"):
            seen.extend(round(float(solution.x[0, 0]), 5) for solution in solutions)
        assert seen == [1, 2]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="all columns share"):
        list(jaxnnls.lsq_linear_blocks(np.eye(2), [np.ones((2, 3))], (0, np.ones((2, 3)))))
    with pytest.raises(ValueError, match="width to be a positive int, got 0"):
        list(jaxnnls.lsq_linear_blocks(np.eye(2), [np.ones((2, 3))], width=0))
    with pytest.raises(ValueError, match="blocks of shape"):
        list(jaxnnls.lsq_linear_blocks(np.eye(2), [np.ones(2)]))
    with pytest.raises(ValueError, match=r"to go with A of shape \(2, 2\)"):
        list(jaxnnls.lsq_linear_blocks(np.eye(2), [np.ones((3, 1))]))
