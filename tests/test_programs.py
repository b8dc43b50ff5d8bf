"""Eager calls: the programs they take, in two stages and for other numbers of columns, and what these solve."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from problems import Problem

import jaxnnls
from jaxnnls import Status, _programs, _stages
from jaxnnls._problem import Arguments, assemble


@pytest.fixture(autouse=True)
def no_programs(monkeypatch):
    monkeypatch.setattr(_programs, "programs", {})


@pytest.mark.parametrize(
    ("calls", "room", "expected"),
    [
        # Its own, one that exists, a power of two, and so on; none for less than half of what it holds.
        ([862, 700, 900, 1000, 431, 430, 1292, 862], 10**6, [862, 862, 1024, 1024, 862, 512, 2048, 862]),
        # An N keeps its program, though a smaller one comes to exist that would do.
        ([800, 500, 700, 600, 500], 10**6, [800, 800, 800, 800, 800]),
        # Little is added to what is large.
        ([10_000, 9_950, 9_800, 20_001], 100, [10_000, 10_000, 9_856, 20_032]),
        ([5, 4, 3], 0, [5, 5, 3]),
        ([3, 0, 1, 0], 10**6, [3, 0, 1, 0]),
    ],
)
def test_choice(calls, room, expected):
    sizes = {}
    assert [_programs._program(sizes, N, room) for N in calls] == expected


def test_fewer_columns_take_the_same_program(monkeypatch):
    traces = []
    monkeypatch.setattr(_stages, "assemble", lambda *a: traces.append(a) or assemble(*a))
    rng = np.random.default_rng(0)
    A, B = rng.random((4, 7)).astype("f"), rng.random((4, 12)).astype("f")
    B[1, 2] = np.nan
    bounds = np.zeros(7, "f"), rng.uniform(0.1, 0.5, (7, 12)).astype("f")
    whole = jaxnnls.lsq_linear(A, B, bounds, x_init=bounds[1])
    first = len(traces)
    assert first
    for N in (7, 11):
        upper = bounds[1][:, :N]
        part = jaxnnls.lsq_linear(A, B[:, :N], (bounds[0], upper), x_init=upper)
        np.testing.assert_array_equal(part.status, np.where(np.arange(N) == 2, Status.NONFINITE, Status.CONVERGED))
        for a, b in zip(part, whole):
            assert a.dtype == b.dtype and a.shape == (*b.shape[:-1], N)
        for name in ("x", "dual", "residual_norm"):
            a, b = getattr(part, name), getattr(whole, name)[..., :N]
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    assert len(traces) == first


@pytest.fixture
def solve(monkeypatch):
    """In the place of a solver: twice B, and the shapes of B that it was traced for."""

    def f(arguments, block_bytes, quadratic, output):
        solve.traces.append(jnp.shape(arguments.columns))
        return 2 * arguments.columns + arguments.ridge

    solve = SimpleNamespace(traces=[])
    for name in ("solve_at_once", "solve_in_stages"):
        monkeypatch.setattr(_programs, name, jax.jit(f, static_argnums=(1, 2, 3)))
    solve.eagerly = lambda A, B, **options: _programs.solve(
        Arguments(A, B, *[options.get(name) for name in Arguments._fields[2:]]),
        2**20,
        options.get("quadratic", False),
        None,
    )
    return solve


def test_leading_axes(solve):
    A, B = np.eye(3, dtype="f"), np.arange(36, dtype="f").reshape(2, 3, 6)
    for N in (6, 5):
        np.testing.assert_array_equal(solve.eagerly(A, B[..., :N], ridge=0.0), 2 * B[..., :N])
    assert solve.traces == [(2, 3, 6)]


def test_what_cannot_hold_nan_without_rounding_has_its_own_program(solve):
    # Integers of any size beside a bfloat16 A would be rounded to it.
    A = jnp.eye(3, dtype=jnp.bfloat16)
    for B in (np.full((3, 6), 257), jnp.full((3, 6), 257.0)):
        for N in (6, 5):
            np.testing.assert_array_equal(solve.eagerly(A, B[..., :N], ridge=0.0), np.full((3, N), 514))
    assert solve.traces == [(3, 6), (3, 5)] * 2


def test_other_arguments_are_other_programs(solve):
    A, B = np.eye(3, dtype="f"), np.ones((3, 8), "f")
    for matrix, ridge in ((A, 0.0), (jnp.asarray(A, "bfloat16"), 0.0), (A, jnp.zeros(()))):
        for N in (8, 6):
            np.testing.assert_array_equal(solve.eagerly(matrix, B[:, :N], ridge=ridge), np.full((3, N), 2))
    assert solve.traces == [(3, 8)] * 3


def test_a_few_columns_of_a_quadratic_program_are_solved_in_another_way(solve):
    A, B = np.eye(3, dtype="f"), np.ones((3, 12), "f")
    for N in (10, 9, 8, 7, 11):
        assert solve.eagerly(A, B[:, :N], ridge=0.0, quadratic=True).shape == (3, N)
    assert solve.traces == [(3, 10), (3, 8), (3, 16)]


def test_what_is_traced_or_looks_for_nan_has_its_own_program(solve):
    A, B = np.eye(3), np.ones((3, 8), "f")
    solve.eagerly(A, B, ridge=0.0)
    jax.jit(solve.eagerly)(A, B[:, :6], ridge=0.0)
    jax.vmap(lambda r: solve.eagerly(A, B[:, :7], ridge=r))(jnp.ones(2))
    with jax.debug_nans(True):
        solve.eagerly(A, B[:, :4], ridge=0.0)
    solve.eagerly(A, B[:, 0], ridge=0.0)
    assert solve.traces == [(3, 8), (3, 6), (3, 7), (3, 4), (3,)]


def test_derivatives_take_programs_that_exist(solve):
    A, B = np.eye(3), np.ones((3, 8), "f")
    solve.eagerly(A, B, ridge=0.0)
    y, pull = jax.vjp(lambda B: solve.eagerly(A, B, ridge=0.0), B[:, :5])
    np.testing.assert_array_equal(pull(y)[0], np.full((3, 5), 4))
    assert solve.traces == [(3, 8)]


def random_problem(kind):
    rng = np.random.default_rng(0)
    if kind == "tall":
        A = rng.random((12, 5))
    elif kind == "fits":
        A = rng.random((5, 12))
    elif kind == "duplicates":
        A = np.repeat(rng.random((12, 5)), 2, axis=1)
    else:
        A = np.repeat(rng.random((20, 15)), 2, axis=1)
    m, n = A.shape
    B = A @ rng.random((n, 7)) if kind == "fits" else rng.random((m, 7))
    return A.astype("f"), B.astype("f")


@pytest.mark.parametrize("kind", ["fits", "duplicates"])
def test_stages_solve_as_one_program(kind):
    A, B = random_problem(kind)
    B[0, 3] = np.nan
    eager = jaxnnls.lsq_linear(A, B, (0, 4))
    jitted = jax.jit(lambda A, B: jaxnnls.lsq_linear(A, B, (0, 4)))(A, B)
    np.testing.assert_array_equal(eager.status, np.where(np.arange(7) == 3, Status.NONFINITE, Status.CONVERGED))
    for a, b in zip(eager, jitted):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_nobody_waits():
    rng = np.random.default_rng(0)
    A, B = jnp.asarray(rng.random((20, 10)), "f"), jnp.asarray(rng.random((20, 50_000)), "f")
    jaxnnls.nnls(A, B).block_until_ready()
    X = jaxnnls.nnls(A, B)
    assert not X.is_ready()  # it takes some tenths of a second
    assert not jaxnnls.lsq_linear(A, B, (0, np.inf)).status.is_ready()


TRACES = {
    "jit": lambda solve: jax.jit(lambda y: solve() + y)(0.0),
    "scan": lambda solve: jax.lax.scan(lambda y, _: (y, solve()), 0.0, length=2)[1][0],
    "cond": lambda solve: jax.lax.cond(jnp.array(True), solve, lambda: 0 * solve()),
    "checkpoint": lambda solve: jax.value_and_grad(jax.checkpoint(lambda y: jnp.sum(y * solve())))(1.0)[1],
    "vmap": lambda solve: jax.vmap(lambda y: solve() + y)(jnp.zeros(2))[0],
}


@pytest.mark.parametrize("kind", TRACES)
def test_constants_inside_of_a_trace(kind, solve):
    # Outside of it, 5 are solved by the program for 7.
    A, B = random_problem("duplicates")
    solve.eagerly(A, B, ridge=0.0)
    out = TRACES[kind](lambda: solve.eagerly(A, B[:, :5], ridge=0.0))
    expected = 2 * B[:, :5]
    np.testing.assert_allclose(out, jnp.sum(expected) if kind == "checkpoint" else expected, rtol=1e-6)


@pytest.mark.parametrize("N", [5, 7])
def test_constants_inside_of_jit(N):
    A, B = random_problem("duplicates")
    jaxnnls.nnls(A, B)
    expected = jaxnnls.nnls(A, B[:, :N])
    np.testing.assert_allclose(TRACES["jit"](lambda: jaxnnls.nnls(A, B[:, :N])), expected, atol=1e-4)
    assert jax.eval_shape(lambda: jaxnnls.lsq_linear(A, B[:, :N])).x.shape == expected.shape


def test_xla_computes_nothing_of_constants():
    # It does that slowly, while it compiles, and complains on stderr.
    A, B = random_problem("tall")
    of_arguments = jax.jit(lambda A, B: jaxnnls.nnls(A, B)).lower(A, B).compile().as_text()
    of_constants = jax.jit(lambda l1: jaxnnls.nnls(A, B, l1=l1)).lower(0.0).compile().as_text()
    assert of_constants.count(" dot(") == of_arguments.count(" dot(") > 10


def test_the_same_call_gives_the_same_numbers():
    for kind in ("duplicates", "misfits"):
        A, B = random_problem(kind)
        before = jaxnnls.nnls(A, B)
        jaxnnls.nnls(A, np.ones_like(B))
        jax.jit(jaxnnls.nnls)(A, B)
        np.testing.assert_array_equal(jaxnnls.nnls(A, B), before)


@pytest.mark.parametrize("kind", ["duplicates", "fits"])
def test_derivatives_outside_of_jit(kind):
    A, B = random_problem(kind)
    gradients = jax.grad(lambda A, B: jnp.sum(jaxnnls.nnls(A, B) ** 2), (0, 1))
    # Another N: what is added to the columns takes no part.
    for N in (7, 5):
        x = np.asarray(jaxnnls.nnls(A, B[:, :N]), float)
        problem = Problem(A.astype(float), B[:, :N].astype(float), 0 * x, 0 * x + np.inf)
        for a, b in zip(gradients(A, B[:, :N]), oracle.pullback(problem, x, 2 * x)):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    x, push = jax.jvp(lambda B: jaxnnls.nnls(A, B), (B,), (B,))
    np.testing.assert_allclose(push, x, atol=1e-4)  # homogeneous of degree one
