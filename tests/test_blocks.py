"""Blocks: their size, padding, what is shared, and that memory stays within the budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnnls
from jaxnnls._blocks import block_size, map_columns


@pytest.mark.parametrize(
    ("N", "bytes_per_column", "block_bytes", "size"),
    [
        (10, 1, 100, 10),  # all at once
        (10, 10, 99, 5),  # 9 would fit, but leave a last block of one
        (10, 10, 39, 3),  # 3 + 3 + 3 + 1: four blocks need 3
        (10, 10, 1, 1),  # at least one
        (0, 10, 100, 1),
        (1, 10, 100, 1),
        (10, 0, 5, 5),
        (1000, 1, 334, 334),
        (1001, 7, 7 * 500, 334),  # three blocks of 334, not 500 + 500 + 1
    ],
)
def test_block_size(N, bytes_per_column, block_bytes, size):
    assert block_size(N, bytes_per_column, block_bytes) == size


@pytest.mark.parametrize("N", [0, 1, 6, 7])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_map_columns(N, size):
    a, c = np.arange(2 * N, dtype="f").reshape(2, N), np.arange(N, dtype="f")
    shared = np.array([[10.0], [20.0]], "f")
    seen = []

    def f(part):
        x, y, s, scalar = part
        seen.append((x.shape, y.shape, s.shape, scalar))
        return {"sum": x + s + y, "first": x[0] * 2}

    out = map_columns(f, (a, c, shared, None), N, size)
    np.testing.assert_array_equal(out["sum"], a + shared + c)
    np.testing.assert_array_equal(out["first"], a[0] * 2)
    # Whole arrays of one size, traced once; None is passed through.
    width = min(size, max(N, 1))
    assert seen[0] == ((2, width), (width,), (2, 1 if N != 1 else width), None)
    assert len(seen) == 1


def test_last_block_is_filled_up_with_real_columns():
    ends = []

    def f(x):
        jax.debug.callback(lambda x: ends.append(np.asarray(x)), x)
        return x

    jax.block_until_ready(map_columns(f, np.arange(1, 6, dtype="f")[None], 5, 3))
    jax.effects_barrier()
    total = np.sort(np.concatenate([end[0] for end in ends]))
    np.testing.assert_array_equal(total, [1, 2, 3, 3, 4, 5])


def test_blocks_stop_on_their_own():
    # A slow column does not keep other blocks going: the loop is inside the block.
    def f(n):
        return jax.lax.while_loop(lambda s: jnp.any(s[0] < n), lambda s: (s[0] + 1, s[1] + 1), (0 * n, 0 * n))[1]

    turns = jax.jit(lambda n: map_columns(f, n, 6, 2))(np.array([1, 2, 9, 3, 0, 0]))
    np.testing.assert_array_equal(turns, [2, 2, 9, 9, 0, 0])


def temporaries(m, n, N, block_bytes, bounded=False):
    def solve(A, B):
        return jaxnnls.lsq_linear(A, B, (0, 1 if bounded else jnp.inf), block_bytes=block_bytes)

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((m, n), (m, N)))
    return jax.jit(solve).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("m", "n"), [(64, 32), (32, 64)])
def test_memory_stays_within_the_budget(m, n):
    budget = 2**20
    few, many = 512, 8192
    small, large = (temporaries(m, n, N, budget) for N in (few, many))
    columns = 4 * (m + n) * (many - few)
    # What grows is B and x, re-laid out, the dual and what is written of each.
    assert large - small < 4 * columns
    # Once everything is in one block, memory grows with the block; in blocks it is the budget and what A needs.
    assert small < 4 * budget + 4 * 4 * (m + n) * few
