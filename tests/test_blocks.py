"""Blocks: their size, padding, what is shared, and that memory stays within the budget."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnnls
from jaxnnls._blocks import block_size, fill_columns, map_columns
from jaxnnls._queue import work_off


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
@pytest.mark.parametrize("fill", [False, True])
def test_columns_in_blocks(fill, N, size):
    a, c = np.arange(2 * N, dtype="f").reshape(2, N), np.arange(N, dtype="f")
    shared = np.array([[10.0], [20.0]], "f")
    seen = []

    def f(part):
        x, y, s, scalar = part
        seen.append((x.shape, y.shape, s.shape, scalar))
        return {"sum": x + s + y, "first": x[0] * 2}

    columns = (a, c, shared, None)
    empty = {"sum": np.zeros((2, N), "f"), "first": np.zeros(N, "f")}
    out = fill_columns(f, columns, empty, size) if fill else map_columns(f, columns, N, size)
    np.testing.assert_array_equal(out["sum"], a + shared + c)
    np.testing.assert_array_equal(out["first"], a[0] * 2)
    # Whole arrays of one size; None is passed through.
    width = min(size, max(N, 1))
    assert set(seen) == {((2, width), (width,), (2, 1 if N != 1 else width), None)}


@pytest.mark.parametrize("k", [1, 3])
def test_queue_computes_nothing_for_nobody(k):
    def step(given, state, own):
        return jnp.linalg.qr(jnp.transpose(given, (2, 0, 1)), mode="r")[:, 0, 0], jnp.zeros_like(own)

    def work(given, state, pending):
        return work_off(step, given, state, pending, 2)

    arguments = jnp.ones((4, 4, k)), jnp.zeros(k), jnp.zeros(k, bool)
    entry = jax.jit(work).lower(*arguments).compile().as_text().partition("\nENTRY")[2]
    assert "while(" in entry and "geqrf" not in entry  # a loop whose body has it
    assert abs(work(arguments[0], arguments[1], jnp.arange(k) == 0)[0] + 2) < 1e-6


def test_last_block_is_filled_up_with_real_columns():
    ends = []

    def f(x):
        jax.debug.callback(lambda x: ends.append(np.asarray(x)), x)
        return x

    jax.block_until_ready(map_columns(f, np.arange(1, 6, dtype="f")[None], 5, 3))
    jax.effects_barrier()
    total = np.sort(np.concatenate([end[0] for end in ends]))
    np.testing.assert_array_equal(total, [1, 2, 3, 3, 4, 5])


@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_work_off_gives_every_column_its_own_steps(size):
    goals = np.array([3, 0, 1, 7, 0, 2, 2], np.int32)
    calls = []

    def step(given, count, own):
        jax.debug.callback(lambda own: calls.append(int(own.sum())), own)
        return count + own, count + own < given

    pending = goals > 0
    count = jax.jit(lambda goals, pending: work_off(step, goals, 0 * goals, pending, size))(goals, pending)
    jax.effects_barrier()
    np.testing.assert_array_equal(count, goals)
    assert sum(calls) == goals.sum()
    # Round after round, those that are left are packed together.
    assert len(calls) == sum(-(-int((goals > i).sum()) // min(size, len(goals))) for i in range(goals.max()))


def test_a_queue_of_single_columns_names_its_slices_in_one_way():
    # Two instructions called dynamic_slice.7 and dynamic-slice.7 in one loop are one name to LLVM, and do not compile:
    # so failed, before, `box_qp` for 300 variables and 4 columns in float32.
    def work(goals, x):
        def step(goals, x, own):
            return jnp.where(own & (x > goals), x / 2, x), x > goals

        return work_off(step, goals, x, x > goals, 1)

    text = jax.jit(work).lower(jnp.ones(5), jnp.ones(5)).compile().as_text()
    loops = [set(re.findall(r"%(dynamic[-_]slice)[.0-9]* =", loop)) for loop in text.split("\n\n")]
    assert {"dynamic_slice"} in loops  # XLA still names them so
    assert all(len(names) < 2 for names in loops)


def test_blocks_stop_on_their_own():
    # A slow column does not keep other blocks going: the loop is inside the block.
    def f(n):
        return jax.lax.while_loop(lambda s: jnp.any(s[0] < n), lambda s: (s[0] + 1, s[1] + 1), (0 * n, 0 * n))[1]

    turns = jax.jit(lambda n: map_columns(f, n, 6, 2))(np.array([1, 2, 9, 3, 0, 0]))
    np.testing.assert_array_equal(turns, [2, 2, 9, 9, 0, 0])


def temporaries(
    m, n, N, block_bytes, solver=lambda A, B, block_bytes: jaxnnls.lsq_linear(A, B, block_bytes=block_bytes)
):
    def solve(A, B):
        return solver(A, B, block_bytes=block_bytes)

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((m, n), (m, N)))
    return jax.jit(solve).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("m", "n"), [(64, 32), (32, 64)])
def test_memory_stays_within_the_budget(m, n):
    budget, N = 2**20, 2**15
    # What grows is of the size of B and x: x before it is written, and the dual; the rest is near the budget.
    assert temporaries(m, n, N, budget) < 1.5 * budget + 2 * 4 * (m + n) * N


@pytest.mark.parametrize(("m", "n"), [(64, 32), (32, 64), (48, 12)])
def test_memory_of_nnls_does_not_grow_with_the_columns(m, n):
    budget = 2**20
    # What grows with N is a few bytes a column, not its data (7 to 12 budgets), and the rest is near the budget.
    assert temporaries(m, n, 2**15, budget, jaxnnls.nnls) < 1.5 * budget + 16 * 2**15
